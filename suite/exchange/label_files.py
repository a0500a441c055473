"""Label files that come with a distilled set: a label stream, or one vector of probabilities an image."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from suite.errors import DataError, UserError
from suite.exchange.ledger import Entries, stream_entries, vector_entries
from suite.learn import label_stream, label_vectors
from suite.spec.recipes import Labels

NAMES = ("labels.safetensors", "labels.npy")
#: How far the sum of a row may be from 1: fp16 rounding of many classes stays well below.
_SUM = 1e-2
_AGAIN = "copy the file again; one array of numbers is read, as .npy or .safetensors"


@dataclass(frozen=True)
class LabelFile:
    """A delivered label file.

    Attributes:
        path: Where it lies.
        labels: `stored` or `vector`.
        rows: float [N, C] of a `vector` file; None for streams.
        facts: What a stream says about itself; empty for vectors.
        entries: Its storage.
    """

    path: Path
    labels: Labels
    rows: torch.Tensor | None
    facts: dict[str, Any]
    entries: Entries

    def save(self, target: Path) -> None:
        """Write it as the suite's students read it; files of the suite's own formats are copied."""
        if self.rows is None or metadata(self.path).get("format") == label_vectors.FORMAT:
            shutil.copyfile(self.path, target)
        else:
            save_file({"labels": self.rows.contiguous()}, target, {"format": label_vectors.FORMAT})


def metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; none for other files.

    Raises:
        DataError: If it is a damaged safetensors file.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise DataError(f"unreadable labels ({error})", where=str(path), hint=_AGAIN) from error


def read_labels(path: Path, images: int, classes: int) -> LabelFile:
    """Open a label file and check that it can belong to a distilled set.

    Args:
        path: A label stream or vectors of the suite, or a `.safetensors` or `.npy` file with one array of
            probabilities [N, C], in the order of the images.
        images: N.
        classes: C.

    Raises:
        UserError: If it is of a kind that is not read.
        DataError: If it is damaged, of another shape, or no probabilities.
    """
    if path.suffix not in (".safetensors", ".npy"):
        hint = "labels as .safetensors or .npy, one row of probabilities an image; pickles are not read"
        raise UserError(f"a label file {path.suffix or 'without a suffix'}", where=str(path), hint=hint)
    if metadata(path).get("format", "").startswith("label-stream"):
        stream = label_stream.LabelStream(path)
        if (stream.images, stream.classes) != (images, classes):
            what = f"labels of {stream.images} images in {stream.classes} classes, not of {images} in {classes}"
            raise DataError(what, where=str(path), hint="labels that were made for these images")
        return LabelFile(path, "stored", None, stream.facts, stream_entries(path))
    rows = _rows(path)
    if rows.shape != (images, classes) or not rows.is_floating_point():
        what = f"{str(rows.dtype).removeprefix('torch.')} {list(rows.shape)}"
        hint = f"floating-point [{images}, {classes}]: one row of probabilities an image, in the order of the images"
        raise DataError(f"labels are {what}", where=str(path), hint=hint)
    sums = rows.double().sum(1)
    if not bool(rows.isfinite().all()) or float(rows.min()) < 0 or float((sums - 1).abs().max()) > _SUM:
        hint = "softmax of the logits, row by row"
        raise DataError("labels are not probabilities that sum to 1 for each image", where=str(path), hint=hint)
    size = rows.numel() * rows.element_size()
    kept = rows.float() if rows.dtype == torch.float64 else rows
    return LabelFile(path, "vector", kept, {}, vector_entries(path, size))


def _rows(path: Path) -> torch.Tensor:
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise DataError(f"{len(names)} arrays where one is expected", where=str(path), hint="one array [N, C]")
            rows: torch.Tensor = file.get_tensor(names[0])
            return rows
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise DataError(f"unreadable labels ({type(error).__name__})", where=str(path), hint=_AGAIN) from error
