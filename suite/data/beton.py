"""Beton files, checked by us before FFCV sees them.

FFCV trusts the header of a beton: a file whose writer was killed passes its version check and then makes the reader
take the whole file for an allocation table, which spins or eats memory. The layout is small and fixed for our two
fields (`image`, `label`), so everything that FFCV will follow is checked here first, in well under a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suite.errors import DataError

#: FFCV's file layout, version 2, little-endian (ffcv/types.py).
VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
FIELD = np.dtype([("type", "<u1"), ("name", "<u1", (16,)), ("arguments", "<u1", (1024,))])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
FIELDS = (("image", 2), ("label", 1))
JPEG, RAW = 0, 1


@dataclass(frozen=True)
class Beton:
    """What a checked beton holds.

    Attributes:
        path: The file.
        labels: int64 [N], the class of each image.
        stored: Side R of its square images, in pixels.
        jpeg: Whether any image is JPEG-coded; else all are raw pixels.
    """

    path: Path
    labels: np.ndarray
    stored: int
    jpeg: bool


def check_beton(path: Path, *, classes: int, samples: int | None = None, stored: int | None = None) -> Beton:
    """Check everything in a beton that FFCV follows without looking, reading no image.

    Args:
        path: The file.
        classes: Labels must be in [0, classes).
        samples: Number of images expected, None for any.
        stored: Side in pixels expected, None for any.

    Returns:
        Its labels and geometry.

    Raises:
        DataError: If it is missing, empty, half-written, truncated, of another version or layout, or holds labels,
            sizes or addresses out of range.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            start = f.read(HEADER.itemsize + len(FIELDS) * FIELD.itemsize)
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})") from error
    count, page, table = _header(path, size, start)
    if samples is not None and count != samples:
        raise _bad(path, f"holds {count} images where dataset.json counts {samples}")
    metadata = np.memmap(path, SAMPLE, "r", len(start), (count,))
    labels = metadata["label"].astype(np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise _bad(path, f"label {wrong} is outside [0, {classes})")
    side = _geometry(path, metadata["image"], stored)
    allocations = np.memmap(path, ALLOCATION, "r", table, (count,))
    first = -(-(len(start) + metadata.nbytes) // page) * page
    _addresses(path, metadata["image"], allocations, first, table, side)
    return Beton(path, labels, side, bool((metadata["image"]["mode"] == JPEG).any()))


def _bad(path: Path, what: str) -> DataError:
    return DataError(f"beton {what}", where=str(path), hint="prepare the dataset again")


def _header(path: Path, size: int, start: bytes) -> tuple[int, int, int]:
    """Number of samples, page size and position of the allocation table, all checked against the file's size."""
    if size == 0:
        raise _bad(path, "is empty")
    if len(start) < HEADER.itemsize + len(FIELDS) * FIELD.itemsize:
        raise _bad(path, f"is truncated: {size} bytes do not hold its header")
    header = np.frombuffer(start, HEADER, 1)[0]
    version, fields, page, count, table = (int(header[name]) for name in HEADER.names or ())
    if version != VERSION:
        raise _bad(path, f"has format version {version}; {VERSION} is the one that FFCV reads")
    described = np.frombuffer(start, FIELD, len(FIELDS), HEADER.itemsize)
    names = [bytes(d["name"]).partition(b"\0")[0].decode("ascii", "replace") for d in described]
    if fields != len(FIELDS) or tuple(zip(names, map(int, described["type"]), strict=True)) != FIELDS:
        raise _bad(path, "does not have exactly the fields image and label")
    if page < 1 << 21 or page & (page - 1):
        raise _bad(path, f"has page size {page}")
    if table == 0:
        raise _bad(path, "is half-written: its allocation table was never written")
    metadata_end = len(start) + count * SAMPLE.itemsize
    if count == 0 or metadata_end > table or table > size or table % page:
        raise _bad(path, f"has an allocation table at byte {table} of {size} for {count} images")
    if size - table != count * ALLOCATION.itemsize:
        raise _bad(path, f"is truncated: its allocation table has {size - table} bytes for {count} images")
    return count, page, table


def _geometry(path: Path, images: np.ndarray, stored: int | None) -> int:
    side = int(images["width"][0])
    if (images["width"] != side).any() or (images["height"] != side).any() or side == 0:
        raise _bad(path, "holds images that are not all squares of one size")
    if stored is not None and side != stored:
        raise _bad(path, f"holds {side}-pixel images where dataset.json says {stored}")
    if (images["mode"] > RAW).any():
        raise _bad(path, "holds images in an unknown coding")
    return side


def _addresses(path: Path, images: np.ndarray, allocations: np.ndarray, first: int, table: int, side: int) -> None:
    """Every image's address must be an allocation, inside the data region, of a plausible size."""
    samples, pointers, sizes = (np.asarray(allocations[name]) for name in ("sample", "pointer", "size"))
    if (samples >= len(images)).any() or np.bincount(samples.astype(np.int64), minlength=len(images)).max() != 1:
        raise _bad(path, "has an allocation table that does not list each image once")
    if (pointers < first).any() or (pointers > table).any() or (sizes == 0).any() or (sizes > table - pointers).any():
        raise _bad(path, "has allocations outside its data")
    if (np.asarray(images["pointer"])[samples] != pointers).any():
        raise _bad(path, "has image addresses that its allocation table does not list")
    if (sizes[np.asarray(images["mode"])[samples] == RAW] != 3 * side * side).any():
        raise _bad(path, f"has raw images that are not {side}x{side}x3 bytes")
