"""Differentiable siamese augmentation: equal to the reference, siamese on request, and differentiable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
import torch

from suite.errors import UserError
from suite.learn import dsa
from tests.helpers import golden

PURE: dict[str, Callable[..., torch.Tensor]] = {
    "brightness": dsa.brightness,
    "saturation": dsa.saturation,
    "contrast": dsa.contrast,
}


ALIGNED = ("dsa_alignT.scale", "dsa_alignT.rotate")


def drawn(name: str, seed: int = 0, n: int = 5) -> dsa.Draws:
    return dsa.draw(name, n, 16, 16, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("topic", "mode"),
    [
        ("dsa.color", "siamese"),  # brightness, saturation and contrast chained
        *product(
            [*(f"dsa.{o}" for o in ("crop", "cutout", "flip", "scale", "rotate", *PURE)), *ALIGNED],
            ["siamese", "independent"],
        ),
    ],
)
def test_every_operation_equals_the_reference(topic: str, mode: str) -> None:
    v = golden("dc_dsa_dm")
    name, x = topic.partition(".")[2], v["dsa.x"]
    values = tuple(v[f"{topic}.{mode}.draw{i}"] for i in range(dsa.OPERATIONS.get(name, 1)))
    draws = dsa.Draws(name, values)
    if mode == "siamese":
        draws = draws.siamese()
    ours = PURE[name](x, *draws.values) if name in PURE else dsa.apply(x, draws, "alignT" in topic)
    torch.testing.assert_close(ours, v[f"{topic}.{mode}.out"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", list(dsa.OPERATIONS))
def test_siamese_draws_change_equal_images_equally_in_batches_of_any_size(name: str) -> None:
    images = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    draws = drawn(name).siamese()
    whole, half = dsa.apply(images, draws), dsa.apply(images[:3], draws)
    assert torch.equal(whole[:3], half)
    single = [dsa.apply(images[i : i + 1], draws)[0] for i in range(7)]
    torch.testing.assert_close(whole, torch.stack(single), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(dsa.OPERATIONS))
def test_gradients_reach_the_images(name: str) -> None:
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    draws = dsa.draw(name, 3, 8, 8, torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda images: dsa.apply(images, draws), (x,))


def test_mirroring_twice_changes_nothing() -> None:
    x, draws = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)), drawn("flip")
    mirrored = dsa.apply(x, draws)
    assert not torch.equal(mirrored, x) and torch.equal(dsa.apply(mirrored, draws), x)


def test_all_operations_of_a_strategy_are_drawn_equally_often_and_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    names = Counter(dsa.draw("color_crop_rotate", 1, 8, 8, generator).operation for _ in range(3000))
    assert set(names) == {"color", "crop", "rotate"} and min(names.values()) > 900


def test_draws_follow_from_their_generator_alone() -> None:
    for seed in range(20):
        a, b = drawn(dsa.STRATEGY, seed), drawn(dsa.STRATEGY, seed)
        assert a.operation == b.operation and all(torch.equal(u, v) for u, v in zip(a.values, b.values, strict=True))


@pytest.mark.parametrize(("side", "reach", "last"), [(32, 4, 32), (64, 8, 64), (128, 16, 128), (33, 4, 32)])
def test_shifts_and_cuts_reach_as_far_as_the_sheet_says(side: int, reach: int, last: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shifts = torch.cat(dsa.draw("crop", 20_000, side, side, generator).values)
    assert (int(shifts.min()), int(shifts.max())) == (-reach, reach)
    centres = torch.cat(dsa.draw("cutout", 20_000, side, side, generator).values)
    assert (int(centres.min()), int(centres.max())) == (0, last), "odd cuts have their centre on a pixel"


def test_an_unknown_operation_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="rotat"):
        dsa.draw("color_rotat", 1, 8, 8, torch.Generator())
    with pytest.raises(UserError, match="blur"):
        dsa.apply(torch.zeros(1, 3, 8, 8), dsa.Draws("blur", ()))
