"""Turn rows into leaderboards: tables on the terminal, and files under reports/.

    python -m suite.report [GRID] [--variant NAME] [--store DIR] [--out DIR] [--published FILE] [--gallery WHAT]
    python -m suite.report --demo
    python -m suite.report [GRID] --against REV|DIR
    python -m suite.report --rows FILE

With a grid, every cell of it is a line: with a number, or with `-` and the reason. Without one, all rows of the store.
Rows of protocol `paper` stand beside what papers report. `--against` adds what changed since another report or store,
or since the code of a revision. `--rows` reports on rows of another report (its parquet/rows.parquet).
"""

from __future__ import annotations

import argparse
import io
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from suite.errors import Parser, UserError, directory, guarded
from suite.grid import Plan, load_plan
from suite.leaderboard.external import beside
from suite.leaderboard.freshness import TEXT, stamp, state, unchanged
from suite.leaderboard.marks import homes
from suite.nights.places import nights_folder
from suite.store import Store
from suite.store.files import sha256

if TYPE_CHECKING:
    import pandas as pd

    from suite.leaderboard.gallery import Gallery
    from suite.leaderboard.rows import Rows
    from suite.leaderboard.tables import Table

#: What papers report, relative to the root of the repository, where commands are typed.
PUBLISHED = Path("results/published.csv")
#: Measurements of the suite; similarities within classes are read from `diversity*.json` in it.
MEASURED = Path("results/measured")
#: What `make demo` runs.
DEMO = Path("grids/quickstart.yaml")


def main(argv: list[str] | None = None) -> int:
    """Parse, gather, write, print."""
    arguments = _parse(argv)
    selection = _select(arguments)
    folder = arguments.out / selection.name
    text = None if arguments.against else unchanged(folder, selection.state)
    if text is None:
        text = _make(arguments, selection, folder)
    print(text, end="")
    print(f"page: {folder / 'index.html'}")
    return 0


def _make(arguments: argparse.Namespace, selection: Selection, folder: Path) -> str:
    """Write the report and return its leaderboards as text."""
    name, rows = selection.name, _gather(selection)
    if rows.frame.empty and not rows.refused and all(h.reason == "not run" for h in rows.holes):
        target = str(arguments.grid) if arguments.grid else "GRID"
        words = ["--variant", arguments.variant] if arguments.variant else []
        command = shlex.join(["python", "-m", "suite.launch", target, *words, "--store", str(arguments.store)])
        if arguments.demo:
            command = "make demo"
        raise UserError("there are no rows to report", where=str(arguments.store), hint=command)
    from suite.comparisons import beside, over_nights, since
    from suite.leaderboard.make import make
    from suite.leaderboard.statistics import groups

    history = over_nights(selection.store, name) if selection.plan else []
    if arguments.against:
        store = None if arguments.rows else selection.store
        history.insert(0, since(arguments.against, rows, store, selection.plan))
    papers = beside(rows, arguments.published, arguments.diversity, arguments.grid)  # marks changed settings in rows
    grouped = groups(rows)
    tables = make(rows, papers, history, grouped)
    text = _text(tables, rows)
    pictures = _pictures(rows, selection.store, arguments.gallery)
    stamp(folder, selection.state, write(folder, name, rows, grouped, tables, text, selection.store, pictures))
    return text


def _pictures(rows: Rows, store: Store, choice: str) -> Gallery | None:
    from suite.data.examples import examples
    from suite.leaderboard.gallery import gallery

    return gallery(rows, store, choice, examples)


def write(
    folder: Path,
    name: str,
    rows: Rows,
    grouped: pd.DataFrame,
    tables: list[Table],
    text: str,
    store: Store,
    gallery: Gallery | None,
) -> list[str]:
    """Write all files of a report; everything is rendered before the first file is replaced.

    Files of single rows and pictures that an earlier report has left, and that this one does not have, are removed.

    Returns:
        Their names.

    Raises:
        InfraError: If the file system refuses.
    """
    from suite.leaderboard.figures import drawing
    from suite.leaderboard.files import table_files
    from suite.leaderboard.page import FOLDERS, site
    from suite.leaderboard.plots import overview
    from suite.store.files import write_bytes

    with drawing(tables) as figures:
        files = table_files(name, rows, tables)
        files[TEXT] = text.encode()
        files["overview.png"] = overview(tables[0], rows, name, grouped=grouped)
        files |= figures()
    files |= site(name, rows, tables, store=store, gallery=gallery, files=list(files), grouped=grouped)
    for file, data in files.items():
        write_bytes(folder / file, data)
    for old in (p for part in FOLDERS for p in (folder / part).glob("*")):
        if f"{old.parent.name}/{old.name}" not in files:
            old.unlink()
    return list(files)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m suite.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", nargs="?", type=Path, help="grid file; all rows of the store without it")
    parser.add_argument("--variant", help="a variant of the grid")
    parser.add_argument("--store", type=directory, default=Path("results/store"), help="default: %(default)s")
    parser.add_argument(
        "--out", type=directory, default=Path("reports"), help="parent of the report; default: %(default)s"
    )
    parser.add_argument("--published", type=Path, help=f"papers' numbers; default: {PUBLISHED}, where it is there")
    parser.add_argument(
        "--diversity", type=Path, nargs="*", metavar="FILE",
        help=f"similarities within classes (suite.bench diversity --json); default: {MEASURED}/diversity*.json",
    )  # fmt: skip
    parser.add_argument("--against", metavar="REV|DIR", help="what changed since another state")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="rows of a report instead of a store's")
    parser.add_argument("--demo", action="store_true", help="of what `make demo` has run")
    parser.add_argument(
        "--gallery",
        choices=("open", "distilled", "real", "none"),
        default="open",
        help="pictures on the page: open, of datasets whose terms let them be passed on; distilled, of all datasets; "
        "real, with real images of all datasets beside them; default: %(default)s",
    )
    arguments = parser.parse_args(argv)
    if arguments.demo:
        if arguments.grid or arguments.variant:
            parser.error("--demo is a grid of its own")
        arguments.grid = DEMO
    if arguments.rows and arguments.grid:
        parser.error("--rows are reported without a grid")
    if arguments.rows and not arguments.rows.is_file():
        raise UserError("no such file of rows", where=str(arguments.rows))
    if arguments.diversity is None:
        arguments.diversity = sorted(MEASURED.glob("diversity*.json"))
    if missing := [p for p in arguments.diversity if not p.is_file()]:
        raise UserError("no such file of similarities", where=str(missing[0]))
    if arguments.variant and not arguments.grid:
        parser.error("--variant needs a grid")
    if arguments.published is None and PUBLISHED.exists():
        arguments.published = PUBLISHED
    if arguments.published and not arguments.published.is_file():
        raise UserError("no such file of published numbers", where=str(arguments.published))
    return arguments


@dataclass(frozen=True)
class Selection:
    """What is reported.

    Attributes:
        name: Of the grid, or `all`.
        store: Where the rows are.
        plan: The grid's plan; None for every row of the store.
        rows: A file of rows, in the store's place.
        state: A digest of everything that the report is made from.
        external: Keys of rows of sets from elsewhere that stand beside the plan's.
    """

    name: str
    store: Store
    plan: Plan | None
    rows: Path | None
    state: str
    external: list[str] = field(default_factory=list)


def _select(arguments: argparse.Namespace) -> Selection:
    plan = load_plan(arguments.grid, variant=arguments.variant) if arguments.grid else None
    papers = [sha256(p) for p in [arguments.published, *arguments.diversity] if p]
    papers.append(arguments.gallery)
    store = Store(arguments.store)
    papers.append(str(arguments.against))
    if arguments.rows:
        return Selection("rows", store, None, arguments.rows, state(store, (papers, sha256(arguments.rows)), []))
    if plan is None:
        nodes = [("evaluation", key) for key, _ in homes(store.root / "evaluation")]
        return Selection("all", store, None, None, state(store, ("all", papers), nodes))
    external = beside(store, plan.stages, plan.cells)
    nodes = [*((s.kind, s.key) for s in plan.stages), *(("evaluation", key) for key in external)]
    papers += [sha256(p) for p in sorted(nights_folder(store, plan.name).glob("history/*.json"))]
    title = (plan.name, plan.cells, plan.cell_keys, plan.excluded, papers)
    return Selection(plan.name, store, plan, None, state(store, title, nodes), external)


def _gather(selection: Selection) -> Rows:
    from suite.leaderboard.gather import from_file, from_plan, from_store

    if selection.rows:
        return from_file(selection.rows)
    if (plan := selection.plan) is None:
        return from_store(selection.store)
    return from_plan(selection.store, plan.stages, plan.cells, plan.cell_keys, plan.excluded, selection.external)


def _text(tables: list[Table], rows: Rows) -> str:
    """The leaderboards as text, 100 columns wide."""
    from rich.console import Console

    from suite.leaderboard.formats import clean, remarks, to_terminal

    console = Console(file=io.StringIO(), width=100, highlight=False, emoji=False, markup=False)
    for table in tables:
        if table.section == "boards" or table.slug in ("changes", "steps"):
            console.print(to_terminal(table))
    for heading, items in remarks(rows):
        console.print(heading)
        for item in items[:10]:
            console.print(f"  {clean(item)}")
        if len(items) > 10:
            console.print(f"  ... {len(items) - 10} more in the files")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


if __name__ == "__main__":
    guarded(main)
