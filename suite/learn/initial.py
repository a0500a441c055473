"""What a synthesis starts from: real images chosen by the seed, or noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from suite.data.distilled import DistilledSet
from suite.errors import DataError
from suite.learn.job import Job
from suite.learn.models import normalise
from suite.learn.views import flip

if TYPE_CHECKING:
    from suite.data.loader import RealImages


def real_images(job: Job) -> RealImages:
    """The training split that the plan gave.

    Raises:
        DataError: If it gave none: the method does not declare that it needs `real`.
    """
    if job.real is None:
        raise DataError("this method reads real images, but the synthesis got none", hint='needs=("real", ...)')
    return job.real


def per_class(job: Job) -> list[torch.Tensor]:
    """Indices int64 of the training images of every class, in stored order.

    Raises:
        DataError: If a class of the dataset has no image.
    """
    labels = real_images(job).labels
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=job.dataset.classes)
    if len(counts) != job.dataset.classes or bool((counts == 0).any()):
        missing = torch.nonzero(counts == 0).flatten().tolist()[:5]
        raise DataError(
            f"labels do not cover {job.dataset.classes} classes (missing {missing})", where=job.dataset.name
        )
    return list(order.split(counts.tolist()))


def pick_per_class(
    job: Job, purpose: str, n: int, *, replacement: bool = False, fewer: bool = False
) -> list[torch.Tensor]:
    """Choose n training images of every class uniformly; a class's draw depends on the seed and the class only.

    Args:
        job: The synthesis.
        purpose: Name of the stream of draws.
        n: Images a class.
        replacement: Draw each one independently.
        fewer: Without replacement, take all images of classes that have fewer than n.

    Returns:
        For every class an int64 tensor of indices, in the order in which they were drawn.

    Raises:
        DataError: If a class has fewer than n images and neither option allows it.
    """
    chosen = []
    for c, members in enumerate(per_class(job)):
        draws = job.generator(purpose, c)
        if replacement:
            positions = torch.randint(len(members), (n,), generator=draws)
        else:
            positions = torch.randperm(len(members), generator=draws)[:n]
            if len(positions) < n and not fewer:
                raise DataError(f"class {c} has {len(members)} images, {n} are wanted", where=job.dataset.name)
        chosen.append(members[positions])
    return chosen


def noise(job: Job, batch: int, slots: torch.Tensor) -> torch.Tensor:
    """Standard normal pixels, float32 [len(slots), 3, S, S]."""
    size = job.dataset.size
    return torch.randn(len(slots), 3, size, size, generator=job.generator("noise", batch))


def squashed(images: torch.Tensor, size: int) -> torch.Tensor:
    """Whole uint8 [n, 3, R, R] images as float in [0, 1] at side `size`, bilinear with antialiasing."""
    x = images.float() / 255
    return x if x.shape[-1] == size else F.interpolate(x, (size, size), mode="bilinear", antialias=True)


class RealStart:
    """Starts of real images, drawn independently for every slot (E2D, section 3.1; EDC).

    The references squash whole images to squares; here the prepared squares, centres of the images, are resized.

    Args:
        job: The synthesis.
        flips: Flip each image with probability one half.
        pixels: Leave values in [0, 1] instead of normalising them.
    """

    def __init__(self, job: Job, *, flips: bool, pixels: bool = False) -> None:
        self.job, self.flips, self.pixels = job, flips, pixels
        self.chosen = torch.cat(pick_per_class(job, "real start", job.ipc, replacement=True))

    def __call__(self, batch: int, slots: torch.Tensor) -> torch.Tensor:
        """The start of some slots, float32 [len(slots), 3, S, S] on the job's device."""
        job = self.job
        x = squashed(real_images(job).take(self.chosen[slots]).to(job.device), job.dataset.size)
        if self.flips:
            draws = torch.rand(len(slots), generator=job.generator("start flips", batch))
            x = flip(x, (draws < 0.5).to(job.device))
        return x if self.pixels else normalise(x, job.dataset.mean, job.dataset.std)


def to_distilled(job: Job, images: torch.Tensor) -> DistilledSet:
    """Class-major uint8 images [C*IPC, 3, S, S] as the set that a synthesis returns."""
    labels = torch.arange(job.dataset.classes).repeat_interleave(job.ipc)
    return DistilledSet(images.cpu().contiguous(), labels).check(job.dataset.classes, job.ipc, job.dataset.size)
