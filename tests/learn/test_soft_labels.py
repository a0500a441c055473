"""Losses equal the references'; label sources give what they promise, and count what they need on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.transforms.functional import resized_crop

from suite.errors import UserError
from suite.learn.soft_labels import HardLabels, OnlineLabels, kl, loss_function, mse_gt
from suite.learn.teachers import load_teacher
from suite.learn.view_plans import CutMix, DrawnViews, Renderer, ViewPlan
from suite.spec.recipes import StudentRecipe
from tests.helpers import golden
from tests.learn.training import CPU, DIGITS, linear_teacher, some_digits


@pytest.mark.parametrize("temperature", [1, 4, 20, 30])
def test_kl_and_its_gradient_equal_the_reference(temperature: int) -> None:
    v = golden("fkd")
    student = v["loss.student"].clone().requires_grad_()
    loss = kl(student, v["loss.teacher"], temperature)
    loss.backward()
    torch.testing.assert_close(loss.detach(), v[f"loss.kl_T{temperature}"], atol=1e-10, rtol=0)
    torch.testing.assert_close(student.grad, v[f"loss.kl_T{temperature}.grad"], atol=1e-10, rtol=0)


def test_kl_equals_rded() -> None:
    v = golden("rded")
    student = v["kl.student"].clone().requires_grad_()
    loss = kl(student, v["kl.teacher"], 20)
    loss.backward()
    torch.testing.assert_close(loss.detach(), v["kl.T20"], atol=1e-10, rtol=0)
    torch.testing.assert_close(student.grad, v["kl.T20.grad"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("tag", "weight"), [("w1", 0.1), ("w15", 0.15), ("w025", 0.025)])
def test_mse_gt_and_its_gradient_equal_the_reference(tag: str, weight: float) -> None:
    v = golden("fkd")
    student = v["loss.student"].clone().requires_grad_()
    loss = mse_gt(student, v["loss.teacher"], v["loss.label"], weight)
    loss.backward()
    torch.testing.assert_close(loss.detach(), v[f"loss.mse_gt_{tag}"], atol=1e-10, rtol=0)
    torch.testing.assert_close(student.grad, v[f"loss.mse_gt_{tag}.grad"], atol=1e-10, rtol=0)


def test_kl_is_zero_with_zero_gradient_where_logits_differ_by_a_constant() -> None:
    teacher = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student = (teacher + 3).requires_grad_()
    loss = kl(student, teacher, 20)
    loss.backward()
    assert student.grad is not None
    assert abs(loss.item()) < 1e-14 and float(student.grad.abs().max()) < 1e-14


def test_hard_labels_are_mixed_by_the_area_that_was_really_pasted() -> None:
    # lambda says half of the image, but the box is clipped at the corner to 3 x 2 of 8 x 8 pixels.
    mix = CutMix(lam=0.5, perm=torch.tensor([1, 2, 0]), box=(0, 6, 3, 8))
    hard = torch.tensor([0, 1, 2])
    labels = HardLabels(4, 3)
    target = labels.targets(ViewPlan(torch.arange(3), cutmix=mix), torch.zeros(3, 3, 8, 8), hard)
    share = 6 / 64
    expected = torch.tensor([[1 - share, share, 0, 0], [0, 1 - share, share, 0], [share, 0, 1 - share, 0]])
    torch.testing.assert_close(target, expected)
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    ours = loss_function(StudentRecipe(loss="kl"), soft=False)(logits, target, hard)
    both = (1 - share) * F.cross_entropy(logits, hard) + share * F.cross_entropy(logits, hard[mix.perm])
    torch.testing.assert_close(ours, both)


def test_hard_labels_without_cutmix_are_plain_cross_entropy() -> None:
    v = golden("students_labels")
    hard = v["soft.hard_label"]
    target = HardLabels(10, 8).targets(ViewPlan(torch.arange(8)), torch.zeros(8, 3, 4, 4), hard).double()
    loss = loss_function(StudentRecipe(loss="mse_gt"), soft=False)(v["soft.student_logits"], target, hard)
    torch.testing.assert_close(loss, v["soft.ce_hard"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (10, 1), (256, 1), (257, 2), (1000, 2), (10_450, 2)])
def test_a_hard_label_takes_whole_bytes(classes: int, size: int) -> None:
    assert HardLabels(classes, 30).ledger() == [
        {"name": "hard labels", "kind": "label", "bytes": 30 * size, "shipped": True, "needed_for": "train"}
    ]


def test_online_labels_are_the_plain_mean_of_raw_logits() -> None:
    teachers = [linear_teacher(seed=s) for s in (0, 1, 2)]
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    target = OnlineLabels(teachers).targets(ViewPlan(torch.arange(5)), x, torch.zeros(5, dtype=torch.int64))
    expected = torch.stack([t.model(x) for t in teachers]).mean(0)
    torch.testing.assert_close(target, expected)
    assert not target.requires_grad and target.dtype == torch.float32


def test_the_ensemble_equals_the_reference() -> None:
    v = golden("students_labels")
    mean = v["soft.ensemble_logits"].mean(0)
    torch.testing.assert_close(torch.softmax(mean, 1), v["soft.ensemble"], atol=1e-10, rtol=0)


def test_online_labels_count_the_teachers_files(tmp_path: Path) -> None:
    from suite.learn import models

    path = tmp_path / "weights.safetensors"
    save_file(models.build("convnet1_w4", 10, 16).state_dict(), path)
    teacher = load_teacher("convnet1_w4", DIGITS, path=path)
    (found,) = OnlineLabels([teacher]).ledger()
    assert found["bytes"] == path.stat().st_size and found["kind"] == "teacher"


def test_online_labels_need_a_teacher() -> None:
    with pytest.raises(UserError, match="teacher"):
        OnlineLabels([])


def test_cross_entropy_refuses_soft_labels() -> None:
    with pytest.raises(UserError, match="hard"):
        loss_function(StudentRecipe(loss="ce"), soft=True)


RECIPE = StudentRecipe(batch=32, crop=(0.3, 1.0), cutmix=True, patch_shuffle=2)


def test_every_epoch_shows_every_image_once_and_keeps_the_partial_batch() -> None:
    drawn = DrawnViews(RECIPE, 70, 16, seed=3)
    assert drawn.batches == 3
    for epoch in (0, 1):
        parts = [drawn.plan(epoch, b).index for b in range(3)]
        assert [len(p) for p in parts] == [32, 32, 6]
        assert sorted(torch.cat(parts).tolist()) == list(range(70))
    assert not torch.equal(drawn.order(0), drawn.order(1))


def test_a_batch_is_capped_at_the_images_there_are() -> None:
    drawn = DrawnViews(RECIPE, 10, 16, seed=3)
    assert drawn.batches == 1 and len(drawn.plan(0, 0).index) == 10


def test_plans_depend_on_seed_epoch_and_batch_and_on_nothing_else() -> None:
    def boxes(seed: int, epoch: int, batch: int, before: int = 0) -> torch.Tensor:
        drawn = DrawnViews(RECIPE, 96, 16, seed)
        for b in range(before):
            drawn.plan(0, b)
        found = drawn.plan(epoch, batch).boxes
        assert found is not None
        return found

    assert torch.equal(boxes(0, 1, 2), boxes(0, 1, 2, before=2))
    assert not torch.equal(boxes(0, 1, 2), boxes(1, 1, 2))
    assert not torch.equal(boxes(0, 1, 2), boxes(0, 2, 2))
    assert not torch.equal(boxes(0, 1, 2), boxes(0, 1, 1))


def test_a_plan_without_choices_renders_the_normalised_image() -> None:
    distilled = some_digits(1)
    render = Renderer(distilled.images, DIGITS, CPU)
    plain = replace(RECIPE, crop=(1.0, 1.0), flip=False, cutmix=False, patch_shuffle=1)
    plan = DrawnViews(plain, 10, 16, seed=0).plan(0, 0)
    assert plan.boxes is None and plan.flips is None and plan.cutmix is None and plan.shuffle is None
    expected = (distilled.images[plan.index].float() / 255 - DIGITS.mean[0]) / DIGITS.std[0]
    torch.testing.assert_close(render(plan), expected)


def test_padding_is_black_before_normalisation() -> None:
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    plan = ViewPlan(torch.tensor([0]), offsets=torch.tensor([[0, 8]]), pad=4)
    view = Renderer(white, DIGITS, CPU)(plan)
    black, bright = (0 - DIGITS.mean[0]) / DIGITS.std[0], (1 - DIGITS.mean[0]) / DIGITS.std[0]
    assert view[0, 0, 0, 0] == pytest.approx(black, abs=1e-6)  # the first four rows are padding
    assert view[0, 0, 4, 11] == pytest.approx(bright, abs=1e-6)
    assert view[0, 0, 4, 12] == pytest.approx(black, abs=1e-6)  # and the last four columns


def test_views_are_shuffled_cropped_flipped_normalised_and_mixed_in_this_order() -> None:
    distilled = some_digits(1)
    plan = DrawnViews(replace(RECIPE, batch=10), 10, 16, seed=8).plan(0, 0)
    assert plan.shuffle and plan.boxes is not None and plan.flips is not None and plan.cutmix
    assert 0 < int(plan.flips.sum()) < 10 and plan.cutmix.share(16) > 0
    x = []
    for i, index in enumerate(plan.index):
        image = distilled.images[index].float() / 255
        image = torch.cat([image[:, :, 8 * c : 8 * c + 8] for c in plan.shuffle[0][i]], 2)
        image = torch.cat([image[:, 8 * r : 8 * r + 8] for r in plan.shuffle[1][i]], 1)
        image = resized_crop(image, *plan.boxes[i].tolist(), [16, 16], antialias=False)
        image = image.flip(2) if plan.flips[i] else image
        x.append((image - DIGITS.mean[0]) / DIGITS.std[0])
    expected = torch.stack(x)
    mixed, (x1, y1, x2, y2) = expected.clone(), plan.cutmix.box
    for i, partner in enumerate(plan.cutmix.perm):
        mixed[i, :, x1:x2, y1:y2] = expected[partner, :, x1:x2, y1:y2]
    torch.testing.assert_close(Renderer(distilled.images, DIGITS, CPU)(plan), mixed, atol=1e-5, rtol=0)
