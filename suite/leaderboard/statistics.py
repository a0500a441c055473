"""Rows aggregated over seeds: n, mean, standard deviation, t-interval, rank, and what is odd about them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from suite.leaderboard.rows import CELL, GROUP, Hole, Rows

LEVEL = 0.95
BYTES = ("image_bytes", "label_bytes", "auxiliary_bytes", "total_bytes", "unshipped_bytes")
#: Methods compete within these.
CONTEST = ("dataset", "ipc", "student", "protocol")


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and spread of n values; spread is None where n = 1 leaves it unknown.

    Attributes:
        n: Number of values.
        mean: Arithmetic mean, None if n = 0.
        sd: Standard deviation with n - 1 in the denominator.
        low: Lower end of the two-sided 95 % t-interval of the mean.
        high: Its upper end.
    """

    n: int
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def summarise(values: Iterable[Any], level: float = LEVEL) -> Summary:
    """Summarise values over seeds; missing ones (None, NA, NaN) are not counted."""
    x = sorted(float(v) for v in values if v is not None and not pd.isna(v))
    n = len(x)
    if n == 0:
        return Summary(0)
    mean = math.fsum(x) / n
    if n == 1:
        return Summary(1, mean)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (n - 1))
    half = _t(level, n - 1) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


@cache
def _t(level: float, freedom: int) -> float:
    """Two-sided critical value of Student's t."""
    return float(stats.t.ppf((1 + level) / 2, freedom))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % t-interval of a mean; NaN where there is none, which plots as no bar."""
    s = summarise(values)
    return (math.nan if s.low is None else s.low, math.nan if s.high is None else s.high)


def suspicions(accuracy: float, classes: int | None, constant: bool) -> list[str]:
    """What makes one row suspicious: constant predictions, 0 or 100 %, or chance level within one point."""
    why = []
    if constant:
        why.append("predicts one class for every image")
    if accuracy in (0.0, 100.0):
        why.append(f"accuracy is exactly {accuracy:g} %")
    if classes and abs(accuracy - 100 / classes) <= 1:
        why.append(f"within 1 point of chance ({100 / classes:g} %)")
    return why


def plain_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Lines as dicts of plain Python values, None for what is missing."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return value
        return None if pd.isna(value) else value.item() if hasattr(value, "item") else value

    return [{str(k): plain(v) for k, v in r.items()} for r in frame.to_dict("records")]


def seeds_text(seeds: Iterable[int]) -> str:
    """`seed 1`, `seeds 0, 2`, `seeds 0-4`."""
    s = sorted(set(seeds))
    if len(s) > 2 and all(b == a + 1 for a, b in pairwise(s)):
        return f"seeds {s[0]}-{s[-1]}"
    return ("seed " if len(s) == 1 else "seeds ") + ", ".join(map(str, s))


def notes_of(rows: Iterable[Mapping[str, Any]], holes: Iterable[Hole]) -> list[str]:
    """Footnotes of one group: suspicious rows first, then holes, seeds with the same text together."""
    seeds: dict[str, list[int]] = {}
    for r in rows:
        for why in suspicions(r["accuracy_last"], r["classes"], bool(r["constant_prediction"])):
            seeds.setdefault(f"suspicious: {why}", []).append(r["seed"])
    for h in holes:
        seeds.setdefault(f"missing: {h.reason}", []).append(h.seed)
    return [f"{seeds_text(s)} {text}" for text, s in seeds.items()]


def groups(rows: Rows) -> pd.DataFrame:
    """Aggregate over seeds, one line a group, best first within each contest; a cell of holes only is a line too.

    Returns:
        Columns `GROUP`, rank (Int64), n, seeds (str), mean, sd, low, high, best (Float64, percent), labels, synthesis
        seconds and bytes (means), notes (list of str), settings (how many settings the cell has).
    """
    by_cell: dict[tuple[Any, ...], list[Hole]] = {}
    for h in rows.holes:
        by_cell.setdefault(h.cell, []).append(h)
    lines: list[dict[str, Any]] = []
    seen: dict[tuple[Any, ...], int] = {}
    for at, part in grouped_by(plain_records(rows.frame), GROUP):
        cell = tuple(at[c] for c in CELL)
        seen[cell] = seen.get(cell, 0) + 1
        lines.append(_line(at, part, by_cell.get(cell, [])))
    for cell, missing in by_cell.items():
        if cell not in seen:
            lines.append(_line(dict(zip(GROUP, (*cell, ""), strict=True)), [], missing))
    for line in lines:
        line["settings"] = seen.get(tuple(line[c] for c in CELL), 0)
    return _typed(_ranked(lines))


def grouped_by(
    records: Iterable[dict[str, Any]], names: Sequence[str]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Records with equal values of some columns, groups sorted by these; records keep their order in a group."""

    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[n] for n in names)

    for values, part in groupby(sorted(records, key=key), key):
        yield dict(zip(names, values, strict=True)), list(part)


def _line(at: dict[str, Any], part: list[dict[str, Any]], missing: list[Hole]) -> dict[str, Any]:
    last = summarise(r["accuracy_last"] for r in part)
    return {
        **at,
        "n": last.n,
        "seeds": ", ".join(str(r["seed"]) for r in part),
        "mean": last.mean,
        "sd": last.sd,
        "low": last.low,
        "high": last.high,
        "best": summarise(r["accuracy_best"] for r in part).mean,
        "labels": ", ".join(sorted({r["labels"] for r in part})),
        **{c: summarise(r[c] for r in part).mean for c in ("synthesis_seconds", *BYTES)},
        "classes": part[0]["classes"] if part else None,
        "notes": notes_of(part, missing),
    }


def _ranked(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank by last-epoch mean within each contest (equal means share a rank); lines without a number have none."""
    contests: dict[tuple[Any, ...], list[float]] = {}
    for line in lines:
        if line["n"]:
            contests.setdefault(tuple(line[c] for c in CONTEST), []).append(-line["mean"])
    for means in contests.values():
        means.sort()
    for line in lines:
        means = contests.get(tuple(line[c] for c in CONTEST), [])
        line["rank"] = 1 + bisect_left(means, -line["mean"]) if line["n"] else None
    return sorted(
        lines,
        key=lambda x: (
            x["dataset"], x["ipc"], x["student"], x["protocol"], math.inf if x["rank"] is None else x["rank"],
            x["method"], x["teacher"], x["setting"],
        ),
    )  # fmt: skip


def _typed(lines: list[dict[str, Any]]) -> pd.DataFrame:
    text = {"method", "dataset", "teacher", "student", "protocol", "setting", "seeds", "labels"}
    whole = {"ipc", "rank", "n", "classes", "settings"}
    names = [*GROUP, "rank", "n", "seeds", "mean", "sd", "low", "high", "best", "labels", "synthesis_seconds"]
    data: dict[str, Any] = {}
    for name in [*names, *BYTES, "classes", "settings"]:
        kind = "string" if name in text else "Int64" if name in whole else "Float64"
        data[name] = pd.array([x[name] for x in lines], dtype=kind)  # type: ignore[call-overload]
    data["notes"] = pd.Series([x["notes"] for x in lines], dtype=object)
    return pd.DataFrame(data)


def pareto(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Indices of points that no other point beats in both: smallest cost first, gain strictly rising."""
    front: list[int] = []
    top = -np.inf
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i])):
        if gain[i] > top:
            front.append(i)
            top = gain[i]
    return front
