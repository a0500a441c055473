"""Where the leaderboards meet: equal bytes, accuracy for time, students that the set was not made for, protocols."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from suite.leaderboard.rows import CELL, Rows
from suite.leaderboard.statistics import fronts, ranked, spread
from suite.leaderboard.tables import NOTES, PROTOCOL, SETTING, STUDENT, WHO, Column, Table, finish, settings_column

_SET_SETTING = [Column("synthesis_setting", "Setting", identity=True, help=SETTING.help)]
#: Lines of the leaderboard above which budgets are powers of ten only.
MANY = 5000
#: Most students that the table of generalisation has columns for.
MAX_STUDENTS = 24


def equal_bytes(grouped: pd.DataFrame) -> Table | None:
    """The best that each method reaches within budgets of bytes: accuracy at equal storage, at any IPC.

    Budgets are 1, 2 and 5 of every power of ten from the smallest total to the largest.
    """
    lines = grouped[(grouped["n"] > 0) & grouped["total_bytes"].notna() & (grouped["total_bytes"] > 0)]
    if lines.empty:
        return None
    at = ["dataset", "student", "protocol"]
    budgets = _budgets(lines["total_bytes"].to_numpy(dtype=float))
    who = lines.groupby([*at, "method", "teacher"], observed=True, dropna=False).ngroup().to_numpy()
    size, mean = (lines[c].to_numpy(dtype=float) for c in ("total_bytes", "mean"))
    order = np.lexsort((size, -mean))
    best = []
    for budget in budgets:
        fits = order[size[order] <= budget]
        best.append(lines.iloc[fits[np.unique(who[fits], return_index=True)[1]]].assign(budget=budget))
    frame = ranked(pd.concat(best, ignore_index=True).astype({"budget": "Float64"}), [*at, "budget"])
    columns = [
        Column("budget", "Budget", "bytes", identity=True, help="Most bytes that a student may need"),
        Column("rank", "#", "count", help="Rank within the budget; what seeds cannot separate shares one"),
        *(c for c in WHO if c.name != "ipc"), STUDENT, PROTOCOL,
        Column("ipc", "IPC", "count", help="Images per class of the best set that fits"),
        Column("labels", "Label policy", help="hard, vector, online (by a shipped teacher) or stored", terminal=False),
        Column("mean", "Accuracy %", "percent", best="max", help="Last epoch, mean over seeds, of the best that fits"),
        Column("sd", "sd", "spread", help="Standard deviation over seeds (n - 1)"),
        Column("n", "n", "count", help="Seeds with a number"),
        Column("total_bytes", "Used", "bytes", help="Bytes that it needs: images, labels, auxiliary parts"),
    ]  # fmt: skip
    return finish(
        "equal_bytes",
        "Accuracy at equal bytes",
        "The most accurate set of each method that fits into a budget of bytes (images, labels and everything else "
        "that a student needs), whatever its IPC. A method that has no set as small is not in the budget.",
        columns,
        frame.assign(notes=pd.Series([[] for _ in range(len(frame))], dtype=object)),
        [*at, "budget"],
        "crossings",
    )


def _budgets(sizes: npt.NDArray[np.float64]) -> list[float]:
    """1, 2 and 5 of every power of ten from the smallest size to the first that holds all; fewer for many lines."""
    low, high = float(sizes.min()), float(sizes.max())
    steps = (1,) if len(sizes) > MANY else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in steps if m * 10.0**p >= low]
    return [f for f in found if f < high] + [next(f for f in found if f >= high)]


def accuracy_time(grouped: pd.DataFrame) -> Table | None:
    """Accuracy against seconds on a kind of device, with the Pareto front of the synthesis and of all that it needs."""
    lines = grouped[(grouped["n"] > 0) & grouped["synthesis_seconds"].notna()].copy()
    if lines.empty:
        return None
    parts = ["synthesis_seconds", "teacher_seconds", "statistics_seconds", "relabel_seconds"]
    lines["all_seconds"] = sum((lines[c].fillna(0.0) for c in parts[1:]), lines[parts[0]])
    lines["device"] = lines["device"].fillna("?")
    within = ["dataset", "student", "protocol", "device"]
    lines["front"] = fronts(lines, within, "synthesis_seconds")
    lines["front_all"] = fronts(lines, within, "all_seconds")
    by = [*within, "synthesis_seconds", "ipc", "method", "teacher", "setting"]
    columns = [
        *WHO, STUDENT, PROTOCOL, *settings_column(grouped),
        Column("device", "Device", identity=True, help="Seconds of different devices are not comparable"),
        Column("synthesis_seconds", "Synthesis", "seconds", best="min", help="Of one distilled set, mean over seeds"),
        Column("all_seconds", "With inputs", "seconds", help="And teachers, statistics, relabelling: nothing shared"),
        Column("mean", "Accuracy %", "percent", best="max", help="Last epoch, mean over seeds", short="Acc. %"),
        Column("sd", "sd", "spread", help="Standard deviation over seeds (n - 1)"),
        Column("n", "n", "count", help="Seeds with a number"),
        Column("front", "Front", help="yes: nothing synthesised faster is as accurate, on this device, at any IPC"),
        Column("front_all", "Front, with inputs", help="The same, counting everything that the set needs"),
    ]  # fmt: skip
    return finish(
        "accuracy_time",
        "Accuracy against synthesis time",
        "What accuracy a second of synthesis buys, fastest first, among lines of equal dataset, student, protocol and "
        "device. Front: nothing that takes less time is as accurate. Teachers, statistics and relabelling are counted "
        "in full in the second front, though several sets may share them.",
        columns,
        lines.sort_values(by, kind="stable").drop(columns="notes"),
        within,
        "crossings",
    )


def generalisation(grouped: pd.DataFrame) -> Table | None:
    """Cross-architecture generalisation: a line a way of making sets, a column a student; None for one student."""
    at = ["method", "dataset", "ipc", "teacher", "protocol", "synthesis_setting"]
    lines = grouped[grouped["n"] > 0].copy()
    # Several settings of one student and set (other recipes) stand on lines of their own, never in one average.
    lines["variant"] = lines.groupby([*at, "student"], dropna=False, observed=True).cumcount()
    students = sorted(lines["student"].unique())
    if len(students) < 2:
        return None
    kept = students[:MAX_STUDENTS]
    wide = lines[lines["student"].isin(kept)].pivot(index=[*at, "variant"], columns="student", values="mean")
    frame = wide.rename(columns={s: f"student:{s}" for s in kept}).reset_index()
    values = frame[[f"student:{s}" for s in kept]].to_numpy(dtype=float, na_value=np.nan)
    others = np.array([[s != t for s in kept] for t in frame["teacher"]]).reshape(values.shape)
    frame["students"] = (~np.isnan(values)).sum(axis=1)
    frame["n"] = frame["students"]
    flat = np.where(others, values, np.nan)
    start = np.arange(0, flat.size, len(kept), dtype=np.intp)
    frame = frame.assign(**spread(flat.ravel().astype(np.float64), start, ("transfer",)))
    frame = frame.sort_values(
        ["dataset", "ipc", "protocol", "transfer", "method", "teacher", "synthesis_setting", "variant"],
        ascending=[True, True, True, False, True, True, True, True], na_position="last", kind="stable",
    )  # fmt: skip
    cut = f" The first {len(kept)} of {len(students)} students have a column." if len(kept) < len(students) else ""
    several = bool(frame.duplicated(at[:5]).any())
    columns = [
        *WHO, PROTOCOL,
        *(_SET_SETTING if several else []),
        *(Column(f"student:{s}", s, "percent", best="max", help="Accuracy of this student") for s in kept),
        Column("transfer", "Mean of others", "percent", best="max", help="Over students that are not the teacher"),
        Column("students", "Students", "count", terminal=False, help="With a number"),
    ]  # fmt: skip
    return finish(
        "generalisation",
        "Cross-architecture generalisation",
        "Accuracy of every student on the same distilled set, in percent: how far a set serves networks that it was "
        "not made with. Best mean over students other than the teacher first." + cut,
        columns,
        frame,
        ["dataset", "ipc", "protocol"],
        "crossings",
    )


def protocols(grouped: pd.DataFrame) -> Table | None:
    """Protocol `paper` beside `matched`, with the change of rank among cells that have both; None if no cell has."""
    cell = [c for c in CELL if c != "protocol"]
    lines = grouped[(grouped["n"] > 0) & grouped["protocol"].isin(["paper", "matched"])]
    lines = lines.drop_duplicates([*CELL], keep=False)  # of a cell with several settings, none is the one to compare
    both = lines[lines.duplicated(cell, keep=False)]
    if both.empty:
        return None
    parts = {}
    for name in ("paper", "matched"):
        part = ranked(both[both["protocol"] == name].drop(columns=["rank", "p", "place"]))
        parts[name] = part[[*cell, "mean", "sd", "n", "rank", "place"]]
    frame = parts["paper"].merge(parts["matched"], on=cell, suffixes=("_paper", "_matched"))
    frame["difference"] = frame["mean_paper"] - frame["mean_matched"]
    frame["moved"] = frame["place_matched"] - frame["place_paper"]
    frame["n"] = frame["n_paper"]
    within = ["dataset", "ipc", "student"]
    columns = [
        *WHO, STUDENT,
        Column("rank_paper", "# paper", "count", help="Rank under the method's own recipe, among lines with both"),
        Column("rank_matched", "# matched", "count", help="Rank under one recipe and step budget for all"),
        Column(
            "moved", "Moved", "signed_count",
            help="Places by which the paper's recipe puts it above (+) or below (-) its place under the matched one",
        ),
        Column("mean_paper", "paper %", "percent", best="max", help="Accuracy under the method's own recipe"),
        Column("sd_paper", "sd", "spread", terminal=False, help="Standard deviation over seeds, paper"),
        Column("mean_matched", "matched %", "percent", best="max", help="Accuracy under one recipe for all"),
        Column("sd_matched", "sd", "spread", terminal=False, help="Standard deviation over seeds, matched"),
        Column("difference", "Difference", "signed", help="paper less matched, in points: what the recipe adds"),
    ]  # fmt: skip
    return finish(
        "protocols",
        "Own recipe beside matched recipe",
        "Accuracy under each method's own student recipe (paper) and one recipe and step budget for all (matched), "
        "and how the order changes: a method that falls under the matched recipe owes its place to the recipe.",
        columns,
        frame.sort_values([*within, "place_matched", "method", "teacher"], kind="stable"),
        within,
        "crossings",
    )


def diversity(rows: Rows, measured: Mapping[str, Mapping[str, float]], command: str) -> Table | None:
    """Similarity within classes of the sets behind the rows; None if none of them was measured.

    Args:
        rows: Rows with their synthesis keys.
        measured: Mean cosine similarity by network and synthesis key.
        command: What measures the missing ones.
    """
    at = ["method", "dataset", "ipc", "teacher", "protocol", "synthesis_setting"]
    sets = rows.frame.drop_duplicates([*at, "synthesis_key"])
    sets = sets[(sets["ipc"] > 1).to_numpy(dtype=bool, na_value=False)]
    tables = []
    for network, by_key in sorted(measured.items()):
        values = sets["synthesis_key"].map(by_key).to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isnan(values).all():
            continue
        number = sets.groupby(at, dropna=False, observed=True).ngroup().to_numpy()
        order = np.argsort(number, kind="stable")
        start = np.flatnonzero(np.diff(number[order], prepend=-1))
        lines = sets.iloc[order].iloc[start][at].reset_index(drop=True)
        lines = lines.assign(**spread(values[order], start, ("similarity", "sd")))
        lines["n"] = np.add.reduceat((~np.isnan(values[order])).astype(int), start)
        lines["network"] = network
        tables.append(lines)
    if not tables:
        return None
    frame = pd.concat(tables, ignore_index=True)
    frame["notes"] = pd.Series([[] if n else [f"missing: not measured; {command}"] for n in frame["n"]], dtype=object)
    by = ["dataset", "ipc", "network", "similarity", "method", "teacher", "protocol", "synthesis_setting"]
    frame = frame.sort_values(by, na_position="last", kind="stable")
    columns = [
        *WHO, PROTOCOL,
        *(_SET_SETTING if frame.duplicated([*at[:5], "network"]).any() else []),
        Column("network", "Features of", identity=True, help="Network whose penultimate features are compared"),
        Column("similarity", "Similarity", "cosine", best="min", help="Mean cosine of the pairs; low is diverse"),
        Column("sd", "sd", "cosine", terminal=False, help="Standard deviation over sets (n - 1)"),
        Column("n", "n", "count", help="Sets measured"),
        NOTES,
    ]  # fmt: skip
    return finish(
        "diversity",
        "Diversity within a class",
        "Mean cosine similarity of a network's features over all pairs of images of a class, as DELT reports it "
        "(arXiv:2411.19946); the most diverse set first. Numbers of different networks are not comparable. IPC 1 has "
        "no pairs. Measured from the sets by a command of its own, joined by the key of the set.",
        columns,
        frame,
        ["dataset", "ipc", "network"],
        "crossings",
    )


def crossings(
    rows: Rows, grouped: pd.DataFrame, similarity: Mapping[str, Mapping[str, float]], command: str
) -> list[Table]:
    """All of these that have a line, in the order of `tables`."""
    made: Iterable[Table | None] = (
        equal_bytes(grouped),
        accuracy_time(grouped),
        generalisation(grouped),
        protocols(grouped),
        diversity(rows, similarity, command),
    )
    return [t for t in made if t is not None]
