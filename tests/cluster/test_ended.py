"""Tasks that die without a word are known by Slurm's: the failure is recorded, counted, and its node avoided."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.cluster.ended import note_ended
from suite.cluster.query import Task, parse_squeue
from suite.cluster.reconcile import reconcile
from suite.store import Store
from suite.store.files import write_json
from tests.cluster.test_cancel import ALL, PLAN, lost, submitted
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
    write_json(run.path / "requeues" / "7_0-2.json", {"left": True})
    assert note_ended([run], lost([2, 3, 4]), [Task("7", 0, "FAILED", "None", "x", "n3")], store) == (False, "")
    assert not store.failures(PLAN.stages[2].kind, PLAN.stages[2].key)


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
