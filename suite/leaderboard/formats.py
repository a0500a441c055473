"""Tables as CSV, Markdown and terminal text. Text from records is inert in each of them."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

import pandas as pd

from suite.leaderboard.rows import Rows
from suite.leaderboard.statistics import plain_values
from suite.leaderboard.tables import Column, Table

if TYPE_CHECKING:
    from rich.console import Group

HOLE = "-"
#: Lines of a Markdown table; a page of more is read by nobody. CSV and Parquet files have all.
MAX_MARKDOWN = 5000
_MARKDOWN = re.compile(r"([\\`*\[\]|#~$!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}


def clean(text: Any, longest: int = 300) -> str:
    """One printable line: control, format, private and odd space characters are spelt out, long text is cut.

    ANSI sequences start with a control character, and text that runs backwards with a format character.
    """
    out = str(text)
    if not out.isprintable():
        out = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in out)
    return out if len(out) <= longest else out[: longest - 3] + "..."


def markdown_text(text: Any, longest: int = 300) -> str:
    """Text that Markdown shows as it is: no table cell ends, no HTML, no emphasis, no link, no mention."""
    plain = _MARKDOWN.sub(r"\\\1", clean(text, longest))
    return "".join(_ENTITIES.get(c, c) for c in plain)


def csv_text(text: Any, longest: int = 300) -> str:
    """Text that a spreadsheet does not take for a formula: a leading = + - @ gets an apostrophe before it."""
    plain = clean(text, longest)
    return f"'{plain}" if plain.lstrip()[:1] in ("=", "+", "-", "@", "\\") else plain


def shown(column: Column, value: Any) -> str:
    """A value as people read it; `-` where there is none."""
    if value is None or value == "":
        return HOLE
    match column.form:
        case "text":
            return clean(value, column.longest)
        case "count":
            return f"{value:d}"
        case "signed_count":
            return f"{value:+d}" if value else "0"
        case "value":
            return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        case "probability":
            return "< 0.001" if value < 0.001 else f"{value:.3f}"
        case "cosine":
            return f"{value:.4f}"
        case "notes":
            return ", ".join(map(str, value))
        case "percent" | "spread":
            return f"{value:.2f}"
        case "interval":
            # The mean lies within 0 and 100, so that an interval cut there covers it as often.
            return f"{max(value[0], 0.0):.2f} to {min(value[1], 100.0):.2f}"
        case "range":
            return f"{value[0]:.2f}" if value[0] == value[1] else f"{value[0]:.2f} to {value[1]:.2f}"
        case "signed":
            return f"{value:+.2f}"
        case "seconds":
            return duration(value)
        case "bytes":
            return size(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def size(count: float, form: str = ".2f") -> str:
    """Bytes in decimal units: `30.41 GB`."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:{form}} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Three digits with a unit: `78.8 µs`, `6.36 ms`, `442 s`; whole seconds from 1000 on."""
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    rounded = float(f"{seconds:.3g}")
    for unit, power in (("s", 0), ("ms", -3)):
        if rounded >= 10**power:
            return f"{rounded / 10**power:g} {unit}"
    return f"{rounded * 1e6:g} µs" if rounded else "0 s"


def sort_value(column: Column, value: Any) -> str:
    """What a sortable page compares: the number itself, or the text; empty where there is none."""
    if value is None:
        return ""
    if column.form == "notes":
        return str(value[0]) if value else ""
    if column.form in ("interval", "range"):
        return repr(value[0])
    return clean(value, column.longest) if column.form == "text" else repr(value)


def to_csv(table: Table) -> str:
    """CSV with ten digits, empty cells for what is missing, and the footnotes' text in the last column."""
    data = plain_frame(table)
    longest = {c.name: c.longest for c in table.columns if c.csv and c.form in ("text", "notes")}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([csv_text(name) for name in data.columns])
    columns = [_csv_texts(column, longest.get(str(name))) for name, column in data.items()]
    writer.writerows(zip(*columns, strict=True))
    return out.getvalue()


def _csv_texts(column: pd.Series, longest: int | None) -> list[str]:
    """A column's cells: distinct texts are spelt once, large counts have all of their digits."""
    values = plain_values(column)
    if longest is not None:
        known = {v: "" if v is None else csv_text(v, longest) for v in set(values)}
        return [known[v] for v in values]
    if column.dtype != "Float64":
        return ["" if v is None else str(v) for v in values]
    # Bytes and iterations pass ten billion.
    return ["" if v is None else f"{v:.10g}" if abs(v) < 1e10 else f"{v:.0f}" for v in values]


def plain_frame(table: Table) -> pd.DataFrame:
    """A table as files for machines have it: plain columns, footnotes as text."""
    data = {c.name: table.frame[c.name] for c in table.columns if c.csv and c.form != "notes"}
    if any(c.csv and c.form == "notes" for c in table.columns):
        texts = ["; ".join(table.footnotes[i - 1] for i in numbers) or None for numbers in table.frame["notes"]]
        data["notes"] = pd.Series(pd.array(texts, dtype="string"), index=table.frame.index)
    return pd.DataFrame(data)


def to_markdown(table: Table, rows: Rows, name: str) -> str:
    """A Markdown page: the table, its footnotes, what its columns mean, and what was refused."""
    columns = [c for c in table.columns if c.shown]
    lines = [f"# {table.title}: {markdown_text(name)}", "", table.caption, ""]
    lines.append("| " + " | ".join(markdown_text(c.header) for c in columns) + " |")
    lines.append("|" + "|".join("---:" if c.numeric and c.form != "notes" else "---" for c in columns) + "|")
    used: set[int] = set()
    for row in table.lines(0, MAX_MARKDOWN):
        cells = [
            markdown_text(shown(c, row[c.name]), 2 * c.longest) if c.form == "text" else shown(c, row[c.name])
            for c in columns
        ]
        lines.append("| " + " | ".join(cells) + " |")
        used.update(row["notes"])
    if len(table) > MAX_MARKDOWN:
        lines += ["", f"The first {MAX_MARKDOWN} of {len(table)} lines; {table.slug}.csv has all."]
    if used:
        lines += ["", "Notes:", "", *(f"{i}. {markdown_text(table.footnotes[i - 1])}" for i in sorted(used))]
    lines += ["", "Columns:", "", *(f"- **{markdown_text(h)}**: {markdown_text(t)}" for h, t in legend(table))]
    for heading, items in remarks(rows):
        lines += ["", heading, "", *(f"- {markdown_text(item)}" for item in items)]
    return "\n".join(lines) + "\n"


def legend(table: Table) -> list[tuple[str, str]]:
    """What the columns mean: (header, meaning) of those that do not speak for themselves."""
    return [(c.header, c.help) for c in table.columns if c.shown and c.help]


def remarks(rows: Rows) -> list[tuple[str, list[str]]]:
    """What is not in the tables: refused records, and cells that the grid excludes; with headings."""
    found = []
    if rows.refused:
        head = f"Refused, {len(rows.refused)} (a number without provenance is not on a leaderboard):"
        found.append((head, [f"{r.key} {r.label}: {r.reason}" for r in rows.refused]))
    if rows.excluded:
        found.append(("Excluded by the grid:", [f"{n} cell{'s' * (n != 1)}: {why}" for n, why in rows.excluded]))
    return found


def to_terminal(table: Table, limit: int = 40, width: int = 100) -> Group:
    """A compact table: identity columns with a single value move above it; at most `limit` lines and 15 footnotes.

    Spare columns that do not fit into `width` are left out and named below it.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    constant = table.constant()
    empty = {c.name for c in table.columns if _empty(table, c)}
    columns = [c for c in table.columns if c.terminal and c.name not in constant and c.name not in empty]
    lines = table.lines(0, limit)
    left_out = _too_many(columns, lines, width)
    columns = [c for c in columns if c not in left_out]
    result = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for c in columns:
        result.add_column(Text(c.short or c.header), justify="right" if c.numeric else "left", overflow="fold")
    for row in lines:
        style = "dim" if row["flag"] == "hole" else "yellow" if row["flag"] else ""
        result.add_row(*(Text(_short(c, row[c.name])) for c in columns), style=style)
    head = Text(table.title, style="bold")
    if constant:
        same = [f"{c.header} {shown(c, constant[c.name])}" for c in table.columns if c.name in constant]
        head.append("  " + ", ".join(same), style="not bold")
    tail = [Text(f"  {i} {clean(t)}") for i, t in enumerate(table.footnotes[:15], 1)]
    if left_out:
        tail.append(Text(f"  In the files only: {', '.join(c.header for c in left_out)}"))
    if len(table) > limit:
        tail.append(Text(f"  ... {len(table) - limit} more lines in the files"))
    if len(table.footnotes) > 15:
        tail.append(Text(f"  ... {len(table.footnotes) - 15} more notes in the files"))
    return Group(head, Text(table.caption, style="dim"), result, *tail, Text(""))


def _empty(table: Table, column: Column) -> bool:
    """Whether a column has no value at all."""
    if column.form == "notes":
        return not table.footnotes
    return bool(table.frame[column.parts[0] if column.parts else column.name].isna().all())


def _too_many(columns: list[Column], lines: list[dict[str, Any]], width: int) -> list[Column]:
    """Spare columns to leave out, the last one first, so that the others fit into a width."""
    needed = [2 + max(map(len, (c.short or c.header, *(_short(c, r[c.name]) for r in lines)))) for c in columns]
    left_out: list[Column] = []
    missing = sum(needed) - width
    for column, wide in zip(reversed(columns), reversed(needed), strict=True):
        if column.spare and missing > 0:
            left_out.insert(0, column)
            missing -= wide
    return left_out


def _short(column: Column, value: Any) -> str:
    """As `shown`, in fewer characters: three digits, and large counts in thousands, millions and billions."""
    if column.form == "number" and value is not None:
        for unit, power in (("G", 9), ("M", 6), ("k", 3)):
            if value >= max(10**power, 10_000):
                return f"{value / 10**power:.4g}{unit}"
    if column.form == "bytes" and value is not None:
        return size(float(f"{value:.3g}"), "g")
    return shown(column, value)
