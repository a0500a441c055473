from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop

from suite.learn import views
from tests.helpers import golden

RATIO = (3 / 4, 4 / 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes_in(n: int, size: int, seed: int = 0, least: int = 2) -> torch.Tensor:
    g = seeded(seed)
    h, w = (torch.randint(least, size + 1, (2, n), generator=g)).unbind()
    top = (torch.rand(n, generator=g) * (size - h + 1)).long()
    left = (torch.rand(n, generator=g) * (size - w + 1)).long()
    return torch.stack((top, left, h, w), dim=1)


def sliced(x: torch.Tensor, box: list[int], out: int) -> torch.Tensor:
    top, left, h, w = box
    return F.interpolate(x[:, :, top : top + h, left : left + w], (out, out), mode="bilinear", align_corners=False)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    low=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**31),
)
def test_boxes_lie_in_the_image_and_keep_the_area_or_are_central(height, width, low, seed):
    boxes = views.rrc_boxes(64, height, width, (low, 1.0), RATIO, seeded(seed))
    assert boxes.dtype == torch.int64 and boxes.shape == (64, 4) and boxes.device.type == "cpu"
    top, left, h, w = boxes.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (h > 0) & (w > 0) & (top + h <= height) & (left + w <= width)).all())
    central = (boxes == views._central_box(height, width, RATIO)).all(1)
    least = (h + 0.5) * (w + 0.5) >= low * height * width
    assert bool((least | central).all())


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 512), seed=st.integers(0, 2**31))
def test_scale_one_on_a_square_is_the_full_frame(size, seed):
    boxes = views.rrc_boxes(256, size, size, (1.0, 1.0), RATIO, seeded(seed))
    assert torch.equal(boxes, torch.tensor([0, 0, size, size]).expand(256, 4))


def test_boxes_are_distributed_as_torchvisions():
    n, size = 6000, 50
    ours = views.rrc_boxes(n, size, size + 14, (0.08, 1.0), RATIO, seeded(1)).double()
    image = torch.zeros(3, size, size + 14)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], list(RATIO)) for _ in range(n)]
    reference = torch.tensor(theirs, dtype=torch.float64)
    for moment in (1, 2):
        a, b = ours**moment, reference**moment
        error = ((a.var(0) + b.var(0)) / n).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 4 * error).all())
    for q in (0.1, 0.5, 0.9):
        assert bool(((ours.quantile(q, 0) - reference.quantile(q, 0)).abs() <= 2).all())


def test_elongated_images_fall_back_to_the_central_box():
    image = torch.zeros(3, 10, 100)
    expected = RandomResizedCrop.get_params(image, [1.0, 1.0], list(RATIO))
    boxes = views.rrc_boxes(20, 10, 100, (1.0, 1.0), RATIO, seeded())
    assert torch.equal(boxes, torch.tensor(expected).expand(20, 4))
    tall = RandomResizedCrop.get_params(image.transpose(1, 2), [1.0, 1.0], list(RATIO))
    assert views.rrc_boxes(1, 100, 10, (1.0, 1.0), RATIO, seeded())[0].tolist() == list(tall)


def test_boxes_repeat_with_the_seed():
    def draw(seed):
        return views.rrc_boxes(9, 32, 32, (0.08, 1.0), RATIO, seeded(seed))

    assert torch.equal(draw(4), draw(4)) and not torch.equal(draw(4), draw(5))


@pytest.mark.parametrize("size", [16, 33, 224])
@pytest.mark.parametrize("out", [16, 31])
def test_crop_resize_is_slice_then_interpolate(size, out):
    boxes = boxes_in(6, size, seed=size)
    x = torch.randn(6, 3, size, size, dtype=torch.float64, generator=seeded(2))
    expected = torch.cat([sliced(x[i : i + 1], box, out) for i, box in enumerate(boxes.tolist())])
    torch.testing.assert_close(views.crop_resize(x, boxes, out), expected, atol=1e-10, rtol=0)
    shared = views.crop_resize(x, boxes[:1], out)
    torch.testing.assert_close(shared, sliced(x, boxes[0].tolist(), out), atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, 10, 32, 100, 224])
def test_no_gradient_leaks_out_of_the_box(dtype, size):
    boxes = boxes_in(24, size, seed=size)
    x = torch.randn(24, 1, size, size, dtype=dtype, generator=seeded()).requires_grad_()
    views.crop_resize(x, boxes, size).sum().backward()
    inside = torch.zeros(24, 1, size, size, dtype=torch.bool)
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        inside[i, :, top : top + h, left : left + w] = True
    assert not x.grad[~inside].any()
    assert x.grad[inside].any()


def test_crop_resize_of_the_full_frame_is_the_identity():
    x = torch.randn(3, 3, 32, 32, generator=seeded())
    torch.testing.assert_close(views.crop_resize(x, torch.tensor([[0, 0, 32, 32]]), 32), x, atol=1e-4, rtol=0)


def test_crop_resize_has_the_right_gradient():
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=seeded(), requires_grad=True)
    boxes = torch.tensor([[1, 2, 4, 3], [0, 0, 6, 5]])
    assert torch.autograd.gradcheck(lambda t: views.crop_resize(t, boxes, 5), (x,))


def test_half_precision_is_sampled_at_full_coordinates():
    x = torch.randn(2, 3, 224, 224, generator=seeded()).bfloat16()
    boxes = boxes_in(2, 224)
    out = views.crop_resize(x, boxes, 224)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, views.crop_resize(x.float(), boxes, 224).bfloat16())
    with pytest.raises(TypeError, match="uint8"):
        views.crop_resize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), boxes, 8)


def test_views_equal_the_golden_e2d_trace():
    g = golden("e2d_trace")
    for t in range(8):
        view = views.flip(views.crop_resize(g["img"], g["A.box_used"][t], 16), g["A.flip"][t])
        torch.testing.assert_close(view, g["A.views_first8"][t], atol=1e-10, rtol=0)


def test_shared_views_equal_the_golden_sre2l_values_and_gradients():
    g = golden("bn_matching")
    for i in range(5):
        x = g["view.x"].clone().requires_grad_()
        view = views.crop_resize(x, g["view.box_top_left_h_w"][i : i + 1], 16)
        view = views.flip(view, g["view.flip"][i : i + 1].bool())
        view = views.roll(view, *g["view.roll_dy_dx"][i].tolist())
        torch.testing.assert_close(view, g["view.out"][i], atol=1e-10, rtol=0)
        (view * g["view.weight"]).sum().backward()
        torch.testing.assert_close(x.grad, g["view.grad_of_sum_weight_times_out"][i], atol=1e-9, rtol=0)


def test_a_shared_view_of_identical_images_is_identical():
    x = torch.randn(1, 3, 20, 20, generator=seeded()).expand(5, 3, 20, 20)
    view = views.crop_resize(x, views.rrc_boxes(1, 20, 20, (0.08, 1.0), RATIO, seeded(3)), 20)
    view = views.roll(views.flip(view, torch.tensor([True])), 3, 1)
    assert torch.equal(view, view[:1].expand_as(view))


def test_stored_fkd_crops_are_replayed():
    g = golden("fkd")
    image = g["crop.image_uint8_hwc"].permute(2, 0, 1)[None].double()
    boxes = (g["crop.coords"].double() * torch.tensor([24, 32, 24, 32])).round().long()
    enlarged = [i for i, (_, _, h, w) in enumerate(boxes.tolist()) if max(h, w) <= 16]
    assert enlarged  # the references smooth larger boxes in Pillow before they shrink them
    for i in enlarged:
        view = views.flip(views.crop_resize(image, boxes[i : i + 1], 16), g["crop.flip"][i : i + 1])
        assert (view[0].permute(1, 2, 0) - g["crop.out_uint8"][i].double()).abs().max() <= 1


def test_cutmix_boxes_equal_the_golden_ones():
    rows = golden("fkd")["bbox.S_lam_cx_cy_x1_y1_x2_y2"].tolist()
    for size, lam, cx, cy, *box in rows:
        assert list(views.cutmix_box(int(size), lam, int(cx), int(cy))) == box


def test_cutmix_equals_the_golden_mix_and_leaves_its_input_alone():
    g = golden("fkd")
    x = g["mix.x"].clone()
    mixed = views.cutmix(x, g["mix.perm"], tuple(g["mix.bbox"].tolist()))
    torch.testing.assert_close(mixed, g["mix.cutmix"], atol=0, rtol=0)
    assert torch.equal(x, g["mix.x"])


def test_cutmix_draws_are_uniform_and_repeat():
    draws = [views.draw_cutmix(4, 32, seeded(s)) for s in range(400)]
    lams = torch.tensor([d[0] for d in draws])
    assert abs(lams.mean() - 0.5) < 0.06 and lams.min() >= 0 and lams.max() < 1
    for _, perm, (x1, y1, x2, y2) in draws:
        assert sorted(perm.tolist()) == [0, 1, 2, 3]
        assert 0 <= x1 <= x2 <= 32 and 0 <= y1 <= y2 <= 32
    lam, perm, box = views.draw_cutmix(4, 32, seeded(0))
    assert (lam, perm.tolist(), box) == (draws[0][0], draws[0][1].tolist(), draws[0][2])


@pytest.mark.parametrize("f", [2, 3, 4])
def test_patch_shuffle_equals_the_golden_vectors(f):
    g = golden("rded")
    x = g[f"shuffle_f{f}.in"][None]
    used = x.shape[-1] // f * f
    for i in range(3):
        expected = g[f"shuffle_f{f}.{i}.out"]
        out = views.patch_shuffle(x, f, g[f"shuffle_f{f}.{i}.col_perm"], g[f"shuffle_f{f}.{i}.row_perm"])
        assert out.shape == x.shape
        assert torch.equal(out[0, :, :used, :used], expected)


def test_patch_shuffle_permutes_pixels_and_is_the_identity_for_one_strip():
    x = torch.randn(4, 3, 11, 11, generator=seeded())
    one = torch.zeros(4, 1, dtype=torch.long)
    assert torch.equal(views.patch_shuffle(x, 1, one, one), x)
    columns = torch.stack([torch.randperm(3, generator=seeded(i)) for i in range(4)])
    rows = torch.stack([torch.randperm(3, generator=seeded(9 + i)) for i in range(4)])
    each = views.patch_shuffle(x, 3, columns, rows)
    assert torch.equal(each.flatten(2).sort(-1).values, x.flatten(2).sort(-1).values)
    for i in range(4):
        assert torch.equal(each[i], views.patch_shuffle(x[i : i + 1], 3, columns[i], rows[i])[0])


def test_pad_crop_is_torchvisions_padding_and_crop():
    x = torch.randn(5, 3, 8, 8, generator=seeded())
    fill = torch.tensor([-1.0, 0.5, 2.0])
    offsets = torch.tensor([[0, 0], [4, 4], [8, 8], [1, 7], [3, 2]])
    for value, per_channel in ((0.0, torch.zeros(3)), (fill, fill)):
        padded = per_channel.view(1, 3, 1, 1).expand(5, 3, 16, 16).clone()
        padded[:, :, 4:12, 4:12] = x
        expected = torch.stack([p[:, t : t + 8, s : s + 8] for p, (t, s) in zip(padded, offsets.tolist(), strict=True)])
        assert torch.equal(views.pad_crop(x, 4, offsets, value), expected)
    assert torch.equal(views.pad_crop(x, 4, torch.tensor([[4, 4]])), x)


def test_flip_mirrors_only_the_chosen_images():
    x = torch.randn(3, 3, 4, 4, generator=seeded())
    out = views.flip(x, torch.tensor([True, False, True]))
    assert torch.equal(out[1], x[1]) and torch.equal(out[0], x[0].flip(2))
    assert torch.equal(views.flip(x, torch.tensor([False])), x)


def test_cutmix_sides_lose_a_pixel_when_odd():
    lam = 1 - (5.2 / 16) ** 2
    assert math.floor(16 * math.sqrt(1 - lam)) == 5
    assert views.cutmix_box(16, lam, 8, 8) == (6, 6, 10, 10)


@pytest.mark.parametrize("shared", [False, True])
def test_flips_and_shifts_of_a_crop_are_those_of_its_result(shared: bool) -> None:
    x = torch.rand(4, 3, 12, 12)
    boxes = torch.tensor([[1, 2, 7, 9], [0, 0, 12, 12], [3, 3, 5, 4], [2, 0, 6, 6]])[: 1 if shared else 4]
    heads = torch.tensor([True, False, True, False])[: len(boxes)]
    for shift in ((0, 0), (3, 0), (-2, 5), (12, 25)):
        expected = views.roll(views.flip(views.crop_resize(x, boxes, 12), heads), *shift)
        assert torch.equal(views.crop_resize(x, boxes, 12, heads, shift), expected)
