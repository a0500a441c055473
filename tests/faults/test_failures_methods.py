"""What a method hands back is checked by the runner: a wrong one fails its own stage as the user's, siblings go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from suite.data.distilled import DistilledSet
from suite.errors import UserError
from suite.grid import Plan
from suite.methods import get
from suite.spec.datasets import dataset
from suite.stages.synthesis import kept
from suite.store import Store
from tests.faults.workers import Bench, bench

IMAGES, LABELS = torch.zeros(10, 3, 16, 16, dtype=torch.uint8), torch.arange(10)


def fails(self: Any, job: Any) -> None:
    raise ZeroDivisionError("in the method")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "returned NoneType - a DistilledSet"),
        ((IMAGES, LABELS), "returned tuple - a DistilledSet"),
        (DistilledSet(IMAGES.float(), LABELS), "torch.float32"),
        (DistilledSet(torch.full((10, 3, 16, 16), float("nan")), LABELS), "torch.float32"),
        (DistilledSet(IMAGES[:9], LABELS[:9]), "(9, 3, 16, 16)"),
        (DistilledSet(IMAGES[..., :8], LABELS), "(10, 3, 16, 8)"),
        (DistilledSet(IMAGES, LABELS + 1), "labels are not class-major"),
        (DistilledSet(IMAGES, LABELS.float()), "labels are not class-major"),
        (DistilledSet(IMAGES, LABELS.flip(0)), "labels are not class-major"),
        (DistilledSet([1, 2], LABELS), "images are list"),  # type: ignore[arg-type]
    ],
)
def test_a_set_that_breaks_the_contract_is_the_methods_fault(made: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        kept(made, "mine", dataset("digits"), 1)
    assert "method 'mine'" in caught.value.line() and said in caught.value.line()


@pytest.mark.ffcv
@pytest.mark.parametrize(
    ("synthesize", "said"),
    [
        (lambda self, job: DistilledSet(IMAGES, LABELS + 1), "labels are not class-major"),
        (fails, "ZeroDivisionError: in the method"),
    ],
)
def test_a_wrong_set_fails_its_stage_alone(
    tiny: tuple[Plan, Store, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    synthesize: Callable[..., Any],
    said: str,
) -> None:
    place: Bench = bench(tiny, tmp_path)
    monkeypatch.setattr(get("random"), "synthesize", synthesize)
    bad, good = place.position("synthesis", method="random"), place.position("synthesis", method="rded")
    assert place.work(bad, good) == 1
    (record,) = place.failures(bad)
    assert record.failure is not None and record.failure["kind"] == "user"
    assert said in record.failure["message"] and "\n" not in record.failure["message"]
    assert not place.failures(good) and place.record(good).status == "done"
