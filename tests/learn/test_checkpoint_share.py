"""Saving takes at most 5 % of a stage's time: after a save that took long the next one is as far away as that needs."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from suite.learn import checkpoint
from suite.learn.checkpoint import SHARE, Checkpoint
from suite.preemption import Preempted

#: Seconds of a loop's step.
STEP = 0.1


class Clock:
    """Time that passes only when it is told to: by a step, and by every save."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *saves: float, refused: bool = False) -> None:
        self.now, self.begin, took = 1000.0, 1000.0, cycle(saves)
        write = Checkpoint._write

        def slow(kept: Checkpoint, state: Any, grown: dict[str, Any] | None) -> None:
            self.now += next(took)
            if refused:
                raise OSError("the disk is full")
            write(kept, state, grown)

        monkeypatch.setattr(Checkpoint, "_write", slow)
        monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: self.now))

    @property
    def passed(self) -> float:
        return self.now - self.begin


def shares(kept: Checkpoint, clock: Clock, saves: int) -> list[float]:
    """What saving had taken of all the time, at each moment when the next save was due; the first has none before."""
    found: list[float] = []
    while len(found) <= saves:
        clock.now += STEP
        if kept.due():
            found.append(kept.spent / clock.passed)
            kept.save({})
    return found


@pytest.mark.parametrize("refused", [False, True], ids=["written", "refused"])
@pytest.mark.parametrize(
    "saves", [(0.5,), (0.5, 0.1, 2.0), (40.0, 0.01)], ids=["even", "uneven", "longer than the interval"]
)
def test_over_ten_saves_at_most_a_twentieth_of_the_time_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: tuple[float, ...], refused: bool
) -> None:
    clock = Clock(monkeypatch, *saves, refused=refused)
    kept = Checkpoint(tmp_path, 1.0)
    found = shares(kept, clock, 10)
    assert found[0] == 0 and max(found) <= SHARE == 0.05
    assert kept.spent == pytest.approx(sum(islice(cycle(saves), 11))), "each counts, the refused ones too"


def test_after_a_save_of_half_a_second_the_next_is_due_when_nine_and_a_half_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 0.5)
    kept = Checkpoint(tmp_path, 1.0)
    assert kept.save({}) and kept.spent == 0.5
    after = clock.now
    for passed in range(1, 10):
        clock.now = after + passed
        assert not kept.due(), "0.5 s are more than 5 % of what has passed"
    clock.now = after + 9.5
    assert kept.due()


def test_cheap_saves_are_as_often_as_wished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    shares(Checkpoint(tmp_path, 600.0), clock, 9)
    assert clock.passed == pytest.approx(10 * (600 + 0.5), abs=10 * STEP)


def test_who_is_asked_to_leave_saves_at_once_whatever_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    kept = Checkpoint(tmp_path, 600.0)
    kept.save({})
    assert not kept.due()
    kept.notice.take(15)
    assert kept.due()
    with pytest.raises(Preempted):
        kept.save({})
    assert kept.saves == 2 and clock.passed == 1.0
