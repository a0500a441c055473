"""Compositions of the shared loop that several tests vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from suite.learn.critics import plain_critic
from suite.learn.initial import noise
from suite.learn.job import Job
from suite.learn.synthesis import Composition, by_slot
from suite.learn.view_policies import MemoryViews, RandomViews


def composition(job: Job, iterations: int = 6, **changes: Any) -> Composition:
    """Noise, whole images, plain cross-entropy, two batches."""
    defaults: dict[str, Any] = {
        "iterations": iterations,
        "lr": 0.1,
        "partition": by_slot(job.dataset.classes, job.ipc, job.dataset.classes),
        "start": lambda batch, slots: noise(job, batch, slots),
        "views": lambda batch, images: RandomViews(job, batch, images, iterations),
        "critics": [plain_critic(t) for t in job.teachers],
    }
    return Composition(**(defaults | changes))


def memory_views(job: Job, iterations: int, **changes: Any) -> Callable[[int, int], MemoryViews]:
    settings: dict[str, Any] = {"explore": 6, "threshold": 1.2, "crop": (0.5, 1.0), "flips": True} | changes
    return lambda batch, images: MemoryViews(job, batch, images, iterations, **settings)
