"""What the decoupled family is composed of: critics, views, partitions, schedules, and the composition of a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from suite.errors import UserError
from suite.learn.validation import autocast


@dataclass(frozen=True)
class Seen:
    """What one teacher saw in one iteration.

    Attributes:
        views: float [b, 3, S, S], normalised.
        labels: int64 [b].
        logits: [b, C].
        stats: What the teacher's taps found, a `taps.BatchStats`.
        slots: int64 [b], positions of the images in the class-major set; on the device of the views.
        groups: Independent image batches, equally large, that lie one behind the other in this one.
    """

    views: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    stats: Any = ()
    slots: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    groups: int = 1

    @property
    def features(self) -> torch.Tensor:
        """Penultimate features [b, D], the input of the last `Linear`, in the views' precision.

        Raises:
            UserError: If the teacher has none.
        """
        found: torch.Tensor | None = self.stats.features
        if found is None:
            raise UserError("this teacher has no linear layer whose input could be matched", hint="choose another one")
        return found.to(self.views.dtype)

    def split(self) -> list[Seen]:
        """The image batches one by one."""
        if self.groups == 1:
            return [self]
        parts = zip(*(t.chunk(self.groups) for t in (self.views, self.labels, self.logits, self.slots)), strict=True)
        return [Seen(v, y, z, part, s) for (v, y, z, s), part in zip(parts, self.stats.split(self.groups), strict=True)]


@dataclass(frozen=True)
class Critic:
    """A teacher, and what it asks of a batch besides its classes.

    Attributes:
        forward: Maps normalised views, and the number of image batches in them where there are several, to
            (logits, stats).
        matching: Further terms of the loss as a function of what was seen, a scalar, the sum over image batches; None
            for plain cross-entropy.
        weight: Multiplies `matching`.
        reset: Called with the numbers of the image batches before they begin, for terms with a running average.
        close: Called when the synthesis ends.
        state: What `matching` remembers, for checkpoints.
        restore: Goes on from a `state`.
    """

    forward: Callable[..., tuple[torch.Tensor, Any]]
    matching: Callable[[Seen], torch.Tensor] | None = None
    weight: float = 1.0
    reset: Callable[..., None] = lambda *batches: None
    close: Callable[[], None] = lambda: None
    state: Callable[[], Any] = lambda: None
    restore: Callable[[Any], None] = lambda state: None

    def judge(
        self, views: torch.Tensor, labels: torch.Tensor, slots: torch.Tensor, precision: str, groups: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Cross-entropies [b] of normalised views, and the weighted further terms.

        Args:
            views: float [b, 3, S, S].
            labels: int64 [b].
            slots: int64 [b], see `Seen`.
            precision: `fp32` or `bf16`, of the network.
            groups: Image batches in the views.
        """
        with autocast(precision, views.device):
            logits, stats = self.forward(views) if groups == 1 else self.forward(views, groups)
        logits = logits.to(views.dtype)
        ce = F.cross_entropy(logits, labels, reduction="none")
        if self.matching is None or self.weight == 0:
            return ce, 0.0
        term = self.matching(Seen(views, labels, logits, stats, slots, groups))
        return ce, term if self.weight == 1 else self.weight * term


class Views(Protocol):
    """The view policy of one batch; see `suite.learn.view_policies`."""

    def views(self, x: torch.Tensor, t: int, active: torch.Tensor | None = None) -> torch.Tensor:
        """Views of the active images."""
        ...

    def observe(self, t: int, ce: torch.Tensor) -> None:
        """Take note of the cross-entropies of these views."""
        ...

    def finished(self, t: int) -> torch.Tensor | None:
        """Whether the batch ends before iteration t; None where it cannot end early."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """What later iterations depend on besides their number."""
        ...

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state`."""
        ...


def cosine(t: int, iterations: int) -> float:
    """The factor of the learning rate at iteration t: (1 + cos(pi t / T)) / 2, which all these methods share."""
    return (1 + math.cos(math.pi * t / iterations)) / 2


def by_slot(classes: int, ipc: int, batch: int) -> list[torch.Tensor]:
    """One image of each class a batch: for every slot, consecutive groups of `batch` classes (SRe2L, CDA, CV-DD).

    Returns:
        Positions int64 in the class-major set, a tensor a batch.
    """
    return [c * ipc + s for s in range(ipc) for c in torch.arange(classes).split(batch)]


def by_class(classes: int, ipc: int, batch: int) -> list[torch.Tensor]:
    """Consecutive images of the class-major set: several images of few classes a batch (G-VBSM, WMDD, EDC, E2D)."""
    return list(torch.arange(classes * ipc).split(batch))


def cyclic(teachers: int) -> Callable[[int, int], list[tuple[int, float]]]:
    """Teachers in turn, one an iteration (G-VBSM, EDC, E2D)."""
    return lambda counter, batch: [(counter % teachers, 1.0)]


def _first(counter: int, batch: int) -> list[tuple[int, float]]:
    return [(0, 1.0)]


def _all(t: int) -> None:
    return None


@dataclass(frozen=True)
class Composition:
    """What makes a method out of the loop.

    Attributes:
        iterations: T, the most updates of an image.
        lr: Initial learning rate of Adam; `schedule(t, T)` multiplies it.
        partition: Positions of each batch's images in the class-major set.
        start: Maps (batch number, positions) to float [B, 3, S, S].
        views: Maps (batch number, images) to the view policy of a batch.
        critics: One for each teacher.
        select: Maps (counter of iterations, batch number) to the teachers that judge and their weights.
        active: Maps t to the indices of the images that are seen at iteration t; None for all. The others are still
            touched by Adam's momentum, as in DELT.
        schedule: Factor of the learning rate.
        pixels: Optimise in [0, 1] and normalise the views, instead of optimising normalised images.
        carry: Go on counting iterations and averaging statistics from one batch to the next, as references do. Then a
            batch depends on those before it; otherwise batch n starts to count at n * T with fresh averages, and
            batches are independent of each other.
        stop_every: Iterations between two host-side questions whether a batch has ended; None for 1 on the CPU and
            `STOP_EVERY` elsewhere. Images are frozen from the iteration at which they should stop: no value of this
            changes them.
    """

    iterations: int
    lr: float
    partition: Sequence[torch.Tensor]
    start: Callable[[int, torch.Tensor], torch.Tensor]
    views: Callable[[int, int], Views]
    critics: Sequence[Critic]
    select: Callable[[int, int], Sequence[tuple[int, float]]] = _first
    active: Callable[[int], torch.Tensor | None] = _all
    schedule: Callable[[int, int], float] = cosine
    pixels: bool = False
    carry: bool = False
    stop_every: int | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.critics:
            raise UserError(
                f"{self.iterations} iterations with {len(self.critics)} teachers", hint="at least 1 of each"
            )
