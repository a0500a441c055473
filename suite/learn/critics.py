"""Teachers as critics: plain, with SRe2L's BatchNorm term, or with EDC's soft category-aware matching."""

from __future__ import annotations

from suite.errors import DataError
from suite.learn.job import Job
from suite.learn.matchers import FeatureMatcher, bn_loss
from suite.learn.synthesis import Critic
from suite.learn.taps import Taps
from suite.learn.teachers import Teacher


def plain_critic(teacher: Teacher) -> Critic:
    """Cross-entropy alone."""
    return Critic(lambda x: (teacher(x), ()))


def bn_critic(teacher: Teacher, weight: float, first: float) -> Critic:
    """Cross-entropy plus the distance of the batch's BatchNorm statistics from the running ones (SRe2L).

    Args:
        teacher: With BatchNorm layers, unless the weight is 0.
        weight: Of the BatchNorm term (r_bn).
        first: Multiplier of the first layer's term.

    Raises:
        UserError: If the teacher has no BatchNorm layer.
    """
    if weight == 0:
        return plain_critic(teacher)
    taps = Taps(teacher.model, ("bn",))
    running = taps.running
    return Critic(taps, lambda seen: bn_loss(seen.stats, running, first), weight, close=taps.close)


def feature_critics(
    job: Job, weight: float, first: float, ema: float, reference_quirks: bool = False, class_weight: float = 0.5
) -> list[Critic]:
    """Cross-entropy plus matching of BatchNorm and convolution inputs, a critic for each of the job's teachers.

    Args:
        job: With one statistics for each teacher.
        weight: Of the matching term.
        first: Multiplier of the first tapped layer's term.
        ema: Weight of the past in the average of the matched statistics.
        reference_quirks: The average starts at zero, and class-wise patch means and variances are exchanged.
        class_weight: Share of the class-wise targets; the global ones have the rest (EDC and E2D: one half each).

    Raises:
        DataError: If teachers and statistics do not pair up.
        UserError: If statistics and a teacher's layers differ.
    """
    if len(job.teachers) != len(job.statistics):
        raise DataError(f"{len(job.teachers)} teachers have {len(job.statistics)} statistics", where=job.dataset.name)
    critics = []
    for teacher, statistics in zip(job.teachers, job.statistics, strict=True):
        matcher = FeatureMatcher(
            statistics,
            ema=ema,
            clean_init=not reference_quirks,
            swap_class_patch=reference_quirks,
            global_weight=1 - class_weight,
            class_weight=class_weight,
            first=first,
            device=job.device,
        )
        taps = Taps(teacher.model, statistics.kinds, statistics.patch)
        critics.append(_matched(taps, matcher, weight))
    return critics


def _matched(taps: Taps, matcher: FeatureMatcher, weight: float) -> Critic:
    return Critic(taps, lambda seen: matcher(seen.stats, seen.labels), weight, matcher.reset, taps.close)
