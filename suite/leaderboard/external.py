"""Rows of distilled sets that were made elsewhere: where they are in a store, and how they are marked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from suite.spec.stages import EXTERNAL, Stage
from suite.store import Record, Store
from suite.store.artifacts import Corrupt

#: What a row competes within: the student's budget and its exam are the same.
_BESIDE = ("dataset", "ipc", "student", "protocol")


def is_external(record: Record) -> bool:
    """Whether a row's distilled set was made elsewhere."""
    return record.provenance.get("external") is True


def marked(method: str, external: bool) -> str:
    """The name of a method as leaderboards show it; with the mark, none of the suite's has it."""
    return f"{method} ({EXTERNAL})" if external else method


def beside(store: Store, stages: Iterable[Stage], cells: Iterable[Any]) -> list[str]:
    """Keys of external rows that compete with cells of a plan.

    Args:
        store: Where to look.
        stages: The plan's stages; these are not external.
        cells: Its cells, with dataset, IPC, student and protocol.
    """
    own = {s.key for s in stages}
    sets = {m["key"] for m in _manifests(store, "synthesis", own) if m["spec"]["method"] == EXTERNAL}
    if not sets:
        return []
    contests = {tuple(getattr(cell, name) for name in _BESIDE) for cell in cells}
    return [
        m["key"]
        for m in _manifests(store, "evaluation", own)
        if m["inputs"].get("synthesis") in sets and tuple(m["spec"][name] for name in _BESIDE) in contests
    ]


def sets_of(store: Store, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Manifests of the sets that external rows stand on, by key; their settings depend on them."""
    found = {}
    for key in keys:
        with suppress(Corrupt, FileNotFoundError):
            made = store.manifest("evaluation", key)["inputs"]["synthesis"]
            found[made] = store.manifest("synthesis", made)
    return found


def _manifests(store: Store, kind: str, own: set[str]) -> Iterator[dict[str, Any]]:
    """Manifests of what is published beside a plan; damaged ones say nothing about it."""
    for key in sorted(store.published(kind) - own):
        with suppress(Corrupt, FileNotFoundError):
            yield store.manifest(kind, key)
