"""Papers beside measurements: every published number with what was measured, and where papers contradict each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from suite.leaderboard.published import TOLERANCE, Number, Published, method_name, place, tolerance, verdict
from suite.leaderboard.statistics import plain_records
from suite.leaderboard.tables import Column, Table, finish

#: Published costs that a measured column answers: (metric, unit) to (column, how many of it make one unit, obstacle).
_COSTS: dict[tuple[str, str], tuple[str, float, str]] = {
    ("synthesis_time", "s/image"): ("seconds_per_image", 1.0, "seconds of another machine"),
    ("synthesis_time", "h"): ("synthesis_seconds", 3600.0, "hours of another machine"),
    ("synthesis_time", "GPU-h"): ("synthesis_seconds", 3600.0, "hours of another machine"),
    ("peak_memory", "GB"): ("peak_memory_bytes", 1e9, "memory of another device"),
    # Papers say GB where their files have GiB.
    ("label_storage", "GB"): ("label_bytes", 2.0**30, "bytes of another file format"),
    ("storage", "GB (images only)"): ("image_bytes", 1e9, "JPEG there, uint8 here"),
}


def published(grouped: pd.DataFrame, papers: Published) -> Table:
    """One line a published number, those with a measurement first.

    Args:
        grouped: `statistics.groups`.
        papers: What papers report.
    """
    names = {n.name for n in papers.numbers}
    mine = grouped["method"].map({m: method_name(m) in names for m in grouped["method"].unique()})
    measured = plain_records(grouped[(mine & (grouped["n"] > 0)).to_numpy(dtype=bool)])
    by_cell: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    by_set: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in measured:
        at = place(line)
        by_cell.setdefault(at, []).append(line)
        by_set.setdefault(at[:4], []).append(line)
    lines = []
    for number in papers.numbers:
        at = (number.name, number.row["dataset"], number.size, number.ipc)
        found = by_cell.get((*at, number.student), []) if number.accuracy else by_set.get(at, [])
        lines.append({**_facts(number), **_measured(number, found)})
    frame = pd.DataFrame(lines)
    frame["empty"] = [x["measured"] is None for x in lines]
    frame["other"] = frame["primary"] != "yes"
    by = ["empty", "method", "dataset", "metric", "ipc", "student", "teacher", "labels", "other", "value", "source"]
    frame = frame.sort_values(by, na_position="last", kind="stable")
    return finish(
        "published",
        "Papers beside measurements",
        "Every published number with its source, what was measured for the same method, dataset, IPC, teacher, student "
        "and labels, and a verdict. Tolerance: twice the joint standard deviation of paper and measurement, at least "
        f"{TOLERANCE:g} point. Nothing measured: the columns are empty. Digitised numbers were read off a figure, "
        "recalled ones not read at all, derived ones computed from two that were read.",
        _COLUMNS,
        frame,
        ("method", "dataset"),
        "papers",
    )


_COLUMNS = [
    Column("method", "Method", identity=True, help="As the source names it; what follows in brackets is a variant"),
    Column("dataset", "Dataset", identity=True),
    Column("resolution", "Pixels", "count", identity=True, terminal=False, help="Side of the images"),
    Column("ipc", "IPC", "count", identity=True, help="Images per class; empty for whole datasets"),
    Column("teacher", "Teacher", identity=True, help="As the source names it"),
    Column("student", "Student", identity=True, help="As the source names it"),
    Column("labels", "Labels", identity=True, help="hard, soft-fkd (a soft label a view), soft-static (one an image)"),
    Column("metric", "Metric", identity=True, help="top1 unless it says otherwise"),
    Column("unit", "Unit", identity=True, help="Of published and measured values"),
    Column("value", "Published", "value", help="What the source reports"),
    Column("std", "sd", "value", terminal=False, help="Published standard deviation"),
    Column("measured", "Measured", "value", help="Mean over seeds; empty where nothing was run"),
    Column("measured_sd", "sd", "value", terminal=False, help="Standard deviation over seeds (n - 1)"),
    Column("n", "n", "count", help="Seeds measured"),
    Column("difference", "Difference", "signed", help="Measured less published", short="Diff."),
    Column("tolerance", "Tolerance", "value", terminal=False, help="Largest difference that counts as reproduced"),
    Column("verdict", "Verdict", help="reproduced, above, below, or not comparable (why); empty where nothing was run"),
    Column("primary", "Primary", terminal=False, help="yes: the source to cite for this method"),
    Column("mark", "Mark", help="digitised, recalled, derived, third party, re-evaluated (by others, one recipe)"),
    Column("source", "Source", help="Paper or repository"),
    Column("where", "Where", terminal=False, help="Place in the source"),
]  # fmt: skip


_TEXTS = ("method", "dataset", "teacher", "student", "metric", "unit", "primary", "mark")


def _facts(number: Number) -> dict[str, Any]:
    r = number.row
    return {
        **{name: None if r[name] in ("", "-") else r[name] for name in _TEXTS},
        "labels": None if r["label_mode"] == "-" else r["label_mode"],
        "resolution": number.size,
        "ipc": number.ipc,
        "value": number.value,
        "std": number.sd,
        "source": r["source_title"],
        "where": r["source_where"],
        "notes": [],
        "n": None,
    }


def _measured(number: Number, lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The measured side of a line: of the cell with the fewest obstacles, protocol `paper` first."""
    column, unit, obstacle = _COSTS.get((number.row["metric"], number.row["unit"]), ("mean", 1.0, ""))
    if not number.accuracy and not obstacle:
        return {"measured": None}
    found = [(line, number.obstacles(line)) for line in lines]
    found = [(line, why) for line, why in found if line[column] is not None]
    if not found:
        return {"measured": None}
    line, why = min(found, key=lambda x: (len(x[1]), x[0]["protocol"] != "paper", x[0]["teacher"], x[0]["setting"]))
    value = line[column] / unit
    result = {"measured": value, "n": line["n"], "difference": value - number.value}
    if number.accuracy:
        result |= {"measured_sd": line["sd"], "tolerance": tolerance(number.sd, line["sd"])}
    else:
        why = [*why, obstacle]
    if why:
        return {**result, "verdict": f"not comparable ({'; '.join(why)})"}
    return {**result, "verdict": verdict(result["difference"], result["tolerance"])}


def contradictions(papers: Published) -> Table | None:
    """Cells of the literature whose sources are more than `TOLERANCE` points apart; None if there are none."""
    found: dict[tuple[Any, ...], list[Number]] = {}
    for n in papers.numbers:
        if n.accuracy and n.ipc is not None:
            at = (n.name, n.row["dataset"], n.size, n.ipc, n.student, n.labels, n.prune, n.quantised)
            found.setdefault(at, []).append(n)
    lines = []
    for numbers in found.values():
        lines += [_contradiction(part) for part in _by_teacher(numbers)]
    lines = [x for x in lines if x["range"] > TOLERANCE and x["sources"] > 1]
    if not lines:
        return None
    frame = pd.DataFrame(lines)
    frame["wide"] = -frame["range"]
    return finish(
        "contradictions",
        "Contradictions between papers",
        f"Cells that several sources report, more than {TOLERANCE:g} point apart, widest first. Most differences are "
        "of the student's recipe: epochs, batch, learning rate and soft labels are not the same in two papers.",
        _CONTRADICTION,
        frame.sort_values(["wide", "method", "dataset", "ipc", "student"], kind="stable"),
        (),
        "papers",
    )


_CONTRADICTION = [
    Column("method", "Method", identity=True, help="Without the variants that sources add in brackets"),
    Column("dataset", "Dataset", identity=True),
    Column("resolution", "Pixels", "count", identity=True, help="Side of the images"),
    Column("ipc", "IPC", "count", identity=True, help="Images per class"),
    Column("teacher", "Teacher", identity=True, help="As the sources name it"),
    Column("student", "Student", identity=True, help="As the sources name it"),
    Column("labels", "Labels", identity=True, help="hard, soft-fkd (a soft label a view), soft-static (one an image)"),
    Column("sources", "Sources", "count", help="That report the cell"),
    Column("low", "Lowest %", "percent", help="Of all sources"),
    Column("high", "Highest %", "percent", help="Of all sources"),
    Column("range", "Range", "percent", help="Highest less lowest, in points"),
    Column("primary", "Primary %", help="What the source to cite reports"),
    Column("numbers", "Numbers", longest=2000, help="Each value with its sources"),
]


def _by_teacher(numbers: list[Number]) -> list[list[Number]]:
    """Numbers of the same teacher together; those that name none stand with the teacher that most sources name."""
    named: dict[str, list[Number]] = {}
    for n in numbers:
        vague = not n.teacher or n.teacher.startswith(("unspecified", "ensemble"))
        named.setdefault("" if vague else n.teacher, []).append(n)
    others = named.pop("", [])
    if not named:
        return [others]
    most = max(named, key=lambda t: (len(named[t]), t))
    named[most] = named[most] + others
    return list(named.values())


def _contradiction(numbers: list[Number]) -> dict[str, Any]:
    values: dict[float, list[str]] = {}
    for n in sorted(numbers, key=lambda n: (n.value, not n.primary, n.row["source_title"])):
        notes = ", ".join(x for x in (n.variant, n.row["mark"]) if x)
        text = _short(n.row["source_title"]) + (f" [{notes}]" if notes else "")
        if text not in values.setdefault(n.value, []):
            values[n.value].append(text)
    first = min(numbers, key=lambda n: (bool(n.variant), not n.primary))
    low, high = min(values), max(values)
    primary = sorted({n.value for n in numbers if n.primary})
    return {
        **{name: first.row[name] for name in ("method", "dataset", "teacher", "student")},
        "labels": first.row["label_mode"],
        "resolution": first.size,
        "ipc": first.ipc,
        "sources": len({n.row["source_title"] for n in numbers}),
        "low": low,
        "high": high,
        "range": high - low,
        "primary": ", ".join(f"{v:g}" for v in primary) or None,
        "numbers": "; ".join(f"{v:g} ({', '.join(texts)})" for v, texts in values.items()),
    }


def _short(title: str) -> str:
    """The name of a source: `DELT` for `DELT: A Simple ... (CVPR 2025)`."""
    return title.split(": ")[0].split(" (")[0]
