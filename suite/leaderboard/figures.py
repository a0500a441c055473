"""Figures for papers: PDF and SVG that scale, and PNG at 300 dpi, from the same drawing. Same rows, same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from suite.errors import InfraError
from suite.leaderboard.formats import clean, size
from suite.leaderboard.plots import COLOURS, MARKERS
from suite.leaderboard.statistics import pareto, plain_records
from suite.leaderboard.tables import Table

#: Panels of a figure and series of a panel; the tables have all.
MAX_PANELS, MAX_SERIES = 9, 16
#: Lines of tables from which a process of its own draws, while this one writes the tables.
MANY = 5_000
#: Of PNG files.
_DPI = 300
#: Tables that figures are drawn from.
_DRAWN = ("accuracy", "accuracy_time", "storage", "trend")
_PANEL = ["dataset", "student", "protocol"]
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


@contextmanager
def drawing(tables: Sequence[Table]) -> Iterator[Callable[[], dict[str, bytes]]]:
    """Begin to draw: what this gives is called for `figure_files(tables)`, later.

    Args:
        tables: Of `make.make`.

    Raises:
        InfraError: By the call, if the process that draws died.
    """
    drawn = [t for t in tables if t.slug in _DRAWN]
    if sum(len(t) for t in drawn) < MANY:
        yield lambda: figure_files(drawn)
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        begun = pool.submit(figure_files, drawn)

        def result() -> dict[str, bytes]:
            try:
                return begun.result()
            except BrokenProcessPool as error:
                raise InfraError("the process that draws figures died", hint="memory for a second process") from error

        yield result


def figure_files(tables: Sequence[Table]) -> dict[str, bytes]:
    """All figures that the tables have data for: path below the report's folder to content.

    Args:
        tables: Of `make.make`.
    """
    by_slug = {t.slug: t for t in tables}
    files: dict[str, bytes] = {}
    for slug, name, draw in (
        ("accuracy", "accuracy_ipc", _by_ipc),
        ("accuracy_time", "accuracy_time", lambda ax, part: _front(ax, part, "synthesis_seconds", "synthesis time, s")),
        ("storage", "accuracy_bytes", lambda ax, part: _front(ax, part, "total_bytes", "bytes that a student needs")),
    ):  # fmt: skip
        if slug in by_slug:
            files |= _panels(name, by_slug[slug], draw)
    if "trend" in by_slug:
        files |= _trend(by_slug["trend"])
    return files


@contextmanager
def _style() -> Iterator[None]:
    style = {
        **sns.axes_style("ticks"), **sns.plotting_context("paper"), "font.family": "DejaVu Sans", "font.size": 8,
        "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
        "svg.hashsalt": "distillation-suite", "svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False,
        "axes.grid": True, "grid.color": "#e3e6ea", "grid.linewidth": 0.5, "lines.linewidth": 1.0,
    }  # fmt: skip
    with mpl.rc_context(style):
        yield


def _panels(name: str, table: Table, draw: Callable[[Axes, pd.DataFrame], None]) -> dict[str, bytes]:
    """One panel a dataset, student and protocol; those with most methods first where there are too many."""
    columns = [
        c for c in ("method", "ipc", "mean", "low", "high", "synthesis_seconds", "total_bytes") if c in table.frame
    ]
    there = table.frame.loc[table.frame["mean"].notna(), [*_PANEL, "teacher", *columns]]
    if there.empty:
        return {}
    frame = there.astype(dict.fromkeys((*_PANEL, "teacher", "method"), object))
    frame = frame.assign(**{c: there[c].to_numpy(dtype=float, na_value=np.nan) for c in columns[2:]})
    frame["ipc"] = there["ipc"].to_numpy(dtype=int)
    several = frame["teacher"].nunique() > 1
    frame["series"] = frame["method"] + (" by " + frame["teacher"] if several else "")
    counts = frame.groupby(_PANEL)["series"].nunique().sort_values(ascending=False, kind="stable")
    kept = sorted(counts.index[:MAX_PANELS])
    across = min(3, len(kept))
    down = -(-len(kept) // across)
    with _style():
        figure = Figure(figsize=(2.4 * across + 1.4, 2.2 * down + 0.2), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(down, across, squeeze=False).flat
        names = sorted(frame["series"].unique())[:MAX_SERIES]
        for ax, panel in zip(axes, kept, strict=False):
            part = frame[(frame[_PANEL] == list(panel)).all(axis=1) & frame["series"].isin(names)]
            draw(ax, part.assign(look=part["series"].map({n: i for i, n in enumerate(names)})))
            ax.set_title(clean(f"{panel[0]}, {panel[1]} ({panel[2]})", 50))
            sns.despine(ax=ax)
        for ax in list(axes)[len(kept) :]:
            ax.set_axis_off()
        handles = [_entry(i, clean(n, 40)) for i, n in enumerate(names)]
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
        return _saved(name, figure)


def _look(number: Any) -> tuple[str, str]:
    """Colour and marker of a series."""
    return COLOURS[int(number) % len(COLOURS)], MARKERS[int(number) % len(MARKERS)]


def _entry(number: int, label: str) -> Any:
    """The legend's entry of a series."""
    from matplotlib.lines import Line2D

    colour, marker = _look(number)
    return Line2D([], [], color=colour, marker=marker, markersize=4, label=label)


def _by_ipc(ax: Axes, part: pd.DataFrame) -> None:
    for (number, _), line in part.groupby(["look", "teacher"]):
        line = line.sort_values("ipc").drop_duplicates("ipc")
        colour, marker = _look(number)
        ax.plot(line["ipc"], line["mean"], color=colour, marker=marker, markersize=4)
        sure = line[line["low"].notna()]
        ax.fill_between(
            sure["ipc"], sure["low"].clip(0, 100), sure["high"].clip(0, 100), color=colour, alpha=0.12, linewidth=0
        )
    ax.set(xlabel="images per class", ylabel="accuracy, %")
    if part["ipc"].nunique() > 1:
        ax.set_xscale("log")
    ticks = sorted(part["ipc"].unique())
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()


def _front(ax: Axes, part: pd.DataFrame, cost: str, label: str) -> None:
    part = part[part[cost].notna() & (part[cost] > 0)]
    if len(part):
        front = part.iloc[pareto(part[cost].tolist(), part["mean"].tolist())]
        ax.plot(front[cost], front["mean"], color="#5b6470", linestyle="--", linewidth=0.8, zorder=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(numticks=5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: size(v, "g") if cost == "total_bytes" else f"{v:,g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    for number, line in part.groupby("look"):
        colour, marker = _look(number)
        ax.scatter(line[cost], line["mean"], color=colour, marker=marker, s=14, zorder=2)
    ax.set(xlabel=label, ylabel="accuracy, %")


def _trend(table: Table) -> dict[str, bytes]:
    """Values over nights of the series with the most steps, with the levels that they were cut into."""
    frame = pd.DataFrame(plain_records(table.frame[["what", "unit", "label", "night", "value", "step", "level"]]))
    order = frame.groupby(["what", "label"])["step"].max().sort_values(ascending=False, kind="stable")
    kept = list(order.index[:MAX_PANELS])
    across = min(3, len(kept))
    down = -(-len(kept) // across)
    with _style():
        figure = Figure(figsize=(2.6 * across, 1.9 * down), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(down, across, squeeze=False).flat)
        for ax, (what, label) in zip(axes, kept, strict=False):
            part = frame[(frame["what"] == what) & (frame["label"] == label)].reset_index(drop=True)
            ax.plot(part.index, part["value"], color=COLOURS[0], marker="o", markersize=2.5, linewidth=0.6)
            for _, piece in part.groupby("step"):
                ax.plot(piece.index, piece["level"], color=COLOURS[3], linewidth=1.4)
            ax.set_xticks([0, len(part) - 1], [clean(part["night"].iloc[0], 12), clean(part["night"].iloc[-1], 12)])
            ax.set_title(clean(label, 44))
            ax.set_ylabel(f"{clean(what, 20)}, {clean(part['unit'].iloc[0], 8)}")
            sns.despine(ax=ax)
        for ax in axes[len(kept) :]:
            ax.set_axis_off()
        return _saved("trend", figure)


def _saved(name: str, figure: Figure) -> dict[str, bytes]:
    """The same drawing in each format: its layout, which costs as much as a drawing, is found once."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    pdf, svg, png = io.BytesIO(), io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png, metadata=_METADATA["png"])  # the others leave 72 dpi behind
    FigureCanvasPdf(figure).print_pdf(pdf, metadata=_METADATA["pdf"])
    FigureCanvasSVG(figure).print_svg(svg, metadata=_METADATA["svg"])
    files = {"pdf": pdf, "svg": svg, "png": png}
    return {f"figures/{name}.{kind}": out.getvalue() for kind, out in files.items()}
