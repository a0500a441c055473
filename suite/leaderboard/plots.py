"""Figures: accuracy by method and IPC, accuracy against synthesis seconds, accuracy against bytes.

The same rows give the same bytes: no dates, a fixed hash salt, no fonts embedded. Text in an SVG stays text, and takes
its colours from the page around it, so that a figure is readable on a light and on a dark page.
"""

from __future__ import annotations

import html
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from suite.leaderboard.formats import clean, shown, size
from suite.leaderboard.rows import GROUP, Rows
from suite.leaderboard.statistics import groups, pareto, plain_records, t_interval
from suite.leaderboard.tables import Table

#: Colour-blind-safe colours that show on white and on near-black (Okabe-Ito and seaborn's `colorblind`, no yellow).
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#8c6bb1", "#ca9161", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Panels of one figure; further ones are left out, and the caption says so.
MAX_PANELS = 12
#: Methods that a legend names; further ones are drawn but not named, and the caption says so.
MAX_LEGEND = 30
PANEL = ("dataset", "student", "protocol")
#: Placeholders for the page's own colours: text, and lines behind the data.
_TEXT, _LINE = "#123456", "#abcdef"


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure for the page: inline SVG that needs nothing else, with its title and caption."""

    slug: str
    title: str
    caption: str
    svg: str


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


def pictures(rows: Rows) -> list[Picture]:
    """The three figures of a page; empty where there is nothing to draw."""
    points = named_points(rows)
    if not points:
        return []
    look = Look.of([p["series"] for p in points])
    lines = _lines(rows, {tuple(p[c] for c in GROUP): p["series"] for p in points})
    made = [_by_ipc(lines, look)]
    front = "The line joins what no other point beats in both directions; numbers are IPC."
    devices = sorted({clean(d, 60) for d in rows.frame["device"].dropna()})
    mixed = f" Seconds of different devices are not comparable: {', '.join(devices)}." if len(devices) > 1 else ""
    for x, slug, title, label in (
        ("synthesis_seconds", "accuracy_synthesis", "Accuracy against synthesis time", "synthesis seconds, total"),
        ("total_bytes", "accuracy_storage", "Accuracy against storage", "bytes of images, labels and auxiliary parts"),
    ):
        if any((p[x] or 0) > 0 for p in points):
            made.append(_against(points, x, look, slug, title, label, front + (mixed if "seconds" in x else "")))
    return made


def overview(table: Table, rows: Rows, name: str, limit: int = 13) -> bytes:
    """One PNG for a README: the largest panel of the accuracy leaderboard, as a table and as a plot."""
    points = named_points(rows)
    with _theme("#1a1d21", "#d5d9de"):
        figure = Figure(figsize=(12, 4.8), dpi=110, facecolor="white")
        FigureCanvasAgg(figure)
        figure.suptitle(f"Accuracy leaderboard: {clean(name, 60)}", x=0.02, ha="left", fontsize=14, fontweight="bold")
        if points:
            left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
            look = Look.of([p["series"] for p in points])
            lines = _lines(rows, {tuple(p[c] for c in GROUP): p["series"] for p in points})
            counts = Counter(tuple(p[c] for c in PANEL) for p in points)
            panel = min(counts, key=lambda c: (-counts[c], c))
            inside = lines[_inside(lines, panel)]
            _draw_table(left, table, [r for r in table.rows if tuple(r[c] for c in PANEL) == panel], limit)
            _draw_by_ipc(right, panel, inside, look)
            _legend(right, look, sorted(set(inside["series"])))
        else:
            figure.text(0.5, 0.5, "no rows yet", ha="center", va="center")
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def named_points(rows: Rows, limit: int | None = None) -> list[dict[str, Any]]:
    """Groups that have a number, with the name of their series; the first ones, if there is a limit."""
    found = groups(rows)
    found = found[found["n"] > 0]
    several = found["teacher"].nunique() > 1
    points = plain_records(found.head(len(found) if limit is None else limit))
    for p in points:
        parts = [
            p["method"],
            f" by {p['teacher']}" if several else "",
            f" #{p['setting']}" if p["settings"] > 1 else "",
        ]
        p["series"] = clean("".join(parts), 40)
    return points


def _lines(rows: Rows, series: dict[tuple[Any, ...], str]) -> pd.DataFrame:
    """Single rows, with plain types for seaborn."""
    records = plain_records(rows.frame[[*GROUP, "accuracy_last"]])
    return pd.DataFrame([{**r, "series": series[tuple(r[c] for c in GROUP)]} for r in records])


def _panels(lines: pd.DataFrame) -> list[tuple[str, ...]]:
    return sorted(set(lines[list(PANEL)].itertuples(index=False, name=None)))


def _inside(lines: pd.DataFrame, panel: tuple[str, ...]) -> pd.Series:
    return pd.Series((lines[list(PANEL)] == list(panel)).all(axis=1))


@contextmanager
def _theme(text: str, line: str) -> Iterator[None]:
    style: Any = {
        **sns.axes_style("whitegrid"),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), text),
        **dict.fromkeys(("grid.color", "axes.edgecolor", "legend.edgecolor"), line),
        "axes.facecolor": "none", "figure.facecolor": "none", "font.family": "DejaVu Sans", "font.size": 10.5,
        "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "grid.linewidth": 0.7,
        "svg.fonttype": "none", "svg.hashsalt": "distillation-suite", "text.parse_math": False, "path.simplify": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        yield


def _canvas(count: int) -> tuple[Figure, list[Axes]]:
    columns = 1 if count == 1 else 2
    height = -(-count // columns)
    figure = Figure(figsize=(7.6 if columns == 1 else 11.5, 3.5 * height + 0.3))
    axes = [figure.add_subplot(height, columns, i + 1) for i in range(count)]
    return figure, axes


def _by_ipc(lines: pd.DataFrame, look: Look) -> Picture:
    panels = _panels(lines)
    with _theme(_TEXT, _LINE):
        figure, axes = _canvas(min(len(panels), MAX_PANELS))
        for ax, panel in zip(axes, panels, strict=False):
            _draw_by_ipc(ax, panel, lines[_inside(lines, panel)], look)
        caption = "Mean of the last epoch over seeds; bars: 95 % t-intervals, none for one seed, cut at 0 and 100 %."
        return _picture(figure, axes, look, "accuracy_ipc", "Accuracy by method and IPC", caption, len(panels))


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


def _against(
    points: list[dict[str, Any]], x: str, look: Look, slug: str, title: str, label: str, caption: str
) -> Picture:
    drawn = [p for p in points if (p[x] or 0) > 0]
    if len(drawn) < len(points):
        caption += f" Without a positive cost, and so not on a log axis: {len(points) - len(drawn)}."
    panels = sorted({tuple(p[c] for c in PANEL) for p in drawn})
    with _theme(_TEXT, _LINE):
        figure, axes = _canvas(min(len(panels), MAX_PANELS))
        for ax, panel in zip(axes, panels, strict=False):
            _draw_against(ax, [p for p in drawn if tuple(p[c] for c in PANEL) == panel], x, look)
            ax.set(title=_title(panel), xlabel=label, ylabel="accuracy %")
        return _picture(figure, axes, look, slug, title, caption, len(panels))


def _draw_against(ax: Axes, points: list[dict[str, Any]], x: str, look: Look) -> None:
    front = pareto([p[x] for p in points], [p["mean"] for p in points])
    ax.plot(
        [points[i][x] for i in front],
        [points[i]["mean"] for i in front],
        color=_TEXT, alpha=0.35, linewidth=1.2, linestyle="--", zorder=1,
    )  # fmt: skip
    for p in points:
        if p["low"] is not None:
            ax.vlines(p[x], p["low"], p["high"], color=look.colours[p["series"]], linewidth=1.2, alpha=0.7)
    data = pd.DataFrame(points)
    sns.scatterplot(
        data, x=x, y="mean", hue="series", style="series", palette=look.colours, markers=look.markers, s=60,
        ax=ax, legend=False, edgecolor="none", linewidth=0,
    )  # fmt: skip
    if len(points) <= 40:
        for p in points:
            ax.annotate(f"{p['ipc']}", (p[x], p["mean"]), xytext=(6, 3), textcoords="offset points", fontsize=8.5)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=7))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: size(v, "g") if x == "total_bytes" else f"{v:,g}"))
    ax.margins(x=0.12, y=0.12)
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


def _picture(figure: Figure, axes: list[Axes], look: Look, slug: str, title: str, caption: str, panels: int) -> Picture:
    if panels > len(axes):
        caption += f" The first {len(axes)} of {panels} panels are drawn; the table has all."
    if len(look.colours) > MAX_LEGEND:
        caption += f" The legend names {MAX_LEGEND} of {len(look.colours)} methods."
    _legend(axes[min(1, len(axes) - 1)], look, sorted(look.colours))
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(
        out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    return Picture(slug, title, caption, _inline(out.getvalue(), slug, title))


def _inline(svg: str, slug: str, title: str) -> str:
    """An SVG document as a part of a page: no prologue, no style sheet, own ids, the page's colours and fonts."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", body, flags=re.S)
    body = re.sub(r'font-family: [^;"]*', "font-family: system-ui, sans-serif", body)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{slug}-\1"', body)
    body = re.sub(r'(href="#|url\(#)', rf"\1{slug}-", body)
    body = body.replace(_TEXT, "currentColor").replace(_LINE, "var(--line, #c8ccd2)")
    width = re.search(r'width="([0-9.]+)pt"', body)
    points = float(width[1]) if width else 600.0
    style = f"max-width: {points * 1.5:.0f}px; min-width: {points * 0.8:.0f}px"
    head = f'<svg role="img" aria-label="{html.escape(title)}" style="{style}" '
    return re.sub(r"<svg ", head, body, count=1).rstrip() + "\n"


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
