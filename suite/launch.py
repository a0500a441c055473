"""Bring a grid about: plan, say what will run and why, and run it here or submit it to Slurm.

    python -m suite.launch GRID [--dry-run] [--profile NAME] ...

The same command again resumes: it submits what is missing and nothing else.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from suite.cluster.cancelled import cancelled_stages, forget, grid_runs, note_awaited
from suite.cluster.profile import Profile, find_profile, load_profile
from suite.cluster.reconcile import Reconciled, Todo, clear_published, reconcile
from suite.cluster.shards import Cut, cut
from suite.cluster.show import clean, plural, say, size, table
from suite.errors import Parser, guarded
from suite.grid import MAX_CELLS, Plan, estimate, load_plan
from suite.grid.expand import describe
from suite.grid.subset import subset
from suite.preflight import preflight, tell_missing
from suite.spec.stages import KINDS, Stage
from suite.store import Store
from suite.store.files import share_with_group
from suite.store.retries import KINDS as FAILURE_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from suite.cluster.query import Task
    from suite.cluster.runs import Run

_ONLY = "some of the cells, and what they need: method=e2d,ipc=10; an axis may be named twice, and so may the flag"
_FIRST = 5


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m suite.launch",
        description=(__doc__ or "").splitlines()[0],
        epilog="exit codes: 0 all done, or submitted; 1 some stages failed; 2 bad input; 3 nothing could be submitted",
    )
    parser.add_argument("grid", type=Path, nargs="?", metavar="GRID", help="a grid file, e.g. grids/quickstart.yaml")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    parser.add_argument("--variant", metavar="NAME", help="one of the grid's variants")
    parser.add_argument("--profile", default="local", metavar="NAME", help="site profile: slurm/NAME.yaml, or a file")
    parser.add_argument("--store", metavar="DIR", help="root of the store, instead of the profile's")
    parser.add_argument("--slots", type=int, metavar="N", help="local processes at once, instead of the profile's")
    parser.add_argument("--shards", type=int, metavar="N", help="cut every synthesis into up to N tasks")
    parser.add_argument("--max-cells", type=int, default=MAX_CELLS, metavar="N", help="refuse grids with more cells")
    parser.add_argument("--max-in-flight", type=int, metavar="N", help="tasks of an array at once, not the profile's")
    parser.add_argument("--only", action="append", default=[], metavar="AXIS=VALUE,...", help=_ONLY)
    parser.add_argument("--wait", action="store_true", help="Slurm: stay until the stages are published")
    parser.add_argument(
        "--retry",
        nargs="+",
        default=[],
        choices=(*FAILURE_KINDS, "cancelled"),
        metavar="KIND",
        help="run stages again that are held back since they failed in this way, or were cancelled",
    )
    parser.add_argument("--cancel", action="store_true", help="Slurm: cancel this grid's jobs, and submit nothing")
    parser.add_argument("--yes", action="store_true", help="cancel without asking")
    parser.add_argument("--list", action="store_true", help="print every method with its paper and defaults")
    arguments = parser.parse_args(argv)
    if arguments.grid is None and not arguments.list:
        parser.error("a grid is needed, e.g. grids/quickstart.yaml")
    actions = [f for f in ("list", "cancel", "dry_run", "wait") if getattr(arguments, f)]
    if len(actions) > 1:
        parser.error(f"--{actions[0]} and --{actions[1]} exclude each other".replace("_", "-"))
    if arguments.cancel and arguments.retry:
        parser.error("--cancel and --retry exclude each other")
    if arguments.yes and not arguments.cancel:
        parser.error("--yes goes with --cancel")
    return arguments


@dataclass
class Launch:
    """What a launch works on.

    Attributes:
        flying: The task of each stage that is in flight, by its position.
        runs: The runs that submitted these, however long ago.
    """

    arguments: argparse.Namespace
    plan: Plan
    profile: Profile
    store: Store
    state: Reconciled
    flying: dict[int, Task]
    runs: list[Run] = field(default_factory=list)

    @cached_property
    def pieces(self) -> Cut:
        """The stages to start, syntheses cut into shards."""
        return cut(self.stages, self.profile, self.store, self.arguments.shards)

    @property
    def stages(self) -> list[Stage]:
        """The stages to start, whole."""
        return [self.plan.stages[t.index] for t in self.todo]

    @property
    def todo(self) -> list[Todo]:
        """Stages to start now: those that are neither done, held back, nor in flight."""
        return [t for t in self.state.todo if t.index not in self.flying]

    def command(self, module: str) -> str:
        """The command to type next."""
        a = self.arguments
        words = ["python", "-m", module, str(a.grid)]
        if a.variant is not None:
            words += ["--variant", a.variant]
        if module != "suite.report":
            words += [word for only in a.only for word in ("--only", only)]
        if module == "suite.report":  # reads a store and knows no profiles
            return shlex.join([*words, "--store", self.profile.store])
        if a.profile != "local":
            words += ["--profile", a.profile]
        return shlex.join([*words, *(["--store", a.store] if a.store else [])])


def main() -> int:
    """Plan, print, and run or submit."""
    arguments = parse()
    if arguments.list:
        from suite.methods.__main__ import list_methods

        list_methods()
        return 0
    a = arguments
    given = {"store": a.store, "slots": a.slots, "shards": a.shards, "max_in_flight": a.max_in_flight}
    profile = load_profile(find_profile(a.profile), **given)
    if profile.group_readable:
        share_with_group()
    plan = subset(load_plan(a.grid, variant=a.variant, max_cells=a.max_cells), a.only)
    store = Store(Path(profile.store).absolute())
    if a.cancel:
        from suite.cluster.cancel import cancel_grid

        return cancel_grid(plan, profile, store, only=bool(a.only), yes=a.yes)
    state = reconcile(plan, store, a.retry, cancelled_stages(store, plan.name))
    launch = Launch(a, plan, profile, store, state, {})
    if profile.cluster == "slurm" and state.todo:
        (look_at_slurm if a.dry_run else ask_slurm)(launch)
    print_plan(launch)
    if a.dry_run:
        say("dry run: nothing was submitted")
        tell_missing(launch.stages, profile)
        return 0
    if not launch.todo:
        return nothing_to_do(launch)
    preflight(launch.stages, profile)
    return start(launch)


def look_at_slurm(launch: Launch) -> None:
    """For a dry run: learn which stages are in flight, if Slurm can be asked, and write nothing."""
    from suite.cluster.query import QueryFailed, user_tasks
    from suite.cluster.runs import any_in_slurm

    try:
        if any_in_slurm(launch.store):
            find_flying(launch, user_tasks())
    except QueryFailed as error:
        say(f"stages in flight count as to run: {error.what}")


def ask_slurm(launch: Launch) -> None:
    """Learn which stages earlier launches have waiting or running in Slurm, and how their other tasks ended."""
    from suite.cluster.query import tasks_after_epilogs
    from suite.cluster.runs import any_in_slurm, recent_runs
    from suite.cluster.submitting import await_others

    plan, store, retry = launch.plan, launch.store, launch.arguments.retry
    if await_others(store, [(s.kind, s.key) for t in launch.state.todo for s in [plan.stages[t.index]]]):
        launch.state = reconcile(plan, store, retry, cancelled_stages(store, plan.name))
    if not any_in_slurm(store):
        return
    tasks = tasks_after_epilogs(store, [(s.kind, s.key) for t in launch.state.todo for s in [plan.stages[t.index]]])
    find_flying(launch, tasks)
    for run in launch.runs:
        if adopted := run.adopt({t.name: t.job for t in tasks if t.live}):
            say(f"adopted {plural(adopted, 'array')} of run {run.id}, whose launch ended before it knew their ids")
    note_ended_tasks(launch, [r for r in recent_runs(store, plan.name) if r.cluster == "slurm"], tasks)
    others = {(t.job, t.index) for t in launch.flying.values() if not _submitted_by(plan.name, launch.runs, t)}
    note_awaited(store, plan.name, others)


def find_flying(launch: Launch, tasks: Sequence[Task]) -> None:
    """Note which stages these tasks will bring about, and which runs submitted them."""
    from suite.cluster.query import in_flight
    from suite.cluster.runs import runs_of_jobs

    live = [t for t in tasks if t.live]
    launch.runs = runs_of_jobs(launch.store, {t.name for t in live})
    nodes = in_flight(launch.runs, live)
    open_nodes = {(s.kind, s.key): t.index for t in launch.state.todo for s in [launch.plan.stages[t.index]]}
    launch.flying = {index: task for node, index in open_nodes.items() if (task := nodes.get(node)) is not None}


def note_ended_tasks(launch: Launch, runs: Sequence[Run], tasks: Sequence[Task]) -> None:
    """Write down how tasks ended that left no record, and decide again what runs."""
    from suite.cluster.ended import note_ended

    plan, retry = launch.plan, launch.arguments.retry
    lost = {(s.kind, s.key): s for t in launch.todo for s in [plan.stages[t.index]]}
    wrote, note = note_ended(runs, lost, tasks, launch.store, cancelled="cancelled" not in retry)
    if note:
        say(note)
    if wrote:
        launch.state = reconcile(plan, launch.store, retry, cancelled_stages(launch.store, plan.name))


def _submitted_by(grid: str, runs: Sequence[Run], task: Task) -> bool:
    return any(r.grid == grid and any(a.name == task.name for a in r.arrays) for r in runs)


def print_plan(launch: Launch) -> None:
    """What the grid asks for, what is there, what will run and why, and what it will cost."""
    plan, state = launch.plan, launch.state
    say(f"{plan.name}: {plural(len(plan.cells), 'cell')}, {len(plan.excluded)} excluded, store {launch.store.root}")
    for cell, why in plan.excluded[:_FIRST]:
        say(f"  excluded {describe(cell)}: {clean(why)}")
    if len(plan.excluded) > _FIRST:
        say(f"  ... and {len(plan.excluded) - _FIRST} more")
    counts = {
        name: Counter(plan.stages[i].kind for i in indices)
        for name, indices in {
            "planned": range(len(plan.stages)),
            "done": state.done,
            "in flight": launch.flying,
            "held": [t.index for t in state.held if t.index not in launch.flying],
            "to run": [t.index for t in launch.todo],
        }.items()
    }
    kinds = [k for k in KINDS if counts["planned"][k]]
    rows = [[k, *(c[k] for c in counts.values())] for k in kinds]
    table(["stage", *counts], [*rows, ["total", *(c.total() for c in counts.values())]])
    print_reasons(plan, launch.todo)
    print_reasons(plan, state.held, held=True)
    print_shards(launch.pieces)
    if launch.todo:
        e = estimate(plan, launch.stages)
        hours = f"{e.gpu_hours:.2f}" if e.gpu_hours >= 0.01 else "less than 0.01"
        say(f"estimate: {hours} GPU-hours, {size(e.total_bytes)}")
        say(f"  basis: {e.basis}")


def print_shards(pieces: Cut) -> None:
    """Into how many tasks syntheses are cut, and which methods cannot be."""
    if pieces.syntheses:
        there = f", {pieces.there} of them made already" if pieces.there else ""
        what = "1 synthesis" if pieces.syntheses == 1 else f"{pieces.syntheses:,} syntheses"
        say(f"cut: {what} into {plural(pieces.shards, 'shard')}{there}")
    if pieces.whole:
        say(f"in one task each, as their images are one part: {', '.join(sorted(pieces.whole))}")


def print_reasons(plan: Plan, items: list[Todo], held: bool = False) -> None:
    """How many stages run, or are held back, for which reason, with the first of each that has a story."""
    verb = "held back" if held else "to run"
    if counts := Counter(t.why for t in items):
        say(f"{verb}: " + ", ".join(f"{n} {why}" for why, n in sorted(counts.items())))
    told = [t for t in items if t.detail]
    for item in told[:_FIRST]:
        stage = plan.stages[item.index]
        say(f"  {stage.kind} {stage.key} {stage.label()}: {clean(item.reason)}")
    if len(told) > _FIRST:
        say(f"  ... and {len(told) - _FIRST} more")
    if held and items:
        say(f"  {retry_hint(items)}")


def retry_hint(held: list[Todo]) -> str:
    """What runs stages again that are held back."""
    kinds = sorted({t.kind for t in held} - {""})
    why = "they were cancelled" if kinds == ["cancelled"] else "they would fail again in the same way"
    return f"{why}; `--retry {' '.join(kinds)}` runs them all the same"


def nothing_to_do(launch: Launch) -> int:
    """Say so, and what comes next."""
    if launch.flying:
        held = len([t for t in launch.state.held if t.index not in launch.flying])
        more = f", {plural(held, 'stage')} held back" if held else ""
        say(f"nothing to submit: {plural(len(launch.flying), 'stage')} in flight{more}")
        if launch.arguments.wait:
            return wait(launch)
        say(f"next: {launch.command('suite.status')}")
        return 0
    if launch.state.held:
        say(f"nothing to submit: {plural(len(launch.state.held), 'stage')} held back")
    else:
        say("nothing to do: every stage is published")
    say(f"next: {launch.command('suite.report')}")
    return 1 if launch.state.held else 0


def start(launch: Launch) -> int:
    """Make a run of what is to do and run it, or submit it."""
    from suite.cluster.runs import create_run
    from suite.cluster.waves import make_waves

    todo = launch.todo
    stages: list[Stage] = launch.pieces.stages
    waves = make_waves(stages, launch.profile)
    if moved := clear_published(launch.plan, launch.store, todo):
        say(f"moved {plural(moved, 'corrupt or superseded artifact')} into quarantine")
    run = create_run(launch.store, launch.plan.name, stages, launch.profile)
    forget(grid_runs(launch.store, launch.plan.name), {(s.kind, s.key) for s in stages})
    say(f"run {run.id}: logs in {run.logs}")
    if launch.profile.cluster == "local":
        from suite.cluster.follow import progress_bar
        from suite.cluster.local import run_local

        with progress_bar(len(stages), launch.plan.name) as advance:
            run_local(run, waves, stages, launch.store, launch.profile, lambda fresh: advance(len(fresh)))
        return finish(launch)
    from suite.cluster.avoid import nodes_to_avoid
    from suite.cluster.slurm import PATIENCE, submit
    from suite.cluster.submitting import submitting

    flying = {(launch.plan.stages[i].kind, launch.plan.stages[i].key): task for i, task in launch.flying.items()}
    avoid = nodes_to_avoid(todo, {wave.resources.partition or "" for wave in waves})
    if named := sorted({node for nodes in avoid.values() for node in nodes}):
        say(f"not on {' '.join(named)}, where stages failed")
    patience = inf if launch.arguments.wait else PATIENCE
    try:
        with submitting(run):
            submit(run, waves, stages, launch.profile, flying, avoid, patience)
    finally:  # interrupted, too: what is submitted goes on
        print_submitted(launch, run)
    if launch.arguments.wait:
        return wait(launch)
    say(f"next: {launch.command('suite.status')}")
    return 0


def print_submitted(launch: Launch, run: Run) -> None:
    """What a run has in Slurm, and how to cancel it."""
    arrays = [a for a in run.arrays if a.job is not None]
    if arrays:
        stages = plural(sum(len(p) for a in arrays for p in a.packs), "stage")
        tasks = plural(sum(bool(p) for a in arrays for p in a.packs), "task")
        jobs = " ".join(str(a.job) for a in arrays)
        say(f"submitted {stages} as {tasks} in {plural(len(arrays), 'array')}: jobs {jobs}")
        say(f"cancel with: {launch.command('suite.launch')} --cancel")
    for array in run.arrays:
        if array.job is None:
            say(f"perhaps submitted, too: scancel --name={array.name}; {launch.command('suite.launch')} finds it")


def wait(launch: Launch) -> int:
    """Stay until what this and earlier launches submitted is published, or can no longer be."""
    from suite.cluster.follow import follow_slurm, progress_bar
    from suite.cluster.query import QueryFailed, user_tasks
    from suite.cluster.runs import recent_runs

    stages = [launch.plan.stages[t.index] for t in launch.state.todo]
    runs = {r.path: r for r in (*recent_runs(launch.store), *launch.runs) if r.cluster == "slurm"}.values()
    try:
        with progress_bar(len(stages), launch.plan.name) as advance:
            follow_slurm(list(runs), stages, launch.store, advance)
    except (KeyboardInterrupt, SystemExit):
        print(f"the jobs go on: {launch.command('suite.status')}", file=sys.stderr)
        raise
    launch.state, launch.flying = reconcile(launch.plan, launch.store, launch.arguments.retry), {}
    if launch.todo:
        try:
            note_ended_tasks(launch, [r for r in runs if r.grid == launch.plan.name], user_tasks())
        except QueryFailed as error:
            say(f"Slurm was not asked how tasks ended: {error.what}")
    return finish(launch)


def finish(launch: Launch) -> int:
    """Say how a run ended: 0 if everything that the grid needs is published, else 1."""
    state = reconcile(launch.plan, launch.store, cancelled=cancelled_stages(launch.store, launch.plan.name))
    left = [*state.todo, *state.held]
    if not left:
        say(f"done: {plural(len(state.done), 'stage')} published")
    else:
        say(f"{plural(len(left), 'stage')} of {len(launch.plan.stages)} not published:")
        rows = [[s.kind, s.key, s.label(), t.reason] for t in left[:20] for s in [launch.plan.stages[t.index]]]
        table(["stage", "key", "", "why"], rows)
        if len(left) > len(rows):
            say(f"... and {len(left) - len(rows)} more: {launch.command('suite.status')}")
        if state.todo:
            say(f"the same command runs them again: {launch.command('suite.launch')}")
        if state.held:
            say(retry_hint(state.held))
    say(f"next: {launch.command('suite.report')}")
    return 1 if left else 0


if __name__ == "__main__":
    guarded(main)
