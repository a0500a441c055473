"""Show what of a store nothing needs any more and how much room everything takes; with --yes, delete it.

    python -m suite.clean [GRID...] [--older-than 30d] [--unreferenced] [--yes]

What a grid in grids/, or one that is named, references and could still use is never deleted, and neither is what a
process or a job works on.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from suite.cluster.cancel import Flying, flying_tasks
from suite.cluster.garbage import WHAT, Item, Survey, Surveyor, delete
from suite.cluster.profile import find_profile, load_profile
from suite.cluster.query import QueryFailed, live_tasks
from suite.cluster.runs import any_in_slurm, of_other_accounts, runs_of_jobs
from suite.cluster.show import plural, say, size, table
from suite.errors import Parser, UserError, guarded
from suite.grid import load_plan
from suite.grid.schema import load_grid
from suite.spec.stages import KINDS
from suite.store import Store

_SHOWN = 20
_UNITS = {"m": 60, "h": 3600, "d": 86_400}


def main() -> int:
    """Parse, look, print, and delete if that was asked for."""
    arguments = _parse()
    profile = load_profile(find_profile(arguments.profile), store=arguments.store)
    store = Store(Path(profile.store).absolute())
    if not store.root.exists():
        raise UserError("there is no store", where=str(store.root), hint="--profile NAME, or --store DIR")
    references = referenced(arguments.grids, arguments.folder)
    if references is None and arguments.unreferenced:
        raise UserError("no grid is known, so everything would be unreferenced", hint="name the grids that count")
    flying, note = in_flight(store)
    survey = Surveyor(store, references, flying, arguments.older_than, arguments.unreferenced).look()
    if arguments.what:
        survey.items = [item for item in survey.items if item.what in arguments.what]
    show(survey, None if arguments.all else _SHOWN)
    if note:
        say(note)
    if not arguments.yes:
        say("dry run: nothing was deleted; --yes deletes what is listed" if survey.items else "nothing to delete")
        return 0
    return remove(survey.items)


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m suite.clean", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grids", type=Path, nargs="*", metavar="GRID", help="grids that count besides those in grids/")
    parser.add_argument("--profile", default="local", metavar="NAME", help="site profile: slurm/NAME.yaml, or a file")
    parser.add_argument("--store", metavar="DIR", help="root of the store, instead of the profile's")
    parser.add_argument("--folder", type=Path, default=Path("grids"), metavar="DIR", help="grids; default: %(default)s")
    parser.add_argument(
        "--older-than", type=_age, default="1d", metavar="AGE", help="e.g. 12h, 30d; default: %(default)s"
    )
    parser.add_argument("--what", nargs="+", choices=WHAT, metavar="WHAT", help=f"some of: {', '.join(WHAT)}")
    parser.add_argument("--unreferenced", action="store_true", help="published artifacts, too, that no grid references")
    parser.add_argument("--all", action="store_true", help=f"list everything, not the first {_SHOWN}")
    parser.add_argument("--yes", action="store_true", help="delete")
    return parser.parse_args()


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age; write 90m, 12h or 30d")
    return float(int(match[1]) * _UNITS[match[2]])


def referenced(named: Sequence[Path], folder: Path) -> set[tuple[str, str]] | None:
    """(kind, key) of every stage of these grids and of those in a folder, with all of their variants.

    Returns:
        None if there is no grid at all.

    Raises:
        UserError: If one of them cannot be planned: then nobody knows what it references.
    """
    grids = [*named, *sorted(folder.glob("*.yaml"))]
    found: set[tuple[str, str]] = set()
    for path in grids:
        for variant in (None, *load_grid(path)[0].variants):
            found |= {(s.kind, s.key) for s in load_plan(path, variant=variant).stages}
    return found if grids else None


def in_flight(store: Store) -> tuple[list[Flying] | None, str]:
    """This user's tasks in flight, or None and why Slurm could not be asked; not asked where no job was submitted."""
    if not any_in_slurm(store):
        return [], ""
    if note := of_other_accounts((store.root / "runs").glob("*/*")):
        return None, f"{note}; what they may work on was kept"
    try:
        tasks = live_tasks()
    except QueryFailed as error:
        return None, f"Slurm was not asked: {error.what}; what its jobs may work on was kept"
    return flying_tasks(runs_of_jobs(store, {t.name for t in tasks}), tasks), ""


def show(survey: Survey, limit: int | None) -> None:
    """Print who takes how much room, what can go, and what stays although it looks like it."""
    parts = [p for p in ("artifact", "attempt", "failed", "quarantine", "checkpoint", "temporary") if _sum(survey, p)]
    rows: list[list[object]] = []
    for kind in KINDS:
        sizes = [survey.usage.get((kind, part), 0) for part in parts]
        if any(sizes):
            rows.append([kind, survey.counts[kind], *map(size, sizes)])
    for name, part in (("runs", "run"), ("nights", "nights")):
        if survey.usage.get((name, part)):
            rows.append([name, "", size(survey.usage[name, part]), *[""] * (len(parts) - 1)])
    table(["disk use", "published", *(parts or ["bytes"])], rows)
    say()
    listed: list[list[object]] = []
    for what, text in WHAT.items():
        if found := [item.size for item in survey.items if item.what == what]:
            listed.append([what, len(found), size(sum(found)), text])
    total = sum(item.size for item in survey.items)
    table(["can go", "items", "bytes", ""], [*listed, ["total", len(survey.items), size(total), ""]])
    if survey.items:
        say()
        table(["", "bytes", "why", "path"], [[i.what, size(i.size), i.why, i.path] for i in survey.items[:limit]])
        if limit is not None and len(survey.items) > limit:
            say(f"... and {len(survey.items) - limit:,} more; --all lists them")
    for (what, why), count in sorted(survey.kept.items()):
        say(f"kept: {what}: {why} ({count:,})")


def _sum(survey: Survey, part: str) -> int:
    return sum(n for (_, p), n in survey.usage.items() if p == part)


def remove(items: Iterable[Item]) -> int:
    """Delete, and say what could not be; 1 if something could not."""
    gone, freed, changed, refused = 0, 0, 0, []
    for item in items:
        try:
            if delete(item):
                gone, freed = gone + 1, freed + item.size
            else:
                changed += 1
        except OSError as error:
            refused.append(f"{item.path}: {error.strerror}")
    say(f"deleted {plural(gone, 'item')}, {size(freed)}")
    if changed:
        say(f"left {plural(changed, 'item')} that changed meanwhile")
    for line in refused[:_SHOWN]:
        say(f"cannot delete {line}")
    return 1 if refused else 0


if __name__ == "__main__":
    guarded(main)
