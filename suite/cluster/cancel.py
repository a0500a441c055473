"""Cancelling a grid's jobs without taking stages from anything else that is in flight."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from suite.cluster.cancelled import awaited_by_others, forget, remember, stop_awaiting
from suite.cluster.profile import Profile
from suite.cluster.query import Task, call, live_tasks
from suite.cluster.runs import Array, Run, runs_of_jobs
from suite.cluster.show import agreed, plural, say
from suite.cluster.submitting import still_submitting, stop_submitting
from suite.errors import UserError
from suite.grid import Plan
from suite.spec.stages import input_kind
from suite.store import Store

Node = tuple[str, str]
#: Job ids in one scancel; far below what a command line may hold.
_CHUNK = 1000


@dataclass(frozen=True)
class Flying:
    """A task that Slurm has waiting or running.

    Attributes:
        task: Slurm's word.
        run: The run that submitted it.
        nodes: (kind, key) of its stages.
    """

    task: Task
    run: Run
    nodes: tuple[Node, ...]

    @property
    def grid(self) -> str:
        """Name of the plan that submitted it."""
        return self.run.grid

    def inputs(self) -> set[Node]:
        """(kind, key) of what its stages read."""
        inputs = self.run.inputs
        return {(input_kind(role), key) for node in self.nodes for role, key in inputs.get(node, {}).items()}


@dataclass
class Choice:
    """What `--cancel` does.

    Attributes:
        stop: Tasks that are cancelled.
        keep: Tasks of the grid that go on, and why.
    """

    stop: list[Flying] = field(default_factory=list)
    keep: list[tuple[Flying, str]] = field(default_factory=list)


def flying_tasks(runs: Iterable[Run], tasks: Sequence[Task]) -> list[Flying]:
    """Which stages each live task holds; tasks of other programs are left out."""
    arrays: dict[str, tuple[Run, Array]] = {array.name: (run, array) for run in runs for array in run.arrays}
    found = []
    for task in tasks:
        run, array = arrays.get(task.name, (None, None))
        if run is not None and array is not None and task.index < len(array.packs):
            found.append(Flying(task, run, tuple(run.keys[i] for i in array.packs[task.index])))
    return found


def choose(
    grid: str, flying: Sequence[Flying], wanted: Collection[Node] | None, awaited: Mapping[tuple[str, int], str]
) -> Choice:
    """Which tasks of a grid can be cancelled without taking a stage from anything else that is in flight.

    Args:
        grid: Name of the plan.
        flying: All tasks in flight.
        wanted: Stages that `--only` selects; None for all.
        awaited: Tasks by (job, index) that a launch of another grid found in flight and left to it, with its name.
    """
    mine = [f for f in flying if f.grid == grid]
    keep: dict[int, str] = {}
    for f in mine:
        if wanted is not None and not set(f.nodes) <= set(wanted):
            keep[id(f)] = "outside of --only"
        elif other := awaited.get((f.task.job, f.task.index)):
            keep[id(f)] = f"grid {other} needs it"
    holders: dict[Node, list[Flying]] = {}
    for f in mine:
        for node in f.nodes:
            holders.setdefault(node, []).append(f)
    # Whatever goes on keeps what its stages read, and so on upwards.
    front = [f for f in flying if f.grid != grid or id(f) in keep]
    while front:
        f = front.pop()
        for node in f.inputs():
            for holder in holders.get(node, ()):
                if id(holder) not in keep:
                    keep[id(holder)] = f"{'this' if f.grid == grid else 'grid ' + f.grid} needs it"
                    front.append(holder)
    return Choice([f for f in mine if id(f) not in keep], [(f, keep[id(f)]) for f in mine if id(f) in keep])


def stop(choice: Choice, unpublished: Collection[Node]) -> None:
    """Cancel tasks, after writing down which unpublished stages they would have brought about.

    Raises:
        QueryFailed: If Slurm refuses; what it refused is not recorded as cancelled.
    """
    by_run: dict[Path, list[Flying]] = {}
    for f in choice.stop:
        by_run.setdefault(f.run.path, []).append(f)
    for run, members in by_run.items():
        why = f"by --cancel, user {os.getuid()}, {datetime.now(UTC).isoformat(timespec='seconds')}"
        open_nodes = {n: f"job {f.task.job}_{f.task.index} {why}" for f in members for n in f.nodes if n in unpublished}
        remember(run, open_nodes)
        ids = _ids(members, choice)
        try:
            for start in range(0, len(ids), _CHUNK):
                call(["scancel", *ids[start : start + _CHUNK]])
        except BaseException:
            forget([run], open_nodes)
            raise


def _ids(members: Sequence[Flying], choice: Choice) -> list[str]:
    """Ids for scancel: an array's own where all of it goes, else its tasks'."""
    kept = {f.task.job for f, _ in choice.keep}
    whole = {f.task.job for f in members} - kept
    return [*sorted(whole, key=int), *(f"{f.task.job}_{f.task.index}" for f in members if f.task.job in kept)]


def cancel_grid(plan: Plan, profile: Profile, store: Store, *, only: bool, yes: bool) -> int:
    """Cancel what a grid has in flight and nothing else that is in flight needs, and say so.

    Args:
        plan: The grid's plan, or the part of it that `--only` selects.
        profile: The site.
        store: Where runs are written down.
        only: Whether the plan is a part.
        yes: Whether a person has agreed already; otherwise they are asked.

    Returns:
        The exit code.

    Raises:
        UserError: If nobody agreed, or runs of this profile have no jobs.
        QueryFailed: If Slurm does not answer.
    """
    if profile.cluster == "local":
        raise UserError("a local run ends with its launcher", hint="press Ctrl-C there; --cancel is for Slurm")
    launches = [] if only else still_submitting(store, plan.name)
    choice, unpublished = _found(plan, store, only)
    for why, count in sorted(Counter(why for _, why in choice.keep).items()):
        say(f"kept: {plural(count, 'task')}: {why}")
    if not choice.stop and not launches:
        say("nothing to cancel" if choice.keep else f"nothing to cancel: no task of {plan.name} is in flight")
        return 0
    what = f"{plural(len(choice.stop), 'task')} with {plural(len(unpublished), 'unpublished stage')}"
    what += f", and {plural(len(launches), 'launcher')} still submitting" if launches else ""
    if not yes and not agreed(f"cancel {what}?"):
        raise UserError(f"{what} would be cancelled; nothing was", hint="add --yes")
    if launches:
        say(f"stopping {plural(len(launches), 'launcher')} still submitting")
        for run in stop_submitting(launches):
            say(f"run {run.name} ends behind its present call of sbatch, or pause, and cancels what that submits")
        choice, unpublished = _found(plan, store, only)  # with what they submitted meanwhile
        what = f"{plural(len(choice.stop), 'task')} with {plural(len(unpublished), 'unpublished stage')}"
    stop(choice, unpublished)
    if not only:
        stop_awaiting(store, plan.name)
    say(f"cancelled {what}; they stay so until `--retry cancelled` asks for them")
    return 0


def _found(plan: Plan, store: Store, only: bool) -> tuple[Choice, set[Node]]:
    """What of a grid is in flight, and which of its stages are not published."""
    tasks = live_tasks()
    flying = flying_tasks(runs_of_jobs(store, {t.name for t in tasks}), tasks)
    wanted = {(s.kind, s.key) for s in plan.stages} if only else None
    choice = choose(plan.name, flying, wanted, awaited_by_others(store, plan.name))
    nodes = {n for f in choice.stop for n in f.nodes}
    published = {kind: store.published(kind) for kind in {kind for kind, _ in nodes}}
    return choice, {n for n in nodes if n[1] not in published[n[0]]}
