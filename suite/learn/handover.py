"""From the device to the host without stopping the device: finished images, and answers."""

from __future__ import annotations

from typing import Any

import torch


class Shelf:
    """The distilled set on the host, filled as images are finished.

    On CUDA the copies run on a stream of their own into page-locked memory, while the next batch is optimised.

    Args:
        images: N.
        size: Side in pixels.
        device: Where images come from.
    """

    def __init__(self, images: int, size: int, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._images = torch.zeros(images, 3, size, size, dtype=torch.uint8)
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, Any]] = []

    def put(self, slots: torch.Tensor, pixels: torch.Tensor) -> None:
        """Take images uint8 [n, 3, S, S] for positions int64 [n] (on the CPU)."""
        if self._stream is None:
            self._images[slots] = pixels.cpu()
            return
        self._collect(wait=False)
        self._stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with torch.cuda.stream(self._stream):
            here = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
            here.copy_(pixels, non_blocking=True)
            pixels.record_stream(self._stream)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        self._waiting.append((slots, here, arrived))

    def _collect(self, wait: bool) -> None:
        """Store what has arrived; with `wait`, everything."""
        while self._waiting and (wait or self._waiting[0][2].query()):
            slots, here, arrived = self._waiting.pop(0)
            arrived.synchronize()
            self._images[slots] = here

    def restore(self, images: torch.Tensor) -> None:
        """Take over the images of a checkpoint."""
        self._images.copy_(images)

    def all(self) -> torch.Tensor:
        """Uint8 [N, 3, S, S]; positions that were never filled are black."""
        self._collect(wait=True)
        return self._images


class Flag:
    """Asks the device a yes-or-no question without draining it.

    On the CPU the answer is immediate. On CUDA the answer to a question is read when the next one is asked: the device
    then has the work between the two still before it, and the same questions get the same answers in every run.

    Args:
        device: Where the questions are answered.
        wait: Wait for each answer, where an iteration too many would be seen.
    """

    def __init__(self, device: torch.device, wait: bool = False) -> None:
        self._device, self._wait = device, wait or device.type != "cuda"
        self._asked: tuple[torch.Tensor, Any] | None = None

    def state(self) -> bool | None:
        """The answer that the next question gets, for checkpoints; None if none was asked."""
        return None if self._asked is None else self._answer(*self._asked)

    def restore(self, answer: bool | None) -> None:
        """Go on from a `state`."""
        self._asked = None if answer is None else (torch.tensor(answer), None)

    @staticmethod
    def _answer(here: torch.Tensor, arrived: Any) -> bool:
        if arrived is not None:
            arrived.synchronize()
        return bool(here)

    def ask(self, value: torch.Tensor) -> bool:
        """Whether the value of the last question (where answers are waited for: of this one) was true."""
        if self._wait:
            return bool(value)
        before = self._asked
        here = torch.empty((), dtype=torch.bool, pin_memory=True)
        here.copy_(value, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._asked = here, arrived
        return before is not None and self._answer(*before)
