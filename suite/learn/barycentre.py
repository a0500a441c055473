"""Wasserstein barycentres: a few equally weighted points that stand for a class's features (WMDD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from suite.errors import DataError, NumericError
from suite.learn.features import real_features
from suite.learn.initial import per_class
from suite.learn.job import Job

if TYPE_CHECKING:
    from suite.learn.synthesis import Seen

#: Pivots after which the network simplex gives up; classes of thousands of images need thousands.
_PIVOTS = 10_000_000


def optimal_plan(points: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The exact plan that carries equal masses at some points to equal masses at others at the least squared distance.

    Args:
        points: [k, D].
        features: [n, D].

    Returns:
        Masses float64 [k, n]: rows sum to 1/k, columns to 1/n. Where plans tie, one of them.

    Raises:
        NumericError: If the linear programme was not solved to its optimum.
    """
    import numpy as np
    import ot

    x, y = points.double().numpy(), features.double().numpy()
    k, n = len(x), len(y)
    plan, log = ot.emd(np.full(k, 1 / k), np.full(n, 1 / n), ot.dist(x, y), numItermax=_PIVOTS, log=True)
    if log["warning"]:
        raise NumericError(f"optimal transport between {k} and {n} points: {log['warning']}")
    return torch.from_numpy(np.ascontiguousarray(plan))


def barycentre(
    features: torch.Tensor, start: torch.Tensor, *, iterations: int = 100, tolerance: float = 1e-7
) -> torch.Tensor:
    """The W2 barycentre, on k free points of weight 1/k, of one class's features (WMDD, section 4).

    Of a single measure it is the best approximation by k equal masses, i.e. balanced k-means: each point moves to the
    mean of the mass that the optimal plan carries to it, until all rest. Their mean is that of the features;
    one point is that mean; as many points as features are the features in some order. It depends on the start.

    Args:
        features: [n, D], on the CPU.
        start: [k, D], the first points.
        iterations: Most moves.
        tolerance: Sum of squared displacements below which the points rest.

    Returns:
        float64 [k, D].

    Raises:
        DataError: If there are no features or no points, or their widths differ.
        NumericError: If an optimal plan cannot be found, e.g. since a feature is not finite.
    """
    if not len(features) or not len(start) or features.shape[1:] != start.shape[1:]:
        raise DataError(f"no barycentre of features {list(features.shape)} on points {list(start.shape)}")
    y, x = features.double(), start.double()
    if not bool(y.isfinite().all() & x.isfinite().all()):
        raise NumericError("features are not finite")
    for _ in range(iterations):
        moved = len(x) * optimal_plan(x, y) @ y
        displacement = (moved - x).square().sum()
        x = moved
        if displacement <= tolerance:
            break
    return x


def class_barycentres(job: Job, classes: Sequence[int] | None = None) -> torch.Tensor:
    """For every class the barycentre of its training images' penultimate features, on IPC points.

    The first teacher sees the images as at validation; they are counted in `forward_images`. Starts are standard
    normal, from a stream of their own for each class.

    Args:
        job: The synthesis.
        classes: Those whose points are wanted; all by default.

    Returns:
        float32 [classes * IPC, D], class-major, on the job's device; NaN where nothing was wanted.

    Raises:
        DataError: If there are no real images.
        NumericError: If features are not finite.
    """
    members = per_class(job)

    def of_class(c: int) -> torch.Tensor:
        features, _ = real_features(job, members[c])
        draws = job.generator("barycentre", c)
        return barycentre(features, torch.randn(job.ipc, features.shape[1], generator=draws, dtype=torch.float64))

    made = job.each_class(of_class, classes)
    width = next(iter(made.values())).shape[1] if made else 0
    points = torch.full((job.dataset.classes, job.ipc, width), torch.nan)
    for c, found in made.items():
        points[c] = found.float()
    return points.flatten(0, 1).to(job.device)


def barycentre_term(points: torch.Tensor, weight: float) -> Callable[[Seen], torch.Tensor]:
    """WMDD's feature term: the distance of a batch's penultimate features from the points of their slots.

    It is the Frobenius norm over the whole batch, neither squared nor averaged; zero, with gradient zero, where they
    agree.

    Args:
        points: [classes * IPC, D], class-major, on the device of the synthesis.
        weight: Multiplies the norm.
    """
    return lambda seen: weight * torch.linalg.vector_norm(seen.features - points[seen.slots])
