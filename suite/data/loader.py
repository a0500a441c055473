"""Real images, decoded and nothing more: uint8 squares in an order that a seed decides.

All random augmentation happens on batches, on the device, with seeded generators; FFCV's own crops cannot be seeded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from suite.data.beton import check_beton
from suite.data.ffcv_stream import FfcvStream, require_ffcv
from suite.data.folder_stream import FolderStream
from suite.data.listing import SPLITS
from suite.errors import DataError

LOADERS = ("ffcv", "torchvision")
INFO = "dataset.json"
#: A decoded split of at most this many bytes is kept in memory; a larger one streams from disk.
MEMORY_LIMIT = 4 << 30


#: Rows of a batch of so many images.
Rows = Callable[[int], slice | torch.Tensor]


def whole_batch(images: int) -> slice:
    """All rows of a batch."""
    return slice(images)


class Stream(Protocol):
    """A decoder that yields chosen images in a chosen order."""

    def read(self, order: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
        """Yield uint8 [b, 3, R, R] for the given indices."""
        ...


def read_info(folder: Path) -> dict[str, Any]:
    """Read `dataset.json` of a prepared dataset.

    Raises:
        DataError: If it is missing or malformed.
    """
    path = folder / INFO
    try:
        info = json.loads(path.read_bytes())
        if not isinstance(info["stored"], int) or any(len(info[s]) != len(info["classes"]) for s in ("train", "val")):
            raise ValueError("counts do not match the classes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a prepared dataset ({error})", where=str(path)) from error
    return dict(info)


class RealImages:
    """One split of a prepared dataset.

    Args:
        folder: The published directory of a `prepare` stage.
        split: `train` or `val`.
        loader: What decodes: `ffcv` reads betons, `torchvision` reads folders. Neither stands in for the other.
        timeout: Seconds without a batch after which a loader counts as stalled.
        workers: Decoding threads or processes; by default the cores at hand, at most 8. No value changes a result.

    Attributes:
        labels: int64 [N], on the CPU.
        classes: Number of classes.
        stored: Side R of the images, in pixels.
        loader: What decodes, for provenance.

    Raises:
        DataError: If the prepared files are missing, of the other format, or do not check.
        InfraError: If FFCV is asked for and cannot be imported.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        loader: str,
        timeout: float = 300.0,
        *,
        workers: int | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        if split not in SPLITS or loader not in LOADERS:
            raise ValueError(f"split {split!r}, loader {loader!r}: allowed are {SPLITS} and {LOADERS}")
        info = read_info(folder)
        self.folder, self.split, self.loader, self.timeout = folder, split, loader, timeout
        self.classes, self.stored = len(info["classes"]), int(info["stored"])
        self.memory_limit = memory_limit
        self.name = f"{info['name']} {split} ({folder})"
        counts = info[split]
        wanted = "beton" if loader == "ffcv" else "folder"
        if info["format"] != wanted:
            hint = f"prepare it with --format {wanted}"
            raise DataError(f"prepared as {info['format']}; loader {loader} reads {wanted}", where=self.name, hint=hint)
        self._tensor: torch.Tensor | None = None
        self._bytes = sum(counts) * 3 * self.stored**2
        self._stream: Stream
        if loader == "ffcv":
            require_ffcv()
            beton = check_beton(
                folder / f"{split}.beton", classes=self.classes, samples=sum(counts), stored=self.stored
            )
            labels = beton.labels
            self._stream = FfcvStream(beton, self.name, timeout, workers, compiled=not self.fits)
        else:
            self._stream = FolderStream(folder / split, info["classes"], self.stored, self.name, timeout, workers)
            labels = self._stream.labels
        if np.bincount(labels, minlength=self.classes).tolist() != counts:
            raise DataError("labels do not have the counts of dataset.json", where=self.name)
        self.labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fits(self) -> bool:
        """Whether the decoded split is small enough to be kept in memory."""
        return self._bytes <= self.memory_limit

    def tensor(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole split, decoded once per process.

        Returns:
            uint8 [N, 3, R, R] and int64 [N]; do not write into them.

        Raises:
            DataError: If it is larger than the memory limit.
        """
        if not self.fits:
            what = f"{self._bytes / 2**30:.1f} GiB decoded, more than {self.memory_limit / 2**30:g}"
            raise DataError(what, where=self.name, hint="read it in batches")
        if self._tensor is None:
            whole = torch.empty((len(self), 3, self.stored, self.stored), dtype=torch.uint8)
            self._fill(whole, np.arange(len(self)))
            self._tensor = whole
        return self._tensor, self.labels

    def take(self, indices: torch.Tensor | np.ndarray | list[int]) -> torch.Tensor:
        """Some images, in the order asked for.

        Args:
            indices: Integers [n] in [0, N); repetitions are allowed.

        Returns:
            uint8 [n, 3, R, R].

        Raises:
            IndexError: If an index is out of range.
        """
        order = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        if len(order) and (int(order.min()) < 0 or int(order.max()) >= len(self)):
            raise IndexError(f"index out of range for {len(self)} images of {self.name}")
        if self.fits:
            return self.tensor()[0][order]
        images = torch.empty((len(order), 3, self.stored, self.stored), dtype=torch.uint8)
        self._fill(images, order.numpy())
        return images

    def batches(
        self,
        batch: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        drop_last: bool = False,
        begin: int = 0,
        rows: Rows = whole_batch,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Go through the split once, each image exactly once.

        Args:
            batch: Images a batch.
            seed: Shuffles, together with `epoch`; None keeps the stored order.
            epoch: Number of the pass.
            drop_last: Leave out a last batch that is smaller.
            begin: Number of the first batch; those before it are left out, and are not decoded.
            rows: Which rows of a batch of so many images are wanted; the others are not decoded. A full batch has one
                at least.

        Yields:
            uint8 [b, 3, R, R] and int64 [b], on the CPU.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}")
        order = torch.arange(len(self)) if seed is None else permutation(len(self), seed, epoch)
        if drop_last:
            order = order[: len(order) // batch * batch]
        order = order[begin * batch :]
        if not len(order):
            return
        wanted = [part[rows(len(part))] for part in order.split(batch)]
        if self.fits:
            images = self.tensor()[0]
            for chosen in wanted:
                yield images[chosen], self.labels[chosen]
            return
        decoded = self._stream.read(torch.cat(wanted).numpy(), len(wanted[0])) if len(wanted[0]) else iter(())
        for chosen in wanted:  # a last batch may have no row for this process
            none = torch.empty((0, 3, self.stored, self.stored), dtype=torch.uint8)
            yield next(decoded) if len(chosen) else none, self.labels[chosen]

    def _fill(self, images: torch.Tensor, order: np.ndarray) -> None:
        """Decode into a tensor, a batch at a time."""
        batch = max(1, min(1024, (32 << 20) // (3 * self.stored**2)))
        start = 0
        for part in self._stream.read(order, batch):
            images[start : start + len(part)] = part
            start += len(part)


def permutation(length: int, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of [0, length) that depends on seed and epoch only: int64 [length]."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:epoch:{epoch}".encode()).digest()[:8], "big") >> 1
    return torch.randperm(length, generator=torch.Generator().manual_seed(number))


@cache
def _opened(folder: Path, mark: tuple[int, int, int], split: str, loader: str, timeout: float) -> RealImages:
    return RealImages(folder, split, loader, timeout)


def open_split(folder: Path, split: str, loader: str, timeout: float = 300.0) -> RealImages:
    """Open a split; the same one again, with what it has decoded, for the rest of this process."""
    folder = Path(folder).resolve()
    try:
        state = (folder / INFO).stat()
    except OSError as error:
        raise DataError(f"not a prepared dataset ({error.strerror})", where=str(folder)) from error
    return _opened(folder, (state.st_size, state.st_mtime_ns, state.st_ino), split, loader, timeout)
