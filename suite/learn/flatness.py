"""EDC's flatness term (arXiv:2404.13733, flatness regularisation): images judged as their moving average is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from suite.learn.composition import Critic, Seen
from suite.learn.job import Job
from suite.learn.teachers import Teacher
from suite.learn.validation import autocast
from suite.learn.view_policies import Area, RandomViews

TEMPERATURE = 4.0


def flatness_loss(logits: torch.Tensor, averaged: torch.Tensor) -> torch.Tensor:
    """KL of softened predictions from those for the averaged images, a mean over all b * C elements, without T^2.

    Args:
        logits: [b, C], of the current images.
        averaged: [b, C], of the averages, held constant.
    """
    target = (averaged.detach() / TEMPERATURE).softmax(dim=1)
    return F.kl_div((logits / TEMPERATURE).log_softmax(dim=1), target, reduction="sum") / logits.numel()


class AveragedViews(RandomViews):
    """`RandomViews` that also look, through the same boxes and flips, at a moving average of the images.

    The average takes part from the first iteration, which starts it, and is moved on before it is seen (inferred).

    Args:
        job: The synthesis.
        batch: Number of the image batch.
        images: Images of the batch.
        iterations: T.
        decay: Weight of the past in the average.
        beside: Takes the view of the average of every iteration, for the term that judges it.
        crop: Area range of RandomResizedCrop.
        flips: Flip with probability one half.
        shared: One box and flip for the whole batch.
    """

    def __init__(
        self,
        job: Job,
        batch: int,
        images: int,
        iterations: int,
        *,
        decay: float,
        beside: Callable[[torch.Tensor], None],
        crop: Area,
        flips: bool,
        shared: bool = True,
    ) -> None:
        super().__init__(job, batch, images, iterations, crop=crop, flips=flips, shared=shared)
        self.decay, self.beside, self.device = decay, beside, job.device
        self.average: torch.Tensor | None = None

    def views(self, x: torch.Tensor, t: int, active: torch.Tensor | None = None) -> torch.Tensor:
        """The views at iteration t of x, float [b, 3, S, S]."""
        now = x.detach()
        self.average = now.clone() if self.average is None else torch.lerp(now, self.average, self.decay)
        self.beside(super().views(self.average, t, active))
        return super().views(x, t, active)

    def state(self) -> dict[str, torch.Tensor]:
        """The average."""
        return {} if self.average is None else {"average": self.average.clone()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from this average."""
        self.average = state["average"].to(self.device) if state else None


class Flatness:
    """The term, for compositions of which one critic judges an iteration.

    Batches side by side are judged in the order of their views.

    Args:
        job: The synthesis; the teachers' extra passes are counted.
        weight: Of the term.
    """

    def __init__(self, job: Job, weight: float) -> None:
        self.job, self.weight = job, weight
        self._waiting: deque[torch.Tensor] = deque()
        #: For `AveragedViews`.
        self.beside = self._waiting.append

    def critics(self, make: Callable[..., list[Critic]]) -> list[Critic]:
        """The critics that `make(job, extra=...)` gives for each of the job's teachers, with its own term."""
        pairs = zip(self.job.teachers, self.job.statistics, strict=True)
        return [make(replace(self.job, teachers=[t], statistics=[s]), extra=self.by(t))[0] for t, s in pairs]

    def by(self, teacher: Teacher) -> Callable[[Seen], torch.Tensor]:
        """The term of one teacher."""

        def term(seen: Seen) -> torch.Tensor:
            averaged = self._waiting.popleft()
            with torch.no_grad(), autocast(self.job.precision, averaged.device):
                logits = teacher(averaged)
            self.job.counters.forward_images += len(averaged)
            return self.weight * flatness_loss(seen.logits, logits.to(seen.logits.dtype))

        return term
