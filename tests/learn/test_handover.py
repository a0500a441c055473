"""Questions to a device: what an iteration learns of the one before it, and what a checkpoint knows of that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.learn.handover import Flag

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that answers as CUDA does: when the next question is asked."""

    class Event:
        def record(self) -> None: ...

        def synchronize(self) -> None: ...

    empty = torch.empty

    def unpinned(*size: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return torch.device("cuda")


def test_the_host_answers_at_once_and_a_device_with_the_next_question(late: torch.device) -> None:
    assert [Flag(torch.device("cpu")).ask(x) for x in (YES, NO)] == [True, False]
    flag = Flag(late)
    assert [flag.ask(x) for x in (YES, NO, NO)] == [False, True, False]


def test_where_an_iteration_too_many_would_be_seen_the_answer_is_waited_for(late: torch.device) -> None:
    flag = Flag(late, wait=True)
    assert [flag.ask(x) for x in (YES, NO, YES)] == [True, False, True] and flag.state() is None


@pytest.mark.parametrize("asked", [YES, NO])
def test_a_resumed_run_gets_the_answers_of_an_uninterrupted_one(late: torch.device, asked: torch.Tensor) -> None:
    whole, other = Flag(late), Flag(late)
    assert not whole.ask(asked)
    other.restore(whole.state())
    assert other.ask(NO) is whole.ask(NO) is bool(asked)
    assert other.state() is whole.state() is False
    other.restore(Flag(late).state())
    assert not other.ask(YES), "nothing had been asked"
