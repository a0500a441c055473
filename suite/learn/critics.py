"""Teachers as critics: plain, with SRe2L's BatchNorm term, class by class, or with EDC's category-aware matching.

Every critic takes an `extra` term: a function of what was seen (`Seen`) that returns a scalar, differentiable with
respect to views, logits, features or statistics, and already weighted. If it has `reset(*batches)`, that is called
before the batches of these numbers; with `state()` and `restore(state)` it takes part in checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from suite.errors import DataError
from suite.learn.job import Job
from suite.learn.matchers import FeatureMatcher, bn_loss, class_bn_loss, joined
from suite.learn.statistics import ClassStatistics
from suite.learn.synthesis import Critic, Seen
from suite.learn.taps import BN, Taps
from suite.learn.teachers import Teacher

Term = Callable[[Seen], torch.Tensor]


def plain_critic(teacher: Teacher, extra: Term | None = None) -> Critic:
    """Cross-entropy alone, and perhaps an extra term."""
    return _critic(Taps(teacher.model, ()), None, extra)


def bn_critic(teacher: Teacher, weight: float, first: float, extra: Term | None = None) -> Critic:
    """Cross-entropy plus the distance of the batch's BatchNorm statistics from the running ones (SRe2L).

    Args:
        teacher: With BatchNorm layers, unless the weight is 0.
        weight: Of the BatchNorm term (r_bn).
        first: Multiplier of the first layer's term.
        extra: A further term, see this module.

    Raises:
        UserError: If the teacher has no BatchNorm layer.
    """
    if weight == 0:
        return plain_critic(teacher, extra)
    taps = Taps(teacher.model, (BN,))
    running = joined(taps.running)
    return _critic(taps, lambda seen: weight * bn_loss(seen.stats, running, first), extra)


def class_bn_critic(
    teacher: Teacher, statistics: ClassStatistics, weight: float, first: float, extra: Term | None = None
) -> Critic:
    """Cross-entropy plus BatchNorm statistics of each class's views against the class's (WMDD, LPLD): `class_bn_loss`.

    Args:
        teacher: With BatchNorm layers, unless the weight is 0.
        statistics: Of this teacher, with moments of classes.
        weight: Of the BatchNorm term.
        first: Multiplier of the first layer's term.
        extra: A further term, see this module.

    Raises:
        DataError: If the statistics have no moments of classes, or those of other layers.
        UserError: If the teacher has no BatchNorm layer.
    """
    if weight == 0:
        return plain_critic(teacher, extra)
    taps = Taps(teacher.model, (BN,), per_image=True)
    moments = statistics.class_moments
    names = [layer.name for layer in statistics.layers if layer.kind == BN]
    if names != taps.names:
        raise DataError("the statistics are not those of the teacher's layers", hint="run the `statistics` stage again")
    targets = joined(moments).to(taps.running[0][0].device)
    return _critic(
        taps,
        lambda seen: weight * class_bn_loss(seen.stats, seen.labels, targets, first, seen.groups),
        extra,
    )


def feature_critics(
    job: Job,
    weight: float,
    first: float,
    ema: float,
    reference_quirks: bool = False,
    class_weight: float = 0.5,
    drop_rate: float = 0.0,
    extra: Term | None = None,
) -> list[Critic]:
    """Cross-entropy plus matching of BatchNorm and convolution inputs, a critic for each of the job's teachers.

    Args:
        job: With one statistics for each teacher.
        weight: Of the matching term.
        first: Multiplier of the first tapped layer's term.
        ema: Weight of the past in the average of the matched statistics.
        reference_quirks: The average starts at zero, and class-wise patch means and variances are exchanged.
        class_weight: Share of the class-wise targets; the global ones have the rest (EDC and E2D: one half each;
            G-VBSM: 0).
        drop_rate: Probability with which a convolution is left out of an iteration (G-VBSM).
        extra: A further term, see this module; all critics share it.

    Raises:
        DataError: If teachers and statistics do not pair up.
        UserError: If statistics and a teacher's layers differ.
    """
    if len(job.teachers) != len(job.statistics):
        raise DataError(f"{len(job.teachers)} teachers have {len(job.statistics)} statistics", where=job.dataset.name)
    critics = []
    for number, (teacher, statistics) in enumerate(zip(job.teachers, job.statistics, strict=True)):
        matcher = FeatureMatcher(
            statistics,
            ema=ema,
            clean_init=not reference_quirks,
            swap_class_patch=reference_quirks,
            global_weight=1 - class_weight,
            class_weight=class_weight,
            first=first,
            weight=weight,
            drop_rate=drop_rate,
            draws=partial(job.generator, "drops", number),
            device=job.device,
        )
        taps = Taps(teacher.model, statistics.kinds, statistics.patch)
        critics.append(_critic(taps, _matched(matcher), extra, matcher))
    return critics


def _matched(matcher: FeatureMatcher) -> Term:
    return lambda seen: matcher(seen.stats, seen.labels)


def _critic(taps: Taps, matching: Term | None, extra: Term | None, *parts: Any) -> Critic:
    """Put a matching term and an extra one together; `parts` and the extra term may have a state."""
    terms: list[Term] = [] if matching is None else [matching]
    if extra is not None:
        terms.append(_by_group(extra))
        parts += (extra,)

    def reset(*batches: int) -> None:
        for part in parts:
            getattr(part, "reset", _nothing)(*batches)

    def state() -> list[Any]:
        return [getattr(part, "state", _nothing)() for part in parts]

    def restore(states: list[Any]) -> None:
        for part, saved in zip(parts, states, strict=True):
            getattr(part, "restore", _nothing)(saved)

    both: Term | None = None
    if terms:
        both = terms[0] if len(terms) == 1 else lambda seen: terms[0](seen) + terms[1](seen)
    return Critic(taps, both, reset=reset, state=state, restore=restore)


def _by_group(extra: Term) -> Term:
    """The sum of a term over independent image batches."""

    def term(seen: Seen) -> torch.Tensor:
        total, *others = (extra(part) for part in seen.split())
        for other in others:
            total = total + other
        return total

    return term


def _nothing(*anything: object) -> None:
    return None
