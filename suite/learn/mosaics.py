"""RDED's mosaics (arXiv:2312.03526, section 4): crops with antialiasing, selection by cross-entropy, tiling.

`Mosaics` makes them for a synthesis, class by class; RDED keeps them as they are, EDC starts from them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from suite.errors import NumericError, UserError
from suite.learn.initial import pick_per_class, real_images
from suite.learn.job import Job
from suite.learn.models import denormalise, normalise
from suite.learn.validation import autocast
from suite.learn.views import flip, rrc_boxes

#: Crops a teacher forward; scores do not depend on it.
SCORED = 500


def antialiased_crops(x: torch.Tensor, boxes: torch.Tensor, out: int) -> torch.Tensor:
    """Crop boxes and resize them to squares, bilinear with antialiasing, as torchvision's `resized_crop` does.

    Both directions are matrix products with triangle filters, so that boxes of all sizes go through at once.

    Args:
        x: float [N, C, H, W].
        boxes: int64 [N, 4] as (top, left, height, width), inside the image.
        out: Side of the results.

    Returns:
        float [N, C, out, out].
    """
    top, left, height, width = boxes.unbind(1)
    rows = _triangle(top, height, x.shape[2], out, x.dtype)
    columns = _triangle(left, width, x.shape[3], out, x.dtype)
    return rows[:, None] @ x @ columns[:, None].transpose(2, 3)


def _triangle(start: torch.Tensor, length: torch.Tensor, side: int, out: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights [N, out, side] that resize the segment [start, start + length) to `out` points."""
    scale = (length.to(dtype) / out)[:, None, None]
    centres = start[:, None, None] + (torch.arange(out, device=start.device)[None, :, None] + 0.5) * scale
    pixels = torch.arange(side, device=start.device)[None, None, :]
    weights = (1 - (pixels + 0.5 - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    inside = (pixels >= start[:, None, None]) & (pixels < (start + length)[:, None, None])
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)


def zero_pad(x: torch.Tensor, size: int) -> torch.Tensor:
    """Centre [N, 3, s, s] on zeros of side `size`: mean grey, in normalised space."""
    before = (size - x.shape[-1]) // 2
    after = size - x.shape[-1] - before
    return F.pad(x, (before, after, before, after))


def select_crops(ce: torch.Tensor, wanted: int) -> torch.Tensor:
    """The crops with the smallest cross-entropy, one of each image as long as there are enough images.

    With fewer images than wanted crops, the best ceil(wanted / images) crops of each image compete (DELT's extension of
    the selector, which is undefined there).

    Args:
        ce: float [images, crops].
        wanted: How many to pick.

    Returns:
        int64 [wanted, 2] as (image, crop), cross-entropy ascending.

    Raises:
        UserError: If there are fewer crops than wanted.
    """
    images, crops = ce.shape
    each = -(-wanted // images)
    if each > crops:
        raise UserError(
            f"{wanted} crops are wanted, {images} images give {images * crops}", hint="raise `crops` or `candidates`"
        )
    best, which = ce.sort(dim=1, stable=True)
    order = best[:, :each].flatten().argsort(stable=True)[:wanted]
    image = torch.div(order, each, rounding_mode="floor")
    return torch.stack([image, which[image, order % each]], dim=1)


def mosaic(crops: torch.Tensor, factor: int, size: int) -> torch.Tensor:
    """Tile ranked crops: cell k (row-major) of image j is the crop of rank `k * images + j`.

    Every image so mixes one crop of each quality level. Where `size` is no multiple of `factor`, the first rows and
    columns of cells are one pixel larger, and crops are resized to them by nearest neighbour.

    Args:
        crops: [images * factor**2, 3, s, s] in rank order.
        factor: Cells a side.
        size: Side of the results.

    Returns:
        [images, 3, size, size].
    """
    images = len(crops) // factor**2
    sides = [size // factor + (i < size % factor) for i in range(factor)]
    bands = []
    for row, height in enumerate(sides):
        first = row * factor
        cells = [
            F.interpolate(crops[(first + column) * images : (first + column + 1) * images], (height, width))
            for column, width in enumerate(sides)
        ]
        bands.append(torch.cat(cells, dim=3))
    return torch.cat(bands, dim=2)


class Mosaics:
    """The mosaics of a synthesis. Those of a class depend on the seed and the class only.

    Of several teachers the first scores; its work is counted in `job.counters`.

    Args:
        job: With real images and a teacher.
        candidates: Real images of a class that are looked at; all of them where a class has fewer.
        crops: Random crops of each candidate.
        factor: Cells along a side.
        area: Area range of the crops; their aspect ratio is 1.
    """

    def __init__(self, job: Job, candidates: int, crops: int, factor: int, area: tuple[float, float]) -> None:
        self.job, self.crops, self.factor, self.area = job, crops, factor, area
        self.members = pick_per_class(job, "candidates", candidates, fewer=True)

    def of_class(self, c: int) -> torch.Tensor:
        """The mosaics of class c, uint8 [IPC, 3, S, S] on the CPU, the most confident crops first.

        Raises:
            UserError: If the candidates have too few crops.
            NumericError: If the teacher gives logits that are not finite.
        """
        facts, wanted = self.job.dataset, self.job.ipc * self.factor**2
        crops, ce = self.scored(c, kept=min(self.crops, -(-wanted // len(self.members[c]))))
        picked = select_crops(ce, wanted)
        tiled = mosaic(crops[picked[:, 0], picked[:, 1]], self.factor, facts.size)
        return denormalise(tiled, facts.mean, facts.std).cpu()

    def scored(self, c: int, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random crops of a class's candidates and the teacher's cross-entropies.

        Returns:
            The `kept` best crops of each image, normalised float [n, kept, 3, S/f, S/f], and float [n, kept].
        """
        job, members = self.job, self.members[c]
        facts, real, teacher = job.dataset, real_images(job), job.teachers[0]
        side = facts.size // self.factor
        boxes = rrc_boxes(
            len(members) * self.crops,
            real.stored,
            real.stored,
            area=self.area,
            ratio=(1.0, 1.0),
            generator=job.generator("crops", c),
        ).view(len(members), self.crops, 4)
        best_crops, best_ce = [], []
        per_batch = max(1, SCORED // self.crops)
        for index, part in zip(members.split(per_batch), boxes.split(per_batch), strict=True):
            x = normalise(real.take(index).to(job.device), facts.mean, facts.std)
            x = x.repeat_interleave(self.crops, dim=0)
            crops = antialiased_crops(x, part.flatten(0, 1).to(job.device), side)
            with torch.no_grad(), autocast(job.precision, job.device):
                logits = teacher(zero_pad(crops, facts.size)).float()
            labels = torch.full((len(logits),), c, device=job.device)
            ce = F.cross_entropy(logits, labels, reduction="none").view(len(index), self.crops)
            ce, order = ce.sort(dim=1, stable=True)
            rows = torch.arange(len(index), device=job.device)[:, None]
            best_crops.append(crops.view(len(index), self.crops, *crops.shape[1:])[rows, order[:, :kept]])
            best_ce.append(ce[:, :kept])
            job.counters.forward_images += len(logits)
        ce = torch.cat(best_ce)
        if not bool(ce.isfinite().all()):
            raise NumericError(f"the teacher's cross-entropy is not finite on class {c}", where=teacher.arch)
        return torch.cat(best_crops), ce


class MosaicStart:
    """Starts of mosaics (EDC, section 3.3, which takes RDED's images). They are made when their class is started.

    Args:
        job: The synthesis.
        mosaics: Where they come from.
        flips: Flip each image with probability one half.
        replacement: Draw the mosaic of every slot independently, as EDC's reference does; then some serve twice and
            others never. Otherwise each one serves once.
    """

    def __init__(self, job: Job, mosaics: Mosaics, *, flips: bool, replacement: bool) -> None:
        self.job, self.mosaics, self.flips, self.replacement = job, mosaics, flips, replacement
        self._made: dict[int, torch.Tensor] = {}

    def __call__(self, batch: int, slots: torch.Tensor) -> torch.Tensor:
        """The start of some slots, normalised float32 [len(slots), 3, S, S] on the job's device."""
        job = self.job
        wanted = dict.fromkeys((slots // job.ipc).tolist())
        # A class that goes on in the next batch is kept, earlier ones are not: no second copy of the set.
        self._made = {c: self._made[c] if c in self._made else self._of_class(c) for c in wanted}
        images = torch.stack([self._made[s // job.ipc][s % job.ipc] for s in slots.tolist()])
        x = normalise(images.to(job.device), job.dataset.mean, job.dataset.std)
        if self.flips:
            draws = torch.rand(len(slots), generator=job.generator("start flips", batch))
            x = flip(x, (draws < 0.5).to(job.device))
        return x

    def _of_class(self, c: int) -> torch.Tensor:
        images = self.mosaics.of_class(c)
        if not self.replacement:
            return images
        draws = self.job.generator("mosaic start", c)
        return images[torch.randint(len(images), (len(images),), generator=draws)]
