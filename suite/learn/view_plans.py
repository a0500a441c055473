"""View plans: every random choice that turns distilled images into one training batch, as plain numbers.

A plan is drawn from a seeded CPU generator, or read back from a stored label stream; rendering it is deterministic.
That is why a student needs one loop for hard, online and stored labels, and why a stored view can be replayed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch

from suite.learn import augmentation, dsa, views
from suite.learn.job import generator
from suite.learn.models import normalise
from suite.spec.datasets import Dataset
from suite.spec.recipes import WHOLE, RelabelRecipe, StudentRecipe

#: Aspect ratios of RandomResizedCrop, as torchvision and every paper here use them.
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class CutMix:
    """One CutMix of a batch.

    Attributes:
        lam: The lambda that was drawn; the box, not lambda, says how much was pasted.
        perm: int64 [B]; image b receives the box of image perm[b].
        box: Rows x1:x2 and columns y1:y2 as (x1, y1, x2, y2), clipped to the image.
    """

    lam: float
    perm: torch.Tensor
    box: views.Box

    def share(self, size: int) -> float:
        """The share of the area that was pasted."""
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1) / (size * size)


@dataclass(frozen=True)
class ViewPlan:
    """The choices of one batch of B images, on the CPU.

    Attributes:
        index: int64 [B], which distilled images.
        shuffle: Column and row orders of RDED's patch shuffle, int64 [B, f] each.
        offsets: int64 [B, 2], top and left corner of a crop out of the zero-padded image.
        pad: Padding that `offsets` refer to.
        boxes: int64 [B, 4] (top, left, height, width) of resized crops.
        flips: bool [B].
        cutmix: One CutMix, or None.
        position: First row of this batch in a label stream; None for views that are drawn.
        operations: Operations of RandAugment, on the uint8 images.
        dsa: One operation of differentiable siamese augmentation, on the normalised views.
    """

    index: torch.Tensor
    shuffle: tuple[torch.Tensor, torch.Tensor] | None = None
    offsets: torch.Tensor | None = None
    pad: int = 0
    boxes: torch.Tensor | None = None
    flips: torch.Tensor | None = None
    cutmix: CutMix | None = None
    position: int | None = None
    operations: augmentation.RandomOperations | None = None
    dsa: dsa.Draws | None = None


def parts(images: int, count: int) -> list[slice]:
    """Cut a batch into parts whose sizes differ by one image at most, smaller ones first; none is empty.

    A student with `accumulate` 2 forwards a batch as its first B // 2 images and the rest, which are the halves of
    CV-DD's labels: teachers that normalise by the batch must cut it in the same way.

    Args:
        images: Images of the batch.
        count: Parts, at least 1.
    """
    edges = [images * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if a < b]


class Planner(Protocol):
    """Something that knows the plan of every batch of every epoch, in any order."""

    @property
    def batches(self) -> int:
        """Batches an epoch."""

    def plan(self, epoch: int, batch: int) -> ViewPlan:
        """The plan of one batch."""


class DrawnViews:
    """Plans drawn from a seed: each epoch a permutation of all images, each batch its own stream of draws.

    Args:
        recipe: Batch size (capped at the number of images), crop, padding, flip, CutMix, patch shuffle and
            augmentation. With `dsa`, flips are one of its operations, and none is drawn beside them.
        images: Number of distilled images N.
        size: Their side S in pixels.
        seed: Of the student or of the relabelling.
    """

    def __init__(self, recipe: StudentRecipe | RelabelRecipe, images: int, size: int, seed: int) -> None:
        self.images, self.size, self.seed = images, size, seed
        self.batch = min(recipe.batch, images)
        self.crop, self.flip, self.cutmix = recipe.crop, recipe.flip, recipe.cutmix
        self.pad = recipe.pad if isinstance(recipe, StudentRecipe) else 0
        self.factor = recipe.patch_shuffle if isinstance(recipe, StudentRecipe) else 1
        self.augment = recipe.augment if isinstance(recipe, StudentRecipe) else "none"
        self.magnitude = recipe.magnitude if isinstance(recipe, StudentRecipe) else 0.0
        # Digits that are mirrored are others: a recipe without flips has none among the operations either.
        self.strategy = dsa.STRATEGY if self.flip else dsa.STRATEGY.replace("_flip", "")
        self._order: tuple[int, torch.Tensor] | None = None

    @property
    def batches(self) -> int:
        """Batches an epoch; the last one may be smaller and is kept."""
        return -(-self.images // self.batch)

    def facts(self) -> dict[str, Any]:
        """What these views are drawn from, by the names of a recipe."""
        return {
            "images": self.images,
            "size": self.size,
            "batch": self.batch,
            "crop": tuple(self.crop),
            "pad": self.pad,
            "flip": self.flip,
            "cutmix": self.cutmix,
            "patch_shuffle": self.factor,
            "augment": self.augment,
        }

    def order(self, epoch: int) -> torch.Tensor:
        """The order of the images in an epoch, int64 [N]."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(self.images, generator=generator(self.seed, "order", epoch))
        return self._order[1]

    def plan(self, epoch: int, batch: int) -> ViewPlan:
        """Draw the plan of one batch."""
        index = self.order(epoch)[batch * self.batch : (batch + 1) * self.batch]
        draws, n = generator(self.seed, "views", epoch, batch), len(index)
        shuffle = offsets = boxes = flips = mix = None
        if self.factor > 1:
            shuffle = (
                torch.rand(n, self.factor, generator=draws).argsort(1),
                torch.rand(n, self.factor, generator=draws).argsort(1),
            )
        if self.pad:
            offsets = torch.randint(0, 2 * self.pad + 1, (n, 2), generator=draws)
        elif self.crop != WHOLE:
            boxes = views.rrc_boxes(n, self.size, self.size, area=self.crop, ratio=RATIO, generator=draws)
        if self.flip and self.augment != "dsa":
            flips = torch.rand(n, generator=draws) < 0.5
        if self.cutmix:
            mix = CutMix(*views.draw_cutmix(n, self.size, draws))
        plan = ViewPlan(index, shuffle, offsets, self.pad, boxes, flips, mix)
        if self.augment == "randaugment":
            return replace(plan, operations=augmentation.draw(n, self.magnitude, draws))
        if self.augment == "dsa":
            return replace(plan, dsa=dsa.draw(self.strategy, n, self.size, self.size, draws))
        return plan


class Renderer:
    """Turns plans into batches on a device, where the distilled images stay as one uint8 tensor.

    Args:
        images: uint8 [N, 3, S, S].
        dataset: For the mean and standard deviation.
        device: Where to render.
    """

    def __init__(self, images: torch.Tensor, dataset: Dataset, device: torch.device) -> None:
        self.images, self.device = images.to(device), device
        self.size = images.shape[-1]
        self.mean, self.std = dataset.mean, dataset.std
        self.fill = tuple(round(255 * channel) for channel in dataset.mean)

    def to(self, tensor: torch.Tensor) -> torch.Tensor:
        """Move a small CPU tensor without waiting for the device."""
        return tensor.to(self.device, non_blocking=True)

    def __call__(self, plan: ViewPlan) -> torch.Tensor:
        """Render a plan: RandAugment, patch shuffle, padded or resized crop, flip, normalise, DSA, CutMix.

        Returns:
            float32 [B, 3, S, S], normalised.
        """
        images = self.images[self.to(plan.index)]
        if plan.operations is not None:
            images = augmentation.apply(images, plan.operations, self.fill)
        x = images.float().div_(255)
        if plan.shuffle is not None:
            columns, rows = plan.shuffle
            x = views.patch_shuffle(x, columns.shape[1], self.to(columns), self.to(rows))
        if plan.offsets is not None:
            x = views.pad_crop(x, plan.pad, self.to(plan.offsets))
        if plan.boxes is not None:
            x = views.crop_resize(x, self.to(plan.boxes), self.size)
        if plan.flips is not None:
            x = views.flip(x, self.to(plan.flips))
        x = normalise(x, self.mean, self.std)
        if plan.dsa is not None:
            x = dsa.apply(x, plan.dsa)
        if plan.cutmix is not None:
            x = views.cutmix(x, self.to(plan.cutmix.perm), plan.cutmix.box)
        return x
