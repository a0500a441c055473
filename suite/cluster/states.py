"""The state of every stage of a plan: from artifacts and attempts, with Slurm's word where there is one.

Artifacts decide what is done; what Slurm says only explains the rest, so that the answer is right without it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from suite.cluster.cancelled import cancelled_stages
from suite.cluster.ended import never_began, not_begun
from suite.cluster.query import QueryFailed, Task, in_flight, user_tasks
from suite.cluster.reconcile import Todo, reconcile
from suite.cluster.runs import Run, any_in_slurm, of_other_accounts, recent_runs, runs_of_jobs
from suite.cluster.whereabouts import running_at, running_shards
from suite.cluster.words import LIVE
from suite.spec.heap import many_objects
from suite.spec.stages import Stage
from suite.store import Store

if TYPE_CHECKING:
    from suite.grid import Plan

#: States in the order in which they are shown. `missing` is not submitted; the others need no explanation.
STATES = ("done", *LIVE, "failed", "diverged", "cancelled", "preempted", "blocked", "missing")
Node = tuple[str, str]
#: Runs of a grid that are looked through for tasks that Slurm has forgotten.
_LAST_RUNS = 5


@dataclass(frozen=True, slots=True)
class State:
    """One stage.

    Attributes:
        stage: The stage.
        state: One of `STATES`.
        detail: Where it runs, why it waits, how it failed, what blocks it.
        job: `job_index` in Slurm, where it knows the stage's task.
        excluded: Nodes that its next attempt avoids.
    """

    stage: Stage
    state: str
    detail: str = ""
    job: str = ""
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A plan at one moment.

    Attributes:
        name: Of the plan.
        states: The state of each stage, in the plan's order.
        note: Why Slurm could not be asked; empty if it was, or was not needed.
    """

    name: str
    states: list[State] = field(default_factory=list)
    note: str = ""

    @property
    def alive(self) -> bool:
        """Whether something may still change by itself."""
        return any(s.state in LIVE for s in self.states)

    @property
    def excluded(self) -> list[str]:
        """Nodes that attempts of this plan avoid."""
        return sorted({node for s in self.states for node in s.excluded})


def states(plan: Plan, store: Store) -> Picture:
    """The state of each stage. Slurm is asked once if some stage is not done and jobs were ever submitted."""
    with many_objects():
        return _states(plan, store)


def _states(plan: Plan, store: Store) -> Picture:
    seen = reconcile(plan, store, cancelled=cancelled_stages(store, plan.name))
    items = {t.index: t for t in (*seen.todo, *seen.held)}
    tasks, said, runs, note = _ask(store) if items else ({}, [], [], "")
    live = {node for node, task in tasks.items() if task.live}
    open_stages = {(s.kind, s.key): s for s in (plan.stages[i] for i in items)}
    recent = recent_runs(store, plan.name)[:_LAST_RUNS] if items else []
    note = note or of_other_accounts(run.path for run in recent if run.cluster == "slurm")
    lost = {} if note else _last_jobs(recent, {n: s for n, s in open_stages.items() if n not in live})
    cut = running_shards(store, open_stages, [*runs, *recent], said)
    wanted: dict[str, set[str]] = {}
    for stage in plan.stages if items else ():
        wanted.setdefault(stage.kind, set()).add(stage.key)
    homes = {kind: store.attempted(kind, keys) for kind, keys in wanted.items()}
    found = []
    for index, stage in enumerate(plan.stages):
        item = items.get(index)
        if item is None:
            found.append(State(stage, "done"))
            continue
        there = stage.key in homes[stage.kind]
        attempts = store.attempts(stage.kind, stage.key) if there else []
        state = _state(stage, item, tasks.get((stage.kind, stage.key)), attempts)
        if (stage.kind, stage.key) in cut and state.state in ("pending", "missing"):
            state = replace(state, state="running", detail=cut[stage.kind, stage.key])
        elif state.state == "missing" and not state.job and (stage.kind, stage.key) in lost:
            state = _gone(stage, *lost[stage.kind, stage.key])
        found.append(state)
    return Picture(plan.name, found, note)


def _ask(store: Store) -> tuple[dict[Node, Task], list[Task], list[Run], str]:
    """What Slurm knows, by one query: the task of each stage, all tasks, their runs. Or nothing, and why."""
    if not any_in_slurm(store):
        return {}, [], [], ""
    try:
        tasks = user_tasks()
    except QueryFailed as error:
        return {}, [], [], f"Slurm was not asked: {error.what}"
    runs = runs_of_jobs(store, {t.name for t in tasks})[::-1]
    ended, live = ([t for t in tasks if t.live is alive] for alive in (False, True))
    return in_flight(runs, ended) | in_flight(runs, live), tasks, runs[::-1], ""


def _last_jobs(runs: Sequence[Run], lost: Mapping[Node, Stage]) -> dict[Node, tuple[str, bool]]:
    """The newest task of stages that are neither published nor in flight, and whether it was cancelled in the queue."""
    found: dict[Node, tuple[str, bool]] = {}
    for run in runs if lost else ():
        for array in run.arrays if run.cluster == "slurm" else ():
            for index, pack in enumerate(array.packs if array.job else ()):
                open_nodes = [run.keys[i] for i in pack if run.keys[i] in lost and run.keys[i] not in found]
                if open_nodes:
                    place = f"{array.job}_{index}", not_begun(run, array, index, lost)
                    found |= dict.fromkeys(open_nodes, place)
    return found


def _gone(stage: Stage, job: str, cancelled: bool) -> State:
    """A stage whose task Slurm has forgotten."""
    if cancelled:
        return State(stage, "cancelled", never_began(job), job)
    why = f"job {job} is gone and left no record; the next launch asks accounting why, or submits it again"
    return State(stage, "missing", why, job)


def _state(stage: Stage, item: Todo, task: Task | None, attempts: Iterable[Path]) -> State:
    job = f"{task.job}_{task.index}" if task else ""
    where = running_at(attempts, task)
    if where and task is not None and task.word == "suspended":
        return State(stage, "suspended", where, job)
    if where:
        return State(stage, "running", where, job)
    if task is not None and task.live:
        return _in_slurm(stage, task, job)
    if item.why in ("failed", "diverged", "cancelled", "blocked"):
        return State(stage, item.why, item.detail, job, item.exclude_nodes)
    if task is not None and task.word in ("cancelled", "preempted", "failed"):
        return State(stage, task.word, f"job {job} is {task.state}; it left no record", job)
    return State(stage, "missing", item.reason, job)


def _in_slurm(stage: Stage, task: Task, job: str) -> State:
    if task.word == "running":  # its process is at another stage of the pack, or still importing
        return State(stage, "pending", f"job {job} RUNNING: waits for its turn in the task", job)
    reason = f" ({task.reason})" if task.reason not in ("", "None") else ""
    return State(stage, task.word, f"job {job} {task.state or 'without a state'}{reason}", job)
