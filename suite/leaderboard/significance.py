"""Which differences between methods are more than chance: a t-test between neighbours in rank order, and shared ranks.

Methods of one contest are put in order of their means. The first opens rank 1. Each further one is tested against the
best of the rank above it: if the test separates them at `ALPHA`, it opens the rank of its place (1 + methods above it),
else it shares. So every method of a rank is one that the data cannot tell from the best of that rank, and a chain of
small steps does not make a large one a tie.

The test is Welch's (two-sided, unequal variances). A single seed has no variance: its own is then taken to be the
other's, which is Student's pooled test. Two single seeds are never separated. Levels are not corrected for the number
of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from scipy.special import stdtr

#: Level of the test between neighbours.
ALPHA = 0.05
#: (mean, standard deviation with n - 1 or None for one value, n)
Sample = tuple[float, float | None, int]


def separation(a: Sample, b: Sample) -> float | None:
    """Two-sided p-value of the difference of two means (Welch, 1947; Student's where one sample has one value).

    Returns:
        The p-value; None where two single values leave it unknown. Samples without spread differ surely or not at all.
    """
    (mean_a, sd_a, n_a), (mean_b, sd_b, n_b) = a, b
    if sd_a is None and sd_b is None:
        return None
    if sd_a is None or sd_b is None:
        sd_a = sd_b = sd_b if sd_a is None else sd_a
    assert sd_a is not None and sd_b is not None
    error = math.hypot(sd_a / math.sqrt(n_a), sd_b / math.sqrt(n_b))
    if error == 0:
        return 1.0 if mean_a == mean_b else 0.0
    if min(n_a, n_b) == 1:
        freedom: float = n_a + n_b - 2
    else:
        share = (sd_a / math.sqrt(n_a) / error) ** 2
        freedom = 1 / (share**2 / (n_a - 1) + (1 - share) ** 2 / (n_b - 1))
    return float(2 * stdtr(freedom, -abs(mean_a - mean_b) / error))


def ranks(
    means: Sequence[float], sds: Iterable[float | None], ns: Iterable[int], alpha: float = ALPHA
) -> list[tuple[int, float | None]]:
    """Ranks of methods that are sorted by falling mean, with the p-value of the test that decided each.

    Args:
        means: Falling.
        sds: Standard deviations (n - 1); None for one seed.
        ns: Seeds.
        alpha: Level of the test.

    Returns:
        (rank, p) of each; p is None for the first and where nothing could be tested.
    """
    found: list[tuple[int, float | None]] = []
    leader: Sample | None = None
    for place, one in enumerate(zip(means, sds, ns, strict=True), 1):
        p = None if leader is None else separation(leader, one)
        if leader is None or (p is not None and p < alpha):
            leader, rank = one, place
        else:
            rank = found[-1][0]
        found.append((rank, p))
    return found
