"""Tables and sizes for a terminal: rich where one looks, plain aligned text in files and pipes."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def clean(text: object, limit: int = 300) -> str:
    """One printable line: control characters (and with them escape sequences) become spaces, long text is cut."""
    line = " ".join(_CONTROL.sub(" ", str(text)).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. Cells that are numbers are set flush right."""
    cells = [[clean(c) for c in row] for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) or row[i] == "" for row in rows) for i in range(len(header))
    ]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name, right in zip(header, numeric, strict=True):
            drawn.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in cells:
            drawn.add_row(*(Text(c) for c in row))
        Console(highlight=False).print(drawn)
        return
    widths = [max(len(h), *(len(r[i]) for r in cells)) if cells else len(h) for i, h in enumerate(header)]
    for row in ([str(h) for h in header], *cells):
        aligned = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        print("  ".join(aligned).rstrip())


def say(text: str = "") -> None:
    """Print a line now: output in a file keeps up with what happens."""
    print(text, flush=True)


def size(count: float) -> str:
    """Bytes in decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")  # pragma: no cover


def plural(count: int, noun: str) -> str:
    """`1 stage`, `2 stages`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
