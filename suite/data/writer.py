"""Writing a split: squares of side R into a beton or a folder, in order, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from suite.data.sources import Item, Source
from suite.errors import InfraError

#: From this side up, images are stored as JPEG of this quality; below, as raw pixels (PNG in folders).
JPEG_FROM, JPEG_QUALITY = 96, 90
#: FFCV's smallest page. A beton is at least two pages, and an image must fit into one.
SMALL_PAGE = 2 << 20


def square(data: bytes, side: int) -> np.ndarray:
    """Decode an image, resize its shorter side and crop its centre, as torchvision's Resize and CenterCrop do.

    Args:
        data: Encoded bytes.
        side: Side R in pixels.

    Returns:
        uint8 [R, R, 3], RGB.

    Raises:
        Exception: Whatever PIL says about bytes that it cannot decode.
    """
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    short = min(width, height)
    if short != side:
        width, height = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.array(image.crop((left, top, left + side, top + side)))


class Squares(Protocol):
    """What a beton is written from: as many (uint8 [R, R, 3], class) as it says, in storage order, all of side R."""

    side: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]: ...


class Samples:
    """Decoded samples in storage order, with some threads decoding ahead.

    Unreadable images are collected in `bad` instead of raised, so that one pass over a source names the first three. A
    black square stands in their place, in files that the caller then never publishes.

    Args:
        source: Where the bytes are.
        items: In storage order.
        labels: Class of each.
        side: Side R in pixels.
        jobs: Decoding threads.
        tick: Called after each sample.
    """

    def __init__(
        self, source: Source, items: list[Item], labels: list[int], side: int, jobs: int, tick: Callable[[], None]
    ) -> None:
        self.source, self.items, self.labels, self.side, self.jobs, self.tick = source, items, labels, side, jobs, tick
        self.bad: list[str] = []
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        with ThreadPoolExecutor(self.jobs) as pool:
            ahead: deque[Future[tuple[np.ndarray | None, bytes, str]]] = deque()
            todo = iter(self.items)
            for item, label in zip(self.items, self.labels, strict=True):
                while len(ahead) < 8 * self.jobs and (following := next(todo, None)) is not None:
                    ahead.append(pool.submit(self._decode, following))
                image, sum_, problem = ahead.popleft().result()
                self._hash.update(f"{item.path}\0".encode("utf-8", "surrogateescape") + sum_)
                if image is None:
                    self.bad.append(f"{item.path} ({problem})")
                    image = np.zeros((self.side, self.side, 3), np.uint8)
                yield image, label
                self.tick()

    def _decode(self, item: Item) -> tuple[np.ndarray | None, bytes, str]:
        try:
            data = self.source.read(item)
        except OSError as error:
            raise InfraError(f"cannot read {item.path}: {error.strerror}", where=self.source.where) from error
        sum_ = hashlib.sha256(data).digest()
        try:
            return square(data, self.side), sum_, ""
        except Exception as error:  # PIL raises anything on damaged bytes; all of it means the same
            return None, sum_, type(error).__name__

    @property
    def digest(self) -> str:
        """SHA-256 over the paths and encoded bytes of the samples so far."""
        return self._hash.hexdigest()


def write_folder(folder: Path, samples: Samples, classes: list[str]) -> None:
    """Write `folder/CLASS/NNNNNN.png`, or .jpg from `JPEG_FROM` pixels up."""
    for name in classes:
        (folder / name).mkdir(parents=True)
    jpeg = samples.side >= JPEG_FROM
    for number, (image, label) in enumerate(samples):
        path = folder / classes[label] / f"{number:08d}.{'jpg' if jpeg else 'png'}"
        if jpeg:
            Image.fromarray(image).save(path, quality=JPEG_QUALITY)
        else:
            Image.fromarray(image).save(path, compress_level=1)


def write_beton(path: Path, samples: Squares, mode: str | None = None) -> None:
    """Write a beton with the fields `image` and `label`: `raw` or `jpg`, by default as `JPEG_FROM` says.

    FFCV's own writer starts worker processes, waits for ever if one dies, and lays pages out in the order in which
    they finish. Its parts are used here in this process, one sample after another: a failure is an exception, and two
    writes give identical bytes.
    """
    from suite.data.ffcv_stream import require_ffcv

    require_ffcv()
    from ffcv.fields import IntField, RGBImageField
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.writer import DatasetWriter, worker_job_indexed_dataset

    class Writer(DatasetWriter):
        def write(self) -> None:
            self.num_samples = len(samples)
            self.prepare()
            allocations: queue.SimpleQueue[list] = queue.SimpleQueue()
            try:
                allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
                work = (_Work(len(samples)), self.metadata_sm, self.metadata_type, self.fields, allocator)
                worker_job_indexed_dataset(*work, _Counter(), allocations, _InOrder(samples))
                self.finalize(allocations.get())
            finally:
                with suppress(BufferError):  # a failed worker's frame still holds the memory
                    self.metadata_sm.close()
                self.metadata_sm.unlink()

    mode = mode or ("jpg" if samples.side >= JPEG_FROM else "raw")
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=JPEG_QUALITY), "label": IntField()}
    page = SMALL_PAGE if samples.side < 512 else 4 * SMALL_PAGE
    Writer(str(path), fields, page_size=page, num_workers=1).write()


class _Work:
    """FFCV's work queue, filled: chunks of (place in the beton, place in the samples), then None."""

    def __init__(self, count: int, chunk: int = 100) -> None:
        self._chunks = ([(i, i) for i in range(k, min(k + chunk, count))] for k in range(0, count, chunk))

    def get(self) -> list[tuple[int, int]] | None:
        return next(self._chunks, None)


class _Counter:
    """FFCV's shared progress counter; `Samples` reports progress itself."""

    value = 0

    def get_lock(self) -> AbstractContextManager[None]:
        return nullcontext()


class _InOrder:
    """Samples for a worker that asks for 0, 1, 2, ..."""

    def __init__(self, samples: Squares) -> None:
        self._samples = iter(samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return next(self._samples)
