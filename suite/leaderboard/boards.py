"""The three leaderboards: accuracy, synthesis time and storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from suite.leaderboard.published import Published
from suite.leaderboard.rows import Hole, Rows
from suite.leaderboard.significance import ALPHA
from suite.leaderboard.statistics import BYTES, CONTEST, fronts, groups, joined, means, notes_of, spread
from suite.leaderboard.tables import NOTES, PROTOCOL, SETTING, STUDENT, WHO, Column, Table, finish, settings_column


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
    lines = grouped
    beside = published.beside(grouped) if published else None
    if beside is not None and beside["verdict"].notna().any():
        lines = pd.concat([grouped, beside], axis=1)
    columns = [
        Column(
            "rank", "#", "count",
            help="Rank of the accuracy among equal dataset, IPC, student and protocol; methods that a t-test at "
            f"{ALPHA * 100:g} % cannot tell from the best of a rank share it",
        ),
        *WHO, STUDENT, PROTOCOL, *settings_column(grouped),
        Column("mean", "Accuracy %", "percent", best="max", help="Last epoch, full validation split, mean over seeds"),
        Column("sd", "sd", "spread", spare=True, help="Standard deviation over seeds (n - 1)"),
        Column(
            "interval", "95 % interval", "interval", csv=False, spare=True, parts=("low", "high"),
            help="Two-sided t-interval of the mean, shown within 0 and 100 %; CSV files have it uncut",
        ),
        Column("low", "low", "percent", shown=False, terminal=False),
        Column("high", "high", "percent", shown=False, terminal=False),
        Column(
            "p", "p", "probability", terminal=False,
            help="Of the difference from the best of the rank above, or of the rank that is shared (Welch)",
        ),
        Column("place", "Place", "count", shown=False, terminal=False),
        Column("best", "Best epoch %", "percent", terminal=False, help="Mean of the best evaluated epoch; not ranked"),
        Column("n", "n", "count", help="Seeds with a number"),
        Column("seeds", "Seeds", shown=False, terminal=False),
        *(_PUBLISHED if lines is not grouped else []),
        NOTES,
    ]  # fmt: skip
    return finish(
        "accuracy",
        "Accuracy",
        "Top-1 accuracy in percent on the full validation split after the last epoch, mean over n seeds. Column # "
        "ranks it among lines of equal dataset, IPC, student and protocol; methods that the seeds cannot tell from the "
        "best of a rank share it. The 95 % t-interval of the mean is wide for two seeds (t = 12.7), and one seed has "
        "none.",
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
        parts=("published_low", "published_high"),
        help="What the method's primary source reports, else others (from to, where they disagree)",
    ),
    Column("published_low", "", "percent", shown=False, terminal=False),
    Column("published_high", "", "percent", shown=False, terminal=False),
    Column("difference", "Difference", "signed", help="Accuracy less what is published, in points", short="Diff."),
    Column(
        "verdict", "Verdict", short="Verdict",
        help="reproduced: the difference is within 1 point or twice the joint standard deviation; above; below; or not "
        "comparable (table Papers beside measurements says why)",
    ),
]  # fmt: skip


_TIME_WHO = ["method", "dataset", "ipc", "teacher", "protocol", "device", "setting"]
_TIME_MEANS = (
    "seconds_per_image",
    "image_iterations",
    "iterations_per_image",
    "forward_images",
    "teacher_seconds",
    "statistics_seconds",
)


def synthesis_time(rows: Rows) -> Table:
    """What a distilled set costs: each synthesis counts once, however many students learn from it."""
    lines = _time_lines(rows)
    done = set(zip(*(lines[c] for c in _TIME_WHO[:5]), strict=True))
    missing: dict[tuple[Any, ...], list[Hole]] = {}
    for h in rows.holes:
        cell = (h.method, h.dataset, h.ipc, h.teacher, h.protocol)
        if cell not in done:
            missing.setdefault(cell, []).append(h)
    if missing:
        holes = [
            {**dict(zip(_TIME_WHO, (*cell, None, ""), strict=True)), "n": 0, "notes": notes_of([], found)}
            for cell, found in missing.items()
        ]
        added = pd.DataFrame(holes).reindex(columns=lines.columns)
        for name in lines.columns:
            added[name] = added[name].astype(lines[name].dtype)
        lines = pd.concat([lines, added], ignore_index=True)
    lines["hole"] = lines["n"] == 0
    by = ["dataset", "ipc", "hole", "device", "seconds", "method", "teacher", "protocol", "setting"]
    lines = lines.sort_values(by, na_position="last", kind="stable", ignore_index=True)
    several = bool(lines.duplicated([c for c in _TIME_WHO if c != "setting"]).any())
    columns = [
        *WHO, PROTOCOL, *([SETTING] if several else []),
        Column("n", "n", "count", terminal=False, help="Distinct syntheses measured"),
        Column(
            "seconds", "Time", "seconds", best="min", help="Device-synchronised time of one synthesis, mean over n"
        ),
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
        NOTES,
    ]  # fmt: skip
    return finish(
        "synthesis_time",
        "Synthesis time",
        "Cost of making one distilled set, in total and per image, fastest first. Teacher, statistics and relabel "
        "cost stand in columns of their own, since several sets share them; devices are never mixed in one line.",
        columns,
        lines,
        ("dataset", "ipc", "device"),
    )


def _time_lines(rows: Rows) -> pd.DataFrame:
    """One line a way of making a set on a device; each synthesis and each relabelling counts once."""
    frame = rows.frame.assign(device=rows.frame["device"].fillna("?"), setting=rows.frame["synthesis_setting"])
    relabels = frame[frame["relabel_key"].notna()].drop_duplicates([*_TIME_WHO, "relabel_key"])
    relabel = relabels.groupby(_TIME_WHO, dropna=False, observed=True)["relabel_seconds"].mean()
    once = frame.drop_duplicates([*_TIME_WHO, "synthesis_key", "seed"])
    once = once.sort_values([*_TIME_WHO, "seed", "synthesis_key"], kind="stable", ignore_index=True)
    number = once.groupby(_TIME_WHO, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    start = np.flatnonzero(np.diff(number, prepend=-1))
    lines = once.iloc[start][_TIME_WHO].reset_index(drop=True)
    lines["n"] = np.diff(start, append=len(once))
    lines["notes"] = pd.Series([[] for _ in range(len(lines))], dtype=object)
    seconds = once["synthesis_seconds"].to_numpy(dtype=float, na_value=np.nan)
    lines = lines.assign(**spread(seconds, start, ("seconds", "seconds_sd")))
    for name in _TIME_MEANS:
        lines[name] = means(once[name], start)
    memory = once["peak_memory_bytes"].to_numpy(dtype=float, na_value=np.nan)
    lines["peak_memory_bytes"] = pd.array(np.fmax.reduceat(memory, start) if len(start) else [], dtype="Float64")
    lines["peak_memory_kind"] = joined(once["peak_memory_kind"], start)
    found = relabel.reindex(pd.MultiIndex.from_frame(lines[_TIME_WHO])) if len(relabel) else None
    lines["relabel_seconds"] = pd.array([None] * len(lines) if found is None else found.tolist(), dtype="Float64")
    return lines


def storage(grouped: pd.DataFrame) -> Table:
    """Measured bytes of what has to be shipped, with the accuracy that they buy: at equal bytes, across IPC."""
    columns = [
        *WHO, STUDENT, PROTOCOL, *settings_column(grouped),
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
        Column("mean", "Accuracy %", "percent", best="max", help="Last epoch, mean over seeds", short="Acc. %"),
        Column("front", "Front", help="yes: nothing smaller is as accurate, and nothing as small is more accurate"),
        Column("n", "n", "count", terminal=False, help="Seeds with a number"),
        NOTES,
    ]  # fmt: skip
    lines = grouped.copy()
    for name in BYTES:
        lines[name] = lines[name].round()
    lines["bytes_per_class"] = lines["total_bytes"] / lines["classes"]
    within = ["dataset", "student", "protocol"]
    lines["front"] = fronts(lines, within, "total_bytes")
    lines["worse"] = -lines["mean"].fillna(0.0)
    by = [*within, "total_bytes", "worse", "ipc", "method", "teacher", "setting"]
    return finish(
        "storage",
        "Storage",
        "Measured bytes on disk of everything that a student needs (1 GB = 10^9 bytes), smallest first, with the "
        "accuracy that they buy. Front: nothing smaller is as accurate and nothing as small is more accurate, at "
        "any IPC, among lines of equal dataset, student and protocol. Parts that only the synthesis needs are not in "
        "the total.",
        columns,
        lines.sort_values(by, na_position="last", kind="stable"),
        within,
    )
