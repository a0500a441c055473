"""One picture of a leaderboard, and how every figure of a report draws a series: name, colour and marker.

The same rows give the same bytes. `suite.leaderboard.figures` draws for papers, the page draws its own plots.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from suite.leaderboard.formats import clean, shown
from suite.leaderboard.rows import GROUP, Rows
from suite.leaderboard.statistics import groups, plain_records, t_interval
from suite.leaderboard.tables import Table

#: Colour-blind-safe colours that show on white and on near-black (Okabe-Ito and seaborn's `colorblind`, no yellow).
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#8c6bb1", "#ca9161", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Methods that a legend names; further ones are drawn but not named.
MAX_LEGEND = 30
PANEL = ("dataset", "student", "protocol")


@dataclass(frozen=True, slots=True)
class Look:
    """Colours and marker of each series; the same in every figure of a report."""

    colours: dict[str, str]
    markers: dict[str, str]

    @staticmethod
    def of(names: list[str]) -> Look:
        """Assign looks in alphabetical order; 56 series differ in colour or in marker."""
        order = sorted(set(names))
        return Look(
            {n: COLOURS[i % len(COLOURS)] for i, n in enumerate(order)},
            {n: MARKERS[i % len(MARKERS)] for i, n in enumerate(order)},
        )


def overview(table: Table, rows: Rows, name: str, limit: int = 13, grouped: pd.DataFrame | None = None) -> bytes:
    """One PNG for a README: the largest panel of the accuracy leaderboard, as a table and as a plot.

    Args:
        table: The accuracy leaderboard.
        rows: What it was made from.
        name: Of the grid.
        limit: Most lines of the table.
        grouped: `statistics.groups` of the rows, where that was done already.
    """
    named = named_groups(groups(rows) if grouped is None else grouped)
    with _theme("#1a1d21", "#d5d9de"):
        figure = Figure(figsize=(12, 4.8), dpi=110, facecolor="white")
        FigureCanvasAgg(figure)
        figure.suptitle(f"Accuracy leaderboard: {clean(name, 60)}", x=0.02, ha="left", fontsize=14, fontweight="bold")
        if len(named):
            left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
            look = Look.of(named["series"].unique().tolist())
            # Of the panels with most groups, the first by name.
            counts = named.groupby(list(PANEL), observed=True, as_index=False).size()
            largest = plain_records(counts.sort_values(["size", *PANEL], ascending=[False, True, True, True]).head(1))
            panel = tuple(str(largest[0][c]) for c in PANEL)
            inside = _lines(rows.frame[_inside(rows.frame, panel)], named[_inside(named, panel)])
            _draw_table(left, table, replace(table, frame=table.frame[_inside(table.frame, panel)]).lines(), limit)
            _draw_by_ipc(right, panel, inside, look)
            _legend(right, look, sorted(set(inside["series"])))
        else:
            figure.text(0.5, 0.5, "no rows yet", ha="center", va="center")
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def named_groups(grouped: pd.DataFrame) -> pd.DataFrame:
    """Groups that have a number, with the name of their series: the method, and what sets it apart where that differs.

    Args:
        grouped: `statistics.groups`.
    """
    found = grouped[grouped["n"] > 0]
    names = found["method"].astype(object)
    if found["teacher"].nunique() > 1:
        names = names + " by " + found["teacher"].astype(object)
    names = names.mask(found["settings"] > 1, names + " #" + found["setting"].astype(object))
    return found.assign(series=names.map({n: clean(n, 40) for n in names.unique()}))


def _lines(frame: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """Single rows with the names of their series, with plain types for seaborn."""
    series = {tuple(p[c] for c in GROUP): p["series"] for p in plain_records(named[[*GROUP, "series"]])}
    records = plain_records(frame[[*GROUP, "accuracy_last"]])
    return pd.DataFrame([{**r, "series": series[tuple(r[c] for c in GROUP)]} for r in records])


def _inside(frame: pd.DataFrame, panel: tuple[str, ...]) -> pd.Series:
    return pd.Series((frame[list(PANEL)] == list(panel)).all(axis=1)).astype(bool)


@contextmanager
def _theme(text: str, line: str) -> Iterator[None]:
    style: Any = {
        **sns.axes_style("whitegrid"),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), text),
        **dict.fromkeys(("grid.color", "axes.edgecolor", "legend.edgecolor"), line),
        "axes.facecolor": "none", "figure.facecolor": "none", "font.family": "DejaVu Sans", "font.size": 10.5,
        "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "grid.linewidth": 0.7,
        "text.parse_math": False, "path.simplify": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        yield


def _draw_by_ipc(ax: Axes, panel: tuple[str, ...], lines: pd.DataFrame, look: Look) -> None:
    names = sorted(set(lines["series"]))
    ipcs = sorted(set(lines["ipc"]))
    sns.pointplot(
        lines, x="ipc", y="accuracy_last", hue="series", order=ipcs, hue_order=names, ax=ax, legend=False,
        palette=[look.colours[n] for n in names], markers=[look.markers[n] for n in names], errorbar=t_interval,
        dodge=min(0.6, 0.08 * len(names)) if len(names) > 1 else False, linestyle="-" if len(ipcs) > 1 else "none",
        linewidth=1.2, markersize=6, err_kws={"linewidth": 1.4}, capsize=0.04,
    )  # fmt: skip
    ax.set(xlabel="IPC", ylabel="accuracy %", title=_title(panel))
    ax.grid(visible=False, axis="x")
    _percent_axis(ax)
    sns.despine(ax=ax, left=True)


def _percent_axis(ax: Axes) -> None:
    """Two seeds can have intervals far beyond what a percentage can be: the axis ends there, the bars run off it."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -2.0), min(high, 102.0))


def _title(panel: tuple[str, ...]) -> str:
    dataset, student, protocol = (clean(p, 40) for p in panel)
    return f"{dataset} → {student} ({protocol})"


def _legend(ax: Axes, look: Look, names: list[str]) -> None:
    """A legend to the right of a panel."""
    handles = [
        Line2D([], [], color=look.colours[n], marker=look.markers[n], linestyle="none", markersize=7, label=n)
        for n in names[:MAX_LEGEND]
    ]
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, borderaxespad=0,
        ncols=1 + (len(handles) - 1) // 15,
    )  # fmt: skip


def _draw_table(ax: Axes, table: Table, rows: list[dict[str, Any]], limit: int) -> None:
    """The first lines of a leaderboard as text."""
    ax.set_axis_off()
    names = ("rank", "method", "ipc", "mean", "sd", "interval", "n")
    columns = [c for name in names for c in table.columns if c.name == name]
    rows = [r for r in rows if r["flag"] != "hole"]
    cells = [[shown(c, r[c.name])[:24] for c in columns] for r in rows[:limit]]
    if len(rows) > limit:
        cells.append(["...", *[""] * (len(columns) - 1)])
    widths = [max(len(c.header), *(len(line[i]) for line in cells)) + 3.0 for i, c in enumerate(columns)]
    drawn = ax.table(
        cells, colLabels=[c.header for c in columns], colWidths=[w / sum(widths) for w in widths], loc="upper left",
        edges="horizontal", cellLoc="left", colLoc="left",
    )  # fmt: skip
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(10)
    drawn.scale(1, 1.45)
    for (line, _), cell in drawn.get_celld().items():
        cell.set_edgecolor("#d5d9de")
        if line == 0:
            cell.set_text_props(fontweight="bold")
