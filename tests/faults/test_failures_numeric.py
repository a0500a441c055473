"""NaN and Inf: the attempt stops, becomes a diverged row, stays out of means, and is not tried again by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from suite.cluster.reconcile import reconcile
from suite.grid import Plan
from suite.store import Store
from tests.faults.workers import Bench, bench

pytestmark = pytest.mark.ffcv


@pytest.fixture
def place(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> Bench:
    return bench(tiny, tmp_path)


def assert_diverged(place: Bench, position: int, said: str) -> None:
    (record,) = place.failures(position)
    assert record.status == "diverged" and record.failure is not None
    assert record.failure["kind"] == "numeric" and said in record.failure["message"]
    found = reconcile(place.plan, place.store)
    (held,) = [t for t in found.held if t.index == position]
    assert held.why == "diverged"
    key = place.stage(position).key
    users = {i for i, s in enumerate(place.plan.stages) if key in s.inputs.values()}
    blocked = {t.index: t.detail for t in found.held if t.why == "blocked"}
    assert users <= set(blocked) and all(key in text and said in text for text in blocked.values())
    assert not {t.index for t in found.todo} & (users | {position})
    assert position in {t.index for t in reconcile(place.plan, place.store, ["numeric"]).todo}


@pytest.mark.parametrize(("method", "bad"), [("sre2l", float("nan")), ("sre2l", float("inf")), ("e2d", float("nan"))])
def test_a_synthesis_that_diverges_stops_within_one_interval(
    place: Bench, monkeypatch: pytest.MonkeyPatch, method: str, bad: float
) -> None:
    from suite.learn import synthesis

    step = synthesis.BatchRun._step
    steps: list[int] = []

    def poisoned(self: synthesis.BatchRun, x: torch.Tensor, optimizer: torch.optim.Adam, t: int) -> object:
        loss, n = step(self, x, optimizer, t)
        steps.append(t)
        (place.run / f"step-{t}").touch()
        return (loss * bad if t >= 1 else loss), n

    monkeypatch.setattr(synthesis.BatchRun, "_step", poisoned)
    monkeypatch.setattr(synthesis, "LOG_EVERY", 2)
    position = place.position("synthesis", method=method)
    assert place.work(position) == 1
    assert_diverged(place, position, "not finite by iteration 2")
    assert len(list(place.run.glob("step-*"))) == 2, "nothing is computed after the check"
