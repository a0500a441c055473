"""Turn rows into leaderboards: tables on the terminal, and files under reports/.

    python -m suite.report [GRID] [--variant NAME] [--store DIR] [--out DIR]

With a grid, every cell of it is a line: with a number, or with `-` and the reason. Without one, all rows of the store.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from suite.errors import UserError, guarded

if TYPE_CHECKING:
    from suite.leaderboard.rows import Rows
    from suite.leaderboard.tables import Table


def main(argv: list[str] | None = None) -> int:
    """Parse, gather, write, print."""
    arguments = _parse(argv)
    name, rows = _gather(arguments)
    if rows.frame.empty and not rows.refused and all(h.reason == "not run" for h in rows.holes):
        target = str(arguments.grid) if arguments.grid else "GRID"
        variant = f" --variant {arguments.variant}" if arguments.variant else ""
        raise UserError(
            "there are no rows to report", where=str(arguments.store), hint=f"python -m suite.launch {target}{variant}"
        )
    from suite.leaderboard.tables import leaderboards

    tables = leaderboards(rows)
    written = write(arguments.out / name, name, rows, tables)
    _print(tables, rows)
    print(f"page: {written / 'index.html'}")
    return 0


def write(folder: Path, name: str, rows: Rows, tables: list[Table]) -> Path:
    """Write all files of a report; everything is rendered before the first file is replaced.

    Returns:
        The folder.

    Raises:
        InfraError: If the file system refuses.
    """
    from suite.leaderboard.formats import to_csv, to_markdown
    from suite.leaderboard.page import page
    from suite.leaderboard.plots import overview, pictures
    from suite.store.files import write_bytes

    files: dict[str, bytes] = {}
    for table in tables:
        files[f"{table.slug}.csv"] = to_csv(table).encode()
        files[f"{table.slug}.md"] = to_markdown(table, rows, name).encode()
    files["overview.png"] = overview(tables[0], rows, name)
    files["index.html"] = page(name, rows, tables, pictures(rows)).encode()
    for file, data in files.items():
        write_bytes(folder / file, data)
    return folder


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m suite.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", nargs="?", type=Path, help="grid file; all rows of the store without it")
    parser.add_argument("--variant", help="a variant of the grid")
    parser.add_argument("--store", type=Path, default=Path("results/store"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="parent of the report; default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.variant and not arguments.grid:
        parser.error("--variant needs a grid")
    return arguments


def _gather(arguments: argparse.Namespace) -> tuple[str, Rows]:
    """The report's name and its rows."""
    from suite.store import Store

    plan = None
    if arguments.grid:
        from suite.grid import load_plan

        plan = load_plan(arguments.grid, variant=arguments.variant)
    if arguments.store.exists() and not arguments.store.is_dir():
        raise UserError("the store is not a directory", where=str(arguments.store))
    store = Store(arguments.store)
    from suite.leaderboard.gather import from_plan, from_store

    if plan is None:
        return "all", from_store(store)
    return plan.name, from_plan(store, plan.stages, plan.cells, plan.cell_keys, plan.excluded)


def _print(tables: list[Table], rows: Rows) -> None:
    """The leaderboards, at most 100 columns wide."""
    from rich.console import Console

    from suite.leaderboard.formats import clean, remarks, to_terminal

    console = Console(highlight=False, emoji=False, markup=False)
    if not sys.stdout.isatty() or console.width > 100:
        console.width = 100
    for table in tables:
        console.print(to_terminal(table))
    for heading, items in remarks(rows):
        console.print(heading)
        for item in items[:10]:
            console.print(f"  {clean(item)}")
        if len(items) > 10:
            console.print(f"  ... {len(items) - 10} more in the files")


if __name__ == "__main__":
    guarded(main)
