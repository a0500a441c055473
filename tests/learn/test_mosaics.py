"""RDED's selection and mosaics: exact on golden vectors, and the invariants of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import resized_crop

from suite.errors import UserError
from suite.learn.mosaics import antialiased_crops, mosaic, select_crops, zero_pad
from tests.helpers import golden


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    return golden("rded")


@pytest.mark.parametrize(("tag", "factor"), [("select_f2", 2), ("select_f1", 1), ("select_m1", 2)])
def test_selection_and_mosaic_equal_the_reference(vectors: dict[str, Any], tag: str, factor: int) -> None:
    v = {k.removeprefix(f"{tag}."): t for k, t in vectors.items() if k.startswith(f"{tag}.")}
    candidates, size = v["images"], v["padded_first"].shape[-1]
    assert torch.equal(zero_pad(candidates[0, :1], size), v["padded_first"])
    logits = zero_pad(candidates.flatten(0, 1), size).flatten(1) @ v["weights"]
    ce = F.cross_entropy(logits, v["label"].expand(len(logits)), reduction="none").view(candidates.shape[:2])
    torch.testing.assert_close(ce, v["ce"], atol=1e-5, rtol=0)
    picked = select_crops(v["ce"], len(v["picked_image_crop"]))
    assert torch.equal(picked, v["picked_image_crop"])
    assert torch.equal(mosaic(candidates[picked[:, 0], picked[:, 1]], factor, size), v["mosaic"])


def test_mosaics_of_indivisible_sizes_equal_the_reference(vectors: dict[str, Any]) -> None:
    assert torch.equal(mosaic(vectors["mosaic_odd.patches"], 2, 15), vectors["mosaic_odd.out15"])
    assert torch.equal(mosaic(vectors["mosaic3.patches"], 3, 16), vectors["mosaic3.out16"])


def test_mosaic_cell_k_of_image_j_is_rank_k_times_ipc_plus_j() -> None:
    crops = torch.arange(12.0)[:, None, None, None].expand(12, 3, 4, 4)
    tiled = mosaic(crops, 2, 8)
    assert tiled.shape == (3, 3, 8, 8)
    for j in range(3):
        for k in range(4):
            row, column = divmod(k, 2)
            assert (tiled[j, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] == k * 3 + j).all()


def test_selection_takes_distinct_images_in_order_and_rejects_only_worse_ones() -> None:
    ce = torch.rand(30, 5, generator=torch.Generator().manual_seed(0))
    picked = select_crops(ce, 12)
    values = ce[picked[:, 0], picked[:, 1]]
    assert len(picked[:, 0].unique()) == 12
    assert (values.diff() >= 0).all()
    assert torch.equal(values, ce.min(dim=1).values.sort().values[:12])


def test_selection_with_fewer_images_than_crops_spreads_over_all_images() -> None:
    ce = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    picked = select_crops(ce, 14)
    assert torch.equal(picked[:, 0].bincount(minlength=7), torch.full((7,), 2))
    assert len({tuple(p) for p in picked.tolist()}) == 14
    assert (ce[picked[:, 0], picked[:, 1]].diff() >= 0).all()


def test_selection_refuses_more_crops_than_there_are() -> None:
    with pytest.raises(UserError, match="16 crops are wanted, 5 images give 15"):
        select_crops(torch.rand(5, 3), 16)


def test_antialiased_crops_equal_torchvision() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 40, 37, dtype=torch.float64, generator=g)
    boxes = torch.tensor(
        [[0, 0, 40, 37], [3, 5, 30, 30], [10, 11, 5, 7], [39, 36, 1, 1], [0, 7, 16, 16], [2, 0, 33, 16]]
    )
    for out in (16, 7):
        expected = torch.cat(
            [resized_crop(x[i : i + 1], *boxes[i].tolist(), [out, out], antialias=True) for i in range(len(x))]
        )
        torch.testing.assert_close(antialiased_crops(x, boxes, out), expected, atol=1e-9, rtol=0)


def test_antialiased_crop_of_the_whole_image_at_its_size_is_the_image() -> None:
    x = torch.rand(2, 3, 9, 9)
    assert torch.equal(antialiased_crops(x, torch.tensor([[0, 0, 9, 9]]).expand(2, 4), 9), x)
