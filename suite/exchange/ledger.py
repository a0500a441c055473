"""Bytes of a distilled set as files that change hands: the same count for sets that leave and for sets that come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suite.learn.label_stream import LabelStream
from suite.learn.soft_labels import StoredLabels, entry
from suite.spec.recipes import Labels

Entries = list[dict[str, Any]]


def image_entries(files: Sequence[Path], labels: Labels, label_bytes: int) -> Entries:
    """Files of images.

    Args:
        files: All of them.
        labels: The policy; with hard labels, class numbers in these files count as labels and not as images too.
        label_bytes: Bytes of class numbers in these files; 0 where folders say the class.
    """
    size, inside = sum(f.stat().st_size for f in files), label_bytes if labels == "hard" else 0
    return [
        entry("distilled images", "image", size - inside),
        *([entry("hard labels", "label", inside)] * bool(inside)),
    ]


def vector_entries(file: Path, row_bytes: int) -> Entries:
    """A file of label vectors, split into `row_bytes` of numbers and its header."""
    return [
        entry("soft label vectors", "label", row_bytes),
        entry("label header", "meta", file.stat().st_size - row_bytes),
    ]


def stream_entries(file: Path) -> Entries:
    """A label stream, split into logits, the records of views, and its header."""
    return StoredLabels(LabelStream(file)).ledger()


def teacher_entries(teachers: Sequence[tuple[str, Path]]) -> Entries:
    """Weight files of teachers that label views while a student trains."""
    return [entry(f"teacher {arch}", "teacher", file.stat().st_size) for arch, file in teachers]
