"""SRe2L's recovery (arXiv:2306.13092, section 3.2) as one part, shared by the methods that change parts of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol

import torch

from suite.data.distilled import DistilledSet
from suite.learn import synthesis
from suite.learn.critics import bn_critic
from suite.learn.early_late import Rounds
from suite.learn.initial import noise
from suite.learn.job import Job
from suite.learn.synthesis import Composition, Critic, by_slot
from suite.learn.view_policies import Area, RandomViews

Shape = Literal["step", "linear", "cosine"]


class Recovery(Protocol):
    """The fields of a method that `recover` reads; `SRe2L` says what they mean."""

    @property
    def iterations(self) -> int:
        """T."""
        ...

    @property
    def lr(self) -> float:
        """Initial learning rate."""
        ...

    @property
    def bn_weight(self) -> float:
        """Weight of the BatchNorm term."""
        ...

    @property
    def first(self) -> float:
        """Multiplier of the first layer's term."""
        ...

    @property
    def batch(self) -> int:
        """Images a batch."""
        ...

    @property
    def crop(self) -> tuple[float, float]:
        """Area range of the crops."""
        ...

    @property
    def flip(self) -> bool:
        """Whether views are flipped."""
        ...

    @property
    def roll(self) -> tuple[int, int]:
        """Range of the circular shift."""
        ...


def smallest_area(t: int, iterations: int, crop: Area, milestone: float, shape: Shape) -> float:
    """CDA's lower bound of the crop area at iteration t (arXiv:2311.18838, section 3).

    It falls from the upper bound of `crop` to its lower one over the first `milestone * iterations` iterations: at once
    at their end (`step`), or along a line or half a cosine. It stays there.
    """
    low, high = crop
    end = milestone * iterations
    if t >= end:
        return low
    left = {"step": 1.0, "linear": 1 - t / end, "cosine": (1 + math.cos(math.pi * t / end)) / 2}[shape]
    return low + (high - low) * left


def shrinking(crop: Area, milestone: float, shape: Shape, iterations: int) -> Area | Callable[[int], Area]:
    """The area range of CDA's crops as a function of the iteration; `crop` itself without a curriculum."""
    if milestone == 0:
        return crop
    return lambda t: (smallest_area(t, iterations, crop, milestone, shape), crop[1])


def recover(
    job: Job,
    method: Recovery,
    *,
    start: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    crop: Area | Callable[[int], Area] | None = None,
    select: Callable[[int, int], Sequence[tuple[int, float]]] | None = None,
    partition: Sequence[torch.Tensor] | None = None,
    critics: Sequence[Critic] | None = None,
    rounds: Rounds | None = None,
    pixels: bool = False,
) -> DistilledSet:
    """Optimise batches from noise: cross-entropy plus BatchNorm statistics, on views that a batch shares.

    Args:
        job: The synthesis.
        method: Its hyper-parameters.
        start: As in `Composition`; standard normal noise by default.
        crop: Area range of the views, or a function of the iteration; the method's by default.
        select: As in `Composition`, among all of the job's teachers; by default the first one alone.
        partition: As in `Composition`; one image a class by default.
        critics: As in `Composition`; the teachers with their running BatchNorm statistics by default.
        rounds: Which images of every batch take part when; by default all of them for `method.iterations`.
        pixels: Optimise in [0, 1] and normalise the views.
    """
    iterations = method.iterations if rounds is None else rounds.iterations
    teachers = job.teachers if select else job.teachers[:1]
    return synthesis.distill(
        job,
        Composition(
            iterations=iterations,
            lr=method.lr,
            partition=by_slot(job.dataset.classes, job.ipc, method.batch) if partition is None else partition,
            start=start or partial(noise, job),
            views=lambda batch, images: RandomViews(
                job,
                batch,
                images,
                iterations,
                crop=crop or method.crop,
                flips=method.flip,
                shift=method.roll,
            ),
            critics=critics or [bn_critic(teacher, method.bn_weight, method.first) for teacher in teachers],
            select=select or (lambda counter, batch: [(0, 1.0)]),
            active=rounds.on(job.device) if rounds else (lambda t: None),
            pixels=pixels,
        ),
    )
