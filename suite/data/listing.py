"""What the listing of a source must show: checked before anything is submitted, and again when it is prepared.

Nothing is decoded here and nothing heavy imported, so that a launch can afford it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from suite.errors import DataError
from suite.spec.datasets import REGISTRY, Dataset

SPLITS = ("train", "val")
#: What torchvision's ImageFolder reads too.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
EXPECTED = "expected train/CLASS/file and val/CLASS/file"
#: First bytes of those formats.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_ARCHIVES = (b"\xfd7zXZ\0", b"\x1f\x8b", b"BZh")


def first_three(names: Iterable[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name.lower().endswith(EXTENSIONS)


def source_root(path: Path) -> Path:
    """The directory that holds `train` and `val`: the source itself, or the only directory in it."""
    if not (path / "train").is_dir():
        inner = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
        if len(inner) == 1 and (inner[0] / "train").is_dir():
            return inner[0]
    return path


def class_names(dataset: Dataset, train: Collection[str], val: Collection[str], where: str) -> list[str]:
    """The classes of a variant in label order, after checking that both splits have them.

    Raises:
        DataError: If the splits have different classes, or not as many as the registry says.
    """
    if sorted(train) != sorted(val):
        missing = [f"val/{c}" for c in sorted(train) if c not in val]
        missing += [f"train/{c}" for c in sorted(val) if c not in train]
        raise DataError(f"train and val have different classes: no {first_three(missing)}", where=where)
    names = sorted(train)
    subset = dataset.classes < REGISTRY[dataset.base].classes
    if len(names) < dataset.classes or (len(names) > dataset.classes and not subset):
        what = f"{len(names)} classes where {dataset.name} has {dataset.classes}: {first_three(names)}"
        hint = f"{dataset.base}-c{len(names)} is the variant with these" if 1 < len(names) < dataset.classes else ""
        raise DataError(what, where=where, hint=hint)
    numbers = [int(n) for n in names if n.isdecimal()]
    if dataset.base == "imagenet1k" and len(numbers) == len(names) and numbers != sorted(numbers):
        # Pretrained weights know the classes by the order of their WordNet ids.
        hint = "name the directories by WordNet ids, or pad the numbers with zeros"
        raise DataError(
            f"classes are numbers in the order of text: {', '.join(names[:4])}, ...", where=where, hint=hint
        )
    return names[: dataset.classes]


def check_listing(dataset: Dataset, path: Path) -> None:
    """A cheap look at a source: two directories a class, and the first bytes of the first image of each.

    Of a tar only the first bytes are looked at; its members are checked when it is prepared.

    Args:
        dataset: Facts.
        path: A directory or a tar.

    Raises:
        DataError: If it cannot be prepared. The first three offending paths are named.
    """
    try:
        if path.is_dir():
            _check_folder(dataset, source_root(path))
        else:
            _check_archive(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(error.filename or path)) from error


def _check_archive(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(512)
    if not head.startswith(_ARCHIVES) and head[257:262] != b"ustar":
        raise DataError("neither a directory nor a tar", where=str(path))


def _check_folder(dataset: Dataset, root: Path) -> None:
    found: dict[str, set[str]] = {}
    flat: list[str] = []
    for split in SPLITS:
        found[split] = set()
        if (root / split).is_dir():
            with os.scandir(root / split) as entries:
                for entry in entries:
                    if entry.is_dir() and not entry.name.startswith("."):
                        found[split].add(entry.name)
                    elif is_image(entry.name):
                        flat.append(f"{split}/{entry.name}")
    if flat:
        what = f"images outside class directories: {first_three(sorted(flat))}"
        raise DataError(what, where=str(root), hint=EXPECTED)
    if missing := [f"{s}/" for s in SPLITS if not found[s]]:
        raise DataError(f"no class directories in {' and '.join(missing)}", where=str(root), hint=EXPECTED)
    names = class_names(dataset, found["train"], found["val"], str(root))
    firsts = {f"{s}/{c}": _first_image(root / s / c) for s in SPLITS for c in names}
    if empty := [name for name, image in firsts.items() if image is None]:
        raise DataError(f"no images in {first_three(empty)}", where=str(root))
    bad = [f"{image.relative_to(root)} ({why})" for image in firsts.values() if image and (why := _unreadable(image))]
    if bad:
        raise DataError(f"unreadable images: {first_three(bad)}", where=str(root))


def _first_image(folder: Path) -> Path | None:
    """Any one image of a class, at whatever depth: the first that the file system lists."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            if is_image(name) and not name.startswith("."):
                return Path(place, name)
    return None


def _unreadable(image: Path) -> str:
    """Why an image cannot be one; empty if its first bytes are right."""
    if not image.is_file():  # a pipe would be waited for
        return "not a file"
    try:
        with image.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        return error.strerror or "cannot be read"
    return "" if head.startswith(_IMAGES) else "empty" if not head else "not an image"
