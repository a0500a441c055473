"""DELT's early-late training (arXiv:2411.19946, section 3): images of a class join the optimisation in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from suite.data.distilled import DistilledSet
from suite.learn.checkpoint import Never, Within
from suite.learn.initial import to_distilled
from suite.learn.job import Job


@dataclass(frozen=True)
class Rounds:
    """Which images of a batch are optimised when.

    Attributes:
        length: Iterations a round.
        active: For every round the positions of its images within the batch, ascending.
        images: Images of the batch.
    """

    length: int
    active: tuple[tuple[int, ...], ...]
    images: int

    @property
    def iterations(self) -> int:
        """Of all rounds: T, less the leading rounds without an image."""
        return self.length * len(self.active)

    def on(self, device: torch.device) -> Callable[[int], torch.Tensor | None]:
        """The active images int64 [b] at an iteration, None for all; for `Composition.active`."""
        sets = [None if len(a) == self.images else torch.tensor(a, device=device) for a in self.active]
        return lambda t: sets[t // self.length]


def first_rounds(ipc: int, rounds: int) -> list[int]:
    """The round in which the image of every rank joins, for `ipc` ranks.

    The ranks are cut into groups of floor(IPC / rounds), the first IPC mod rounds of them one larger.
    """
    sizes = [ipc // rounds + (r < ipc % rounds) for r in range(rounds)]
    ends = list(accumulate(sizes))
    return [next(r for r, end in enumerate(ends) if rank < end) for rank in range(ipc)]


def rounds_of(slots: torch.Tensor, ipc: int, iterations: int, rounds: int) -> Rounds:
    """The rounds of one batch. Ranks count within a class, whatever batches it is spread over.

    Leading rounds without an image of the batch are left out, so that it takes fewer iterations than T.

    Args:
        slots: int64 [B], positions in the class-major set.
        ipc: Images a class.
        iterations: T.
        rounds: M, which divides T.
    """
    joins = first_rounds(ipc, rounds)
    start = [joins[rank] for rank in (slots % ipc).tolist()]
    active = [tuple(i for i, r in enumerate(start) if r <= now) for now in range(min(start), rounds)]
    return Rounds(iterations // rounds, tuple(active), len(slots))


def in_parts(
    job: Job,
    batches: Sequence[torch.Tensor],
    rounds: Callable[[torch.Tensor], Rounds],
    distill: Callable[[Job, list[torch.Tensor], Rounds], DistilledSet],
) -> DistilledSet:
    """Distill the batches that have equal rounds together, and put the parts into one set.

    There is one part where the batch is a multiple of IPC and divides the set. Several parts draw from streams of their
    own.

    Args:
        job: The synthesis.
        batches: Positions of their images. A job's share is taken from these.
        rounds: The rounds of a batch.
        distill: Makes the images of some batches; what it says of others is not read.
    """
    parts: dict[Rounds, list[torch.Tensor]] = {}
    for slots in batches:
        parts.setdefault(rounds(slots), []).append(slots)
    facts, done = job.dataset, 0
    total = sum(r.iterations * len(some) for r, some in parts.items())
    job.share.take(batches)
    outer = job.checkpoint or Never()
    images = torch.zeros(facts.classes * job.ipc, 3, facts.size, facts.size, dtype=torch.uint8)
    saved = outer.load()
    begun = 0
    if saved is not None:
        begun = saved["part"]
        images.copy_(saved["images"])
    for number, (same, some) in enumerate(parts.items()):
        if number >= begun:
            inner = saved["inner"] if saved is not None and number == begun else None
            checkpoint = Within(outer, partial(_finished, number, images), inner)
            seed = job.generator("part", number).initial_seed() if number else job.seed
            part = replace(job, seed=seed, checkpoint=checkpoint, progress=_after(done, total, job.progress))
            made = distill(part, some, same)
            where = torch.cat(some)
            images[where] = made.images[where]
        done += same.iterations * len(some)
    return to_distilled(job, images)


def _finished(part: int, images: torch.Tensor) -> dict[str, Any]:
    """What a checkpoint remembers besides the part that is being distilled."""
    return {"part": part, "images": images}


def _after(done: int, total: int, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    return lambda at, _: progress(done + at, total)
