"""Run a grid as a night: measure it afresh within a budget, compare it with earlier nights, say what changed.

    python -m suite.nightly GRID --profile NAME [--dry-run] [--quiet] [--accept]

A killed nightly goes on where it was with the same command. Exit codes are for mails: 0 nothing to say, 1 something
failed, drifted or was not reached, 2 bad input or over the budget, 3 nothing could be submitted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from suite.cluster.profile import Profile, find_profile, load_profile
from suite.cluster.reconcile import reconcile
from suite.cluster.show import clean, plural, say
from suite.errors import InfraError, Parser, UserError, guarded
from suite.grid import MAX_CELLS, Plan, load_plan
from suite.nights.budget import Figures, check, expected
from suite.nights.history import Night, accept, accepted, read_nights, write_night
from suite.nights.measure import measure
from suite.nights.places import Place, begin, nights_folder, open_night, prune
from suite.nights.rules import Limits, compare
from suite.nights.summary import needs_attention, summary
from suite.store import Store
from suite.store.files import write_bytes

#: Launches of one night: what failed for reasons of the place runs again.
_LAUNCHES = 3
#: A night without a wall clock that is older than this is not gone on with.
_OLD = 20 * 3600.0
_TIME_OVER = -1000


@dataclass
class Task:
    """What a nightly works on.

    Attributes:
        arguments: The command line.
        profile: The site.
        plan: The grid's plan.
        site: The site's store.
        folder: Where all nights of the grid are.
        earlier: Nights in the history, oldest first.
    """

    arguments: argparse.Namespace
    profile: Profile
    plan: Plan
    site: Store
    folder: Path
    earlier: list[Night]

    @property
    def limit(self) -> float | None:
        """Seconds that a night may take."""
        wall = self.profile.nightly.wall_clock
        return None if wall is None else wall * 60.0


def main() -> int:
    """Parse, check the budget, measure, compare, print."""
    task = _task(_parse())
    if task.arguments.accept:
        return accept_last(task)
    figures = expected(task.plan, task.profile, task.site, task.earlier)
    check(figures, task.profile, task.arguments.grid)
    if task.arguments.dry_run:
        say(f"{task.plan.name}: {plural(figures.stages, 'stage')} in {plural(figures.arrays, 'array')}")
        say(figures.text(task.profile))
        say(f"dry run: nothing was started; {plural(len(task.earlier), 'earlier night')} to compare with")
        return 0
    place = _place(task)
    began = time.monotonic()
    code, stopped = run_night(task, place, figures)
    if code not in (0, 1):
        sys.stderr.write(_tail(place))
        return code
    night = record(task, place, stopped, time.monotonic() - began)
    text = conclude(task, place, night, figures)
    attention = needs_attention(night)
    if attention or not task.arguments.quiet:
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
    return Task(arguments, profile, plan, site, folder, read_nights(folder))


def accept_last(task: Task) -> int:
    """Take everything that the newest night found as the new normal."""
    if not task.earlier:
        raise UserError("there is no night to accept", where=str(task.folder))
    last = task.earlier[-1]
    count = accept(task.folder, last)
    say(f"night {last.night}: {plural(count, 'finding')} accepted; later nights are compared with it")
    return 0


def _place(task: Task) -> Place:
    """The night to work on: the newest one if it was interrupted in time, else a new one."""
    if (place := open_night(task.folder)) is not None:
        if place.age < (task.limit or _OLD):
            say(f"going on with night {place.name}, begun {place.started:%Y-%m-%d %H:%M} UTC")
            return place
        cancel(task, place)
        write_night(task.folder, record(task, place, True, place.age))
        task.earlier = read_nights(task.folder)
    return begin(task.folder, task.site, task.profile.nightly.reuse)


def run_night(task: Task, place: Place, figures: Figures) -> tuple[int, bool]:
    """Launch until everything is published, nothing more can be, or the time is over.

    Returns:
        The last launch's exit code, and whether the time was over.
    """
    code = 1
    for _ in range(_LAUNCHES):
        left = None if task.limit is None else task.limit - place.age
        if left is None or left > 0:
            code = launch(task, place, ["--wait", *_bounds(task, figures)], left)
        if code == _TIME_OVER or (left is not None and left <= 0):
            cancel(task, place)
            return 1, True
        if code != 1 or not reconcile(task.plan, place.store).todo:
            break
    return code, False


def _bounds(task: Task, figures: Figures) -> list[str]:
    if task.profile.cluster == "local" or task.profile.nightly.in_flight is None:
        return []
    return ["--max-in-flight", str(min(figures.each, task.profile.max_in_flight))]


def launch(task: Task, place: Place, flags: Sequence[str], seconds: float | None = None) -> int:
    """Run `suite.launch` on a night's store; `_TIME_OVER` if it did not end in time."""
    a = task.arguments
    words = [sys.executable, "-m", "suite.launch", str(a.grid), "--profile", a.profile]
    words += ["--store", str(place.store.root), *(["--variant", a.variant] if a.variant else []), *flags]
    with (place.path / "launch.log").open("ab") as log:
        child = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            return _TIME_OVER
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


def cancel(task: Task, place: Place) -> None:
    """Cancel what a night has in flight.

    Raises:
        InfraError: If that fails: somebody has to look.
    """
    if task.profile.cluster == "slurm" and launch(task, place, ["--cancel", "--yes"]):
        raise InfraError("a night's jobs could not be cancelled", where=str(place.path / "launch.log"))


def record(task: Task, place: Place, stopped: bool, seconds: float) -> Night:
    """What a night measured, and what of it drifted."""
    nightly = task.profile.nightly
    found = measure(task.plan, place.store, task.profile, nightly.reuse)
    limits = Limits(nightly.accuracy_points, nightly.speed_percent, nightly.speed_seconds, nightly.window)
    return Night(
        grid=task.plan.name,
        night=place.name,
        started=place.started.isoformat(timespec="seconds"),
        seconds=seconds,
        ended="stopped" if stopped else "complete",
        commit=_code(found.commits),
        planned=len(task.plan.stages),
        published=found.published,
        unreached=found.unreached,
        rows=tuple(found.rows),
        timings=tuple(found.timings),
        failures=tuple(found.failures),
        findings=tuple(compare(found.rows, found.timings, task.earlier, accepted(task.folder), limits)),
    )


def _code(commits: Sequence[str]) -> str:
    others = f" and {len(commits) - 1} other states of the code" if len(commits) > 1 else ""
    return f"{commits[0]}{others}" if commits else "unknown"


def conclude(task: Task, place: Place, night: Night, figures: Figures) -> str:
    """Write a night into the history with its summary and its report, and let old artifacts go."""
    known = {r.identity for n in task.earlier for r in n.rows}
    new = sorted({r.label for r in night.rows if r.identity not in known})
    text = summary(night, task.earlier, figures, new, _gone(task, night))
    text += _report(task, place)
    write_bytes(place.path / "summary.txt", text.encode())
    write_night(task.folder, night)
    prune(task.folder, task.profile.nightly.keep)
    return text


def _gone(task: Task, night: Night) -> int:
    """Rows of the last night that the grid no longer asks for."""
    from suite.nights.identity import identities

    if not task.earlier:
        return 0
    asked = set(identities(task.plan.stages).values())
    return len({r.identity for r in task.earlier[-1].rows} - asked)


def _report(task: Task, place: Place) -> str:
    """Make the night's leaderboards; a line that says where they are, or why there are none."""
    out = place.path / "report"
    words = [sys.executable, "-m", "suite.report", str(task.arguments.grid), "--store", str(place.store.root)]
    words += ["--out", str(out), *(["--variant", task.arguments.variant] if task.arguments.variant else [])]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        return f"no report: {clean((done.stderr.strip().splitlines() or ['no message'])[-1])}\n"
    return f"report: {out / task.plan.name / 'index.html'}\n"


def _tail(place: Place) -> str:
    """The last lines of a launch that could not even begin."""
    lines = (place.path / "launch.log").read_text(errors="replace").splitlines()
    return "".join(f"{line}\n" for line in lines[-5:])


if __name__ == "__main__":
    guarded(main)
