"""What a page holds: tables as bounded columns of text and numbers, in JSON that no text in it can break out of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from suite.leaderboard.formats import clean, shown, sort_value
from suite.leaderboard.rows import Rows
from suite.leaderboard.tables import Column, Table

#: Lines of one table that the page holds; its files have all.
MAX_LINES = 5000
#: Columns that the page has a choice for, if they have several values: lines with other values are filtered out.
FACETS = {"dataset": "Dataset", "ipc": "IPC", "teacher": "Teacher", "student": "Student", "protocol": "Protocol"}
#: Most values that such a choice offers; with more there is the field for words.
MAX_CHOICES = 60
_BREAKING = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def script_json(value: Any) -> Markup:
    """JSON for a data block in HTML: no tag, comment or entity can begin in it.

    Raises:
        ValueError: If there is a NaN or an infinity in it, which browsers do not read.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_BREAKING))


def packed(texts: Sequence[str]) -> dict[str, Any]:
    """A column of text: its distinct values in order, and the position of each line's value among them."""
    values = sorted(set(texts))
    place = {v: i for i, v in enumerate(values)}
    return {"text": values, "pick": [place[t] for t in texts]}


def number(value: Any) -> float | int | None:
    """A number for JSON, None for what is missing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, int) else float(value)


def embed(table: Table) -> dict[str, Any]:
    """A table as the page's script draws it: text and sort values by column, flags, blocks and notes by line."""
    lines = table.lines(0, MAX_LINES)
    constant = table.constant()
    columns = [c for c in table.columns if c.shown or c.identity]
    blocks = _blocks(lines)
    used = sorted({n for line in lines for n in line["notes"]})
    place = {n: i for i, n in enumerate(used, 1)}
    visible = [c for c in columns if c.shown and c.form != "notes" and c.name not in constant]
    names = [c.name for c in visible]
    head = "method" if "method" in names else next((c.name for c in visible if c.identity), names[0] if names else "")
    return {
        "slug": table.slug,
        "section": table.section,
        "title": clean(table.title),
        "head": head,
        "count": len(lines),
        "total": len(table),
        "same": [[clean(c.header), shown(c, constant[c.name])] for c in columns if c.name in constant],
        "columns": [_column(c, lines, blocks, c.name in names) for c in columns if c.form != "notes"],
        "flags": {i: line["flag"] for i, line in enumerate(lines) if line["flag"]},
        "breaks": [i for i, line in enumerate(lines) if line["break"] and i],
        "notes": {i: [place[n] for n in line["notes"]] for i, line in enumerate(lines) if line["notes"]},
        "footnotes": [clean(table.footnotes[n - 1], 600) for n in used],
    }


def _column(column: Column, lines: list[dict[str, Any]], blocks: list[range], visible: bool) -> dict[str, Any]:
    texts = [shown(column, line[column.name]) for line in lines]
    found: dict[str, Any] = {
        "name": column.name,
        "header": clean(column.header),
        "help": clean(column.help, 600),
        "form": column.form,
        "num": column.numeric,
        "identity": column.identity,
        "show": visible,
        "search": not column.numeric or column.identity,
    }
    if column.numeric:
        sortable = [sort_value(column, line[column.name]) for line in lines]
        values = [number(float(v)) if v else None for v in sortable]
        found |= {"text": texts, "value": [int(v) if v is not None and float(v).is_integer() else v for v in values]}
    else:
        found |= packed(texts)
    if column.best:
        found["best"] = column.best
        found["first"], found["second"] = _best(column, [line[column.name] for line in lines], blocks)
    return found


def _blocks(lines: list[dict[str, Any]]) -> list[range]:
    """Runs of comparable lines."""
    starts = [i for i, line in enumerate(lines) if line["break"] or i == 0]
    return [range(a, b) for a, b in pairwise([*starts, len(lines)])]


def _best(column: Column, values: list[Any], blocks: list[range]) -> tuple[list[int], list[int]]:
    """Lines with the best value of their block, and with the second; none in a block of one line."""
    first: list[int] = []
    second: list[int] = []
    for block in blocks:
        order = sorted({values[i] for i in block if values[i] is not None}, reverse=column.best == "max")
        if sum(values[i] is not None for i in block) < 2:
            continue
        first += [i for i in block if values[i] == order[0]]
        if len(order) > 1 and len(block) > 2:
            second += [i for i in block if values[i] == order[1]]
    return first, second


def records(lines: Iterable[dict[str, Any]], columns: Sequence[Column]) -> dict[str, Any]:
    """Lines that are no table of the report (rows, points, pictures) in the same form, for the same filter."""
    kept = list(lines)
    return {"count": len(kept), "columns": [_column(c, kept, [], True) for c in columns]}


def facets(rows: Rows) -> list[dict[str, Any]]:
    """Choices of the filter: what names cells and has several values, with these in order."""
    made = []
    for name, header in FACETS.items():
        values = set(rows.frame[name].dropna().unique()) | {getattr(h, name) for h in rows.holes}
        if 1 < len(values) <= MAX_CHOICES:
            made.append({"name": name, "header": header, "values": [clean(v) for v in sorted(values)]})
    return made
