"""Views of small images as G-VBSM takes them: a padded random crop, a flip and a circular shift for a whole batch."""

from __future__ import annotations

import torch

from suite.learn.job import Job
from suite.learn.view_policies import Area, RandomViews
from suite.learn.views import pad_crop


class PadViews(RandomViews):
    """`RandomViews` after a random crop of the padded batch.

    Zeros are added to normalised images, so the border is mean grey. Every image of the batch is cut at the same place.

    Args:
        job: The synthesis.
        batch: Number of the image batch; it names the streams of draws.
        images: Images of the batch.
        iterations: T.
        pad: Pixels added at every side; 0 for plain `RandomViews`.
        crop: Area range of a RandomResizedCrop; (1, 1) for none.
        flips: Flip the batch with probability one half.
        shift: Smallest and largest circular shift in pixels, one an axis.
    """

    def __init__(
        self,
        job: Job,
        batch: int,
        images: int,
        iterations: int,
        *,
        pad: int,
        crop: Area = (1.0, 1.0),
        flips: bool = False,
        shift: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(job, batch, images, iterations, crop=crop, flips=flips, shift=shift)
        self.pad = pad
        draws = job.generator("pads", batch)
        self.offsets = torch.randint(2 * pad + 1, (iterations, 1, 2), generator=draws).to(job.device)

    def views(self, x: torch.Tensor, t: int, active: torch.Tensor | None = None) -> torch.Tensor:
        """The views at iteration t of x, float [b, 3, S, S], the batch or its active images."""
        return super().views(pad_crop(x, self.pad, self.offsets[t]) if self.pad else x, t, active)
