"""What changed between two states of a leaderboard: cells, ranks, numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from suite.leaderboard.rows import CELL, Rows
from suite.leaderboard.significance import separation
from suite.leaderboard.statistics import CONTEST, groups, plain_records
from suite.leaderboard.tables import PROTOCOL, STUDENT, WHO, Column, Table, finish

_VALUES = ("mean", "sd", "n", "rank", "synthesis_seconds", "total_bytes")


def changes(now: Rows, then: Rows, state: str) -> Table:
    """One line a cell that differs: it is new, gone, has other rows, or another rank.

    A cell with one setting in both states is compared whatever the setting is; one with several is compared setting by
    setting.

    Args:
        now: The present rows.
        then: The rows of the earlier state.
        state: How to name that state.
    """
    pairs = _paired(_lines(now), _lines(then))
    lines = [line for line in (_line(a, b) for a, b in pairs) if line is not None]
    frame = pd.DataFrame(lines, columns=[*CELL, *_NAMES, "change", "notes"])
    frame["n"] = 1
    frame = frame.sort_values([*CONTEST, "method", "teacher", "change"], kind="stable")
    return finish(
        "changes",
        f"Changes since {state}",
        "Cells that are new, gone, have other rows or another rank than in the earlier state. A difference whose p is "
        "not small is one that the seeds cannot tell from none." + ("" if lines else " Nothing has changed."),
        _COLUMNS,
        frame,
        CONTEST,
        "history",
    )


_NAMES = (
    "before", "mean", "difference", "p", "rank_before", "rank", "n_before", "seeds_now", "seconds_before", "seconds",
    "bytes_before", "bytes",
)  # fmt: skip
_COLUMNS = [
    Column("change", "Change", help="new, gone, numbers (other rows), rank (only the rank moved)"),
    *WHO, STUDENT, PROTOCOL,
    Column("before", "Before %", "percent", help="Accuracy in the earlier state, mean over seeds"),
    Column("mean", "Now %", "percent", help="Accuracy now, mean over seeds"),
    Column("difference", "Difference", "signed", help="Now less before, in points", short="Diff."),
    Column("p", "p", "probability", help="Of the difference (Welch's t-test); empty where seeds are too few"),
    Column("rank_before", "# before", "count", help="Rank in the earlier state"),
    Column("rank", "# now", "count", help="Rank now"),
    Column("n_before", "n before", "count", terminal=False, help="Seeds in the earlier state"),
    Column("seeds_now", "n now", "count", terminal=False, help="Seeds now"),
    Column("seconds_before", "Time before", "seconds", terminal=False, help="Of the synthesis, in the earlier state"),
    Column("seconds", "Time now", "seconds", terminal=False, help="Of the synthesis, now"),
    Column("bytes_before", "Bytes before", "bytes", terminal=False, help="That a student needs, in the earlier state"),
    Column("bytes", "Bytes now", "bytes", terminal=False, help="That a student needs, now"),
]  # fmt: skip


def _lines(rows: Rows) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    """Lines with a number, by cell and setting, each with the keys of its rows."""
    grouped = groups(Rows(rows.frame))
    names = [*CELL, "setting"]
    keys = rows.frame.groupby(names, observed=True, dropna=False)["key"].agg(frozenset)
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for line in plain_records(grouped[[*names, *_VALUES]]):
        cell = tuple(line[c] for c in CELL)
        found.setdefault(cell, {})[line["setting"]] = {**line, "keys": keys[tuple(line[c] for c in names)]}
    return found


def _paired(
    now: dict[tuple[Any, ...], dict[str, dict[str, Any]]], then: dict[tuple[Any, ...], dict[str, dict[str, Any]]]
) -> list[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    pairs: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = []
    for cell in {**now, **then}:
        here, there = now.get(cell, {}), then.get(cell, {})
        if len(here) == len(there) == 1:
            pairs.append((next(iter(here.values())), next(iter(there.values()))))
        else:
            pairs += [(here.get(s), there.get(s)) for s in {**here, **there}]
    return pairs


def _line(now: dict[str, Any] | None, then: dict[str, Any] | None) -> dict[str, Any] | None:
    if now and then and now["keys"] == then["keys"] and now["rank"] == then["rank"]:
        return None
    a, b = now or {}, then or {}
    change = "new" if then is None else "gone" if now is None else "rank" if a["keys"] == b["keys"] else "numbers"
    line = {
        **{c: (now or b)[c] for c in CELL},
        "change": change,
        "notes": [],
        **{f"{k}_before": b.get(v) for k, v in _BOTH.items()},
        **{k: a.get(v) for k, v in _BOTH.items()},
        "before": b.get("mean"),
        "mean": a.get("mean"),
        "n_before": b.get("n"),
        "seeds_now": a.get("n"),
        "difference": None,
        "p": None,
    }
    if now and then:
        line["difference"] = a["mean"] - b["mean"]
        if change == "numbers":
            line["p"] = separation((a["mean"], a["sd"], a["n"]), (b["mean"], b["sd"], b["n"]))
    return line


_BOTH = {"rank": "rank", "seconds": "synthesis_seconds", "bytes": "total_bytes"}
