"""Tables as CSV, Markdown and terminal text. Text from records is inert in each of them."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

from suite.leaderboard.rows import Rows
from suite.leaderboard.tables import Column, Table

if TYPE_CHECKING:
    from rich.console import Group

HOLE = "-"
_MARKDOWN = re.compile(r"([\\`*\[\]|#~$!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}


def clean(text: Any, longest: int = 300) -> str:
    """One printable line: control, format, private and odd space characters are spelt out, long text is cut.

    ANSI sequences start with a control character, and text that runs backwards with a format character.
    """
    out = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text))
    return out if len(out) <= longest else out[: longest - 3] + "..."


def markdown_text(text: Any) -> str:
    """Text that Markdown shows as it is: no table cell ends, no HTML, no emphasis, no link, no mention."""
    plain = _MARKDOWN.sub(r"\\\1", clean(text))
    return "".join(_ENTITIES.get(c, c) for c in plain)


def csv_text(text: Any) -> str:
    """Text that a spreadsheet does not take for a formula: a leading = + - @ gets an apostrophe before it."""
    plain = clean(text)
    return f"'{plain}" if plain.lstrip()[:1] in ("=", "+", "-", "@", "\\") else plain


def shown(column: Column, value: Any) -> str:
    """A value as people read it; `-` where there is none."""
    if value is None or value == "":
        return HOLE
    match column.form:
        case "text":
            return clean(value)
        case "count":
            return f"{value:d}"
        case "notes":
            return ", ".join(map(str, value))
        case "percent" | "spread":
            return f"{value:.2f}"
        case "interval":
            return f"{value[0]:.2f} to {value[1]:.2f}"
        case "seconds":
            return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"
        case "bytes":
            return size(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def size(count: float, form: str = ".2f") -> str:
    """Bytes in decimal units: `30.41 GB`."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:{form}} {unit}"
    return f"{count:.0f} B"


def sort_value(column: Column, value: Any) -> str:
    """What a sortable page compares: the number itself, or the text; empty where there is none."""
    if value is None:
        return ""
    if column.form == "notes":
        return str(value[0]) if value else ""
    if column.form == "interval":
        return repr(value[0])
    return clean(value) if column.form == "text" else repr(value)


def to_csv(table: Table) -> str:
    """CSV with full precision, empty cells for what is missing, and the footnotes' text in the last column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [c for c in table.columns if c.csv]
    writer.writerow([c.name for c in columns])
    for row in table.rows:
        writer.writerow([_csv_value(table, c, row[c.name]) for c in columns])
    return out.getvalue()


def _csv_value(table: Table, column: Column, value: Any) -> str:
    if value is None:
        return ""
    if column.form == "notes":
        return csv_text("; ".join(table.footnotes[i - 1] for i in value))
    if column.form == "text":
        return csv_text(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def to_markdown(table: Table, rows: Rows, name: str) -> str:
    """A Markdown page: the table, its footnotes, and what was refused."""
    columns = [c for c in table.columns if c.shown]
    lines = [f"# {table.title}: {markdown_text(name)}", "", table.caption, ""]
    lines.append("| " + " | ".join(c.header for c in columns) + " |")
    lines.append("|" + "|".join("---:" if c.numeric and c.form != "notes" else "---" for c in columns) + "|")
    for row in table.rows:
        cells = [markdown_text(shown(c, row[c.name])) if c.form == "text" else shown(c, row[c.name]) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    if table.footnotes:
        lines += ["", "Notes:", "", *(f"{i}. {markdown_text(t)}" for i, t in enumerate(table.footnotes, 1))]
    for heading, items in remarks(rows):
        lines += ["", heading, "", *(f"- {markdown_text(item)}" for item in items)]
    return "\n".join(lines) + "\n"


def remarks(rows: Rows) -> list[tuple[str, list[str]]]:
    """What is not in the tables: refused records, and cells that the grid excludes; with headings."""
    found = []
    if rows.refused:
        head = f"Refused, {len(rows.refused)} (a number without provenance is not on a leaderboard):"
        found.append((head, [f"{r.key} {r.label}: {r.reason}" for r in rows.refused]))
    if rows.excluded:
        found.append(("Excluded by the grid:", [f"{n} cell{'s' * (n != 1)}: {why}" for n, why in rows.excluded]))
    return found


def to_terminal(table: Table, limit: int = 40) -> Group:
    """A compact table: identity columns with a single value move above it; at most `limit` lines and 15 footnotes."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    constant = {c.name: shown(c, table.constant()[c.name]) for c in table.columns if c.name in table.constant()}
    empty = {c.name for c in table.columns if all(r[c.name] in (None, []) for r in table.rows)}
    columns = [c for c in table.columns if c.terminal and c.name not in constant and c.name not in empty]
    result = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for c in columns:
        result.add_column(Text(c.short or c.header), justify="right" if c.numeric else "left", overflow="fold")
    for row in table.rows[:limit]:
        style = "dim" if row["flag"] == "hole" else "yellow" if row["flag"] else ""
        result.add_row(*(Text(_short(c, row[c.name])) for c in columns), style=style)
    head = Text(table.title, style="bold")
    if constant:
        head.append("  " + ", ".join(f"{k} {v}" for k, v in constant.items()), style="not bold")
    tail = [Text(f"  {i} {clean(t)}") for i, t in enumerate(table.footnotes[:15], 1)]
    if len(table.rows) > limit:
        tail.append(Text(f"  ... {len(table.rows) - limit} more lines in the files"))
    if len(table.footnotes) > 15:
        tail.append(Text(f"  ... {len(table.footnotes) - 15} more notes in the files"))
    return Group(head, result, *tail, Text(""))


def _short(column: Column, value: Any) -> str:
    """As `shown`, in fewer characters: three digits, and large counts in thousands, millions and billions."""
    if column.form == "number" and value is not None:
        for unit, power in (("G", 9), ("M", 6), ("k", 3)):
            if value >= max(10**power, 10_000):
                return f"{value / 10**power:.4g}{unit}"
    if column.form == "bytes" and value is not None:
        return size(value, ".3g")
    return shown(column, value)
