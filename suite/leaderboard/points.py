"""Points of the page's plots: one a group of seeds with a number, with the look that it has in every figure."""

from __future__ import annotations

from typing import Any

import pandas as pd

from suite.leaderboard.embed import records
from suite.leaderboard.formats import clean
from suite.leaderboard.plots import MARKERS, Look, named_groups
from suite.leaderboard.rows import CELL, Rows
from suite.leaderboard.statistics import plain_records
from suite.leaderboard.tables import Column

#: Points that the page holds; the tables' files have all.
MAX_POINTS = 5000
_COLUMNS = [
    *(Column(name, name, "count" if name == "ipc" else "text", identity=True) for name in CELL),
    Column("setting", "setting"),
    Column("series", "series"),
    *(Column(name, name, "percent") for name in ("mean", "low", "high")),
    Column("synthesis_seconds", "seconds", "seconds"),
    Column("total_bytes", "bytes", "bytes"),
]


def points(rows: Rows, grouped: pd.DataFrame) -> dict[str, Any]:
    """Points by column, colour and marker of each series, and the devices whose seconds stand side by side.

    Args:
        rows: The rows.
        grouped: `statistics.groups` of them.
    """
    named = named_groups(grouped)
    kept = plain_records(named.head(MAX_POINTS))
    names = sorted({p["series"] for p in kept})
    look = Look.of(names)
    looks = {n: [look.colours[n], MARKERS.index(look.markers[n])] for n in names}
    devices = sorted({clean(d, 60) for d in rows.frame["device"].dropna().unique()})
    return {**records(kept, _COLUMNS), "looks": looks, "devices": devices}
