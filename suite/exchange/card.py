"""The card of a distilled set: what it is, where it comes from, what it cost, how well students learn from it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from suite.errors import DataError, UserError
from suite.exchange.subject import Subject
from suite.leaderboard.gather import from_store
from suite.leaderboard.statistics import grouped_by, plain_records, summarise
from suite.methods import discover, get
from suite.spec.datasets import dataset
from suite.spec.stages import EXTERNAL, EvaluationSpec, Stage
from suite.store import Record, Store
from suite.store.files import read_json

CARD, FORMAT = "card.json", "distilled-set-card-1"
#: What a record's provenance tells others; names of machines and processes stay here.
_PROVENANCE = ("commit", "dirty", "environment", "loader", "seed", "external", "source")
_COST = ("seconds", "image_iterations", "forward_images", "images", "peak_memory_bytes", "peak_memory_kind", "device")
_STUDENTS = ("student", "protocol", "labels", "teacher", "setting")


def make_card(
    store: Store, subject: Subject, form: str, classes: list[str] | None, ledger: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The card as JSON types. The same store gives the same card.

    Args:
        store: Where rows of the set are looked for.
        subject: What is exported.
        form: `imagefolder`, `beton` or `safetensors`.
        classes: Names of the classes, where they are known.
        ledger: Storage of the exported files.
    """
    spec, facts = subject.spec, dataset(subject.spec["dataset"])
    records = [a.record() for a in subject.artifacts]
    entries = list(ledger)
    rows = _rows(store, subject)
    return {
        "format": FORMAT,
        "kind": subject.kind,
        "key": subject.key,
        "form": form,
        "method": _method(spec),
        "dataset": {
            "name": facts.name,
            "base": facts.base,
            "classes": facts.classes,
            "class_names": classes,
            "size": facts.size,
            "mean": list(facts.mean),
            "std": list(facts.std),
            "licence": facts.licence,
        },
        "ipc": spec["ipc"],
        "images": facts.classes * spec["ipc"],
        "labels": _labels(subject, records),
        "stages": [{"kind": r.kind, "key": r.key, "spec": r.spec} for r in records],
        "cost": _costs(records),
        "accuracy": _accuracy(rows),
        "rows": {r.key: {"spec": r.spec, "inputs": _keys(r), "numbers": _numbers(r)} for r in rows["records"]},
        "storage": entries,
        "bytes": sum(e["bytes"] for e in entries),
        "provenance": {f"{r.kind} {r.key}": _origin(r) for r in records},
    }


@dataclass(frozen=True)
class CardRow:
    """A row as a card tells it.

    Attributes:
        key: In the store that it comes from.
        spec: How its student was trained.
        accuracy: Last epoch, in percent.
        current: Whether this suite computes evaluations as the one that made it.
    """

    key: str
    spec: EvaluationSpec
    accuracy: float
    current: bool


def read_rows(folder: Path) -> list[CardRow]:
    """Rows of the card in a directory, by key.

    Raises:
        UserError: If there is no card.
        DataError: If it is not one.
    """
    path = folder / CARD
    try:
        card = read_json(path)
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}")
        return [_row(str(key), row) for key, row in sorted(card["rows"].items())]
    except FileNotFoundError as error:
        hint = "sets of `python -m suite.export` have one; without it give --dataset, --ipc, --student, --protocol"
        raise UserError("no card", where=str(path), hint=hint) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        what = f"not a card ({' '.join(str(error).split())[:120]})"
        raise DataError(what, where=str(path), hint="copy the set again, or give --dataset and so on") from error


def _row(key: str, row: Mapping[str, Any]) -> CardRow:
    spec = TypeAdapter(EvaluationSpec).validate_python(row["spec"])
    current = Stage.make("evaluation", spec, row["inputs"]).key == key
    return CardRow(key, spec, float(row["numbers"]["accuracy_last"]), current)


def _method(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Name, paper and parameters of the method; its summary where this suite still has it."""
    name = str(spec["method"])
    about = {"name": name, "version": spec["version"], "parameters": spec["params"], "seed": spec["seed"]}
    if name == EXTERNAL:
        return {**about, "summary": "Made elsewhere; the suite does not know how.", "paper": None, "url": None}
    if name not in discover():
        return {
            **about,
            "summary": "A method that this version of the suite does not have.",
            "paper": None,
            "url": None,
        }
    cls = get(name)
    arxiv = cls.paper.removeprefix("arXiv:")
    url = f"https://arxiv.org/abs/{arxiv}" if cls.paper.startswith("arXiv:") else None
    return {**about, "summary": (inspect.getdoc(cls) or "").splitlines()[0], "paper": cls.paper, "url": url}


def _labels(subject: Subject, records: list[Record]) -> dict[str, Any]:
    made = next((r.spec for r in records if r.kind == "relabel"), None)
    row = records[-1].spec if subject.kind == "evaluation" else None
    return {
        "policy": subject.labels,
        "teachers": [arch for arch, _ in subject.teachers] or list((made or {}).get("teachers", [])),
        "recipe": made["recipe"] if made else row["label"] if row and subject.labels == "online" else None,
        "seed": made["seed"] if made else None,
    }


def _costs(records: list[Record]) -> dict[str, Any]:
    """What each stage cost; None where nobody knows."""
    synthesis = records[0]
    found: dict[str, Any] = {"synthesis": _cost(synthesis.cost)}
    for kind in ("teacher", "statistics"):
        if kind in synthesis.upstream:
            found[kind] = _cost(synthesis.upstream[kind])
    for record in records[1:]:
        if record.kind == "relabel":
            found["relabel"] = _cost(record.cost)
            if "teacher" in record.upstream:
                found["label teachers"] = _cost(record.upstream["teacher"])
    return found


def _cost(cost: Mapping[str, Any]) -> dict[str, Any] | None:
    return {name: cost[name] for name in _COST if cost.get(name) is not None} or None


def _rows(store: Store, subject: Subject) -> dict[str, Any]:
    """Rows of this very set, and all rows of the same synthesis over seeds, from the leaderboards' own table."""
    lines = plain_records(from_store(store).frame)
    own = [line for line in lines if line["synthesis_key"] == subject.synthesis.key]
    alike = {(x["method"], x["dataset"], x["ipc"], x["synthesis_setting"]) for x in own}
    family = [x for x in lines if (x["method"], x["dataset"], x["ipc"], x["synthesis_setting"]) in alike]
    records = [store.open("evaluation", line["key"]).record() for line in own]
    return {"own": own, "family": family, "records": sorted(records, key=lambda r: r.key)}


def _accuracy(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Last-epoch accuracy by student: of this set, and of all sets in the store that differ in the seed only."""
    found = []
    for at, part in grouped_by(rows["family"], _STUDENTS):
        own = [x for x in part if x in rows["own"]]
        if not own:
            continue
        line: dict[str, Any] = {name: at[name] for name in _STUDENTS if name != "setting"}
        for name, group in (("this_set", own), ("all_seeds", part)):
            s = summarise(x["accuracy_last"] for x in group)
            seeds = sorted(x["seed"] for x in group)
            line[name] = {"n": s.n, "seeds": seeds, "mean": s.mean, "sd": s.sd, "low": s.low, "high": s.high}
        line["rows"] = sorted(x["key"] for x in own)
        found.append(line)
    return found


def _keys(record: Record) -> dict[str, str]:
    return {role: value["key"] for role, value in record.inputs.items()}


def _numbers(record: Record) -> dict[str, Any]:
    names = ("accuracy_last", "accuracy_best", "best_epoch", "epochs", "steps", "val_images")
    return {name: record.numbers[name] for name in names if name in record.numbers}


def _origin(record: Record) -> dict[str, Any]:
    """Code, environment and device of a stage."""
    found = {name: record.provenance[name] for name in _PROVENANCE if record.provenance.get(name) is not None}
    return {**found, "device": record.device.get("name"), "started": record.started}
