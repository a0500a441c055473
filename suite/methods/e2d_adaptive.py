"""E2D with continuous batching and an end of exploration for each image: half of E2D's forward passes or fewer."""

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
    version=2,
    needs=("real", "teacher", "statistics"),
    labels="stored",
)
@dataclass(frozen=True)
class E2DAdaptive(E2D):
    """E2D (Alahmadi et al., 2026) with two additions of ours; without both it is E2D, up to roundings.

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

    The default of `patience` comes from a short study (CIFAR-10, 500 images a class, IPC 10, ConvNet-3 of width 32 as
    teacher and student, one set each, 300 student steps, one or two students, which differ by half a percent): E2D
    190.6 passes an image and 48.3 %; continuous batching alone 169.6 and 47.5 %; patience 10 alone 87.4 and 48.5 %;
    both, with patience 5, 10, 20 and 40: 38.6, 53.8, 81.6 and 109.2 passes, 48.5, 48.2, 47.9 and 48.1 %. The teacher's
    cross-entropy of the images, 0.04 after E2D, is then 0.13, 0.10, 0.07 and 0.06: 10 is the middle way, 5 leaves
    images less certain. `python -m suite.bench economy` measures it again.

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

    def parts(self, classes: int, ipc: int) -> int:
        """1 if there is one stream, in which images depend on those before them; else E2D's batches."""
        return 1 if self.continuous else super().parts(classes, ipc)

    @classmethod
    def engine(cls) -> frozenset[str]:
        """Places of one batch are refilled: there are no batches side by side."""
        return frozenset({"compile"})

    def synthesize(self, job: Job) -> DistilledSet:
        """Run E2D's parts in the loop in which images have clocks of their own."""
        from suite.learn.continuous import distill_by_image

        return distill_by_image(job, self.compose(job), patience=self.patience, continuous=self.continuous)
