"""An exported directory: images, labels, teachers, card and manifest, put together and published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from suite.data.distilled import DistilledSet
from suite.data.external import IMAGES, LABELS
from suite.exchange.card import CARD, make_card
from suite.exchange.delivered import BETON, FOLDER, TEACHERS
from suite.exchange.images import FORMS
from suite.exchange.ledger import Entries, image_entries, stream_entries, teacher_entries, vector_entries
from suite.exchange.markdown import to_markdown
from suite.exchange.publish import MANIFEST, publish
from suite.exchange.subject import Subject, class_names
from suite.learn.label_vectors import LabelVectors
from suite.spec.datasets import dataset
from suite.store import Store
from suite.store.files import read_json, write_bytes, write_json

README = "README.md"
#: Bytes of a class number beside each image: none in folders, int64 in the other forms.
_LABEL_BYTES = {"imagefolder": 0, "beton": 8, "safetensors": 8}


def export(store: Store, subject: Subject, form: str, target: Path) -> tuple[bool, dict[str, tuple[int, str]]]:
    """Write a distilled set for others.

    Args:
        store: Where it is.
        subject: What is exported.
        form: One of `FORMS`.
        target: The new directory.

    Returns:
        Whether it is new (False: exactly this is there already), and size and SHA-256 of its files.

    Raises:
        UserError: If the directory is something else.
        DataError: If the set in the store is damaged.
        InfraError: If the file system refuses.
    """
    facts = dataset(subject.spec["dataset"])
    distilled = DistilledSet.load(subject.synthesis.path / IMAGES)
    distilled.check(facts.classes, subject.spec["ipc"], facts.size)
    classes = class_names(store, subject)

    def write(folder: Path) -> None:
        FORMS[form](folder, distilled, classes)
        _copy_labels(subject, folder)
        card = make_card(store, subject, form, classes, _ledger(subject, form, folder, len(distilled.labels)))
        write_json(folder / CARD, card)
        write_bytes(folder / README, to_markdown(card).encode())

    new = publish(target, write, {"kind": subject.kind, "key": subject.key, "form": form})
    files: dict[str, Any] = read_json(target / MANIFEST)["files"]
    return new, {name: (size, sum_) for name, (size, sum_) in files.items()}


def _copy_labels(subject: Subject, folder: Path) -> None:
    """Labels and weights byte for byte as the store has them."""
    if subject.label_file is not None:
        shutil.copyfile(subject.label_file, folder / LABELS)
    if subject.teachers:
        (folder / TEACHERS).mkdir()
    for number, (arch, file) in enumerate(subject.teachers):
        shutil.copyfile(file, folder / TEACHERS / f"{number}-{arch}.safetensors")


def _ledger(subject: Subject, form: str, folder: Path, images: int) -> Entries:
    """Storage of the files in an exported directory."""
    root = {"imagefolder": folder / FOLDER, "beton": folder / BETON, "safetensors": folder / IMAGES}[form]
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    entries = image_entries(files, subject.labels, _LABEL_BYTES[form] * images)
    if subject.labels == "vector":
        rows = LabelVectors(folder / LABELS).rows
        entries += vector_entries(folder / LABELS, rows.numel() * rows.element_size())
    if subject.labels == "stored":
        entries += stream_entries(folder / LABELS)
    return entries + teacher_entries([(arch, file) for arch, file in subject.teachers])
