"""Images of a distilled set as files that other programs read; no form changes a pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from suite.data.distilled import DistilledSet
from suite.data.external import IMAGES
from suite.data.writer import write_beton
from suite.exchange.delivered import BETON, FOLDER

#: Longest name of a class folder, in bytes; ext4 and most others allow 255.
_LONGEST = 200


class _Pixels:
    """A distilled set as the writer of betons wants it."""

    def __init__(self, distilled: DistilledSet) -> None:
        self.distilled, self.side = distilled, distilled.images.shape[-1]

    def __len__(self) -> int:
        return len(self.distilled.labels)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        for image, label in zip(self.distilled.images, self.distilled.labels.tolist(), strict=True):
            yield image.permute(1, 2, 0).contiguous().numpy(), label


def folder_names(classes: Sequence[str] | None, count: int) -> list[str]:
    """Names of class folders whose sorted order is the order of the classes.

    The dataset's own names where they are in order and can be names of folders; else numbers, before the names.
    """
    width = max(4, len(str(count - 1)))
    numbers = [f"{i:0{width}d}" for i in range(count)]
    if classes is None or not all(map(_usable, classes)) or len(set(classes)) < count:
        return numbers
    if sorted(classes) == list(classes):
        return list(classes)
    return [f"{number}_{name}" for number, name in zip(numbers, classes, strict=True)]


def _usable(name: str) -> bool:
    plain = name.isprintable() and not set(name) & set("/\\") and name.strip() == name
    return bool(name) and plain and not name.startswith(".") and len(name.encode()) <= _LONGEST


def write_folders(folder: Path, distilled: DistilledSet, classes: Sequence[str] | None) -> None:
    """Write `train/CLASS/NNNNN.png`, numbered within each class in the order of the set."""
    count = int(distilled.labels.max()) + 1
    ipc = len(distilled.labels) // count
    names, width = folder_names(classes, count), max(5, len(str(ipc - 1)))
    for name in names:
        (folder / FOLDER / name).mkdir(parents=True)
    for number, (pixels, label) in enumerate(_Pixels(distilled)):
        Image.fromarray(pixels).save(folder / FOLDER / names[label] / f"{number % ipc:0{width}d}.png")


def write_pixels(folder: Path, distilled: DistilledSet, classes: Sequence[str] | None) -> None:
    """Write `train.beton` with raw pixels, by FFCV's own writer."""
    write_beton(folder / BETON, _Pixels(distilled), mode="raw")


def write_tensors(folder: Path, distilled: DistilledSet, classes: Sequence[str] | None) -> None:
    """Write `distilled.safetensors`: images uint8 [N, 3, S, S] and labels int64 [N]."""
    save_file({"images": distilled.images.contiguous(), "labels": distilled.labels.contiguous()}, folder / IMAGES)


#: Forms of an export, and what writes them.
FORMS: dict[str, Callable[[Path, DistilledSet, Sequence[str] | None], None]] = {
    "imagefolder": write_folders,
    "beton": write_pixels,
    "safetensors": write_tensors,
}
