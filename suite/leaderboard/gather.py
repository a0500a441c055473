"""Reading a store: all of its evaluations, or those that a plan names, with a reason for each one that is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from suite.leaderboard.compact import concatenated, read_compacted, read_rows, write_compacted
from suite.leaderboard.external import sets_of
from suite.leaderboard.marks import Mark, homes, mark
from suite.leaderboard.rows import CELL, COLUMNS, Hole, Refusal, Rows, collect, failure_reason, lines_of
from suite.spec.stages import Stage, input_kind
from suite.store import Record, Store
from suite.store.artifacts import MANIFEST, Corrupt, seal
from suite.store.files import read_json

#: Records that are read before they become lines of a table: a million of them would not fit into memory.
CHUNK = 20_000
#: What the directories of evaluations hold, by key.
Marks = Mapping[str, Mark]


def from_store(store: Store, marks: Marks | None = None) -> Rows:
    """Rows of every evaluation in a store, and holes of those that failed and were never published.

    Args:
        store: Where to look.
        marks: What `scan` saw of its evaluations, where that was done already.
    """
    marks = scan(store) if marks is None else marks
    known, records, refused = _rows(store, marks)
    failures: list[Record] = []
    for key, seen in marks.items():
        if not seen.published and seen.attempts:
            found, unreadable = _failures(store, "evaluation", key)
            failures += found
            refused += unreadable
    made = _syntheses(store, failures)
    return collect(records, failures=failures, refused=refused, known=known, synthesis=made)


def from_file(path: Path) -> Rows:
    """Rows of a file that a report wrote (`parquet/rows.parquet`); those without provenance are refused.

    Raises:
        DataError: If it is not such a file.
    """
    frame = read_rows(path)
    needed = ["key", "commit", "seed", "evaluation_device", "versions", "loader"]
    lacking = frame[needed].isna() | (frame[needed].astype("string") == "")
    bad = lacking.any(axis=1).to_numpy(dtype=bool)
    refused = [
        Refusal(str(key), "a row of a file", f"no provenance: {', '.join(lacking.columns[list(gaps)])}")
        for key, gaps in zip(frame.loc[bad, "key"], lacking[bad].itertuples(index=False), strict=True)
    ]
    return collect([], refused=refused, known=frame[~bad])


def from_plan(
    store: Store,
    stages: Sequence[Stage],
    cells: Sequence[Any],
    keys: Sequence[str],
    excluded: Iterable[tuple[Any, str]] = (),
    external: Sequence[str] = (),
) -> Rows:
    """Rows of a plan's cells, and a hole with its reason for each cell that has none; external rows beside them.

    Args:
        store: Where to look.
        stages: The plan's stages.
        cells: Its cells, with the attributes of `CELL` and `seed`.
        keys: Key of each cell's evaluation.
        excluded: Cells that the grid leaves out, and why.
        external: Keys of evaluations of sets from elsewhere that compete with these cells.
    """
    syntheses: dict[str, Mapping[str, Any]] = {s.key: s.to_json() for s in stages if s.kind == "synthesis"}
    syntheses |= sets_of(store, external)
    marks = {key: mark(store.home("evaluation", key)) for key in sorted({*keys, *external})}
    known, records, refused = _rows(store, marks, syntheses)
    there = set(known["key"]) | {r.key for r in records} | {r.key for r in refused}
    reasons = Reasons(store, stages)
    broken = {r.key: r.reason for r in refused}
    holes = []
    for cell, key in zip(cells, keys, strict=True):
        if key not in there or key in broken:
            place = {name: getattr(cell, name) for name in (*CELL, "seed")}
            holes.append(Hole(**place, key=key, reason=broken.get(key) or reasons.of(key)))
    left_out = [(n, why) for why, n in Counter(why for _, why in excluded).items()]
    return collect(records, holes=holes, refused=refused, excluded=left_out, synthesis=syntheses, known=known)


def scan(store: Store) -> Marks:
    """What the directory of every evaluation holds, by key, without reading a file."""
    return {key: mark(path) for key, path in homes(store.root / "evaluation")}


def _rows(
    store: Store, marks: Marks, syntheses: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[pd.DataFrame, list[Record], list[Refusal]]:
    """Lines of published evaluations, records that give none, and refusals; what is new is remembered.

    Args:
        store: Where to look.
        marks: Of the evaluations that are wanted.
        syntheses: Synthesis stages by key; what the store's manifests tell, without it.
    """
    memory = read_compacted(store)
    there = set(syntheses) if syntheses is not None else store.published("synthesis")
    seen = memory["key"].map({key: m.published for key, m in marks.items()}) if len(memory) else memory["mark"]
    same = (seen == memory["mark"]) & (memory["synthesis_key"].isin(there) == memory["whole"])
    good = same.to_numpy(dtype=bool, na_value=False)
    known = memory.loc[good, list(COLUMNS)]
    remembered = set(known["key"])
    missing = [key for key, m in marks.items() if m.published and key not in remembered]
    made, others, refused = [known], [], []
    for start in range(0, len(missing), CHUNK):
        records, broken = _open(store, missing[start : start + CHUNK])
        stages = _syntheses(store, records) if syntheses is None else syntheses
        new, denied, rest = lines_of(records, stages)
        new["mark"] = pd.array([marks[key].published for key in new["key"]], dtype="string")
        new["whole"] = new["synthesis_key"].isin(there).astype("boolean")
        made.append(new)
        others += rest
        refused += [*broken, *denied]
    if any(len(new) for new in made[1:]):
        # What is remembered of evaluations of other grids is not forgotten; without a grid all were looked at.
        kept = good if syntheses is None else (seen.isna() | good).to_numpy(dtype=bool)
        write_compacted(store, concatenated([memory[kept], *made[1:]]))
    return concatenated(made)[list(COLUMNS)], others, refused


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
