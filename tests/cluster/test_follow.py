"""`--wait`: it ends when the last artifact is there, and gives up on tasks that neither run nor wait in the queue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from suite.cluster import follow
from suite.cluster.profile import Profile
from suite.cluster.query import QueryFailed, Task
from suite.cluster.runs import Array, Run, create_run
from suite.errors import InfraError
from suite.store import Store
from tests.cluster.toys import diamond, publish, publish_all

PLAN = diamond()
HALF_AN_HOUR = 1800.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def run(store: Store) -> Run:
    made = create_run(store, PLAN.name, PLAN.stages, Profile(cluster="slurm"))
    made.arrays = [Array(f"suite-{made.id}-00-all", "all", [[i] for i in range(len(PLAN.stages))], "1")]
    return made


class Site:
    """A Slurm that says of every task the same, and a clock that only pauses move.

    Attributes:
        asked: When it was asked.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Run, state: str, reason: str = "None") -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self.at: dict[int, Callable[[], None]] = {}
        self._tasks = [Task("1", i, state, reason, run.arrays[0].name) for i in range(len(PLAN.stages))]
        monkeypatch.setattr(follow, "user_tasks", self._answer)
        monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._pass))

    def _answer(self) -> list[Task]:
        assert len(self.asked) < 1000, "it waits for ever"
        self.asked.append(self.now)
        self.at.get(len(self.asked), lambda: None)()
        return self._tasks

    def _pass(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    "state",
    ["REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED", "STOPPED", "", "NEW_IN_25"],
)
def test_it_gives_up_after_half_an_hour_on_tasks_that_neither_run_nor_queue(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    site = Site(monkeypatch, run, state)
    with pytest.raises(
        InfraError, match=f"10 stages did not move for 1800 s: job 1_. is {state or 'without'}"
    ) as caught:
        follow.follow_slurm([run], PLAN.stages, store, lambda fresh: None)
    assert caught.value.kind == "infra" and "scancel" in caught.value.hint
    assert HALF_AN_HOUR < site.now <= HALF_AN_HOUR + 2 * follow._MAX_POLL


@pytest.mark.parametrize("reason", ["DependencyNeverSatisfied", "JobHeldAdmin", "JobHeldUser"])
def test_it_gives_up_on_what_waits_for_a_person(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    Site(monkeypatch, run, "PENDING", reason)
    with pytest.raises(InfraError, match=rf"is PENDING \({reason}\)"):
        follow.follow_slurm([run], PLAN.stages, store, lambda fresh: None)


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "CONFIGURING"])
def test_it_stays_with_what_runs_or_queues_however_long_that_takes(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    site = Site(monkeypatch, run, state)
    site.at[500] = lambda: publish_all(PLAN, store)
    follow.follow_slurm([run], PLAN.stages, store, lambda fresh: None)
    assert site.now > 4 * HALF_AN_HOUR


def test_a_stage_that_appears_starts_the_half_hour_again(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(monkeypatch, run, "REQUEUE_HOLD")
    site.at[50] = lambda: publish(PLAN.stages[0], store)
    with pytest.raises(InfraError, match="9 stages did not move for 1800 s"):
        follow.follow_slurm([run], PLAN.stages, store, lambda fresh: None)
    assert HALF_AN_HOUR < site.now - site.asked[49] <= HALF_AN_HOUR + 3 * follow._MAX_POLL


@pytest.mark.parametrize("state", ["RUNNING", "REQUEUED", "COMPLETING", ""])
@pytest.mark.parametrize("last", [1, 2, 40])
def test_it_ends_at_most_two_polls_after_the_last_artifact_whatever_slurm_still_says(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch, state: str, last: int
) -> None:
    site = Site(monkeypatch, run, state)
    site.at[last] = lambda: publish_all(PLAN, store)
    advanced: list[int] = []
    follow.follow_slurm([run], PLAN.stages, store, advanced.append)
    assert last <= len(site.asked) <= last + 2
    assert site.now - site.asked[last - 1] <= 2 * follow._MAX_POLL
    assert sum(advanced) == len(PLAN.stages)


def test_without_any_task_it_waits_as_long_as_an_artifact_may_be_late(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(monkeypatch, run, "RUNNING")
    site._tasks = []
    follow.follow_slurm([run], PLAN.stages, store, lambda fresh: None)
    assert follow.LATE_SECONDS <= site.now <= follow.LATE_SECONDS + 2 * follow._MAX_POLL
    site.at = {len(site.asked) + 5: lambda: publish_all(PLAN, store)}
    advanced: list[int] = []
    follow.follow_slurm([run], PLAN.stages, store, advanced.append)
    assert sum(advanced) == len(PLAN.stages), "shown late by the file system"


@pytest.mark.parametrize("state", ["FAILED", "NODE_FAIL", "CANCELLED", "PREEMPTED", "OUT_OF_MEMORY"])
def test_it_ends_at_the_second_question_where_slurm_says_that_the_tasks_died(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    site = Site(monkeypatch, run, state)
    site._tasks = site._tasks[:2]  # the others needed what these should have made, and Slurm removed them
    follow.follow_slurm([run], PLAN.stages, store, lambda fresh: None)
    assert len(site.asked) == 2


def test_a_task_that_ended_well_has_a_minute_to_show_its_artifact(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier run of the same stages died; what it says does not count."""
    old = create_run(store, PLAN.name, PLAN.stages, Profile(cluster="slurm"))
    old.arrays = [Array("old", "all", run.arrays[0].packs, "0")]
    site = Site(monkeypatch, run, "COMPLETED")
    site._tasks += [Task("0", i, "FAILED", "None", "old") for i in range(len(PLAN.stages))]
    follow.follow_slurm([run, old], PLAN.stages, store, lambda fresh: None)
    assert site.now >= follow.LATE_SECONDS


def test_it_ends_at_the_second_question_where_every_stage_shows_its_failure_or_needs_one_that_does(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(monkeypatch, run, "RUNNING")
    site._tasks = []

    def fail(name: str) -> None:
        for stage in (s for s in PLAN.stages if not s.inputs):
            folder = store.home(stage.kind, stage.key) / "failed"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    fail("000-earlier.json")
    site.at[1] = lambda: fail("001-now.json")
    follow.follow_slurm([run], PLAN.stages, store, lambda fresh: None)
    assert len(site.asked) == 2 and site.now <= 2 * follow._MAX_POLL


def test_it_gives_up_on_a_slurm_that_is_silent_for_half_an_hour(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(monkeypatch, run, "RUNNING")

    def silent() -> None:
        raise QueryFailed("no answer")

    site.at = dict.fromkeys(range(3, 1000), silent)
    with pytest.raises(InfraError, match="Slurm is silent: no answer"):
        follow.follow_slurm([run], PLAN.stages, store, lambda fresh: None)
    assert HALF_AN_HOUR < site.now - site.asked[1] <= HALF_AN_HOUR + 2 * follow._MAX_POLL
