"""Tasks that die without a word are known by Slurm's: the failure is recorded, counted, and its node avoided."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from suite.cluster import runs
from suite.cluster.cancelled import cancelled_stages
from suite.cluster.ended import note_ended
from suite.cluster.query import Task, parse_squeue
from suite.cluster.reconcile import reconcile
from suite.cluster.requeue import IN_ORDER, STALLED
from suite.store import Attempt, Record, Store
from suite.store.files import write_json
from tests.cluster.test_cancel import ALL, PLAN, began, lost, submitted
from tests.cluster.test_query import script
from tests.cluster.toys import publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize(
    ("state", "kind", "avoided"),
    [
        ("NODE_FAIL", "infra", ("n3",)),
        ("BOOT_FAIL", "infra", ("n3",)),
        ("LAUNCH_FAILED", "infra", ("n3",)),
        ("FAILED", "infra", ("n3",)),
        ("TIMEOUT", "infra", ()),
        ("OUT_OF_MEMORY", "oom", ()),
    ],
)
def test_a_task_that_died_is_a_failure_of_the_stage_it_was_at(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, kind: str, avoided: tuple[str, ...]
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    script(tmp_path / "bin", "scancel", f"echo $* >> {tmp_path}/cancelled")
    for stage in PLAN.stages[:3]:
        publish(stage, store)
    run = submitted(store, "a", [[2, 3, 4]], "7")
    died = [Task("7", 0, state, "None", "x", "n3")]
    open_stages = lost([3, 4, 5])
    assert note_ended([run], open_stages, died, store) == (True, "")
    (record,) = store.failures(PLAN.stages[3].kind, PLAN.stages[3].key)
    assert record.failure is not None and record.failure["kind"] == kind
    assert record.job == "7_0" and f"on n3 ended as {state}" in record.failure["message"]
    assert not store.failures(PLAN.stages[4].kind, PLAN.stages[4].key), "what was not started did not fail"
    (todo,) = [t for t in (*reconcile(PLAN, store).todo, *reconcile(PLAN, store).held) if t.index == 3]
    assert todo.exclude_nodes == avoided
    assert note_ended([run], open_stages, died, store) == (False, ""), "once is enough"
    assert (tmp_path / "cancelled").exists() == (state == "LAUNCH_FAILED"), "what waits for a release goes"


def test_a_task_that_saved_and_left_in_order_is_no_failure(store: Store) -> None:
    """Its site does not requeue: the next launch goes on where it was, on any node."""
    run = submitted(store, "a", [[2, 3, 4]], "7")
    (run.path / "requeues").mkdir()
    write_json(run.path / "requeues" / "7_0-2.json", {"left": IN_ORDER})
    assert note_ended([run], lost([2, 3, 4]), [Task("7", 0, "FAILED", "None", "x", "n3")], store) == (False, "")
    assert not store.failures(PLAN.stages[2].kind, PLAN.stages[2].key)


def test_a_task_that_gets_no_further_is_a_failure_that_no_node_is_blamed_for(store: Store) -> None:
    run = submitted(store, "a", [[2, 3, 4]], "7")
    (run.path / "requeues").mkdir()
    write_json(run.path / "requeues" / "7_0-2.json", {"left": STALLED})
    note_ended([run], lost([2, 3, 4]), [Task("7", 0, "FAILED", "None", "x", "n3")], store)
    (record,) = store.failures(PLAN.stages[2].kind, PLAN.stages[2].key)
    assert record.failure_kind == "infra" and not record.node


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
            "oom",
        ),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in step 7.0 cgroup.", "oom"),
        ("srun: error: n3: task 0: Out Of Memory", "oom"),
        ("srun: error: n3: task 0: Killed", "infra"),
    ],
)
def test_a_step_that_ran_out_of_memory_is_known_by_its_log(store: Store, log: str, kind: str) -> None:
    """Since Slurm 22.05 the state of such a job is FAILED."""
    run = submitted(store, "a", ALL, "7")
    began(run, 2)
    (run.logs / run.arrays[0].name / "7_2_0_log.err").write_text("x" * 100_000 + f"\n{log}\n")
    note_ended([run], lost([2]), [Task("7", 2, "FAILED", "None", "x", "n3")], store)
    (record,) = store.failures(PLAN.stages[2].kind, PLAN.stages[2].key)
    assert (record.failure_kind, record.node) == (kind, "" if kind == "oom" else "n3")


def test_a_death_behind_a_stage_that_failed_by_itself_is_the_next_ones(store: Store) -> None:
    run = submitted(store, "a", [[2, 3]], "7")
    own = Record(PLAN.stages[2].kind, PLAN.stages[2].key, "", "diverged", {}, failure={"kind": "numeric"})
    Attempt(store, PLAN.stages[2], {}).fail(own, place=("n3", "7_0"))
    died = [Task("7", 0, "NODE_FAIL", "None", "x", "n3")]
    for found in (True, False):
        assert note_ended([run], lost([3]), died, store)[0] is found, "once is enough"
    (record,) = store.failures(PLAN.stages[3].kind, PLAN.stages[3].key)
    assert record.job == "7_0"


def test_a_death_at_a_stage_that_was_tried_again_is_its_own(store: Store) -> None:
    """It failed, the task was requeued and tried it again: the killed attempt is still there."""
    run = submitted(store, "a", [[2, 3]], "7")
    own = Record(PLAN.stages[2].kind, PLAN.stages[2].key, "", "failed", {}, failure={"kind": "infra"})
    Attempt(store, PLAN.stages[2], {}).fail(own, place=("n3", "7_0"))
    (store.home(PLAN.stages[2].kind, PLAN.stages[2].key) / "attempts" / "001-7-1-n3-1-abcdef").mkdir(parents=True)
    assert note_ended([run], lost([2, 3]), [Task("7", 0, "NODE_FAIL", "None", "x", "n3")], store)[0]
    assert len(store.failures(PLAN.stages[2].kind, PLAN.stages[2].key)) == 2
    assert not store.failures(PLAN.stages[3].kind, PLAN.stages[3].key)


def test_a_follower_that_left_the_queue_was_cancelled_by_nobody_that_is_known(store: Store) -> None:
    """Slurm removes it, though its input is there, when it has forgotten the task that it followed."""
    for stage in PLAN.stages[:4]:
        publish(stage, store)
    run = submitted(store, "a", ALL, "7")
    followed = runs.Array("followed", "all", [[2], [3]], "6")
    run.arrays = [followed, run.arrays[0]]
    run.arrays[1].follows = "6"
    run.save()
    (read,) = runs.recent_runs(store)
    assert note_ended([read], lost([2, 4]), [], store)[0] is False, "one of those that it followed failed"
    assert note_ended([read], lost([4]), [], store)[0] is True, "it left for no reason but scancel"


def test_a_stage_whose_nodes_keep_failing_is_given_up(store: Store) -> None:
    for stage in PLAN.stages[:3]:
        publish(stage, store)
    for n in range(3):
        run = submitted(store, "a", ALL, str(n + 1))
        assert reconcile(PLAN, store).todo[0].index == 3
        note_ended([run], lost([3]), [Task(str(n + 1), 3, "NODE_FAIL", "None", "x", f"n{n}")], store)
    found = reconcile(PLAN, store)
    assert 3 in {t.index for t in found.held} and 3 not in {t.index for t in found.todo}


def test_a_task_that_its_node_could_not_start_does_not_count_as_waiting() -> None:
    (task,) = parse_squeue("5|2|PENDING|launch failed requeued held||name")
    assert not task.live and task.word == "failed"
    for reason in ("JobHeldUser", "JobHeldAdmin", "DependencyNeverSatisfied"):
        (task,) = parse_squeue(f"5|2|PENDING|{reason}||name")
        assert task.live and not task.moving


def test_the_newest_submission_decides_whatever_the_clocks_of_login_nodes_say(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first launch's host was an hour ahead; its task was cancelled, the second's died with its node."""
    ahead = Clock(timedelta(hours=1))
    monkeypatch.setattr(runs, "datetime", ahead)
    first = submitted(store, "a", ALL, "1")
    ahead.by = timedelta()
    second, third = submitted(store, "a", ALL, "2"), submitted(store, "b", ALL, "3")
    assert [r.id for r in runs.recent_runs(store)] == [third.id, second.id, first.id]
    ends = [Task("1", 4, "CANCELLED", "None", "x"), Task("2", 4, "NODE_FAIL", "None", "y", "n2")]
    note_ended(runs.recent_runs(store, "a"), lost([4]), ends, store)
    assert not cancelled_stages(store, "a")
    (record,) = store.failures(PLAN.stages[4].kind, PLAN.stages[4].key)
    assert record.job == "2_4"


class Clock:
    """`datetime` on a host whose clock is wrong by some time."""

    strptime = datetime.strptime

    def __init__(self, by: timedelta) -> None:
        self.by = by

    def now(self, zone: tzinfo) -> datetime:
        return datetime.now(zone) + self.by
