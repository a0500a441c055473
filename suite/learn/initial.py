"""What a synthesis starts from: real images chosen by the seed, or noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from suite.data.distilled import DistilledSet
from suite.errors import DataError, NumericError
from suite.learn.job import Job
from suite.learn.models import normalise
from suite.learn.validation import autocast, centre
from suite.learn.views import flip

if TYPE_CHECKING:
    from suite.data.loader import RealImages

#: Which images a ranking by difficulty puts first.
Criterion = Literal["medium", "top", "min"]
#: Images a forward pass of the ranking teacher; scores do not depend on it.
SCORED = 500


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


def rank(scores: torch.Tensor, criterion: Criterion, wanted: int) -> torch.Tensor:
    """Positions of scored images in the order of a criterion (DELT, section 3).

    `top`: highest score first; `min`: lowest first; `medium`: in ascending order the one at m = ceil(n / 2), then
    m + 1, m - 1, m + 2, m - 2 and so on. Where one side ends the other goes on; the reference fails there.

    Args:
        scores: float [n], e.g. probabilities of the true class.
        criterion: One of the three.
        wanted: How many.

    Returns:
        int64 [wanted]; equal scores stay in their order.

    Raises:
        DataError: If there are fewer than wanted.
    """
    n = len(scores)
    if wanted > n:
        raise DataError(f"{n} images are ranked, {wanted} are wanted")
    ascending = scores.argsort(stable=True)
    if criterion == "min":
        return ascending[:wanted]
    if criterion == "top":
        return scores.argsort(descending=True, stable=True)[:wanted]
    middle = -(-n // 2)
    outward = sorted(range(n), key=lambda i: (abs(i - middle), i < middle))
    return ascending[torch.tensor(outward[:wanted])]


def true_class_scores(job: Job, members: torch.Tensor, c: int) -> torch.Tensor:
    """Log-probabilities of class c that the first teacher gives to training images of it, float32 [n] on the CPU.

    Raises:
        NumericError: If one is NaN or Inf.
    """
    facts, teacher, found = job.dataset, job.teachers[0], []
    for part in members.split(SCORED):
        x = centre(real_images(job).take(part), facts.size).to(job.device)
        with torch.no_grad(), autocast(job.precision, job.device):
            logits = teacher(normalise(x, facts.mean, facts.std))
        found.append(logits.float().log_softmax(1)[:, c])
        job.counters.forward_images += len(part)
    scores = torch.cat(found).cpu()
    if not bool(scores.isfinite().all()):
        raise NumericError(f"the teacher's probabilities are not finite on class {c}", where=teacher.arch)
    return scores


class RankedStart:
    """Starts of real images that a teacher finds easy, hard or in between (DELT, section 3); rank 0 is slot 0.

    All training images of a class are ranked by the probability of their class on the centre of the prepared square.
    The reference enlarges 64-pixel images by an eighth first; here they are taken whole, as at validation.

    Args:
        job: With real images and a teacher; of several teachers the first ranks.
        criterion: See `rank`.
        classes: Those that are started; all by default.
    """

    def __init__(self, job: Job, criterion: Criterion, classes: Sequence[int] | None = None) -> None:
        self.job, members = job, per_class(job)
        self.chosen = torch.zeros(job.dataset.classes, job.ipc, dtype=torch.int64)
        for c in range(job.dataset.classes) if classes is None else classes:
            if len(members[c]) < job.ipc:
                raise DataError(f"class {c} has {len(members[c])} images, {job.ipc} are wanted", where=job.dataset.name)
            self.chosen[c] = members[c][rank(true_class_scores(job, members[c], c), criterion, job.ipc)]
        self.chosen = self.chosen.flatten()

    def __call__(self, batch: int, slots: torch.Tensor) -> torch.Tensor:
        """The start of some slots, normalised float32 [len(slots), 3, S, S] on the job's device."""
        facts = self.job.dataset
        images = centre(real_images(self.job).take(self.chosen[slots]), facts.size)
        return normalise(images.to(self.job.device), facts.mean, facts.std)


def to_distilled(job: Job, images: torch.Tensor) -> DistilledSet:
    """Class-major uint8 images [C*IPC, 3, S, S], or those of a job's share alone, as the set that a synthesis returns.

    What is not in the share is black.
    """
    slots, whole = job.share.slots, job.dataset.classes * job.ipc
    if slots is not None and len(images) == len(slots) < whole:
        own, images = images, torch.zeros(whole, *images.shape[1:], dtype=images.dtype)
        images[slots] = own.cpu()
    labels = torch.arange(job.dataset.classes).repeat_interleave(job.ipc)
    return DistilledSet(images.cpu().contiguous(), labels).check(job.dataset.classes, job.ipc, job.dataset.size)
