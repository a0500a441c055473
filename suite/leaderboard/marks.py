"""What tells that nothing in a stage has changed: names, sizes, times and inodes of its files.

The rule of the store itself (`verified.json`): a file whose fingerprint is that of its last check is not read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from suite.spec.keys import digest

_NOTHING = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A stage's directory at one moment.

    Attributes:
        published: 32 hex digits over names, sizes, times and inodes of the published files; empty if there are none.
        attempts: Names of failed and unfinished attempts, sorted.
    """

    published: str
    attempts: tuple[str, ...] = ()


def mark(home: Path | str) -> Mark:
    """The mark of a stage's directory; that of nothing where there is none."""
    out, attempts = _NOTHING, []
    try:
        with os.scandir(home) as entries:
            for entry in entries:
                if entry.name == "out":
                    out = _fingerprint(entry.path)
                elif entry.name in ("failed", "attempts"):
                    with os.scandir(entry.path) as names:
                        attempts += [f"{entry.name}/{n.name}" for n in names]
    except (FileNotFoundError, NotADirectoryError):
        return Mark(_NOTHING)
    return Mark(out, tuple(sorted(attempts)))


def _fingerprint(out: str) -> str:
    """Of the files at the top of a published directory; directories in it count with their own times."""
    seen = []
    with os.scandir(out) as entries:
        for entry in entries:
            s = entry.stat(follow_symlinks=False)
            seen.append(f"{entry.name} {s.st_mode} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}")
    return digest("\n".join(sorted(seen)))[:32]


def homes(root: Path) -> Iterator[tuple[str, str]]:
    """(key, directory) of every stage of a kind, published or not, sorted by key.

    Args:
        root: The kind's directory in a store.
    """
    try:
        with os.scandir(root) as fans:
            folders = sorted(f.path for f in fans if f.is_dir())
    except FileNotFoundError:
        return
    for folder in folders:
        with os.scandir(folder) as entries:
            yield from sorted((e.name, e.path) for e in entries if e.is_dir())
