"""Herding: real images whose mean feature follows that of their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from suite.methods import method
from suite.methods.random import Random

if TYPE_CHECKING:
    import torch

    from suite.learn.job import Job


@method(name="herding", paper="baseline", version=1, needs=("real", "teacher"), labels="hard")
@dataclass(frozen=True)
class Herding(Random):
    """Welling, ICML 2009, as iCaRL selects exemplars (Rebuffi et al., CVPR 2017, arXiv:1611.07725, algorithm 4).

    Greedy: the next image is the one that brings the mean feature of those chosen closest to the mean of the class;
    none is chosen twice. Features are the inputs of the first teacher's last linear layer, on whole images. Nothing is
    drawn: the seed changes nothing. Students learn as those of `random`.

    Attributes:
        normalise: Scale every feature vector to length one first, as iCaRL does; other selections use them as they are.
    """

    normalise: bool = False

    deterministic: ClassVar[bool] = True

    def choose(self, job: Job) -> list[torch.Tensor]:
        """Herd every class."""
        import torch.nn.functional as F

        from suite.learn.features import class_features

        return [
            members[herd(F.normalize(features) if self.normalise else features, job.ipc)]
            for members, features in class_features(job)
        ]


def herd(features: torch.Tensor, n: int) -> torch.Tensor:
    """Choose n vectors whose running mean follows the mean of all; of equals the first.

    Args:
        features: float [N, D].
        n: At most N.

    Returns:
        int64 [n], in the order of choice; a longer choice starts with a shorter one.
    """
    import torch

    x = features.double()
    mean, total, squares = x.mean(0), torch.zeros_like(x[0]), x.square().sum(1)
    free = torch.zeros_like(squares)  # infinite where taken
    chosen = torch.empty(n, dtype=torch.int64, device=x.device)
    for k in range(n):
        # |(k + 1) mean - (total + x)|^2 without what all candidates share
        chosen[k] = (squares - 2 * x @ ((k + 1) * mean - total) + free).argmin()
        total, free[chosen[k]] = total + x[chosen[k]], torch.inf
    return chosen
