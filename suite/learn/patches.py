"""Starts of real patches of medium difficulty, as CV-DD asks for (arXiv:2501.07575)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suite.learn.initial import rank
from suite.learn.job import Job
from suite.learn.models import denormalise, normalise
from suite.learn.mosaics import Mosaics


class PatchStart:
    """Starts of RDED's crops of medium difficulty: slot s of a class is the s-th patch of the class.

    Candidates and crops are drawn and scored as RDED's. Every candidate gives its most confident crop, or as many of
    them as IPC needs; these are taken from the medium one outwards (`rank`). They are kept as uint8, as files would.

    Args:
        job: With real images and a teacher; of several teachers the first scores.
        candidates: Real images of a class that are looked at; all of them where a class has fewer.
        crops: Random crops of each candidate.
        area: Area range of the crops; their aspect ratio is 1.
        classes: Those that are started; all by default.

    Raises:
        DataError: If the candidates have fewer crops than IPC.
    """

    def __init__(
        self,
        job: Job,
        candidates: int,
        crops: int,
        area: tuple[float, float],
        classes: Sequence[int] | None = None,
    ) -> None:
        self.job, facts, mosaics = job, job.dataset, Mosaics(job, candidates, crops, 1, area)
        self.images = torch.zeros(facts.classes, job.ipc, 3, facts.size, facts.size, dtype=torch.uint8)
        for c in range(facts.classes) if classes is None else classes:
            patches, ce = mosaics.scored(c, kept=min(crops, -(-job.ipc // len(mosaics.members[c]))))
            order = rank(-ce.flatten().cpu(), "medium", job.ipc)
            chosen = patches.flatten(0, 1)[order.to(patches.device)]
            self.images[c] = denormalise(chosen, facts.mean, facts.std).cpu()
        self.images = self.images.flatten(0, 1)

    def __call__(self, batch: int, slots: torch.Tensor) -> torch.Tensor:
        """The start of some slots, normalised float32 [len(slots), 3, S, S] on the job's device."""
        facts = self.job.dataset
        return normalise(self.images[slots].to(self.job.device), facts.mean, facts.std)
