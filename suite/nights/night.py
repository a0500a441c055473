"""One night from its first launch to its summary: launching in time, measuring, comparing, remembering."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from suite.cluster.cancelled import cancelled_stages
from suite.cluster.profile import Profile
from suite.cluster.reconcile import reconcile
from suite.cluster.show import clean, plural, say
from suite.errors import InfraError
from suite.grid import Plan
from suite.nights.budget import Figures
from suite.nights.history import Night, accepted, read_nights, write_night
from suite.nights.identity import identities
from suite.nights.measure import measure
from suite.nights.places import Place, begin, open_night, prune
from suite.nights.rules import Limits, compare
from suite.nights.summary import summary
from suite.store import Store
from suite.store.files import write_bytes

#: Launches of one night: what failed for reasons of the place runs again.
_LAUNCHES = 3
#: A night without a wall clock that is older than this is not gone on with.
_OLD = 20 * 3600.0
TIME_OVER = -1000


@dataclass
class Task:
    """What a nightly works on.

    Attributes:
        grid: The grid file.
        variant: One of its variants.
        profile: The site.
        profile_name: As it was given.
        plan: The grid's plan.
        site: The site's store.
        folder: Where all nights of the grid are.
        earlier: Nights in the history, oldest first.
        quiet: Whether nothing is printed unless there is something to say.
    """

    grid: Path
    variant: str | None
    profile: Profile
    profile_name: str
    plan: Plan
    site: Store
    folder: Path
    earlier: list[Night]
    quiet: bool = False

    @property
    def limit(self) -> float | None:
        """Seconds that a night may take."""
        wall = self.profile.nightly.wall_clock
        return None if wall is None else wall * 60.0


def choose_place(task: Task) -> Place:
    """The night to work on: the newest one if it was interrupted in time, else a new one."""
    if (place := open_night(task.folder)) is not None:
        if place.age < (task.limit or _OLD):
            if not task.quiet:
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
        if code == TIME_OVER or (left is not None and left <= 0):
            cancel(task, place)
            return 1, True
        cancelled = cancelled_stages(place.store, task.plan.name)
        if code != 1 or not reconcile(task.plan, place.store, cancelled=cancelled).todo:
            break
    return code, False


def _bounds(task: Task, figures: Figures) -> list[str]:
    if task.profile.cluster == "local" or task.profile.nightly.in_flight is None:
        return []
    return ["--max-in-flight", str(min(figures.each, task.profile.max_in_flight))]


def launch(task: Task, place: Place, flags: Sequence[str], seconds: float | None = None) -> int:
    """Run `suite.launch` on a night's store; `TIME_OVER` if it did not end in time."""
    words = [sys.executable, "-m", "suite.launch", str(task.grid), "--profile", task.profile_name]
    words += ["--store", str(place.store.root), *(["--variant", task.variant] if task.variant else []), *flags]
    with (place.path / "launch.log").open("ab") as log:
        child = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            return TIME_OVER
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
    others = f" and {plural(len(commits) - 1, 'other state')} of the code" if len(commits) > 1 else ""
    return f"{commits[0]}{others}" if commits else "unknown"


def conclude(task: Task, place: Place, night: Night, figures: Figures) -> str:
    """Write a night into the history with its summary and its report, and let old artifacts go."""
    known = {r.identity for n in task.earlier for r in n.rows}
    new = sorted({r.label for r in night.rows if r.identity not in known})
    text = summary(night, task.earlier, figures, new, _gone(task, night))
    text += report(task, place)
    write_bytes(place.path / "summary.txt", text.encode())
    write_night(task.folder, night)
    prune(task.folder, task.profile.nightly.keep)
    return text


def _gone(task: Task, night: Night) -> int:
    """Rows of the last night that the grid no longer asks for."""
    if not task.earlier:
        return 0
    asked = set(identities(task.plan.stages).values())
    return len({r.identity for r in task.earlier[-1].rows} - asked)


def report(task: Task, place: Place) -> str:
    """Make the night's leaderboards; a line that says where they are, or why there are none."""
    out = place.path / "report"
    words = [sys.executable, "-m", "suite.report", str(task.grid), "--store", str(place.store.root)]
    words += ["--out", str(out), *(["--variant", task.variant] if task.variant else [])]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        return f"no report: {clean((done.stderr.strip().splitlines() or ['no message'])[-1])}\n"
    return f"report: {out / task.plan.name / 'index.html'}\n"


def tail(place: Place) -> str:
    """The last lines of a launch that could not even begin."""
    lines = (place.path / "launch.log").read_text(errors="replace").splitlines()
    return "".join(f"{line}\n" for line in lines[-5:])
