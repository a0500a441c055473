"""Run a grid as a night: measure it afresh within a budget, compare it with earlier nights, say what changed.

    python -m suite.nightly GRID --profile NAME [--dry-run] [--quiet] [--accept]

A killed nightly goes on where it was with the same command. Exit codes are for mails: 0 nothing to say, 1 something
failed, drifted or was not reached, 2 bad input or over the budget, 3 nothing could be submitted.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from suite.cluster.profile import find_profile, load_profile
from suite.cluster.show import plural, say
from suite.errors import Parser, UserError, guarded
from suite.grid import MAX_CELLS, load_plan
from suite.nights.budget import check, expected
from suite.nights.history import accept, read_nights
from suite.nights.night import Task, choose_place, conclude, record, run_night, tail
from suite.nights.places import nights_folder
from suite.nights.summary import needs_attention
from suite.preflight import preflight, tell_missing
from suite.store import Store


def main() -> int:
    """Parse, check the budget, measure, compare, print."""
    arguments = _parse()
    task = _task(arguments)
    if arguments.accept:
        return accept_last(task)
    figures = expected(task.plan, task.profile, task.site, task.earlier)
    check(figures, task.profile, task.grid)
    shared = {(kind, key) for kind in task.profile.nightly.reuse for key in task.site.published(kind)}
    stages = [s for s in task.plan.stages if (s.kind, s.key) not in shared]
    if arguments.dry_run:
        say(f"{task.plan.name}: {plural(figures.stages, 'stage')} in {plural(figures.arrays, 'array')}")
        say(figures.text(task.profile))
        say(f"dry run: nothing was started; {plural(len(task.earlier), 'earlier night')} to compare with")
        tell_missing(stages, task.profile)
        return 0
    preflight(stages, task.profile)
    place = choose_place(task)
    began = time.monotonic()
    code, stopped = run_night(task, place, figures)
    if code not in (0, 1):
        sys.stderr.write(tail(place))
        return code
    night = record(task, place, stopped, time.monotonic() - began)
    text = conclude(task, place, night, figures)
    attention = needs_attention(night)
    if attention or not arguments.quiet:
        print(text, end="", flush=True)
    return 1 if attention else 0


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m suite.nightly", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", type=Path, metavar="GRID")
    parser.add_argument("--variant", metavar="NAME", help="one of the grid's variants")
    parser.add_argument("--profile", default="local", metavar="NAME", help="site profile: slurm/NAME.yaml, or a file")
    parser.add_argument("--store", metavar="DIR", help="root of the store, instead of the profile's")
    parser.add_argument("--quiet", action="store_true", help="print nothing if there is nothing to say")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="show the budget, and stop")
    action.add_argument("--accept", action="store_true", help="take what the last night found as the new normal")
    return parser.parse_args()


def _task(arguments: argparse.Namespace) -> Task:
    profile = load_profile(find_profile(arguments.profile), store=arguments.store)
    plan = load_plan(arguments.grid, variant=arguments.variant, max_cells=MAX_CELLS)
    site = Store(Path(profile.store).absolute())
    folder = nights_folder(site, plan.name)
    earlier, quiet = read_nights(folder), arguments.quiet
    return Task(arguments.grid, arguments.variant, profile, arguments.profile, plan, site, folder, earlier, quiet)


def accept_last(task: Task) -> int:
    """Take everything that the newest night found as the new normal."""
    if not task.earlier:
        raise UserError("there is no night to accept", where=str(task.folder))
    last = task.earlier[-1]
    count = accept(task.folder, last)
    say(f"night {last.night}: {plural(count, 'finding')} accepted; later nights are compared with it")
    return 0


if __name__ == "__main__":
    guarded(main)
