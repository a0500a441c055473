"""A card as Markdown: the README.md of an exported set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from suite.errors import one_line

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def to_markdown(card: Mapping[str, Any]) -> str:
    """The card as one Markdown page with a YAML head, as dataset hubs read it."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters |= {"text": text, "size": size, "percent": percent, "interval": interval, "seconds": seconds}
    return environment.get_template("card.md.j2").render(card=card)


def text(value: object) -> str:
    """One line without Markdown's, HTML's and tables' own characters."""
    line = one_line(value)
    return "".join(f"\\{c}" if c in "\\`*_[]|" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(c, c) for c in line)


def size(count: int) -> str:
    """Bytes as people read them (1 kB = 1000 bytes)."""
    for unit, scale in _UNITS:
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.0f} {unit}"
    return f"{count} bytes"


def percent(value: float | None) -> str:
    """Two decimals, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def interval(summary: Mapping[str, Any]) -> str:
    """The 95 % interval within 0 and 100 %, or that one seed has none."""
    if summary["low"] is None:
        return "none from one seed"
    return f"{max(summary['low'], 0):.2f} to {min(summary['high'], 100):.2f}"


def seconds(cost: Mapping[str, Any] | None) -> str:
    """Seconds of a cost; unknown is not zero."""
    return "unknown" if not cost or "seconds" not in cost else f"{cost['seconds']:.1f} s"
