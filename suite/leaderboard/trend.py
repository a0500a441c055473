"""Quantities over nights, cut into steps: pieces of nights whose values differ by noise only.

Steps minimise the sum of distances to the medians of the pieces plus a penalty for each further piece (PELT of Killick
et al., 2012, as `ruptures` implements it). The penalty is 3 sigma log n, with sigma from the median difference of
successive nights, which a step itself hardly moves. Medians leave one odd night where it is: it is no step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas as pd
import ruptures

from suite.leaderboard.tables import Column, Table, finish

#: Fewest nights in which a step can be seen.
MIN_NIGHTS = 4
UNITS = {"accuracy": "%", "speed": "s", "storage": "B"}


@dataclass(frozen=True, slots=True)
class Point:
    """One quantity of one night.

    Attributes:
        night: Name of the night; names sort in time.
        identity: Of what was measured; equal over nights.
        label: Of it, for people.
        what: `accuracy` (%), `speed` (seconds) or `storage` (bytes).
        value: Mean over seeds.
    """

    night: str
    identity: str
    label: str
    what: str
    value: float


def steps(values: Sequence[float]) -> list[int]:
    """Indices at which a new piece begins, without 0; empty for a steady series or fewer than `MIN_NIGHTS` values."""
    x = np.asarray(values, dtype=float)
    if len(x) < MIN_NIGHTS or np.ptp(x) == 0:
        return []
    sigma = float(np.median(np.abs(np.diff(x)))) / (0.6745 * math.sqrt(2))
    # Numbers that repeat bit by bit have no noise; what remains is the rounding of a mean.
    sigma = max(sigma, 1e-9 * float(np.max(np.abs(x))))
    found = ruptures.Pelt(model="l1", min_size=2, jump=1).fit(x.reshape(-1, 1))
    return [int(i) for i in found.predict(pen=3 * sigma * math.log(len(x)))[:-1]]


def trends(points: Sequence[Point]) -> list[Table]:
    """The tables `steps` (a line a series) and `trend` (a line a night of it); none without two nights."""
    if len({p.night for p in points}) < 2:
        return []
    series: dict[tuple[str, str, str], dict[str, float]] = {}
    for p in points:
        series.setdefault((p.what, p.label, p.identity), {})[p.night] = p.value
    lines, single = [], []
    for (what, label, identity), by_night in sorted(series.items()):
        nights = sorted(by_night)
        values = [by_night[n] for n in nights]
        starts = [0, *steps(values)]
        pieces = list(zip(starts, [*starts[1:], len(values)], strict=True))
        levels = [median(values[a:b]) for a, b in pieces]
        who = {"what": what, "unit": UNITS.get(what, ""), "label": label, "identity": identity, "notes": []}
        before = levels[-2] if len(levels) > 1 else None
        lines.append({
            **who, "nights": len(nights), "first": nights[0], "last": nights[-1], "steps": len(levels) - 1,
            "since": nights[starts[-1]] if before is not None else None, "before": before, "level": levels[-1],
            "difference": None if before is None else levels[-1] - before,
            "percent": None if not before else 100 * (levels[-1] / before - 1), "quiet": before is None,
        })  # fmt: skip
        for number, ((a, b), level) in enumerate(zip(pieces, levels, strict=True)):
            single += [
                {**who, "night": nights[i], "value": values[i], "step": number, "level": level} for i in range(a, b)
            ]
    caption = (
        "Nightly measurements of the same evaluation or stage, cut into steps where the level changed for two nights "
        "or more; the newest steps first."
    )
    changed = pd.DataFrame(lines).sort_values(
        ["quiet", "since", "what", "label"], ascending=[True, False, True, True], kind="stable"
    )
    return [
        finish("steps", "Steps over nights", caption, _STEPS, changed, (), "history"),
        finish("trend", "Values over nights", caption, _POINTS, pd.DataFrame(single), ("what", "label"), "history"),
    ]


_SERIES = [
    Column("what", "Quantity", identity=True, help="accuracy, speed (seconds) or storage (bytes)"),
    Column("unit", "Unit", identity=True, help="Of the values"),
    Column("label", "What", identity=True, help="Evaluation or stage"),
    Column("identity", "Identity", terminal=False, shown=False, help="Equal over nights"),
]
_STEPS = [
    *_SERIES,
    Column("nights", "Nights", "count", help="With a value"),
    Column("first", "First", terminal=False, help="First night"),
    Column("last", "Last", terminal=False, help="Last night"),
    Column("steps", "Steps", "count", help="Changes of level in these nights"),
    Column("since", "Since", help="Night in which the present level began; empty if it never changed"),
    Column("before", "Before", "value", help="Level before that"),
    Column("level", "Level", "value", help="Median since then"),
    Column("difference", "Difference", "signed", help="Level less the level before"),
    Column("percent", "Change %", "signed", help="The same, in percent of the level before"),
]
_POINTS = [
    *_SERIES,
    Column("night", "Night", help="A UTC date"),
    Column("value", "Value", "value", help="Mean over seeds"),
    Column("step", "Step", "count", help="Number of the piece that the night is in"),
    Column("level", "Level", "value", help="Median of that piece"),
]
