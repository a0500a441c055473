"""Rows: records of evaluations as one typed table, with what is missing and what is refused beside it.

A record without provenance never becomes a row; it is refused with a reason. A failed or diverged attempt never becomes
a number; it is a hole with a reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from suite.leaderboard.external import is_external, marked
from suite.spec.keys import canonical, digest
from suite.spec.stages import EXTERNAL
from suite.store.records import Record

#: What identifies a cell, apart from its seed.
CELL = ("method", "dataset", "ipc", "teacher", "student", "protocol")
#: Rows of one group differ in their seed only. `setting` separates rows whose other parameters differ.
GROUP = (*CELL, "setting")

#: Columns of the table of rows and their pandas types.
COLUMNS: dict[str, str] = {
    **dict.fromkeys(("method", "dataset"), "string"),
    "ipc": "Int64",
    **dict.fromkeys(("teacher", "student", "protocol", "setting"), "string"),
    "seed": "Int64",
    **{"labels": "string", "label_prune": "Float64", "overridden": "boolean"},
    **dict.fromkeys(("accuracy_last", "accuracy_best", "best_epoch", "epochs"), "Float64"),
    **dict.fromkeys(("steps", "classes", "val_images"), "Int64"),
    **dict.fromkeys(("constant_prediction", "external"), "boolean"),
    **dict.fromkeys(("synthesis_key", "synthesis_setting"), "string"),
    "synthesis_seconds": "Float64",
    **dict.fromkeys(("image_iterations", "forward_images", "images"), "Int64"),
    **dict.fromkeys(("seconds_per_image", "iterations_per_image"), "Float64"),
    "peak_memory_bytes": "Int64",
    **dict.fromkeys(("peak_memory_kind", "device"), "string"),
    **dict.fromkeys(("teacher_seconds", "statistics_seconds", "relabel_seconds", "evaluation_seconds"), "Float64"),
    "relabel_key": "string",
    **dict.fromkeys(("image_bytes", "label_bytes", "auxiliary_bytes", "total_bytes", "unshipped_bytes"), "Int64"),
    **dict.fromkeys(("key", "commit", "dirty", "loader", "precision", "evaluation_device", "versions"), "string"),
    **dict.fromkeys(("started", "attempt"), "string"),
    "status": "string",
    "micro_batches": "Int64",
}

#: Ledger kinds that are pictures or what decodes to pictures, and labels; all others are auxiliary.
_IMAGES, _LABELS = {"image", "latent"}, {"label"}
_VERSIONS = ("suite", "python", "torch", "torchvision", "timm", "ffcv", "numpy")


@dataclass(frozen=True, slots=True, order=True)
class Hole:
    """A cell without a number, and why."""

    method: str
    dataset: str
    ipc: int
    teacher: str
    student: str
    protocol: str
    seed: int
    key: str
    reason: str

    @property
    def cell(self) -> tuple[Any, ...]:
        """The cell without its seed, in the order of `CELL`."""
        return tuple(getattr(self, name) for name in CELL)


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """A record that is kept off the leaderboards, and why."""

    key: str
    label: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """Everything that the leaderboards are made from.

    Attributes:
        frame: One line a row, columns and types as in `COLUMNS`, in a stable order.
        holes: Cells without a number.
        refused: Records without provenance, and records that cannot be read.
        excluded: Cells that the grid leaves out on purpose: (count, why).
    """

    frame: pd.DataFrame
    holes: list[Hole] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    excluded: list[tuple[int, str]] = field(default_factory=list)


def collect(
    records: Iterable[Record],
    *,
    failures: Iterable[Record] = (),
    holes: Iterable[Hole] = (),
    refused: Iterable[Refusal] = (),
    excluded: Iterable[tuple[int, str]] = (),
    synthesis: Mapping[str, Mapping[str, Any]] | None = None,
    known: pd.DataFrame | None = None,
) -> Rows:
    """Turn records into rows, holes and refusals. The result does not depend on the order of the arguments.

    Args:
        records: Records of evaluations. Those that are not `done` count as failures.
        failures: Records of attempts that did not publish; the newest of each stage gives the reason of its hole.
        holes: Cells that are known to be missing.
        refused: Records that could not even be read.
        excluded: (count, why) of cells that the grid leaves out.
        synthesis: Synthesis stages by key, as `Stage.to_json` gives them. Rows whose syntheses differ in more than the
            seed are never averaged; holes of sets from elsewhere are known by theirs.
        known: Lines that were made from records before, as `lines_of` gives them.
    """
    raw, denied, failed = lines_of(records, synthesis or {})
    failed += failures
    parts = [p for p in (known, raw) if p is not None and len(p)]
    frame = settled(pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0] if parts else raw)
    gaps = set(holes)
    newest = {r.key: r for r in sorted(failed, key=lambda r: (str(r.key), str(r.attempt)))}
    attempts = Counter(r.key for r in failed)
    there = {h.key for h in gaps} | (set(frame["key"]) if newest else set())
    for key, record in newest.items():
        if key in there:
            continue
        try:
            gaps.add(hole(record, failure_reason(record, attempts[key]), synthesis or {}))
        except (KeyError, TypeError, ValueError):
            denied.append(Refusal(str(key), label(record.spec), "unreadable record of a failed attempt"))
    return Rows(frame, sorted(gaps), sorted({*denied, *refused}), sorted(excluded))


def lines_of(
    records: Iterable[Record], synthesis: Mapping[str, Mapping[str, Any]]
) -> tuple[pd.DataFrame, list[Refusal], list[Record]]:
    """Records as lines of a typed table, as refusals, and those that are not `done`.

    Args:
        records: Records of evaluations.
        synthesis: Synthesis stages by key.
    """
    found: dict[str, dict[str, Any]] = {}
    denied: list[Refusal] = []
    failed: list[Record] = []
    for record in sorted(records, key=lambda r: (str(r.key), str(r.attempt))):
        if record.status != "done":
            failed.append(record)
        elif missing := missing_provenance(record):
            denied.append(Refusal(str(record.key), label(record.spec), f"no provenance: {', '.join(missing)}"))
        else:
            try:
                found[record.key] = row(record, synthesis)
            except (KeyError, TypeError, ValueError) as error:
                why = f"no {error}" if isinstance(error, KeyError) else str(error)
                denied.append(Refusal(record.key, label(record.spec), f"unreadable record: {why}"))
    return typed(found.values(), COLUMNS), denied, failed


def missing_provenance(record: Record) -> list[str]:
    """What a record lacks of code commit, key, seed, device, environment and loader; all are needed for a row."""
    p = record.provenance if isinstance(record.provenance, dict) else {}
    present = {
        "commit": bool(p.get("commit")) and "dirty" in p,
        "key": bool(record.key),
        "seed": isinstance(p.get("seed"), int) and p.get("seed") == record.spec.get("seed"),
        "device": bool(record.device.get("name")),
        "environment": {"python", "torch"} <= set(environment(record)),
        "loader": bool(p.get("loader")),
    }
    return [name for name, there in present.items() if not there]


def environment(record: Record) -> dict[str, str]:
    """Versions of the packages that computed a row."""
    p = record.provenance
    nested = p.get("environment")
    source = nested if isinstance(nested, dict) else p
    return {name: str(source[name]) for name in _VERSIONS if source.get(name)}


def label(spec: Mapping[str, Any]) -> str:
    """A short name of an evaluation for footnotes; says `?` where the spec does."""
    part = {name: spec.get(name, "?") for name in (*CELL, "seed")}
    return "{method} {dataset} ipc{ipc} {teacher} -> {student} {protocol} seed{seed}".format(**part)


def failure_reason(record: Record, attempts: int = 1) -> str:
    """The reason of a hole: `failed (kind): message`, `diverged: message`, or that it was blocked."""
    failure = record.failure or {}
    message = " ".join(str(failure.get("message", "no message")).split())
    if message.startswith("blocked"):
        return "blocked (an input failed or is missing)"
    head = "diverged" if record.status == "diverged" else f"failed ({failure.get('kind', 'unknown')})"
    if message.startswith("diverged"):
        head, message = message, ""
    tail = f" [{attempts} attempts]" if attempts > 1 else ""
    return (f"{head}: {message}" if message else head) + tail


def hole(record: Record, reason: str, synthesis: Mapping[str, Mapping[str, Any]]) -> Hole:
    """The hole that a record of a failed attempt leaves; that of a set from elsewhere is marked like its rows."""
    s = record.spec
    method = marked(str(s["method"]), _synthesis_of(record, synthesis).get("spec", {}).get("method") == EXTERNAL)
    return Hole(
        method, str(s["dataset"]), _integer(s["ipc"], "ipc"), str(s["teacher"]), str(s["student"]),
        str(s["protocol"]), _integer(s["seed"], "seed"), record.key, reason,
    )  # fmt: skip


def row(record: Record, synthesis: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One line of the table from one record.

    Raises:
        KeyError, TypeError, ValueError: If a field is missing or not what its name says.
    """
    s, n, up = record.spec, record.numbers, record.upstream
    made = up.get("synthesis") or {}
    images = _count(made, "images") or _integer(n["classes"], "classes") * _integer(s["ipc"], "ipc")
    seconds, iterations = _positive(made, "seconds"), _count(made, "image_iterations")
    return {
        "method": marked(str(s["method"]), is_external(record)),
        **{name: str(s[name]) for name in ("dataset", "teacher", "student", "protocol", "labels")},
        "ipc": _integer(s["ipc"], "ipc"),
        "setting": setting(record, synthesis),
        "seed": _integer(s["seed"], "seed"),
        "accuracy_last": _percent(n["accuracy_last"], "accuracy_last"),
        "accuracy_best": _percent(n["accuracy_best"], "accuracy_best"),
        # Fractions of an epoch are meant: budgets may be in steps.
        **{name: _positive(n, name) for name in ("best_epoch", "epochs")},
        **{name: _count(n, name) for name in ("steps", "classes", "val_images")},
        "label_prune": _positive(s.get("label") or {}, "prune"),
        "overridden": None,
        "external": is_external(record),
        "constant_prediction": bool(n.get("constant_prediction", False)),
        "synthesis_key": record.inputs.get("synthesis", {}).get("key"),
        "synthesis_setting": _seedless(_synthesis_of(record, synthesis)),
        "synthesis_seconds": seconds,
        "image_iterations": iterations,
        "forward_images": _count(made, "forward_images"),
        "images": images,
        "seconds_per_image": None if seconds is None else seconds / images,
        "iterations_per_image": None if iterations is None else iterations / images,
        "peak_memory_bytes": _count(made, "peak_memory_bytes"),
        "peak_memory_kind": made.get("peak_memory_kind"),
        "device": made.get("device"),
        **{
            f"{kind}_seconds": _positive(up.get(kind) or {}, "seconds") for kind in ("teacher", "statistics", "relabel")
        },
        "evaluation_seconds": _positive(record.cost, "seconds"),
        "relabel_key": record.inputs.get("relabel", {}).get("key"),
        **ledger(record.storage),
        "key": record.key,
        "commit": str(record.provenance["commit"]),
        "dirty": str(record.provenance["dirty"] or ""),
        "loader": str(record.provenance["loader"]),
        "precision": str(record.device.get("precision") or s.get("precision") or ""),
        "evaluation_device": str(record.device["name"]),
        "versions": ", ".join(f"{k} {v}" for k, v in environment(record).items()),
        "started": record.started,
        "attempt": record.attempt,
        "status": record.status,
        "micro_batches": _count(n, "micro_batches"),
    }


def ledger(entries: Iterable[Mapping[str, Any]]) -> dict[str, int | None]:
    """Bytes by what they hold, over the parts that are shipped; what only synthesis needs is counted apart.

    Args:
        entries: Ledger entries {"name", "kind", "bytes", "shipped", "needed_for"}.

    Returns:
        Bytes of images, labels, auxiliary parts, their total, and of parts that are not shipped; all None without
        entries, since nothing was measured then.
    """
    names = ("image_bytes", "label_bytes", "auxiliary_bytes", "total_bytes", "unshipped_bytes")
    sums: dict[str, int] = dict.fromkeys(names, 0)
    empty = True
    for entry in entries:
        empty = False
        size, kind = _integer(entry["bytes"], "bytes"), str(entry["kind"])
        if not entry["shipped"]:
            sums["unshipped_bytes"] += size
            continue
        sums["image_bytes" if kind in _IMAGES else "label_bytes" if kind in _LABELS else "auxiliary_bytes"] += size
        sums["total_bytes"] += size
    return dict.fromkeys(names) if empty else dict(sums)


def setting(record: Record, synthesis: Mapping[str, Mapping[str, Any]]) -> str:
    """Six hex digits over everything but the seed that makes this row: recipe, parameters, loader, inputs.

    The inputs `synthesis` and `relabel` have the seed in their keys, so their place is taken by the synthesis itself.
    """
    inputs = {
        role: value.get("key")
        for role, value in record.inputs.items()
        if role.partition(".")[0] not in ("synthesis", "relabel")
    }
    return _seedless({"spec": record.spec, "inputs": [inputs, _seedless(_synthesis_of(record, synthesis))]})


def _synthesis_of(record: Record, synthesis: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return synthesis.get(str(record.inputs.get("synthesis", {}).get("key")), {})


def _seedless(stage: Mapping[str, Any]) -> str:
    spec = {k: v for k, v in stage.get("spec", {}).items() if k != "seed"}
    return digest(canonical({"spec": spec, "inputs": stage.get("inputs", {})}))[:6]


def typed(lines: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Lines as a table whose columns have the declared types, also without lines."""
    lines = list(lines)
    return pd.DataFrame({c: pd.array([x[c] for x in lines], dtype=t) for c, t in columns.items()})  # type: ignore[call-overload]


def settled(frame: pd.DataFrame) -> pd.DataFrame:
    """Lines in a stable order; those that only an unrecorded setting can tell apart are set apart by their keys."""
    frame = _split(frame, GROUP, "setting", "key")
    frame = _split(frame, (*GROUP[:4], "protocol", "synthesis_setting"), "synthesis_setting", "synthesis_key")
    codes = [pd.factorize(frame[c], sort=True)[0] for c in (*GROUP, "seed", "key")]
    order = np.lexsort(codes[::-1])
    return frame if (np.diff(order) == 1).all() else frame.iloc[order].reset_index(drop=True)


def _split(frame: pd.DataFrame, group: tuple[str, ...], name: str, key: str) -> pd.DataFrame:
    """Where one group has several keys at one seed, make the key a part of the setting, so they are not averaged."""
    place = frame.groupby([*group, "seed"], sort=False, dropna=False, observed=True).ngroup()
    keys = frame[key].fillna("None")
    pairs = pd.DataFrame({"place": place, "key": pd.factorize(keys)[0]}).drop_duplicates()
    several = pairs.loc[pairs["place"].duplicated(keep=False), "place"].unique()
    if not len(several):
        return frame
    mixed = place.isin(several).to_numpy()
    frame = frame.copy(deep=False)
    frame[name] = frame[name].mask(mixed, frame[name] + "-" + keys.str[:6])
    return frame


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}, not a whole number")
    return value


def _count(source: Mapping[str, Any], name: str) -> int | None:
    value = source.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if _integer(value, name) < 0:
        raise ValueError(f"{name} is {value}")
    return int(value)


def _positive(source: Mapping[str, Any], name: str) -> float | None:
    value = source.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}")
    return float(value)


def _percent(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(f"{name} is {value!r}, not a percentage")
    return float(value)
