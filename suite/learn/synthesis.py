"""The loop that decoupled methods share: optimise pixels so that frozen teachers see a class and real statistics.

A method is a composition: starts, a partition of the images into batches, views, teachers with their matching terms,
which of them judge an iteration, and which images are active (SRe2L, CDA, G-VBSM, EDC, DELT, E2D, WMDD, CV-DD).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from suite.data.distilled import DistilledSet
from suite.errors import NumericError, UserError
from suite.learn.initial import to_distilled
from suite.learn.job import Job
from suite.learn.models import denormalise, normalise, pixel_range
from suite.learn.validation import autocast

#: Iterations between two looks at the device: progress, and whether everything is finite.
LOG_EVERY = 100
#: Iterations between two questions whether a batch has ended; the images are frozen meanwhile, on accelerators.
STOP_EVERY = 8
BETAS, EPS = (0.5, 0.9), 1e-8


@dataclass(frozen=True)
class Seen:
    """What one teacher saw in one iteration.

    Attributes:
        views: float [b, 3, S, S], normalised.
        labels: int64 [b].
        logits: [b, C].
        stats: What the teacher's taps measured, e.g. a list of `taps.LayerStats`; empty without taps.
    """

    views: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    stats: Any = ()


@dataclass(frozen=True)
class Critic:
    """A teacher, and what it asks of a batch besides its classes.

    Attributes:
        forward: Maps normalised views to (logits, stats).
        matching: The matching term of what was seen, a scalar; None for plain cross-entropy.
        weight: Weight of the matching term.
        reset: Called before every batch, for terms with a running average.
        close: Called when the synthesis ends, to take hooks off the network.
    """

    forward: Callable[[torch.Tensor], tuple[torch.Tensor, Any]]
    matching: Callable[[Seen], torch.Tensor] | None = None
    weight: float = 1.0
    reset: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


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


def distill(job: Job, composition: Composition) -> DistilledSet:
    """Optimise every batch of the partition and return the last iterates, truncated to uint8.

    Adam starts afresh for every batch; after each update pixels are clamped to what an image can hold. The host reads
    from the device only every `LOG_EVERY` iterations, and to find the end of batches that may stop early.

    Args:
        job: The synthesis. Its counters are filled in: updates of images that were kept, and images that teachers saw.
        composition: The method.

    Raises:
        NumericError: If a loss or a pixel is NaN or Inf.
    """
    facts = job.dataset
    images = torch.empty(facts.classes * job.ipc, 3, facts.size, facts.size, dtype=torch.uint8)
    counter = 0
    with ExitStack() as stack:
        for critic in composition.critics:
            stack.callback(critic.close)
        for number, slots in enumerate(composition.partition):
            run = BatchRun(job, composition, number, slots, counter if composition.carry else None)
            x = run.run()
            mean, std = ((0.0,) * 3, (1.0,) * 3) if composition.pixels else (facts.mean, facts.std)
            images[slots] = denormalise(x, mean, std).cpu()
            counter += run.updates
    return to_distilled(job, images)


@dataclass
class BatchRun:
    """The optimisation of one batch.

    Attributes:
        job: The synthesis.
        composition: The method.
        number: Of the batch.
        slots: Positions of its images in the class-major set.
        counter: Iterations of all batches before it, if they are carried on.
        updates: Iterations that changed the images, known when `run` returns.
        watch: Called with (t, images) after every update; for tests.
    """

    job: Job
    composition: Composition
    number: int
    slots: torch.Tensor
    counter: int | None = None
    updates: int = 0
    watch: Callable[[int, torch.Tensor], None] | None = None
    _live: torch.Tensor | None = field(default=None, init=False)

    def run(self) -> torch.Tensor:
        """The last iterate, float [B, 3, S, S]."""
        job, plan = self.job, self.composition
        x = plan.start(self.number, self.slots).to(job.device).detach().clone().requires_grad_()
        self.labels = (self.slots // job.ipc).to(job.device)
        self.low, self.high = self._bounds(x)
        self.policy = plan.views(self.number, len(self.slots))
        if self.counter is None:
            self.counter = self.number * plan.iterations
            for critic in plan.critics:
                critic.reset()
        optimizer = torch.optim.Adam([x], lr=plan.lr, betas=BETAS, eps=EPS)
        counts, loss = self._iterate(x, optimizer)
        self._check(x, loss, len(counts))
        self.updates = len(counts) if self._live is None else int(self._live)
        job.counters.image_iterations += sum(counts[: self.updates])
        self._progress(plan.iterations)
        return x.detach()

    def _iterate(self, x: torch.Tensor, optimizer: torch.optim.Adam) -> tuple[list[int], torch.Tensor]:
        """Update until the end. Returns the number of active images of every iteration, and the last loss."""
        plan, counts = self.composition, []
        loss = torch.zeros((), device=x.device)
        for t in range(plan.iterations):
            done = self.policy.finished(t)
            if done is not None and self._look(t) and bool(done):
                break
            before = None if done is None else x.detach().clone()
            loss, n = self._step(x, optimizer, t)
            counts.append(n)
            if self._live is None and done is not None:
                self._live = torch.full((), t, device=x.device)
            if done is not None and before is not None:
                with torch.no_grad():
                    x.copy_(torch.where(done, before, x))
                self._live = self._live + ~done  # type: ignore[operator]
            if self.watch is not None:
                self.watch(t, x.detach())
            if (t + 1) % LOG_EVERY == 0:
                self._check(x, loss, t)
                self._progress(t + 1)
        return counts, loss

    def _step(self, x: torch.Tensor, optimizer: torch.optim.Adam, t: int) -> tuple[torch.Tensor, int]:
        """One update. Returns the loss and the number of images that teachers saw."""
        plan, job = self.composition, self.job
        assert self.counter is not None
        optimizer.param_groups[0]["lr"] = plan.lr * plan.schedule(t, plan.iterations)
        active = plan.active(t)
        labels = self.labels if active is None else self.labels[active]
        views = self.policy.views(x if active is None else x[active], t, active)
        if plan.pixels:
            views = normalise(views, job.dataset.mean, job.dataset.std)
        total, first_ce = torch.zeros((), dtype=x.dtype, device=x.device), None
        for index, weight in plan.select(self.counter + t, self.number):
            ce, term = self._judge(plan.critics[index], views, labels)
            total = total + weight * (ce.mean() + term)
            first_ce = ce.detach() if first_ce is None else first_ce
            job.counters.forward_images += len(labels)
        if first_ce is not None:
            self.policy.observe(t, first_ce)
        (x.grad,) = torch.autograd.grad(total, x)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(self.low, self.high)
        return total.detach(), len(labels)

    def _judge(
        self, critic: Critic, views: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Cross-entropies [b] and the weighted matching term of one teacher."""
        with autocast(self.job.precision, views.device):
            logits, stats = critic.forward(views)
        logits = logits.to(views.dtype)
        ce = F.cross_entropy(logits, labels, reduction="none")
        if critic.matching is None or critic.weight == 0:
            return ce, 0.0
        return ce, critic.weight * critic.matching(Seen(views, labels, logits, stats))

    def _look(self, t: int) -> bool:
        """Whether the host asks at iteration t if the batch has ended."""
        plan = self.composition
        if plan.carry:  # averages must not see iterations after the end
            return True
        every = plan.stop_every or (1 if self.job.device.type == "cpu" else STOP_EVERY)
        return t % every == 0

    def _bounds(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The range of every channel, [3, 1, 1] each: what an image can hold."""
        facts = self.job.dataset
        mean, std = ((0.0,) * 3, (1.0,) * 3) if self.composition.pixels else (facts.mean, facts.std)
        return pixel_range(mean, std, x.device, x.dtype)

    def _check(self, x: torch.Tensor, loss: torch.Tensor, t: int) -> None:
        if not bool(loss.isfinite() & x.detach().isfinite().all()):
            raise NumericError(
                f"loss or pixels are not finite by iteration {t}", where=f"batch {self.number}", hint="lower `lr`"
            )

    def _progress(self, t: int) -> None:
        plan = self.composition
        self.job.progress(self.number * plan.iterations + t, len(plan.partition) * plan.iterations)
