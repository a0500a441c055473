"""Padded random crops of whole batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from suite.learn.pad_views import PadViews
from suite.learn.view_policies import RandomViews
from tests.learn.synthesis_parts import tiny_job


def batch(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_view_is_a_window_of_the_padded_batch_the_same_for_every_image() -> None:
    x, views = batch(), PadViews(tiny_job(), 0, 5, 40, pad=3)
    padded = F.pad(x, (3, 3, 3, 3))
    for t in range(40):
        top, left = views.offsets[t, 0].tolist()
        assert torch.equal(views.views(x, t), padded[:, :, top : top + 16, left : left + 16])
    seen = views.offsets.flatten().tolist()
    assert set(seen) == set(range(7))


def test_gradients_stay_within_the_window() -> None:
    x, views = batch().requires_grad_(), PadViews(tiny_job(), 0, 5, 4, pad=2)
    (gradient,) = torch.autograd.grad(views.views(x, 0).sum(), x)
    top, left = views.offsets[0, 0].tolist()
    inside = F.pad(torch.ones(16, 16), (2, 2, 2, 2))
    hit = torch.zeros(20, 20)
    hit[top : top + 16, left : left + 16] = 1
    assert torch.equal(gradient[0, 0], (inside * hit)[2:18, 2:18])


def test_flip_and_shift_follow_the_crop_and_without_padding_nothing_changes() -> None:
    x, options = batch(), {"flips": True, "shift": (0, 5)}
    padded = PadViews(tiny_job(), 1, 5, 6, pad=2, **options)  # type: ignore[arg-type]
    plain = RandomViews(tiny_job(), 1, 5, 6, **options)  # type: ignore[arg-type]
    none = PadViews(tiny_job(), 1, 5, 6, pad=0, **options)  # type: ignore[arg-type]
    for t in range(6):
        top, left = padded.offsets[t, 0].tolist()
        window = F.pad(x, (2, 2, 2, 2))[:, :, top : top + 16, left : left + 16]
        assert torch.equal(padded.views(x, t), plain.views(window, t))
        assert torch.equal(none.views(x, t), plain.views(x, t))


def test_batches_have_crops_of_their_own() -> None:
    one, other = (PadViews(tiny_job(), n, 5, 30, pad=4).offsets for n in (0, 1))
    assert not torch.equal(one, other)
