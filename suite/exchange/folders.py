"""Images of a distilled set in one folder a class, as torchvision's ImageFolder reads them, checked and decoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from suite.data.ffcv_stream import default_workers
from suite.data.listing import EXTENSIONS, first_three
from suite.errors import DataError

#: `0`, `007`, `new003`, `class_12`, `0004_cat`: folders that say the number of their class.
_NUMBERED = re.compile(r"(?:new|class|label)?[_-]?(\d{1,6})(?:[ ._-].*)?", re.IGNORECASE | re.DOTALL)
#: Modes that become RGB without a decision about colours or transparency.
_MODES = ("RGB", "L", "P", "1")


@dataclass(frozen=True)
class FolderImages:
    """Decoded class folders.

    Attributes:
        images: uint8 [C*IPC, 3, S, S], class-major, in the order of file names within a class.
        files: Their files, in the same order.
    """

    images: torch.Tensor
    files: list[Path]


def class_folders(root: Path) -> list[Path]:
    """The visible directories of a folder, sorted by name."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def read_folders(root: Path, classes: Sequence[str], ipc: int, size: int, dataset: str) -> FolderImages:
    """Read `root/CLASS/file`.

    Args:
        root: Holds one directory a class, named like the dataset's or by the class's number.
        classes: Names of the dataset's classes, in the order of labels.
        ipc: Images that every class has.
        size: Side S that every image has.
        dataset: Its name, for messages.

    Raises:
        DataError: If folders are not the classes, a class has another number of images, or an image cannot be decoded
            or has another size; the first three offenders are named.
    """
    folders = class_folders(root)
    numbers = class_numbers([f.name for f in folders], classes, dataset, str(root))
    if loose := [p.name for p in _images(root)]:
        hint = "move them into the folder of their class"
        raise DataError(f"images outside class folders: {first_three(loose)}", where=str(root), hint=hint)
    ordered = [folder for _, folder in sorted(zip(numbers, folders, strict=True), key=lambda pair: pair[0])]
    listed = {folder.name: _images(folder) for folder in ordered}
    if wrong := [f"{name} ({len(files)})" for name, files in listed.items() if len(files) != ipc]:
        hint = f"each class needs as many; --ipc {len(listed[ordered[0].name])} if that is what is meant"
        raise DataError(f"not {ipc} images in {first_three(wrong)}", where=str(root), hint=hint)
    files = [file for found in listed.values() for file in found]
    return FolderImages(_decode(files, size, root, dataset), files)


def class_numbers(names: Sequence[str], classes: Sequence[str], dataset: str, where: str) -> list[int]:
    """The class of each folder name: by the dataset's own names, else by numbers that cover 0 to C - 1.

    Raises:
        DataError: If they are neither.
    """
    places = {name: i for i, name in enumerate(classes)}
    if set(names) == set(places):
        return [places[name] for name in names]
    found = [_NUMBERED.fullmatch(name) for name in names]
    numbers = [int(match[1]) for match in found if match]
    if sorted(numbers) == list(range(len(classes))) and len(numbers) == len(names):
        return numbers
    hint = f"name them like {first_three(classes)}, or by class number, 0 to {len(classes) - 1}"
    if len(names) != len(classes):
        raise DataError(f"{len(names)} class folders where {dataset} has {len(classes)}", where=where, hint=hint)
    strange = sorted(set(names) - set(places))
    raise DataError(f"folders that are no classes of {dataset}: {first_three(strange)}", where=where, hint=hint)


def _images(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file()
    )


def _decode(files: list[Path], size: int, root: Path, dataset: str) -> torch.Tensor:
    images = torch.empty((len(files), 3, size, size), dtype=torch.uint8)

    def decode(place: int) -> str:
        pixels = _pixels(files[place], size)
        if isinstance(pixels, str):
            return f"{files[place].relative_to(root)} ({pixels})"
        images[place] = torch.from_numpy(pixels).permute(2, 0, 1)
        return ""

    with ThreadPoolExecutor(default_workers()) as pool:
        bad = [problem for problem in pool.map(decode, range(len(files))) if problem]
    if bad:
        hint = f"{dataset} has RGB images of {size} x {size} pixels here; {dataset.partition('-s')[0]}-sSIZE has others"
        raise DataError(f"{len(bad)} images cannot be used: {first_three(bad)}", where=str(root), hint=hint)
    return images


def _pixels(file: Path, size: int) -> np.ndarray | str:
    """uint8 [S, S, 3], or what is wrong with the file."""
    try:
        with Image.open(file) as image:
            if image.size != (size, size):
                return f"{image.size[0]} x {image.size[1]} pixels"
            if image.mode not in _MODES or "transparency" in image.info:
                return f"mode {image.mode}" if image.mode not in _MODES else "transparent"
            return np.array(image.convert("RGB"))
    except Exception as error:  # PIL raises anything on damaged bytes; all of it means the same
        return type(error).__name__
