"""Whether a written report still says what the store says, told without importing pandas or drawing anything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from suite.leaderboard.marks import mark
from suite.provenance import environment, source_digest
from suite.spec.keys import canonical, digest
from suite.store import Store
from suite.store.files import read_json, sha256, write_json

#: What makes a page besides Python files.
_TEMPLATES = Path(__file__).resolve().parent / "templates"
STAMP, TEXT = "stamp.json", "leaderboards.txt"


def state(store: Store, title: object, nodes: Iterable[tuple[str, str]]) -> str:
    """A digest of everything that a report is made from.

    Args:
        store: Where the rows are.
        title: What is reported besides rows: name, cells, exclusions.
        nodes: (kind, key) of every stage whose artifact or failures can show.
    """
    seen = hashlib.sha256()
    for kind, key in nodes:
        found = mark(store.home(kind, key))
        seen.update("\0".join((kind, key, found.published, *found.attempts, "\n")).encode())
    made_by = [source_digest(), *(sha256(p) for p in sorted(_TEMPLATES.iterdir()) if p.is_file()), environment()]
    return digest(canonical([made_by, str(title), seen.hexdigest()]))


def unchanged(folder: Path, wanted: str) -> str | None:
    """The leaderboards as text if the report in a folder was made from this state and is whole, else None."""
    try:
        stamp = read_json(folder / STAMP)
        whole = stamp["state"] == wanted and all(sha256(folder / n) == s for n, s in stamp["files"].items())
        return (folder / TEXT).read_text(encoding="utf-8") if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # never written, half-written or edited: it is written again


def stamp(folder: Path, wanted: str, files: Iterable[str]) -> None:
    """Say from which state a report was made; written last."""
    write_json(folder / STAMP, {"state": wanted, "files": {name: sha256(folder / name) for name in sorted(files)}})
