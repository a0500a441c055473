"""What a report puts beside its rows: papers, similarities that were measured, earlier states, and nights."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from suite.errors import UserError
from suite.grid import Cell, Plan
from suite.grid.defaults import default_keys
from suite.leaderboard.files import ROWS
from suite.leaderboard.gather import from_file, from_store
from suite.leaderboard.history import changes
from suite.leaderboard.make import Beside
from suite.leaderboard.published import Published, method_name
from suite.leaderboard.rows import CELL, Rows
from suite.leaderboard.similarity import read_similarities
from suite.leaderboard.statistics import plain_records
from suite.leaderboard.tables import Table
from suite.leaderboard.trend import Point, trends
from suite.nights.history import Night, read_nights
from suite.nights.places import nights_folder
from suite.provenance import ancestors
from suite.store import Store


def beside(rows: Rows, published: Path | None, similarities: Iterable[Path], grid: Path | None) -> Beside:
    """What stands beside rows: published numbers, and similarities within classes.

    Rows of protocol `paper` that were not made with their method's own settings are marked as such, in `rows` itself.

    Args:
        rows: Of the report.
        published: The table of published numbers.
        similarities: Files of `suite.bench diversity`.
        grid: Of the report, for the command that measures more.
    """
    papers = Published(published) if published else None
    if papers is not None:
        _mark_changed_settings(rows, papers)
    target = shlex.quote(str(grid)) if grid else "GRID"
    command = f"python -m suite.bench diversity {target} --network ARCH --json results/measured/diversity-NAME.json"
    return Beside(papers, read_similarities(similarities), command)


def _mark_changed_settings(rows: Rows, papers: Published) -> None:
    frame = rows.frame
    known = {number.name for number in papers.numbers}
    mine = frame["method"].isin([m for m in frame["method"].unique() if method_name(m) in known])
    paper = frame.loc[(mine & (frame["protocol"] == "paper")).to_numpy(dtype=bool, na_value=False), [*CELL, "seed"]]
    there = [line for line in plain_records(paper[list(CELL)].drop_duplicates()) if papers.accuracies(line)]
    wanted = {tuple(line[c] for c in CELL) for line in there}
    cells = [Cell(**x) for x in plain_records(paper.drop_duplicates()) if tuple(x[c] for c in CELL) in wanted]
    frame["overridden"] = (~frame["key"].isin(default_keys(cells).values())).astype("boolean")


def since(text: str, rows: Rows, store: Store | None, plan: Plan | None) -> Table:
    """What changed since another state.

    Args:
        text: A directory (a report, or a store), or a revision of git: the rows of this store that were computed by the
            code of that revision or of its ancestors.
        rows: Of the present state.
        store: Where they come from; None for rows of a file.
        plan: Of the grid; an earlier state counts in the grid's cells only.

    Raises:
        UserError: If there is neither such a directory nor such a revision.
    """
    path = Path(text).expanduser()
    if (path / ROWS).is_file():
        then = from_file(path / ROWS)
    elif (path / "evaluation").is_dir():
        then = from_store(Store(path))
    elif path.is_dir():
        raise UserError("neither a report nor a store", where=text, hint=f"a report has {ROWS}, a store evaluation/")
    elif not (commits := ancestors(text)):
        raise UserError("neither a directory nor a revision of git", where="--against", hint="git log --oneline")
    elif store is None:
        raise UserError("a revision needs the rows of a store", where="--against", hint="compare with a directory")
    else:
        everything = from_store(store).frame
        then = Rows(everything[everything["commit"].isin(commits).to_numpy(dtype=bool)].reset_index(drop=True))
    if plan is not None:
        then = Rows(_within(then.frame, plan))
    return changes(rows, then, text)


def _within(frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    cells = {tuple(getattr(c, name) for name in CELL) for c in plan.cells}
    kept = [cell in cells for cell in zip(*(frame[c] for c in CELL), strict=True)]
    return frame[kept].reset_index(drop=True)


def over_nights(store: Store, grid: str) -> list[Table]:
    """Trends over the nights of a grid (`python -m suite.nightly`); none without two nights.

    Raises:
        DataError: If the record of a night is damaged.
    """
    return trends(_points(read_nights(nights_folder(store, grid))))


def _points(nights: Sequence[Night]) -> list[Point]:
    values: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for night in nights:
        for row in night.rows:
            values[night.night, row.identity, row.label, "accuracy"].append(row.accuracy)
            values[night.night, row.identity, row.label, "storage"].append(sum(row.bytes.values()))
        for timing in night.timings:
            # Seconds of another device are another series.
            identity = f"{timing.identity} {timing.device}"
            values[night.night, identity, f"{timing.label} on {timing.device}", "speed"].append(timing.seconds)
    return [Point(*at, fmean(found)) for at, found in values.items()]
