"""How a synthesis looks at its images: a box, a flip and a shift for every iteration, shared or one for each image.

All draws of a batch are made on the CPU before its first iteration, from streams that depend on the seed, the purpose
and the batch; they reach the device in one copy, so that no iteration waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from suite.learn.box_memory import BoxMemory
from suite.learn.job import Job
from suite.learn.views import crop_resize, flip, roll, rrc_boxes

Area = tuple[float, float]
#: Aspect ratios of RandomResizedCrop in every paper of the decoupled family.
RATIO = (3 / 4, 4 / 3)


class RandomViews:
    """Random crop, flip and circular shift.

    Args:
        job: The synthesis.
        batch: Number of the image batch; it names the streams of draws.
        images: Images of the batch.
        iterations: T.
        crop: Area range of RandomResizedCrop, or a function of the iteration; (1, 1) for none.
        flips: Flip with probability one half.
        shift: Smallest and largest shift in pixels, one draw an axis for the whole batch; (0, 0) for none.
        shared: One box and flip for the whole batch instead of one for each image.
    """

    def __init__(
        self,
        job: Job,
        batch: int,
        images: int,
        iterations: int,
        *,
        crop: Area | Callable[[int], Area] = (1.0, 1.0),
        flips: bool = False,
        shift: tuple[int, int] = (0, 0),
        shared: bool = True,
    ) -> None:
        self.size, self.shared = job.dataset.size, shared
        rows = 1 if shared else images
        self.boxes: torch.Tensor | None = None
        self.flips: torch.Tensor | None = None
        self.shifts: list[list[int]] | None = None
        if callable(crop):
            draws = job.generator("boxes", batch)
            boxes = torch.stack([self._draw(rows, crop(t), draws) for t in range(iterations)])
            self.boxes = boxes.to(job.device)
        elif crop != (1.0, 1.0):
            boxes = self._draw(iterations * rows, crop, job.generator("boxes", batch))
            self.boxes = boxes.view(iterations, rows, 4).to(job.device)
        if flips:
            heads = torch.rand(iterations, rows, generator=job.generator("flips", batch)) < 0.5
            self.flips = heads.to(job.device)
        if shift != (0, 0):
            draws = job.generator("shifts", batch)
            self.shifts = torch.randint(shift[0], shift[1] + 1, (iterations, 2), generator=draws).tolist()

    def _draw(self, n: int, area: Area, draws: torch.Generator) -> torch.Tensor:
        return rrc_boxes(n, self.size, self.size, area=area, ratio=RATIO, generator=draws)

    def box(self, t: int) -> torch.Tensor | None:
        """Boxes int64 [B, 4], or [1, 4] if shared; None for whole images."""
        return None if self.boxes is None else self.boxes[t]

    def views(self, x: torch.Tensor, t: int, active: torch.Tensor | None = None) -> torch.Tensor:
        """The views at iteration t.

        Args:
            x: float [b, 3, S, S], the batch or its active images.
            t: The iteration.
            active: Which images of the batch these are; None for all.
        """
        keep = None if self.shared else active
        boxes, heads = self.box(t), None if self.flips is None else self.flips[t]
        if keep is not None:
            boxes, heads = (None if rows is None else rows[keep] for rows in (boxes, heads))
        shift = None if self.shifts is None else (self.shifts[t][0], self.shifts[t][1])
        if boxes is not None:
            return crop_resize(x, boxes, self.size, heads, shift)
        x = x if heads is None else flip(x, heads)
        return x if shift is None else roll(x, *shift)

    def observe(self, t: int, ce: torch.Tensor) -> None:
        """Take note of the cross-entropies float [B] of the views of iteration t, measured before the update."""

    def finished(self, t: int) -> torch.Tensor | None:
        """Whether the batch ends before iteration t: a 0-d bool tensor that stays true, or None where it cannot."""
        return None

    def state(self) -> dict[str, torch.Tensor]:
        """What later iterations depend on besides their number; draws are made again from the seed."""
        return {}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state`."""


class MemoryViews(RandomViews):
    """E2D's views (arXiv:2602.15277): random boxes for each image, then those that the teacher found hard.

    Args:
        job: The synthesis.
        batch: Number of the image batch.
        images: Images of the batch.
        iterations: T.
        explore: K, see `BoxMemory`.
        threshold: eps, see `BoxMemory`.
        crop: Area range of the random boxes.
        flips: Flip each view with probability one half.
        shift: Smallest and largest shift, one for the whole batch.
    """

    def __init__(
        self,
        job: Job,
        batch: int,
        images: int,
        iterations: int,
        *,
        explore: int,
        threshold: float,
        crop: Area,
        flips: bool,
        shift: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(job, batch, images, iterations, crop=crop, flips=flips, shift=shift, shared=False)
        if self.boxes is None:  # crop (1, 1): every box is the whole image
            self.boxes = torch.tensor([0, 0, self.size, self.size], device=job.device).expand(iterations, images, 4)
        # The memory never holds more than one box an iteration.
        self.memory = BoxMemory(images, min(explore, iterations - 1), threshold, job.device)
        self.uniforms = torch.rand(iterations, images, generator=job.generator("revisits", batch)).to(job.device)
        self.used: tuple[torch.Tensor, torch.Tensor] | None = None
        self._none = torch.full_like(self.memory.count, -1)

    def box(self, t: int) -> torch.Tensor:
        """The box of every image, int64 [B, 4]: remembered or offered."""
        assert self.boxes is not None
        if self.memory.exploring(t) is True:
            self.used = self._none, self.boxes[t]
        else:
            selected = self.memory.select(t, self.uniforms[t])
            self.used = selected, self.memory.choose(selected, self.boxes[t])
        return self.used[1]

    def observe(self, t: int, ce: torch.Tensor) -> None:
        """Remember, refresh or forget the boxes of iteration t."""
        if self.used is None:
            raise ValueError("observe follows views")
        self.memory.observe(t, *self.used, ce)

    def finished(self, t: int) -> torch.Tensor | None:
        """The batch ends when exploration is over and nothing is remembered; memories never come back then."""
        return self.memory.empty() if t > self.memory.explore else None

    def state(self) -> dict[str, torch.Tensor]:
        """The remembered boxes."""
        return {name: value.clone() for name, value in vars(self.memory).items() if isinstance(value, torch.Tensor)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Remember these boxes."""
        for name, value in state.items():
            setattr(self.memory, name, value.to(self.memory.count.device))
