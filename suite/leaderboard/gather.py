"""Reading a store: all of its evaluations, or those that a plan names, with a reason for each one that is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from suite.leaderboard.rows import CELL, Hole, Refusal, Rows, collect, failure_reason
from suite.spec.stages import Stage, input_kind
from suite.store import Record, Store
from suite.store.artifacts import MANIFEST, Corrupt, seal
from suite.store.files import read_json


def from_store(store: Store) -> Rows:
    """Rows of every evaluation in a store, and holes of those that failed and were never published."""
    keys = sorted(store.published("evaluation"))
    records, refused = _open(store, keys)
    failures: list[Record] = []
    for home in sorted((store.root / "evaluation").glob("*/*")):
        if home.name not in keys:
            found, unreadable = _failures(store, "evaluation", home.name)
            failures += found
            refused += unreadable
    return collect(records, failures=failures, refused=refused, synthesis=_syntheses(store, records))


def from_plan(
    store: Store,
    stages: Sequence[Stage],
    cells: Sequence[Any],
    keys: Sequence[str],
    excluded: Iterable[tuple[Any, str]] = (),
) -> Rows:
    """Rows of a plan's cells, and a hole with its reason for each cell that has none.

    Args:
        store: Where to look.
        stages: The plan's stages.
        cells: Its cells, with the attributes of `CELL` and `seed`.
        keys: Key of each cell's evaluation.
        excluded: Cells that the grid leaves out, and why.
    """
    published = store.published("evaluation")
    records, refused = _open(store, sorted(set(keys) & published))
    there = {r.key for r in records} | {r.key for r in refused}
    reasons = Reasons(store, stages)
    broken = {r.key: r.reason for r in refused}
    holes = []
    for cell, key in zip(cells, keys, strict=True):
        if key not in there or key in broken:
            place = {name: getattr(cell, name) for name in (*CELL, "seed")}
            holes.append(Hole(**place, key=key, reason=broken.get(key) or reasons.of(key)))
    syntheses = {s.key: s.to_json() for s in stages if s.kind == "synthesis"}
    left_out = [(n, why) for why, n in Counter(why for _, why in excluded).items()]
    return collect(records, holes=holes, refused=refused, excluded=left_out, synthesis=syntheses)


class Reasons:
    """Why stages of a plan have no artifact: their own failures, or those of what they read.

    Args:
        store: Where to look.
        stages: The plan's stages.
    """

    def __init__(self, store: Store, stages: Iterable[Stage]) -> None:
        self.store = store
        self.stages = {s.key: s for s in stages}
        self.published = {kind: store.published(kind) for kind in {s.kind for s in self.stages.values()}}
        self.known: dict[str, str] = {}

    def of(self, key: str) -> str:
        """The reason as one line: `not run`, `failed (kind): ...`, `diverged: ...` or `blocked (...)`."""
        return self._cause(key) or (
            "started, not finished" if self.store.attempts(self.stages[key].kind, key) else "not run"
        )

    def _cause(self, key: str) -> str:
        """The failure that keeps a stage from being there; empty if nothing failed."""
        if key not in self.known:
            self.known[key] = self._look(self.stages[key]) if key in self.stages else ""
        return self.known[key]

    def _look(self, stage: Stage) -> str:
        if stage.key in self.published[stage.kind]:
            return ""
        for role, key in stage.inputs.items():
            if cause := self._cause(key):
                return cause if cause.startswith("blocked") else f"blocked ({input_kind(role)} {cause})"
        failures, _ = _failures(self.store, stage.kind, stage.key)
        # A stage that was blocked is not to blame itself; once its inputs are there it has simply not run.
        own = [f for f in failures if not str((f.failure or {}).get("message", "")).startswith("blocked")]
        return failure_reason(own[-1], len(own)) if own else ""


def _open(store: Store, keys: Iterable[str]) -> tuple[list[Record], list[Refusal]]:
    records, refused = [], []
    for key in keys:
        try:
            records.append(store.open("evaluation", key).record())
        except Corrupt as error:
            refused.append(Refusal(key, "evaluation", f"corrupt artifact: {error.what}"))
        except FileNotFoundError:
            continue  # moved away since the scan: the cell has no row
        except (ValueError, TypeError) as error:
            refused.append(Refusal(key, "evaluation", f"unreadable record: {error}"))
    return records, refused


def _failures(store: Store, kind: str, key: str) -> tuple[list[Record], list[Refusal]]:
    try:
        return store.failures(kind, key), []
    except (ValueError, TypeError, OSError) as error:
        return [], [Refusal(key, kind, f"unreadable record of a failed attempt: {error}")]


def _syntheses(store: Store, records: Iterable[Record]) -> Mapping[str, Mapping[str, Any]]:
    """Synthesis stages by key, as their manifests tell; those that are gone are left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for key in {str(r.inputs.get("synthesis", {}).get("key")) for r in records}:
        with suppress(OSError, ValueError, AttributeError):
            manifest = read_json(store.home("synthesis", key) / "out" / MANIFEST)
            if manifest.get("seal") == seal(manifest):
                found[key] = manifest
    return found
