"""How much alike the images of a class are: the measure that DELT reports (arXiv:2411.19946, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from suite.data.distilled import DistilledSet
from suite.errors import DataError
from suite.learn.features import image_features
from suite.learn.teachers import Teacher


def class_similarities(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cosine similarity over all unordered pairs of images of every class.

    With unit features u, the sum over ordered pairs of different images is |sum u|^2 - n.

    Args:
        features: float [N, D]; a feature of zeros counts as similar to nothing.
        labels: int64 [N]; classes are 0, 1, ...

    Returns:
        float64 [C], in [-1, 1].

    Raises:
        DataError: If a class has fewer than two images.
    """
    counts = torch.bincount(labels)
    if bool((counts < 2).any()):
        few = torch.nonzero(counts < 2).flatten().tolist()[:5]
        raise DataError(f"classes without a pair of images: {few}", hint="similarity within a class needs IPC 2")
    unit = F.normalize(features.double(), dim=1)
    sums = torch.zeros(len(counts), unit.shape[1], dtype=unit.dtype).index_add_(0, labels, unit)
    own = torch.zeros(len(counts), dtype=unit.dtype).index_add_(0, labels, (unit**2).sum(1))
    similar = ((sums**2).sum(1) - own) / (counts * (counts - 1))
    return similar.clamp(-1, 1)


def similarity(teacher: Teacher, distilled: DistilledSet) -> float:
    """Mean over the classes of the similarity of a network's penultimate features; lower is more diverse.

    Args:
        teacher: The network; its device computes.
        distilled: The images, as they are.

    Raises:
        DataError: If a class has fewer than two images.
        UserError: If the network has no linear layer.
    """
    features, _ = image_features(teacher, distilled.images)
    return float(class_similarities(features, distilled.labels).mean())
