"""What `--cancel` takes and what it leaves, and how a cancellation is known afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.cluster.cancel import choose, flying_tasks
from suite.cluster.cancelled import (
    awaited_by_others,
    cancelled_stages,
    forget,
    note_awaited,
    remember,
    stop_awaiting,
)
from suite.cluster.ended import note_ended
from suite.cluster.profile import Profile
from suite.cluster.query import Task
from suite.cluster.reconcile import reconcile
from suite.cluster.runs import Array, Run, create_run
from suite.errors import InfraError
from suite.grid import Plan
from suite.spec.stages import Stage
from suite.store import Store
from tests.cluster.test_query import script
from tests.cluster.toys import diamond, fail, publish_all

PLAN = diamond()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def submitted(store: Store, grid: str, packs: list[list[int]], job: str, plan: Plan = PLAN) -> Run:
    """A run of a plan whose stages are in one array."""
    run = create_run(store, grid, plan.stages, Profile(cluster="slurm"))
    run.arrays = [Array(f"suite-{run.id}-00-all", "all", packs, job)]
    run.save()
    return run


def began(run: Run, *indices: int) -> None:
    """Leave the logs of tasks that began."""
    folder = run.logs / run.arrays[0].name
    folder.mkdir()
    for index in indices:
        (folder / f"{run.arrays[0].job}_{index}_0_log.out").touch()


def tasks(run: Run, state: str = "PENDING") -> list[Task]:
    return [Task(str(a.job), i, state, "None", a.name) for a in run.arrays for i in range(len(a.packs))]


def nodes(indices: list[int]) -> set[tuple[str, str]]:
    return {(PLAN.stages[i].kind, PLAN.stages[i].key) for i in indices}


def lost(indices: list[int]) -> dict[tuple[str, str], Stage]:
    return {(PLAN.stages[i].kind, PLAN.stages[i].key): PLAN.stages[i] for i in indices}


ALL = [[i] for i in range(len(PLAN.stages))]


def test_a_grid_that_is_alone_is_cancelled_whole(store: Store) -> None:
    run = submitted(store, "a", ALL, "1")
    choice = choose("a", flying_tasks([run], tasks(run)), None, {})
    assert len(choice.stop) == len(PLAN.stages) and not choice.keep


def test_what_another_grid_reads_is_kept_with_everything_above_it(store: Store) -> None:
    """Grid b has only the last evaluation of a; that needs relabel, synthesis, statistics, teacher and prepare."""
    last = len(PLAN.stages) - 1
    a, b = submitted(store, "a", ALL[:last], "1"), submitted(store, "b", [[last]], "2")
    choice = choose("a", flying_tasks([a, b], tasks(a) + tasks(b)), None, {})
    kept = {PLAN.stages[i].kind for f, _ in choice.keep for i in (PLAN.stages.index(s) for s in _stages(f))}
    assert kept == {"prepare", "teacher", "statistics", "synthesis", "relabel"}
    assert {why for _, why in choice.keep} == {"grid b needs it", "this needs it"}
    stopped = {s.spec.method for f in choice.stop for s in _stages(f)}
    assert stopped == {"random", "sre2l"}, "what grid b does not read goes"


def _stages(f):  # type: ignore[no-untyped-def]
    return [next(s for s in PLAN.stages if (s.kind, s.key) == n) for n in f.nodes]


def test_a_pack_stays_whole_if_one_of_its_stages_is_needed(store: Store) -> None:
    a, b = submitted(store, "a", [[0, 3], [1]], "1"), submitted(store, "b", [[7]], "2")
    choice = choose("a", flying_tasks([a, b], tasks(a) + tasks(b)), None, {})
    assert [f.task.index for f in choice.stop] == [1]


def test_tasks_that_another_launch_counts_on_are_kept(store: Store) -> None:
    run = submitted(store, "a", ALL, "1")
    note_awaited(store, "b", {("1", 3)})
    choice = choose("a", flying_tasks([run], tasks(run)), None, awaited_by_others(store, "a"))
    assert {why for f, why in choice.keep if f.task.index == 3} == {"grid b needs it"}
    assert {PLAN.stages[f.task.index].kind for f, _ in choice.keep} == {"prepare", "synthesis"}
    stop_awaiting(store, "b")
    assert not choose("a", flying_tasks([run], tasks(run)), None, awaited_by_others(store, "a")).keep


def test_only_cancels_tasks_that_hold_nothing_else(store: Store) -> None:
    run = submitted(store, "a", [[0], [3, 7], [4]], "1")
    choice = choose("a", flying_tasks([run], tasks(run)), nodes([3, 4]), {})
    assert [f.task.index for f in choice.stop] == [2]
    assert {why for _, why in choice.keep} == {"outside of --only"}


def test_cancelled_stages_are_held_back_until_asked_for(store: Store) -> None:
    run = submitted(store, "a", ALL, "1")
    gone = dict.fromkeys(nodes([4]), "job 1_4 by --cancel")
    remember(run.path, gone)
    held = reconcile(PLAN, store, cancelled=cancelled_stages(store, "a")).held
    assert [(t.index, t.why) for t in held] == [(4, "cancelled"), (8, "blocked")]
    assert held[0].detail == "job 1_4 by --cancel"
    assert not reconcile(PLAN, store, ["cancelled"], cancelled_stages(store, "a")).held
    assert not reconcile(PLAN, store, cancelled=cancelled_stages(store, "b")).held, "another grid is not concerned"
    forget([run.path], nodes([4]))
    assert not cancelled_stages(store, "a"), "what was submitted again is not cancelled any more"


def test_a_cancelled_stage_that_was_published_all_the_same_is_done(store: Store) -> None:
    run = submitted(store, "a", ALL, "1")
    remember(run.path, dict.fromkeys(nodes([4]), "by --cancel"))
    publish_all(PLAN, store)
    found = reconcile(PLAN, store, cancelled=cancelled_stages(store, "a"))
    assert len(found.done) == len(PLAN.stages)


def test_a_damaged_list_is_one_line_with_its_place(store: Store) -> None:
    run = submitted(store, "a", ALL, "1")
    (run.path / "cancelled.json").write_text("{")
    with pytest.raises(InfraError, match=r"cancelled\.json: cannot read"):
        cancelled_stages(store, "a")


SACCT = """1_0|COMPLETED|n1
1_1|CANCELLED by 4711|n1
1_[2-3,5%8]|CANCELLED by 0|n1
*** maintenance on Friday ***
1_4|NODE_FAIL|n1
9_1|CANCELLED by 0|n1
1_[6-9
1_77|CANCELLED|n1
"""


@pytest.mark.parametrize("source", ["sacct", "squeue"])
def test_scancel_is_found_out_by_what_slurm_remembers(
    store: Store, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(store, "a", ALL, "1")
    began(run, *range(len(PLAN.stages)))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    remembered: list[Task] = []
    if source == "sacct":
        script(tmp_path / "bin", "sacct", f"/bin/cat <<'END'\n{SACCT}END")
    else:
        states = {
            0: "COMPLETED",
            1: "CANCELLED by 4711",
            2: "CANCELLED",
            3: "CANCELLED",
            4: "NODE_FAIL",
            5: "CANCELLED",
        }
        remembered = [Task("1", i, s, "None", run.arrays[0].name) for i, s in states.items()]
    wrote, note = note_ended([run], lost(list(range(len(PLAN.stages)))), remembered, store)
    assert wrote
    assert bool(note) == (source == "squeue"), "sacct is missing there, and that is said"
    assert cancelled_stages(store, "a").keys() == nodes([1, 2, 3, 5])
    assert "CANCELLED by 4711" in cancelled_stages(store, "a")[PLAN.stages[1].kind, PLAN.stages[1].key]


def test_without_accounting_only_tasks_that_never_began_count_as_cancelled(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm itself keeps no record of a task that was cancelled while it waited; one that began may have died."""
    run = submitted(store, "a", ALL, "1")
    began(run, 1)
    monkeypatch.setenv("PATH", "/nonexistent")
    wrote, note = note_ended([run], lost([1, 3]), [], store)
    assert wrote and "no sacct" in note
    assert cancelled_stages(store, "a").keys() == nodes([3])
    assert cancelled_stages(store, "a")[PLAN.stages[3].kind, PLAN.stages[3].key].endswith("without having begun")


def test_what_slurm_removed_since_its_input_did_not_come_counts_as_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(store, "a", ALL, "1")
    began(run, 1)
    monkeypatch.setenv("PATH", "/nonexistent")
    wrote, _ = note_ended([run], lost([1, 4]), [], store)  # a teacher that died, and a synthesis that needs it
    assert not wrote and not cancelled_stages(store, "a")


def test_an_array_whose_submission_nobody_knows_of_counts_as_nothing(store: Store) -> None:
    run = submitted(store, "a", ALL, "1")
    run.arrays[0].job = None
    assert note_ended([run], lost([0]), [], store) == (False, "")


def test_a_stage_that_failed_by_itself_in_a_cancelled_task_stays_failed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(store, "a", [[3, 4]], "1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    fail(PLAN.stages[3], store, "oom")
    note_ended([run], lost([3, 4]), [Task("1", 0, "CANCELLED", "None", "x")], store)
    assert cancelled_stages(store, "a").keys() == nodes([4])


def test_the_newest_submission_decides(store: Store) -> None:
    old, new = submitted(store, "a", ALL, "1"), submitted(store, "a", ALL, "2")
    both = [Task("1", 4, "CANCELLED", "None", "x"), Task("2", 4, "TIMEOUT", "None", "y")]
    note_ended([new, old], lost([4]), both, store)
    assert not cancelled_stages(store, "a")


def test_what_slurm_removed_since_its_input_failed_was_cancelled_by_nobody(store: Store) -> None:
    run = submitted(store, "a", ALL, "1")
    removed = [Task("1", 4, "CANCELLED", "DependencyNeverSatisfied", "x")]
    assert note_ended([run], lost([4]), removed, store) == (False, "")
    assert not cancelled_stages(store, "a")
