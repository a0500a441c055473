"""What workers printed about single stages: the last lines of each, out of logs that several stages share."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from suite.store import Store

#: Lines of one stage that are kept, and characters of a line.
MAX_LINES, MAX_WIDTH = 20, 240
#: Bytes of logs that are read, newest runs first. Older stages have no tail then; their logs lie in the store.
MAX_BYTES = 256_000_000
#: `[07:40:25] evaluation 147e3affe25456ec ...` begins the part of a stage; what it prints follows, until the next one.
_HEAD = re.compile(r"^\[[\d:]+\] [a-z]+ ([0-9a-f]{16}) ")


def log_tails(store: Store, keys: Collection[str]) -> dict[str, tuple[str, list[str]]]:
    """The last lines that were printed about stages, from the newest log that mentions each.

    Args:
        store: Where the logs lie: `runs/GRID/RUN/logs/ARRAY/*.out`, as `launch` makes them.
        keys: Of the stages.

    Returns:
        By key: path of the log below the store, and the lines.
    """
    wanted, budget = set(keys), MAX_BYTES
    found: dict[str, tuple[str, list[str]]] = {}
    runs = sorted((store.root / "runs").glob("*/*/logs"), key=lambda p: (p.parent.name, p.parent.parent.name))
    for logs in reversed(runs):
        parts: dict[str, tuple[str, list[str]]] = {}
        for path in sorted(logs.rglob("*.out")):
            budget -= path.stat().st_size
            if budget < 0 or not wanted - set(found):
                return found
            for key, lines in _parts(path, wanted).items():
                parts[key] = (str(path.relative_to(store.root)), lines)
        found.update({k: v for k, v in parts.items() if k not in found})
    return found


def _parts(path: Path, wanted: Collection[str]) -> dict[str, list[str]]:
    """Lines of a log by the stage that they are about."""
    parts: dict[str, list[str]] = {}
    current: list[str] | None = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if head := _HEAD.match(line):
                current = parts.setdefault(head[1], []) if head[1] in wanted else None
            if current is not None and not line.startswith("submitit "):
                current.append(line.rstrip("\n")[:MAX_WIDTH])
                del current[:-MAX_LINES]
    return parts
