"""The three leaderboards as tables of plain values; `formats` writes them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pandas as pd

from suite.leaderboard.published import Published
from suite.leaderboard.rows import Hole, Rows
from suite.leaderboard.statistics import (
    BYTES,
    CONTEST,
    grouped_by,
    groups,
    notes_of,
    pareto,
    plain_records,
    summarise,
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its name in CSV files.
        header: What people read.
        form: How values are shown: `text`, `count`, `percent`, `spread`, `interval`, `range`, `signed`, `seconds`,
            `number`, `bytes`, `notes`.
        identity: Part of what names a line; screens show it above the table where it is the same everywhere.
        csv: Whether CSV files have it.
        shown: Whether Markdown and HTML have it.
        terminal: Whether the terminal has it.
        help: What it means, in one sentence.
        short: Header on the terminal, where it differs.
        spare: Whether a terminal that is too narrow for all columns goes without it.
    """

    name: str
    header: str
    form: str = "text"
    identity: bool = False
    csv: bool = True
    shown: bool = True
    terminal: bool = True
    help: str = ""
    short: str = ""
    spare: bool = False

    @property
    def numeric(self) -> bool:
        """Whether values line up on the right."""
        return self.form != "text"


@dataclass(frozen=True)
class Table:
    """A leaderboard.

    Attributes:
        slug: File name without suffix.
        title: Heading.
        caption: What is measured, in one or two sentences.
        columns: Its columns.
        rows: One dict a line: values by column name, `notes` (numbers of footnotes) and `flag` (`hole`, `suspicious`
            or empty), `break` (a new block of comparable lines begins). None is a value that is not there.
        footnotes: Text of footnotes 1, 2, ...
    """

    slug: str
    title: str
    caption: str
    columns: list[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)

    def constant(self) -> dict[str, Any]:
        """Identity columns but the method's that say the same on every line; screens show them once, above the table.

        A hole has no device and no kind of memory, so that holes do not count for these.
        """
        found = {}
        for c in self.columns:
            if c.identity and c.name != "method":
                measured = c.name in ("device", "peak_memory_kind")
                values = {r[c.name] for r in self.rows if not measured or r["flag"] != "hole"}
                if len(values) == 1:
                    found[c.name] = values.pop()
        return found


_WHO = [
    Column("method", "Method", identity=True, help="How the distilled set is made"),
    Column("dataset", "Dataset", identity=True),
    Column("ipc", "IPC", "count", identity=True, help="Images per class"),
    Column("teacher", "Teacher", identity=True, help="Network that the synthesis and soft labels come from"),
]
_STUDENT = [Column("student", "Student", identity=True, help="Network that is trained on the distilled set")]
_PROTOCOL = [
    Column(
        "protocol",
        "Protocol",
        identity=True,
        help="How students are trained. paper: the method's own recipe; matched: one recipe and step budget for all",
    )
]
_SETTING = Column("setting", "Setting", identity=True, help="Identifies parameters and inputs; equal for all seeds")


def leaderboards(rows: Rows, published: Published | None = None) -> list[Table]:
    """The leaderboards of accuracy, synthesis time and storage, in this order.

    Args:
        rows: What they are made from.
        published: What papers report, if that is to stand beside accuracies.
    """
    grouped = groups(rows)
    return [accuracy(grouped, published), synthesis_time(rows), storage(grouped)]


def accuracy(grouped: pd.DataFrame, published: Published | None = None) -> Table:
    """Accuracy over seeds: the last epoch is ranked, the best epoch and published numbers stand beside it."""
    lines = []
    for r in plain_records(grouped):
        pair = None if r["low"] is None else (r["low"], r["high"])
        lines.append({**r, "interval": pair, **_beside(r, published)})
    compared = any(x["published"] for x in lines)
    columns = [
        Column("rank", "#", "count", help="Rank of the accuracy among equal dataset, IPC, student and protocol"),
        *_WHO, *_STUDENT, *_PROTOCOL, *_settings(grouped),
        Column("mean", "Accuracy %", "percent", help="Last epoch, full validation split, mean over seeds"),
        Column("sd", "sd", "spread", spare=True, help="Standard deviation over seeds (n - 1)"),
        Column(
            "interval", "95 % interval", "interval", csv=False, spare=True,
            help="Two-sided t-interval of the mean, shown within 0 and 100 %; CSV files have it uncut",
        ),
        Column("low", "low", "percent", shown=False, terminal=False),
        Column("high", "high", "percent", shown=False, terminal=False),
        Column("best", "Best epoch %", "percent", terminal=False, help="Mean of the best evaluated epoch; not ranked"),
        Column("n", "n", "count", help="Seeds with a number"),
        Column("seeds", "Seeds", shown=False, terminal=False),
        *(_PUBLISHED if compared else []),
        _NOTES,
    ]  # fmt: skip
    return _finish(
        "accuracy",
        "Accuracy",
        "Top-1 accuracy in percent on the full validation split after the last epoch, mean over n seeds. Column # "
        "ranks it among lines of equal dataset, IPC, student and protocol. The 95 % t-interval of the mean is wide for "
        "two seeds (t = 12.7), and one seed has none.",
        columns,
        lines,
        CONTEST,
    )


_PUBLISHED = [
    Column(
        "published",
        "Published %",
        "range",
        csv=False,
        help="What the method's own paper reports, else others (from to, where they disagree)",
    ),
    Column("published_low", "", "percent", shown=False, terminal=False),
    Column("published_high", "", "percent", shown=False, terminal=False),
    Column("difference", "Difference", "signed", help="Accuracy less what is published, in points", short="Diff."),
    Column("agrees", "Agrees", help="yes: the difference is within 1 point or two published standard deviations"),
]


def _beside(line: dict[str, Any], published: Published | None) -> dict[str, Any]:
    found = published.beside(line) if published else None
    if found is None:
        return {"published": None}
    return {
        "published": (found.low, found.high),
        "published_low": found.low,
        "published_high": found.high,
        "difference": found.difference(line["mean"]),
        "agrees": "yes" if found.agrees(line["mean"]) else "no",
    }


def synthesis_time(rows: Rows) -> Table:
    """What a distilled set costs: each synthesis counts once, however many students learn from it."""
    at = ["method", "dataset", "ipc", "teacher", "protocol", "device", "setting"]
    own = [c for c in at if c != "setting"]
    lines: list[dict[str, Any]] = []
    done: set[tuple[Any, ...]] = set()
    records = plain_records(rows.frame)
    for r in records:
        r["device"], r["setting"] = r["device"] or "?", r["synthesis_setting"]
    for who, part in grouped_by(records, at):
        done.add(tuple(who[c] for c in at[:5]))
        lines.append(_time_line(who, part))
    missing: dict[tuple[Any, ...], list[Hole]] = {}
    for h in rows.holes:
        missing.setdefault((h.method, h.dataset, h.ipc, h.teacher, h.protocol), []).append(h)
    for cell, holes in missing.items():
        if cell not in done:
            who = dict(zip(at, (*cell, None, ""), strict=True))
            lines.append({**_time_line(who, []), "notes": notes_of([], holes)})
    lines.sort(
        key=lambda x: (
            x["dataset"], x["ipc"], not x["n"], x["device"] or "", x["seconds"] is None, x["seconds"] or 0.0,
            x["method"], x["teacher"], x["protocol"], x["setting"],
        )
    )  # fmt: skip
    several = len({tuple(x[c] for c in own) for x in lines}) < len(lines)
    columns = [
        *_WHO, *_PROTOCOL, *([_SETTING] if several else []),
        Column("n", "n", "count", terminal=False, help="Distinct syntheses measured"),
        Column("seconds", "Time", "seconds", help="Device-synchronised time of one synthesis, mean over n"),
        Column("seconds_sd", "sd", "seconds", terminal=False, help="Standard deviation of the time (n - 1)"),
        Column("seconds_per_image", "Time / image", "seconds", help="Time by the number of images", short="/image"),
        Column(
            "image_iterations", "Image-iterations", "number", short="Img-it.", spare=True,
            help="Updates, summed over the images that each changes",
        ),
        Column("iterations_per_image", "Iterations / image", "number", help="Updates of one image", short="It./image"),
        Column("forward_images", "Images forwarded", "number", terminal=False, help="Images put through a network"),
        Column("peak_memory_bytes", "Peak memory", "bytes", help="Largest over seeds", short="Peak", spare=True),
        Column("peak_memory_kind", "Memory", identity=True, terminal=False, help="What peak memory is a peak of"),
        Column("device", "Device", identity=True, help="Times of different devices are not comparable"),
        Column("teacher_seconds", "Teacher time", "seconds", help="Training the teacher; not in Time", short="Teacher"),
        Column("statistics_seconds", "Statistics time", "seconds", help="Of real images; not in Time", short="Stats"),
        Column("relabel_seconds", "Relabel time", "seconds", help="Storing soft labels; not in Time", short="Relabel"),
        _NOTES,
    ]  # fmt: skip
    return _finish(
        "synthesis_time",
        "Synthesis time",
        "Cost of making one distilled set, in total and per image, fastest first. Teacher, statistics and relabel "
        "cost stand in columns of their own, since several sets share them; devices are never mixed in one line.",
        columns,
        lines,
        ("dataset", "ipc", "device"),
    )


def _time_line(who: dict[str, Any], part: list[dict[str, Any]]) -> dict[str, Any]:
    once = list({(r["synthesis_key"], r["seed"]): r for r in part}.values())
    relabel = {r["relabel_key"]: r["relabel_seconds"] for r in part if r["relabel_key"] is not None}
    seconds = summarise(r["synthesis_seconds"] for r in once)
    memory = [r["peak_memory_bytes"] for r in once if r["peak_memory_bytes"] is not None]
    return {
        **who,
        "n": len(once),
        "seconds": seconds.mean,
        "seconds_sd": seconds.sd,
        **{c: summarise(r[c] for r in once).mean for c in _MEANS},
        "peak_memory_bytes": max(memory) if memory else None,
        "peak_memory_kind": ", ".join(sorted({r["peak_memory_kind"] for r in once if r["peak_memory_kind"]})) or None,
        "relabel_seconds": summarise(relabel.values()).mean,
        "notes": [],
    }


_MEANS = (
    "seconds_per_image",
    "image_iterations",
    "iterations_per_image",
    "forward_images",
    "teacher_seconds",
    "statistics_seconds",
)


def storage(grouped: pd.DataFrame) -> Table:
    """Measured bytes of what has to be shipped, with the accuracy that they buy: at equal bytes, across IPC."""
    columns = [
        *_WHO, *_STUDENT, *_PROTOCOL, *_settings(grouped),
        Column("labels", "Label policy", help="hard, online (by a shipped teacher) or stored", terminal=False),
        Column("image_bytes", "Images", "bytes", help="Distilled images, as they are stored", spare=True),
        Column(
            "label_bytes", "Labels", "bytes", spare=True,
            help="Class numbers or stored soft labels; none where a shipped teacher computes them",
        ),
        Column(
            "auxiliary_bytes", "Auxiliary", "bytes", short="Aux", spare=True,
            help="Decoders, label teachers, augmentations",
        ),
        Column("total_bytes", "Total", "bytes", help="Images + labels + auxiliary"),
        Column("bytes_per_class", "Per class", "bytes", terminal=False, help="Total by the number of classes"),
        Column("unshipped_bytes", "Not shipped", "bytes", terminal=False, help="Needed by the synthesis only"),
        Column("mean", "Accuracy %", "percent", help="Last epoch, mean over seeds", short="Acc. %"),
        Column("front", "Front", help="yes: nothing smaller is as accurate, and nothing as small is more accurate"),
        Column("n", "n", "count", terminal=False, help="Seeds with a number"),
        _NOTES,
    ]  # fmt: skip
    lines = []
    for r in plain_records(grouped):
        sizes = {c: None if r[c] is None else round(r[c]) for c in BYTES}
        each = sizes["total_bytes"] / r["classes"] if sizes["total_bytes"] is not None and r["classes"] else None
        lines.append({**r, **sizes, "bytes_per_class": each})
    within = ("dataset", "student", "protocol")
    for _, part in grouped_by([x for x in lines if x["total_bytes"] is not None], within):
        points = [(x["total_bytes"], x["mean"]) for x in part]
        front = {points[i] for i in pareto(*zip(*points, strict=True))}
        for x, point in zip(part, points, strict=True):
            x["front"] = "yes" if point in front else "no"
    lines.sort(
        key=lambda x: (
            *(x[c] for c in within), x["total_bytes"] is None, x["total_bytes"] or 0, -(x["mean"] or 0.0), x["ipc"],
            x["method"], x["teacher"], x["setting"],
        )
    )  # fmt: skip
    return _finish(
        "storage",
        "Storage",
        "Measured bytes on disk of everything that a student needs (1 GB = 10^9 bytes), smallest first, with the "
        "accuracy that they buy. Front: nothing smaller is as accurate and nothing as small is more accurate, at "
        "any IPC, among lines of equal dataset, student and protocol. Parts that only the synthesis needs are not in "
        "the total.",
        columns,
        lines,
        within,
    )


_NOTES = Column("notes", "Notes", "notes", help="Numbers of the notes below")


def _settings(grouped: pd.DataFrame) -> list[Column]:
    """The column `setting`, where some cell has rows of more than one."""
    return [_SETTING] if bool((grouped["settings"] > 1).any()) else []


def _finish(
    slug: str, title: str, caption: str, columns: list[Column], lines: list[dict[str, Any]], within: Sequence[str]
) -> Table:
    """Number the footnotes, keep what the columns name, and mark where a block of comparable lines begins."""
    numbers: dict[str, int] = {}
    rows = []
    for line in lines:
        notes = [numbers.setdefault(text, len(numbers) + 1) for text in line["notes"]]
        odd = any(" suspicious: " in text for text in line["notes"])
        flag = "hole" if not line["n"] else "suspicious" if odd else ""
        rows.append({**{c.name: line.get(c.name) for c in columns}, "notes": notes, "flag": flag, "break": False})
    for above, below in pairwise(rows):
        same = [c for c in within if c != "device" or below["flag"] != "hole"]  # holes have no device
        below["break"] = any(above.get(c) != below.get(c) for c in same)
    return Table(slug, title, caption, columns, rows, list(numbers))
