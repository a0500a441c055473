"""Images out of a beton through FFCV, in an order that we choose, without its ways of hanging.

Measured on two shared cores (FFCV 1.0.2, numba 0.68): importing FFCV 3 to 5 s a process; building and compiling this
pipeline about 1 s a split, against 5 to 10 s with random crops, flips and normalisation in it; then, for CIFAR-10's
50,000 raw images, 0.15 s a pass compiled and 0.8 s interpreted, and for JPEG at 160 pixels about 2,500 images/s
with both cores loaded by others and 16,000 without.

FFCV decodes JPEG with libjpeg-turbo's fast transforms: beside PIL's, the red and blue channels are about one level of
255 darker. So the loader is part of the keys of all stages that read real images.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, Full
from typing import Any, TypeVar

import numpy as np
import torch

from suite.data.beton import Beton
from suite.errors import InfraError

T = TypeVar("T")

#: FFCV's compiler switch and thread counts are global: loaders are built one at a time.
_BUILDING = threading.Lock()
#: Bytes of decoded images that FFCV may hold ahead of us.
_AHEAD_BYTES = 256 << 20


def require_ffcv() -> None:
    """Raise an `InfraError` that says what to install, if FFCV cannot be imported."""
    try:
        import ffcv.loader  # noqa: F401
    except (ImportError, OSError) as error:
        raise InfraError(
            f"FFCV cannot be imported ({type(error).__name__}: {error})",
            hint="pip install 'distillation-suite[ffcv]' needs a C++ compiler and libopencv-dev libturbojpeg0-dev "
            "pkg-config (Debian) or libopencv libjpeg-turbo pkg-config (conda-forge); "
            "or set `loader: torchvision` in the grid",
        ) from error


def default_workers() -> int:
    """Decoding threads: the cores that this process may use, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0))))


def within(seconds: float, what: str, function: Callable[[], T]) -> T:
    """Run a function in a thread of its own, and give up on it after some seconds.

    Raises:
        InfraError: If it does not come back in time. The thread is left behind; it cannot be killed.
    """
    result: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            result.append(function())
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True, name=what)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not result:
        raise InfraError(f"{what} did not come back within {seconds:g} s")
    return result[0]


class FfcvStream:
    """One beton, read through one `ffcv.Loader` that is built once and reused for every order asked for.

    The pipeline is decoder, ToTensor, ToTorchImage, for images only: labels are read without FFCV. Building it costs
    numba compilation, so raw betons that are decoded once are read with FFCV's compiler switched off: the same code
    runs as Python, and gives the same bytes.

    Args:
        beton: A checked beton.
        name: Dataset and split, for messages.
        timeout: Seconds without a batch after which the loader counts as stalled.
        workers: Decoding threads. No value changes the result.
        compiled: Whether numba compiles the pipeline. JPEG decoding needs it.
    """

    def __init__(self, beton: Beton, name: str, timeout: float, workers: int | None, compiled: bool) -> None:
        self.beton, self.name, self.timeout = beton, name, timeout
        self.workers = workers or default_workers()
        self.compiled = compiled or beton.jpeg
        self._loader: Any = None

    def read(self, order: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
        """Yield the images with the given indices, in the given order.

        Args:
            order: int64 [n], indices of images; any order, repetitions allowed.
            batch: Images a batch; the last one may be smaller.

        Yields:
            uint8 [b, 3, R, R], contiguous, the caller's own.

        Raises:
            InfraError: If FFCV fails, stalls for `timeout` seconds, or ends early.
        """
        if len(order) == 0:
            return
        threads = torch.get_num_threads()
        if self._loader is None:
            self._loader = within(self.timeout, f"{self.name}: FFCV's constructor", self._build)
        epoch = self._start(order.astype(np.uint64), batch)
        done = 0
        try:
            while done < len(order):
                span = f"samples {done} to {min(done + batch, len(order)) - 1}"
                images = self._next(epoch, span)
                torch.set_num_threads(threads)  # FFCV sets it to its own number of workers
                done += len(images)
                yield images
        finally:
            _finish(epoch)
            torch.set_num_threads(threads)

    def _build(self) -> Any:
        require_ffcv()
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.pipeline.compiler import Compiler
        from ffcv.transforms import ToTensor, ToTorchImage
        from numba.core import config

        workers = min(self.workers, int(vars(config)["NUMBA_NUM_THREADS"]))  # numba refuses more
        # Compiled operations may not follow ToTensor: FFCV then loops for ever while it groups the graph.
        pipeline = [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage(channels_last=True)]
        with _BUILDING:
            Compiler.set_enabled(self.compiled)
            try:
                return Loader(
                    str(self.beton.path),
                    batch_size=1,
                    num_workers=workers,
                    os_cache=True,
                    order=OrderOption.SEQUENTIAL,
                    pipelines={"image": pipeline, "label": None},
                    drop_last=False,
                    seed=0,
                )
            finally:
                Compiler.set_enabled(True)

    def _start(self, order: np.ndarray, batch: int) -> Any:
        """An epoch over exactly these indices. FFCV's own iterator, whose failures are handed on."""
        from ffcv.loader import epoch_iterator
        from ffcv.loader.epoch_iterator import EpochIterator

        epoch_iterator.IS_CUDA = False  # images stay on the host; its streams would take memory of GPU 0 in every task

        class Epoch(EpochIterator):
            def run(self) -> None:
                try:
                    super().run()
                except BaseException as error:  # FFCV would die silently and leave the reader waiting for ever
                    while not self.terminate_event.is_set():
                        try:
                            self.output_queue.put(error, timeout=0.5)
                            return
                        except Full:
                            continue

        loader = self._loader
        bytes_ahead = 5 * batch * 3 * self.beton.stored**2
        loader.batch_size = batch
        loader.batches_ahead = 3 if bytes_ahead <= _AHEAD_BYTES else 1
        return within(self.timeout, f"{self.name}: FFCV's epoch", lambda: Epoch(loader, order))

    def _next(self, epoch: Any, span: str) -> torch.Tensor:
        deadline = time.monotonic() + self.timeout
        while True:
            alive = epoch.is_alive()
            try:
                item = epoch.output_queue.get(timeout=min(1.0, self.timeout))
            except Empty:
                if not alive:
                    raise InfraError(f"FFCV's thread died at {span}", where=self.name) from None
                if time.monotonic() >= deadline:
                    raise InfraError(f"FFCV gave nothing for {self.timeout:g} s at {span}", where=self.name) from None
                continue
            if isinstance(item, BaseException):
                what = f"FFCV failed at {span}: {type(item).__name__}: {item}"
                raise InfraError(what, where=self.name) from item
            if item is None:
                raise InfraError(f"FFCV ended before {span}", where=self.name)
            # A copy: FFCV reuses its buffers.
            images: torch.Tensor = item[1][0]
            return images.contiguous(memory_format=torch.contiguous_format).clone()


def _finish(epoch: Any) -> None:
    """Let FFCV's thread end, also when it waits for room in its queue."""
    epoch.close()
    while True:
        try:
            epoch.output_queue.get_nowait()
        except Empty:
            return
