"""One HTML page that holds everything: tables, figures, holes and provenance. It needs no network and no other file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from suite.leaderboard.formats import clean, legend, remarks, shown, sort_value
from suite.leaderboard.plots import Picture
from suite.leaderboard.rows import GROUP, Rows
from suite.leaderboard.statistics import plain_records
from suite.leaderboard.tables import Table

#: Single rows that a page lists; more make it slow to open.
MAX_ROWS = 5000
_TEMPLATES = Path(__file__).resolve().parent / "templates"
#: Columns of the table of single rows: name, heading, whether numbers.
_ROW_COLUMNS = (
    ("key", "Key", False), ("method", "Method", False), ("dataset", "Dataset", False), ("ipc", "IPC", True),
    ("teacher", "Teacher", False), ("student", "Student", False), ("protocol", "Protocol", False),
    ("seed", "Seed", True), ("accuracy_last", "Last %", True), ("accuracy_best", "Best %", True),
    ("best_epoch", "at epoch", True), ("epochs", "Epochs", True), ("steps", "Steps", True), ("labels", "Labels", False),
    ("loader", "Loader", False), ("precision", "Precision", False), ("evaluation_device", "Device", False),
    ("evaluation_seconds", "Evaluation s", True), ("synthesis_key", "Synthesis key", False),
    ("commit", "Commit", False),
    ("dirty", "Uncommitted", False), ("setting", "Setting", False),
)  # fmt: skip


@cache
def _environment() -> jinja2.Environment:
    """Autoescaping, strict about names, and without access to anything but its own templates."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(legend=legend, shown=shown, sort_value=sort_value)
    environment.filters["clean"] = clean
    return environment


def page(name: str, rows: Rows, tables: list[Table], figures: list[Picture]) -> str:
    """The page.

    Args:
        name: Name of the grid.
        rows: What the tables were made from.
        tables: The leaderboards.
        figures: Their figures; the SVG text is trusted, since `plots` escapes what comes from records.
    """
    beside = {"accuracy": ["accuracy_ipc"], "synthesis_time": ["accuracy_synthesis"], "storage": ["accuracy_storage"]}
    sections = [(t, [(f, Markup(f.svg)) for f in figures if f.slug in beside.get(t.slug, [])]) for t in tables]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            name=clean(name),
            sections=sections,
            facts=facts(rows),
            remarks=remarks(rows),
            summary=provenance(rows),
            row_columns=_ROW_COLUMNS,
            rows=_rows(rows),
            total=len(rows.frame),
        )
    )


def facts(rows: Rows) -> list[tuple[str, str]]:
    """The numbers at the head of the page: (label, value)."""
    f = rows.frame
    found = [
        ("methods", str(f["method"].nunique())),
        ("datasets", str(f["dataset"].nunique())),
        ("cells", str(len(f[list(GROUP)].drop_duplicates()))),
        ("rows", str(len(f))),
        ("holes", str(len(rows.holes))),
    ]
    if rows.refused:
        found.append(("refused", str(len(rows.refused))))
    if uncommitted := int((f["dirty"].fillna("") != "").sum()):
        found.append(("rows from uncommitted code", str(uncommitted)))
    return found


def provenance(rows: Rows) -> list[tuple[str, list[tuple[str, int]]]]:
    """Where the rows come from: (what, [(value, number of rows)])."""
    f = rows.frame
    commit = [c if not d else f"{c} + uncommitted {d}" for c, d in zip(f["commit"], f["dirty"], strict=True)]
    named: list[tuple[str, Iterable[Any]]] = [
        ("Code commit", commit),
        ("Evaluation device", f["evaluation_device"]),
        ("Synthesis device", f["device"].dropna()),
        ("Loader", f["loader"]),
        ("Precision", f["precision"]),
        ("Versions", f["versions"]),
    ]
    counted = [(what, sorted(Counter(clean(v) for v in values).items())) for what, values in named]
    return [(what, values) for what, values in counted if values]


def _rows(rows: Rows) -> list[list[tuple[str, str]]]:
    """Single rows as (shown, sort value)."""
    lines = []
    for r in plain_records(rows.frame.head(MAX_ROWS)):
        line = []
        for name, _, numeric in _ROW_COLUMNS:
            v = r[name]
            text = "-" if v is None or v == "" else _float(name, v) if isinstance(v, float) else clean(v)
            line.append((text[:12] if name == "commit" else text, "" if v is None else str(v) if numeric else clean(v)))
        lines.append(line)
    return lines


def _float(name: str, value: float) -> str:
    return f"{value:.4g}" if name.endswith(("epoch", "epochs")) else f"{value:.2f}"
