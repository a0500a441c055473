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
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from suite.leaderboard.rows import CELL, GROUP, Hole, Rows
from suite.leaderboard.significance import ranks

LEVEL = 0.95
BYTES = ("image_bytes", "label_bytes", "auxiliary_bytes", "total_bytes", "unshipped_bytes")
#: Costs of a group: means over its rows.
MEANS = (
    *BYTES, "synthesis_seconds", "teacher_seconds", "statistics_seconds", "relabel_seconds", "evaluation_seconds",
    "epochs", "steps", "seconds_per_image", "peak_memory_bytes",
)  # fmt: skip
#: Columns of rows that are equal in a group.
FIRST = ("labels", "label_prune", "synthesis_setting", "overridden")
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
    return float(stdtrit(freedom, (1 + level) / 2))


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
    names = [str(name) for name in frame.columns]
    columns = [plain_values(column) for _, column in frame.items()]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def plain_values(column: pd.Series) -> list[Any]:
    """A column as plain Python values, None for what is missing; lists stay as they are."""
    values = column.tolist()
    if column.dtype == object:
        return [v if isinstance(v, list) else None if pd.isna(v) else v for v in map(_unwrapped, values)]
    missing = column.isna().to_numpy(dtype=bool)
    return [None if gone else v for v, gone in zip(values, missing, strict=True)] if missing.any() else values


def _unwrapped(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def seeds_text(seeds: Iterable[int]) -> str:
    """`seed 1`, `seeds 0, 2`, `seeds 0-4`."""
    s = sorted(set(seeds))
    if len(s) > 2 and all(b == a + 1 for a, b in pairwise(s)):
        return f"seeds {s[0]}-{s[-1]}"
    return ("seed " if len(s) == 1 else "seeds ") + ", ".join(map(str, s))


def cut_batches(parts: int) -> str:
    """What it means that batches were cut into parts."""
    return f"with each batch in {parts} parts, since memory ran out (BatchNorm sees a part at a time)"


def notes_of(rows: Sequence[Mapping[str, Any]], holes: Iterable[Hole]) -> list[str]:
    """Footnotes of one group: suspicious rows first, then cut batches and holes, seeds with the same text together."""
    seeds: dict[str, list[int]] = {}
    for r in rows:
        for why in suspicions(r["accuracy_last"], r["classes"], bool(r["constant_prediction"])):
            seeds.setdefault(f"suspicious: {why}", []).append(r["seed"])
    for r in rows:
        if parts := r["micro_batches"]:
            seeds.setdefault(f"trained {cut_batches(parts)}", []).append(r["seed"])
    for h in holes:
        seeds.setdefault(f"missing: {h.reason}", []).append(h.seed)
    return [f"{seeds_text(s)} {text}" for text, s in seeds.items()]


def groups(rows: Rows) -> pd.DataFrame:
    """Aggregate over seeds, one line a group, best first within each contest; a cell of holes only is a line too.

    Returns:
        Columns `GROUP`, place (by mean, 1 is best), rank (shared where `significance` cannot separate), p (of the test
        that decided the rank), n, seeds (str), mean, sd, low, high, best (Float64, percent), `FIRST` (equal in a
        group), device (several are joined), `MEANS` (over seeds), classes, notes (list of str), settings (how many
        settings the cell has).
    """
    frame = rows.frame
    number = frame.groupby(list(GROUP), sort=True, observed=True, dropna=False).ngroup().to_numpy(dtype=np.intp)
    order = np.argsort(number, kind="stable")
    frame, number = frame.iloc[order], number[order]
    start = np.flatnonzero(np.diff(number, prepend=-1))
    lines = frame.iloc[start][[*GROUP, *FIRST, "classes"]].reset_index(drop=True)
    lines["n"] = np.diff(start, append=len(frame))
    lines["seeds"] = _seeds(frame["seed"].to_numpy(dtype=np.int64), start)
    lines = lines.assign(**spread(frame["accuracy_last"].to_numpy(dtype=float), start))
    for name, source in (("best", "accuracy_best"), *((c, c) for c in MEANS)):
        lines[name] = means(frame[source], start)
    lines["device"] = joined(frame["device"], start)
    lines["settings"] = lines.groupby(list(CELL), dropna=False, observed=True)["n"].transform("size")
    return ranked(_with_notes(lines, frame, number, rows.holes))


def spread(
    values: npt.NDArray[Any], start: npt.NDArray[Any], names: Sequence[str] = ("mean", "sd", "low", "high")
) -> dict[str, Any]:
    """Mean, sd (n - 1) and two-sided 95 % t-interval of runs of values; NaN does not count, one value has no spread.

    Args:
        values: All runs, one after the other.
        start: Where each run begins.
        names: What to call mean, sd, low and high.

    Returns:
        Float64 columns by name, one value a run.
    """
    if not len(start):
        return {name: pd.array([], dtype="Float64") for name in names}
    there = ~np.isnan(values)
    n = np.add.reduceat(there.astype(float), start)
    lengths = np.diff(start, append=len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(there, values, 0.0), start) / n
        # Rounding may leave a mean of equal values a bit beside them; it lies within them.
        low, high = np.fmin.reduceat(values, start), np.fmax.reduceat(values, start)
        mean = np.where(n > 0, np.clip(mean, low, high), np.nan)
        squares = np.where(there, (values - np.repeat(mean, lengths)) ** 2, 0.0)
        sd = np.where(n > 1, np.sqrt(np.add.reduceat(squares, start) / (n - 1)), np.nan)
        half = np.where(n > 1, stdtrit(n - 1, (1 + LEVEL) / 2) * sd / np.sqrt(n), np.nan)
    columns = (mean, sd, mean - half, mean + half)
    return {name: pd.array(column, dtype="Float64") for name, column in zip(names, columns, strict=False)}


def means(column: pd.Series, start: npt.NDArray[Any]) -> Any:
    """Means of runs of values; missing ones do not count, and none has no mean."""
    return spread(column.to_numpy(dtype=float, na_value=np.nan), start, ("mean",))["mean"]


def joined(column: pd.Series, start: npt.NDArray[Any]) -> Any:
    """The value of each run; runs with several have them joined."""
    if not len(start):
        return pd.array([], dtype="string")
    codes, names = pd.factorize(column, sort=True)
    found = names.take(np.maximum.reduceat(codes, start)).tolist() if len(names) else [None] * len(start)
    for i in np.flatnonzero(np.minimum.reduceat(codes, start) != np.maximum.reduceat(codes, start)):
        run = codes[start[i] : start[i + 1] if i + 1 < len(start) else None]
        found[i] = ", ".join(str(names[c]) if c >= 0 else "?" for c in sorted(set(run.tolist())))
    for i in np.flatnonzero(np.maximum.reduceat(codes, start) < 0):
        found[i] = None
    return pd.array(found, dtype="string")


def _seeds(seeds: npt.NDArray[Any], start: npt.NDArray[Any]) -> Any:
    known: dict[bytes, str] = {}
    found = []
    for part in np.split(seeds, start[1:]):
        mark = part.tobytes()
        if mark not in known:
            known[mark] = ", ".join(map(str, part))
        found.append(known[mark])
    return pd.array(found if len(start) else [], dtype="string")


def _with_notes(
    lines: pd.DataFrame, frame: pd.DataFrame, number: npt.NDArray[Any], holes: Iterable[Hole]
) -> pd.DataFrame:
    """Lines with their footnotes, and a line for each cell that has holes only."""
    by_cell: dict[tuple[Any, ...], list[Hole]] = {}
    for h in holes:
        by_cell.setdefault(h.cell, []).append(h)
    odd: dict[int, list[dict[str, Any]]] = {}
    strange = _strange(frame)
    for at, record in zip(number[strange], plain_records(frame.loc[strange, _ODD]), strict=True):
        odd.setdefault(int(at), []).append(record)
    cells = list(zip(*(lines[c] for c in CELL), strict=True)) if by_cell else [()] * len(lines)
    lines["notes"] = pd.Series(
        [notes_of(odd.get(i, []), by_cell.get(c, [])) for i, c in enumerate(cells)], dtype=object
    )
    seen = set(cells)
    missing = [
        {**dict(zip(CELL, cell, strict=True)), "setting": "", "n": 0, "settings": 0, "seeds": "", "labels": "",
         "notes": notes_of([], gaps)}
        for cell, gaps in by_cell.items() if cell not in seen
    ]  # fmt: skip
    if not missing:
        return lines
    added = pd.DataFrame(missing).reindex(columns=lines.columns)
    for name in lines.columns:
        added[name] = added[name].astype(lines[name].dtype)
    return pd.concat([lines, added], ignore_index=True)


_ODD = ["seed", "accuracy_last", "classes", "constant_prediction", "micro_batches"]


def _strange(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Rows that `notes_of` may have something to say about."""
    last = frame["accuracy_last"].to_numpy(dtype=float)
    classes = frame["classes"].to_numpy(dtype=float, na_value=np.nan)
    constant = frame["constant_prediction"].to_numpy(dtype=bool, na_value=False)
    near: npt.NDArray[np.bool_] = np.abs(last - 100 / classes) <= 1
    cut = frame["micro_batches"].notna().to_numpy()
    return constant | (last == 0) | (last == 100) | near | cut


def ranked(lines: pd.DataFrame, within: Sequence[str] = CONTEST) -> pd.DataFrame:
    """Sort lines by contest and mean, and set place, rank and p; lines without a number come last and have none."""
    by = [*within, "mean", *(c for c in ("method", "teacher", "setting") if c not in within)]
    rising = [c != "mean" for c in by]
    lines = lines.sort_values(by, ascending=rising, na_position="last", kind="stable", ignore_index=True)
    contest = lines.groupby(list(within), sort=False, dropna=False, observed=True).ngroup().to_numpy()
    columns = [lines[c].tolist() for c in ("mean", "sd", "n")]
    places: list[int | None] = []
    found: list[tuple[int | None, float | None]] = []
    for _, part in groupby(range(len(lines)), lambda i: contest[i]):
        inside = list(part)
        there = [i for i in inside if columns[2][i]]
        mean, sd, n = ([c[i] for i in there] for c in columns)
        found += ranks(mean, [None if pd.isna(s) else s for s in sd], n)
        places += [1 + bisect_left(mean, -m, key=lambda x: -x) for m in mean]
        gaps = len(inside) - len(there)
        found += [(None, None)] * gaps
        places += [None] * gaps
    lines["place"] = pd.array(places, dtype="Int64")
    lines["rank"] = pd.array([r for r, _ in found], dtype="Int64")
    lines["p"] = pd.array([p for _, p in found], dtype="Float64")
    return lines


def grouped_by(
    records: Iterable[dict[str, Any]], names: Sequence[str]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Records with equal values of some columns, groups sorted by these; records keep their order in a group."""

    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[n] for n in names)

    for values, part in groupby(sorted(records, key=key), key):
        yield dict(zip(names, values, strict=True)), list(part)


def pareto(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Indices of points that no other point beats in both: smallest cost first, gain strictly rising."""
    front: list[int] = []
    top = -np.inf
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i])):
        if gain[i] > top:
            front.append(i)
            top = gain[i]
    return front


def fronts(lines: pd.DataFrame, within: Sequence[str], cost: str) -> Any:
    """`yes` for lines on the Pareto front of accuracy against a cost in their contest, `no` for others, NA without."""
    found: list[str | None] = [None] * len(lines)
    costs, means = (lines[c].to_numpy(dtype=float, na_value=np.nan) for c in (cost, "mean"))
    contest = lines.groupby(list(within), sort=False, dropna=False, observed=True).ngroup().to_numpy()
    there = np.flatnonzero(~np.isnan(costs) & ~np.isnan(means))
    for _, part in groupby(sorted(there.tolist(), key=lambda i: contest[i]), lambda i: contest[i]):
        inside = list(part)
        points = [(costs[i], means[i]) for i in inside]
        front = {points[k] for k in pareto(*zip(*points, strict=True))}
        for i, point in zip(inside, points, strict=True):
            found[i] = "yes" if point in front else "no"
    return pd.array(found, dtype="string")
