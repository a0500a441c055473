"""Single rows for the page: an index in the page, and everything that is known of each in side files.

Pages opened from disk may load scripts but not fetch data, so a side file is a script that hands over its rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from suite.leaderboard.embed import records, script_json
from suite.leaderboard.formats import clean, duration, size
from suite.leaderboard.logs import log_tails
from suite.leaderboard.rows import CELL, Rows
from suite.leaderboard.statistics import cut_batches, plain_records
from suite.leaderboard.tables import Column
from suite.store import Record, Store
from suite.store.artifacts import RECORD
from suite.store.files import read_json

#: Rows that the page knows one by one; tables are made from all.
MAX_ROWS = 20_000
#: Rows in one side file: about half a megabyte.
CHUNK = 200
#: Characters of one text in a row's details.
MAX_TEXT = 4000
_WHO = [Column(name, name, "count" if name == "ipc" else "text", identity=True) for name in CELL]
_ROW = [
    *_WHO,
    *(Column(name, name) for name in ("setting", "synthesis_setting", "device", "key")),
    Column("seed", "seed", "count"),
    Column("accuracy_last", "accuracy", "percent"),
]
_HOLE = [*_WHO, Column("key", "key"), Column("seed", "seed", "count"), Column("reason", "reason")]


def index(rows: Rows) -> dict[str, Any]:
    """What the page holds of rows and holes: enough to find those behind a line, and the side file of each."""
    kept = plain_records(rows.frame[[c.name for c in _ROW]].head(MAX_ROWS))
    chunks = [i // CHUNK for i in range(len(kept))]
    holes = [{c.name: getattr(h, c.name) for c in _HOLE} for h in rows.holes[:MAX_ROWS]]
    return {
        "rows": {
            **records(kept, _ROW),
            "total": len(rows.frame),
            "chunk": chunks,
            "files": [_name(c) for c in range(len(set(chunks)))],
        },
        "holes": records(holes, _HOLE),
    }


def side_files(rows: Rows, store: Store | None) -> dict[str, bytes]:
    """Everything that is known of the rows in the index, by file name.

    Args:
        rows: The rows.
        store: Where their records and logs lie; rows that were read from elsewhere show what their tables have.
    """
    kept = plain_records(rows.frame.head(MAX_ROWS))
    logs = log_tails(store, {r["key"] for r in kept}) if store else {}
    files = {}
    for c, start in enumerate(range(0, len(kept), CHUNK)):
        part = {
            r["key"]: _details(r, _record(store, r["key"]), logs.get(r["key"])) for r in kept[start : start + CHUNK]
        }
        files[_name(c)] = f"ROW_DETAILS[{c}] = {script_json(part)};\n".encode()
    return files


def _name(chunk: int) -> str:
    return f"rows/{chunk:03d}.js"


def _record(store: Store | None, key: str) -> Record | None:
    """The record behind a row; it was verified when the row was read."""
    path = store.home("evaluation", key) / "out" / RECORD if store else None
    return Record.from_json(read_json(path)) if path and path.is_file() else None


def _details(row: Mapping[str, Any], record: Record | None, log: tuple[str, list[str]] | None) -> list[dict[str, Any]]:
    """What a person reads about a row: parts with a heading and pairs, a table, or text."""
    parts = [
        _pairs("Provenance", _provenance(row, record)),
        _pairs("Student", _student(row)),
        _pairs("Costs", _costs(row)),
    ]
    if record is not None:
        ledger = [
            [clean(e["name"]), clean(e["kind"]), f"{e['bytes']:,}", "yes" if e["shipped"] else "no"]
            for e in record.storage
        ]
        if ledger:
            parts.append({"heading": "Storage", "head": ["Part", "Kind", "Bytes", "Shipped"], "lines": ledger})
        if curve := record.numbers.get("curve"):
            points = [[f"{epoch:g}", f"{accuracy:.2f}"] for epoch, accuracy in curve[-20:]]
            parts.append({"heading": "Accuracy while training", "head": ["Epoch", "Accuracy %"], "lines": points})
        parts.append({"heading": "Specification", "pre": _text(json.dumps(record.spec, indent=1, sort_keys=True))})
    if log:
        parts[0]["pairs"].append(["Log", clean(log[0])])
        parts.append({"heading": "End of the log", "pre": _text("\n".join(map(clean, log[1])))})
    return parts


def _provenance(row: Mapping[str, Any], record: Record | None) -> Iterable[tuple[str, Any]]:
    dirty = f" with uncommitted changes {row['dirty']}" if row["dirty"] else ""
    yield "Commit", f"{row['commit']}{dirty}"
    yield "Key", row["key"]
    yield "Seed", row["seed"]
    yield "Device", row["evaluation_device"]
    yield "Loader", row["loader"]
    yield "Precision", row["precision"]
    yield "Versions", row["versions"]
    yield "Synthesis key", row["synthesis_key"]
    yield "Relabel key", row["relabel_key"]
    if record is not None:
        yield "Attempt", record.attempt
        slurm = record.provenance.get("slurm") or {}
        yield "Slurm job", slurm.get("slurm_job_id")
        for role, value in sorted(record.inputs.items()):
            yield f"Input {role}", value.get("key")


def _student(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    yield "Last epoch", f"{row['accuracy_last']:.3f} %"
    best = "" if row["best_epoch"] is None else f" at epoch {row['best_epoch']:.4g}"
    yield "Best epoch", f"{row['accuracy_best']:.3f} %{best}"
    yield "Epochs", None if row["epochs"] is None else f"{row['epochs']:.4g}"
    yield "Steps", _count(row["steps"])
    yield "Batches", cut_batches(row["micro_batches"]) if row["micro_batches"] else None
    yield "Labels", row["labels"]
    yield "Validation images", _count(row["val_images"])


def _costs(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for kind in ("synthesis", "teacher", "statistics", "relabel", "evaluation"):
        seconds = row[f"{kind}_seconds"]
        yield f"{kind.capitalize()} time", None if seconds is None else duration(seconds)
    yield "Synthesis device", row["device"]
    yield "Image-iterations", _count(row["image_iterations"])
    memory = row["peak_memory_bytes"]
    yield "Peak memory", None if memory is None else f"{size(memory)} ({row['peak_memory_kind'] or 'unknown kind'})"
    for kind in ("image", "label", "auxiliary", "total", "unshipped"):
        count = row[f"{kind}_bytes"]
        yield f"{kind.capitalize()} bytes", None if count is None else f"{count:,}"


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _pairs(heading: str, found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """What is known; what is not, is left out."""
    return {"heading": heading, "pairs": [[k, clean(v, 600)] for k, v in found if v not in (None, "")]}


def _text(text: str) -> str:
    """Printable text of several lines, cut."""
    plain = "\n".join(clean(line) for line in text.splitlines())
    return plain if len(plain) <= MAX_TEXT else plain[:MAX_TEXT] + "\n..."
