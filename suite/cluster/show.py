"""Tables and sizes for a terminal: rich where one looks, plain aligned text in files and pipes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def clean(text: object, limit: int = 300) -> str:
    """One printable line: what drives a terminal (escapes, direction marks) becomes a space, long text is cut."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. Cells that are numbers are set flush right."""
    printed([(header, rows)], sys.stdout)


def printed(parts: Sequence[object], stream: TextIO) -> None:
    """Print lines of text and (header, rows) of tables: drawn on a terminal, aligned text elsewhere."""
    if stream.isatty():
        from rich.console import Console

        Console(highlight=False, file=stream).print(rendered(parts))
        return
    for part in parts:
        print("\n".join(_aligned(*part)) if isinstance(part, tuple) else part, file=stream)
    stream.flush()


def rendered(parts: Sequence[object]) -> Group:
    """Lines and tables for rich."""
    from rich.console import Group
    from rich.text import Text

    return Group(*(_drawn(*part) if isinstance(part, tuple) else Text(str(part)) for part in parts))


def _numeric(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[bool]:
    """Which columns hold numbers only."""
    return [
        bool(rows) and all(isinstance(row[i], int | float) or row[i] == "" for row in rows) for i in range(len(header))
    ]


def _drawn(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in zip(header, _numeric(header, rows), strict=True):
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(clean(c)) for c in row))
    return drawn


def _aligned(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    cells = [[str(h) for h in header], *([clean(c) for c in row] for row in rows)]
    widths = [max(len(r[i]) for r in cells) for i in range(len(header))]
    numeric = _numeric(header, rows)
    for row in cells:
        aligned = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        yield "  ".join(aligned).rstrip()


def say(text: str = "") -> None:
    """Print a line now: output in a file keeps up with what happens."""
    print(text, flush=True)


def agreed(question: str) -> bool:
    """Ask on a terminal; where nobody can answer, the answer is no."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


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
