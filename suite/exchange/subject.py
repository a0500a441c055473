"""What a key of the store names, for export: a distilled set, and the labels that belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from suite.data.external import LABELS, External, teacher_file
from suite.data.loader import read_info
from suite.errors import DataError, UserError
from suite.spec.recipes import Labels
from suite.spec.stages import input_kind
from suite.store import Artifact, Store

#: Kinds whose keys name something to export: a set; a set with labels on disk; a set with all that a row learns from.
KINDS = ("synthesis", "relabel", "evaluation")
_SHORTEST = 4


@dataclass(frozen=True)
class Subject:
    """A distilled set and its labels.

    Attributes:
        kind: Of the key: one of `KINDS`.
        key: The key.
        synthesis: The artifact with the images.
        labels: Label policy of what is exported.
        label_file: Labels on disk, for `vector` and `stored`.
        teachers: (architecture, weights) of the teachers that label views, for `online`.
        artifacts: Everything that was opened, the key's own artifact last.
    """

    kind: str
    key: str
    synthesis: Artifact
    labels: Labels
    label_file: Path | None
    teachers: list[tuple[str, Path]]
    artifacts: list[Artifact]

    @property
    def spec(self) -> dict[str, Any]:
        """The spec of the synthesis."""
        return dict(self.synthesis.manifest["spec"])


def find(store: Store, prefix: str, kinds: Sequence[str] = KINDS) -> tuple[str, str]:
    """Kind and key of the one published artifact whose key begins with a prefix.

    Raises:
        UserError: If the prefix is no beginning of a key, or of none or several.
    """
    where, listing = str(store.root), f"python -m suite.export --list --store {store.root}"
    if not re.fullmatch(f"[0-9a-f]{{{_SHORTEST},16}}", prefix):
        hint = f"{_SHORTEST} to 16 hex digits"
        raise UserError(f"{prefix!r} is not the beginning of a key", where=where, hint=f"{hint}; see {listing}")
    found = [(kind, key) for kind in kinds for key in sorted(store.published(kind)) if key.startswith(prefix)]
    if not found:
        there = ", ".join(key for kind in kinds for key in sorted(store.published(kind))[:8])
        hint = listing if kinds == KINDS else f"keys there: {there or 'none'}"
        raise UserError(f"no {', '.join(kinds)} with a key that begins with {prefix}", where=where, hint=hint)
    if len(found) > 1:
        some = ", ".join(f"{kind} {key}" for kind, key in found[:4])
        raise UserError(f"{len(found)} keys begin with {prefix}: {some}", where=where, hint="give more digits")
    return found[0]


def open_subject(store: Store, prefix: str) -> Subject:
    """Open what a key, or a unique beginning of one, names.

    Raises:
        UserError: If there is no such key.
        DataError: If an artifact that is needed is missing or damaged.
    """
    kind, key = find(store, prefix)
    own = store.open(kind, key)
    given = _inputs(store, own) if kind != "synthesis" else {}
    synthesis = given["synthesis"] if given else own
    opened = [*(a for a in given.values() if a is not synthesis), *([own] if own is not synthesis else [])]
    labels, file, teachers = _labels(own, given, synthesis)
    return Subject(kind, key, synthesis, labels, file, teachers, [synthesis, *opened])


def _inputs(store: Store, artifact: Artifact) -> dict[str, Artifact]:
    """The inputs of an artifact that are exported with it."""
    found = {}
    for role, key in artifact.manifest["inputs"].items():
        if input_kind(role) not in ("synthesis", "relabel", "teacher"):
            continue
        try:
            found[role] = store.open(input_kind(role), key)
        except FileNotFoundError as error:
            what = f"{role} {key} of {artifact.manifest['kind']} {artifact.key} is missing"
            raise DataError(what, where=str(store.root), hint="launch its grid again") from error
    return found


def _labels(
    own: Artifact, given: dict[str, Artifact], synthesis: Artifact
) -> tuple[Labels, Path | None, list[tuple[str, Path]]]:
    """Label policy, label file and teachers of what a key names."""
    external = External.load(synthesis.path)
    brought = synthesis.path / LABELS if external and (synthesis.path / LABELS).is_file() else None
    relabel = own if own.manifest["kind"] == "relabel" else given.get("relabel")
    file = relabel.path / LABELS if relabel else brought
    policy = own.manifest["spec"].get("labels") or (external.labels if external else "hard")
    assert policy in get_args(Labels)
    if policy in ("vector", "stored"):
        return policy, file, []
    if policy == "hard":
        return policy, None, []
    roles = sorted((r for r in given if input_kind(r) == "teacher"), key=lambda r: int(r.partition(".")[2]))
    teachers = [(given[r].manifest["spec"]["arch"], given[r].path / "weights.safetensors") for r in roles]
    if not teachers and external:
        teachers = [(arch, synthesis.path / teacher_file(i)) for i, arch in enumerate(external.teachers)]
    return policy, None, teachers


def class_names(store: Store, subject: Subject) -> list[str] | None:
    """Names of the dataset's classes in the order of labels, where a prepared dataset in the store tells them."""
    for key in _prepares(store, subject):
        with suppress(FileNotFoundError):
            names: list[str] = read_info(store.open("prepare", key).path)["classes"]
            return names
    return None


def _prepares(store: Store, subject: Subject) -> Iterator[str]:
    """Keys of prepared datasets: the set's own, those of what it was made from, then any of the same dataset."""
    waiting, seen = [a.manifest["inputs"] for a in subject.artifacts], set()
    while waiting:
        for role, key in sorted(waiting.pop(0).items()):
            if input_kind(role) == "prepare":
                yield key
            elif key not in seen:
                seen.add(key)
                with suppress(FileNotFoundError):
                    waiting.append(store.manifest(input_kind(role), key)["inputs"])
    for key in sorted(store.published("prepare")):
        if store.manifest("prepare", key)["spec"]["dataset"] == subject.spec["dataset"]:
            yield key
