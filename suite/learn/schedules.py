"""Learning-rate factors: what the initial learning rate is multiplied by as training goes on.

Papers change the rate once an epoch, so `done` and `total` are epochs there; budgets in steps count steps instead, and
teachers fractions of epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from typing import get_args

from suite.errors import UserError, did_you_mean
from suite.spec.recipes import Schedule

#: Height of the linear tail of `cos2`, extrapolated to progress 0.
_COS2_TAIL = (1 + cos(5 * pi / 12)) / 2
#: Where a warm-up starts.
WARM = 0.01
_ROUNDING = 1e-9


def factor(
    name: Schedule,
    done: float,
    total: float,
    warmup: float = 0,
    milestones: Sequence[float] = (),
    gamma: float = 1.0,
) -> float:
    """The factor after `done` of `total` epochs (or steps; fractions are allowed).

    `cosine` is SRe2L's, `cosine_half` that of RDED and DELT (it ends at one half), `linear_half` what EDC's trainer
    computes, and `cos2` E2D's: a half cosine up to and including 5/6 of training, then 0.6294 (1 - p).

    Args:
        name: One of `suite.spec.recipes.Schedule`.
        done: Epochs or steps before this one, in [0, total).
        total: Length of training in the same unit.
        warmup: Length of a linear rise from 0.01 to 1 in the same unit; the schedule runs over what is left.
        milestones: For `step`: shares of what is left, in (0, 1], at which the factor drops.
        gamma: For `step`: what each drop multiplies by.

    Returns:
        A number in (0, 1].

    Raises:
        UserError: If the name is unknown.
    """
    if done < warmup:
        return WARM + (1 - WARM) * done / warmup
    done, total = done - warmup, total - warmup
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
    if name == "step":
        # A milestone such as 7 / 30 must fall on epoch 7 although the product with 30 is rounded.
        return float(gamma ** sum(done >= share * total - _ROUNDING * total for share in milestones))
    raise UserError(f"unknown schedule {name!r}", hint=did_you_mean(name, get_args(Schedule)))
