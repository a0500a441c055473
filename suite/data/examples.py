"""A few real training images of a prepared dataset, to look at: read without FFCV, straight from the file's layout."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from suite.data.beton import ALLOCATION, FIELD, FIELDS, HEADER, JPEG, SAMPLE, check_beton
from suite.data.listing import EXTENSIONS
from suite.errors import DataError
from suite.store.files import read_json


def examples(folder: Path, classes: Sequence[int], count: int) -> np.ndarray:
    """The first real training images of some classes.

    Args:
        folder: A prepared dataset (`dataset.json` and a beton or folders of images).
        classes: Numbers of the classes.
        count: Images a class; fewer, but equally many of each, where a class has fewer.

    Returns:
        uint8 [classes, images, R, R, 3], RGB.

    Raises:
        DataError: If the dataset does not verify, or a class has no image.
    """
    info = read_json(folder / "dataset.json")
    count = min(count, *(info["train"][c] for c in classes))
    if count < 1:
        raise DataError("a class has no training image", where=str(folder))
    if info["format"] != "beton":
        return _from_folders(folder / "train", [info["classes"][c] for c in classes], count)
    return _from_beton(folder / "train.beton", len(info["classes"]), classes, count)


def _from_beton(path: Path, total: int, classes: Sequence[int], count: int) -> np.ndarray:
    checked = check_beton(path, classes=total)
    start = HEADER.itemsize + len(FIELDS) * FIELD.itemsize
    samples = np.memmap(path, SAMPLE, "r", start, (len(checked.labels),))
    table = int(np.fromfile(path, HEADER, 1)[0]["table"])
    allocations = np.memmap(path, ALLOCATION, "r", table, (len(checked.labels),))
    sizes = dict(zip(allocations["pointer"].tolist(), allocations["size"].tolist(), strict=True))
    side = checked.stored
    found = []
    with path.open("rb") as file:
        for c in classes:
            for i in np.flatnonzero(checked.labels == c)[:count]:
                image = samples[i]["image"]
                file.seek(int(image["pointer"]))
                data = file.read(sizes[int(image["pointer"])])
                raw = (
                    np.asarray(Image.open(io.BytesIO(data))) if image["mode"] == JPEG else np.frombuffer(data, np.uint8)
                )
                found.append(raw.reshape(side, side, 3))
    return np.stack(found).reshape(len(classes), count, side, side, 3)


def _from_folders(train: Path, names: Sequence[str], count: int) -> np.ndarray:
    found = []
    for name in names:
        files = sorted(p for p in (train / name).iterdir() if p.suffix.lower() in EXTENSIONS)[:count]
        found.append([np.asarray(Image.open(p).convert("RGB")) for p in files])
    return np.asarray(found)
