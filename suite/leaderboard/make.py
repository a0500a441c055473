"""All tables of a report, in the order of `tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from suite.leaderboard.boards import accuracy, storage, synthesis_time
from suite.leaderboard.crossings import crossings
from suite.leaderboard.published import Published
from suite.leaderboard.rows import Rows
from suite.leaderboard.statistics import groups
from suite.leaderboard.tables import Table
from suite.leaderboard.versus import contradictions, published


@dataclass(frozen=True)
class Beside:
    """What stands beside rows in a report.

    Attributes:
        papers: What papers report.
        similarity: Mean cosine similarity within classes, by network and synthesis key.
        measure: The command that measures missing similarities.
    """

    papers: Published | None = None
    similarity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measure: str = "python -m suite.bench diversity GRID --network ARCH --json FILE"


def make(
    rows: Rows, beside: Beside | None = None, history: Sequence[Table] = (), grouped: pd.DataFrame | None = None
) -> list[Table]:
    """The leaderboards, their crossings, papers beside measurements, and history; tables without a line are left out.

    The first three are always accuracy, synthesis time and storage, in this order.

    Args:
        rows: What they are made from.
        beside: What stands beside the rows.
        history: Tables of changes and trends.
        grouped: `statistics.groups` of the rows, where that was done already.
    """
    beside = beside or Beside()
    grouped = groups(rows) if grouped is None else grouped
    found = [accuracy(grouped, beside.papers), synthesis_time(rows), storage(grouped)]
    found += crossings(rows, grouped, beside.similarity, beside.measure)
    if beside.papers is not None:
        found.append(published(grouped, beside.papers))
        found += [t for t in [contradictions(beside.papers)] if t is not None]
    return [*found, *history]
