"""The state of every stage of a plan: from artifacts and attempts, with Slurm's word where there is one.

Artifacts decide what is done; what Slurm says only explains the rest, so that the answer is right without it too.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from suite.cluster.query import QueryFailed, Task, in_flight, live_tasks
from suite.cluster.reconcile import reconcile
from suite.cluster.runs import Run, recent_runs
from suite.spec.stages import Stage
from suite.store import Store

if TYPE_CHECKING:
    from suite.grid import Plan

#: States in the order in which they are shown.
STATES = ("done", "running", "pending", "failed", "diverged", "blocked", "missing")


@dataclass(frozen=True, slots=True)
class State:
    """One stage.

    Attributes:
        stage: The stage.
        state: One of `STATES`: `pending` is submitted and waits, `missing` is not submitted.
        detail: Where it runs, why it waits, how it failed.
    """

    stage: Stage
    state: str
    detail: str = ""


def states(plan: Plan, store: Store) -> tuple[list[State], str]:
    """The state of each stage, in the plan's order, and a note if Slurm could not be asked.

    Args:
        plan: The plan.
        store: The store.
    """
    seen = reconcile(plan, store)
    open_items = {t.index: t for t in (*seen.todo, *seen.held)}
    tasks, note = _ask([r for r in recent_runs(store) if r.cluster == "slurm"] if open_items else [])
    found = []
    for index, stage in enumerate(plan.stages):
        item = open_items.get(index)
        if item is None:
            found.append(State(stage, "done"))
            continue
        task = tasks.get((stage.kind, stage.key))
        live = running_at(store.attempts(stage.kind, stage.key), task)
        if live:
            found.append(State(stage, "running", live))
        elif task is not None:
            found.append(State(stage, "pending", f"job {task.job}_{task.index} {task.state} ({task.reason})"))
        elif item.why in ("failed", "diverged", "blocked"):
            found.append(State(stage, item.why, item.detail))
        else:
            found.append(State(stage, "missing", item.reason))
    return found, note


def _ask(runs: Sequence[Run]) -> tuple[Mapping[tuple[str, str], Task], str]:
    """Stages in flight by one query, or an empty answer and why."""
    if not runs:
        return {}, ""
    try:
        return in_flight(runs, live_tasks()), ""
    except QueryFailed as error:
        return {}, f"Slurm was not asked: {error.what}"


def running_at(attempts: Iterable[Path], task: Task | None) -> str:
    """Where a stage is being worked on, by its attempts' directories; empty if nowhere.

    An attempt of this host counts while its process lives. One of another host counts while Slurm has its task
    running; a directory alone may be what a killed attempt left.
    """
    for path in attempts:
        # <count>-<job>-<restart>-<host>-<pid>-<random>; a host's name may hold dashes.
        rest, _, _ = path.name.rpartition("-")
        head, _, pid = rest.rpartition("-")
        host = head.split("-", 3)[-1]
        if host == socket.gethostname():
            if pid.isdigit() and Path(f"/proc/{pid}").exists():
                return f"{host}, process {pid}"
        elif task is not None and not task.waiting:
            return f"{host}, job {task.job}_{task.index}"
    return ""
