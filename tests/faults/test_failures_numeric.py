"""NaN and Inf: the attempt stops, becomes a diverged row, stays out of means, and is not tried again by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from suite.cluster.reconcile import reconcile
from suite.grid import Plan
from suite.leaderboard.gather import from_plan
from suite.leaderboard.statistics import groups
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["sre2l", "e2d"])
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


def test_a_student_that_diverges_is_a_row_outside_the_mean(place: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.learn import students

    loss_function, calls = students.loss_function, iter(range(1000))

    def poisoned(*arguments: object) -> Callable[..., torch.Tensor]:
        loss = loss_function(*arguments)  # type: ignore[arg-type]
        return lambda *a: loss(*a) * (float("inf") if next(calls) == 2 else 1)

    monkeypatch.setattr(students, "loss_function", poisoned)
    position = place.position("evaluation", method="rded")
    assert place.work(position) == 1
    assert_diverged(place, position, "student diverged at step")
    rows = from_plan(place.store, place.plan.stages, place.plan.cells, place.plan.cell_keys)
    assert [h.method for h in rows.holes] == ["rded"] and rows.holes[0].reason.startswith("diverged")
    table = groups(rows)
    line = table[table["method"] == "rded"].iloc[0]
    assert (line["n"] == 0 and line["mean"] is None) or line["mean"] != line["mean"]
    assert any("diverged" in note for note in line["notes"])


@pytest.mark.parametrize("kind", ["relabel", "evaluation"])
def test_a_teacher_whose_logits_are_nan_is_noticed(place: Bench, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from suite.learn.teachers import Teacher

    monkeypatch.setattr(Teacher, "__call__", lambda self, x: self.model(x) * float("nan"))
    chosen = {"labels": "online"} if kind == "evaluation" else {}
    position = place.position(kind, **chosen)
    assert place.work(position) == 1
    assert_diverged(place, position, "finite" if kind == "relabel" else "diverged")
