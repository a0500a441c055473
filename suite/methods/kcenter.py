"""k-center: real images such that no feature of their class is far from all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from suite.methods import method
from suite.methods.random import Random

if TYPE_CHECKING:
    import torch

    from suite.learn.job import Job


@method(name="kcenter", paper="baseline", version=1, needs=("real", "teacher"), labels="hard")
@dataclass(frozen=True)
class KCenter(Random):
    """Sener and Savarese, ICLR 2018 (arXiv:1708.00489), algorithm 1: k-center-greedy, class by class.

    The next image is the one farthest from all that are chosen, which leaves a radius of at most twice the optimal one
    (theorem of Gonzalez, 1985). Features are the inputs of the first teacher's last linear layer, on whole images, and
    distances Euclidean. The paper starts from images that are labelled already; here there are none. Its robust variant
    (section 4.3, a mixed integer program that may leave outliers out) is not included. Students learn as those of
    `random`.

    Attributes:
        start: `random`: the first image is drawn by the seed; `mean`: it is the one closest to its class's mean, and
            the seed changes nothing.
    """

    start: Literal["random", "mean"] = "random"

    def choose(self, job: Job) -> list[torch.Tensor]:
        """Spread over every class."""
        import torch

        from suite.learn.features import class_features

        chosen = []
        for c, (members, features) in zip(job.classes(), class_features(job), strict=True):
            if self.start == "random":
                first = torch.randint(len(members), (), generator=job.generator("first centre", c))
            else:
                first = (features - features.mean(0)).square().sum(1).argmin()
            chosen.append(members[spread(features, job.ipc, int(first))[0]])
        return chosen


def spread(features: torch.Tensor, n: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose n vectors, each the farthest from those before it; of equals the first.

    Args:
        features: float [N, D].
        n: At most N.
        first: The first one.

    Returns:
        int64 [n] in the order of choice, and float64 [n]: the largest distance of any vector from the first k + 1.
    """
    import torch

    x = features.double()
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    chosen, radii = [torch.tensor(first, device=x.device)], []
    for _ in range(n):
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).norm(dim=1))
        nearest[chosen[-1]] = -1  # never again, also where others lie on the same spot
        radii.append(nearest.max().clamp(min=0))
        chosen.append(nearest.argmax())
    return torch.stack(chosen[:n]), torch.stack(radii)
