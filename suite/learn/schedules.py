"""Learning-rate factors: what the initial learning rate is multiplied by as training goes on.

Papers change the rate once an epoch, so `done` and `total` are epochs there; budgets in steps count steps instead.
"""

from __future__ import annotations

from math import cos, pi
from typing import get_args

from suite.errors import UserError, did_you_mean
from suite.spec.recipes import Schedule

#: Height of the linear tail of `cos2`, extrapolated to progress 0.
_COS2_TAIL = (1 + cos(5 * pi / 12)) / 2


def factor(name: Schedule, done: float, total: float) -> float:
    """The factor after `done` of `total` epochs (or steps).

    `cosine` is SRe2L's, `cosine_half` that of RDED and DELT (it ends at one half), `linear_half` what EDC's trainer
    computes, and `cos2` E2D's: a half cosine up to and including 5/6 of training, then 0.6294 (1 - p).

    Args:
        name: One of `suite.spec.recipes.Schedule`.
        done: Epochs or steps before this one, in [0, total).
        total: Length of training in the same unit.

    Returns:
        A number in (0, 1].

    Raises:
        UserError: If the name is unknown.
    """
    p = done / total
    if name == "constant":
        return 1.0
    if name == "cosine":
        return (1 + cos(pi * p)) / 2
    if name == "cosine_half":
        return (1 + cos(pi * p / 2)) / 2
    if name == "linear":
        return 1 - p
    if name == "linear_half":
        return 1 - p / 2
    if name == "cos2":
        # The comparison is made on products, so that epoch 250 of 300 is still on the cosine.
        return (1 + cos(pi * p / 2)) / 2 if done * 6 <= total * 5 else _COS2_TAIL * (1 - p)
    raise UserError(f"unknown schedule {name!r}", hint=did_you_mean(name, get_args(Schedule)))


def factor_at(name: Schedule, progress: float) -> float:
    """The factor as a function of progress in [0, 1)."""
    return factor(name, progress, 1.0)


def warm_cosine(done: float, total: float, warmup: float, start: float = 0.01) -> float:
    """A linear warm-up from `start` followed by a cosine to zero over what is left; how teachers are trained.

    Args:
        done: Epochs before this step; fractions are allowed.
        total: All epochs.
        warmup: Epochs of warm-up; 0 for none.
        start: Factor of the first step of the warm-up.
    """
    if done < warmup:
        return start + (1 - start) * done / warmup
    return (1 + cos(pi * (done - warmup) / (total - warmup))) / 2
