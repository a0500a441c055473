"""Forgetting events: how often a network in training unlearns an image (Toneva et al., ICLR 2019, arXiv:1812.05159)."""

from __future__ import annotations

from typing import Any

import torch

from suite.data.loader import permutation
from suite.learn import models
from suite.learn.checkpoint import Never, Within
from suite.learn.initial import real_images
from suite.learn.job import Job
from suite.learn.teachers import train_epochs
from suite.learn.validation import seeded
from suite.spec.recipes import TeacherRecipe


class ForgettingEvents:
    """Counts of forgetting events (definition 2.1): an image was classified correctly the last time, and now is not.

    Args:
        images: N.
        device: Where the counts live.

    Attributes:
        events: int64 [N].
        correct: bool [N], at the last presentation.
        learnt: bool [N], at any presentation.
    """

    def __init__(self, images: int, device: torch.device | str = "cpu") -> None:
        self.events = torch.zeros(images, dtype=torch.int64, device=device)
        self.correct = torch.zeros(images, dtype=torch.bool, device=device)
        self.learnt = torch.zeros(images, dtype=torch.bool, device=device)

    def observe(self, indices: torch.Tensor, correct: torch.Tensor) -> None:
        """Take note of one presentation.

        Args:
            indices: int64 [B], no image twice.
            correct: bool [B], whether the network was right about them.
        """
        self.events[indices] += self.correct[indices] & ~correct
        self.correct[indices] = correct
        self.learnt[indices] |= correct

    def counts(self) -> torch.Tensor:
        """Float64 [N] on the CPU; infinite for images that were never classified correctly."""
        return torch.where(self.learnt, self.events.double(), torch.inf).cpu()


def forgetting_counts(job: Job, arch: str, recipe: TeacherRecipe) -> torch.Tensor:
    """Train a network from scratch on the real images and count its forgetting events.

    An image is presented once an epoch, augmented, and judged by the network as it is in training, before the update.

    Args:
        job: The synthesis; its seed decides initial weights, orders and views, and every presentation is counted in
            `forward_images`.
        arch: Name of the network.
        recipe: How it is trained.

    Returns:
        float64 [N], in stored order; infinite for images that were never classified correctly.

    Raises:
        NumericError: If the training diverges.
    """
    real = real_images(job)
    found = ForgettingEvents(len(real), job.device)
    outer = job.checkpoint or Never()
    saved = outer.load()
    if saved is not None:
        found.events, found.correct, found.learnt = (t.to(job.device) for t in saved["events"])
        job.counters.forward_images = saved["forward_images"]

    def state() -> dict[str, Any]:
        events = [found.events, found.correct, found.learnt]
        return {"events": events, "forward_images": job.counters.forward_images}

    orders: dict[int, tuple[torch.Tensor, ...]] = {}

    def watch(epoch: int, number: int, logits: torch.Tensor, labels: torch.Tensor) -> None:
        if epoch not in orders:
            orders.clear()
            orders[epoch] = permutation(len(real), job.seed, epoch).to(job.device).split(recipe.batch)
        found.observe(orders[epoch][number], logits.argmax(1) == labels)
        job.counters.forward_images += len(labels)

    with seeded(job.seed, "forgetting", job.device):
        model = models.build(arch, job.dataset.classes, job.dataset.size).to(job.device).train()
        for _ in train_epochs(
            model,
            recipe,
            job.dataset,
            real,
            job.device,
            seed=job.seed,
            precision=job.precision,
            progress=job.progress,
            watch=watch,
            checkpoint=Within(outer, state, saved["inner"] if saved is not None else None),
        ):
            pass
    return found.counts()


def most_forgotten(counts: torch.Tensor, ties: torch.Tensor, n: int) -> torch.Tensor:
    """Positions of the n largest counts, largest first; of equals the one with the smaller tie.

    Args:
        counts: float [N], may be infinite.
        ties: float [N].
        n: At most N.

    Returns:
        int64 [n].
    """
    order = ties.argsort(stable=True)
    return order[counts[order].argsort(descending=True, stable=True)[:n]]
