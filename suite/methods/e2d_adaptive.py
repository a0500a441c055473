"""E2D with continuous batching and an end of exploration for each image: about half of E2D's forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from suite.methods import check_ranges, method
from suite.methods.e2d import E2D

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job


@method(
    name="e2d_adaptive",
    paper="arXiv:2602.15277",
    version=1,
    needs=("real", "teacher", "statistics"),
    labels="stored",
)
@dataclass(frozen=True)
class E2DAdaptive(E2D):
    """E2D (Alahmadi et al., 2026) with two additions of ours; without both it is E2D, with the same images.

    Continuous batching: an image leaves the batch once its exploration is over and its memory is empty, and the next
    image of the set enters its place, so that forward passes are always full. In E2D it is updated on random crops
    until the whole batch is empty. Patience: an image that met `patience` crops in a row at or below the threshold has
    explored enough; `explore` still bounds exploration.

    What that changes besides the number of passes:

    - Every image has its own iteration t: its learning rate, Adam's bias correction, exploration and T follow it. An
      image that leaves early leaves at a higher learning rate.
    - The statistics that are matched mix images of different ages and, where a class passes into the next, more
      classes at a time; the class-wise target is still the mean over the images' labels.
    - With continuous batching there is one stream: the running average of the statistics goes on through the whole
      set, the teacher in turn follows the stream's iteration, and images depend on those before them. Without it,
      batches stay independent. `roll` is one draw a stream's iteration.
    - At the end of the stream places run out of images; those that are done stay, and are updated as in E2D.

    Attributes:
        continuous: Continuous batching.
        patience: Crops in a row that end an image's exploration (m); 0 for E2D's fixed exploration.
    """

    continuous: bool = True
    patience: int = 10

    def __post_init__(self) -> None:
        """Refuse what E2D refuses, and a negative patience."""
        super().__post_init__()
        check_ranges(self, patience=self.patience >= 0)

    def synthesize(self, job: Job) -> DistilledSet:
        """Run E2D's parts in the loop in which images have clocks of their own."""
        from suite.learn.continuous import distill_by_image

        return distill_by_image(job, self.compose(job), patience=self.patience, continuous=self.continuous)
