"""Forgetting: the real images that a network in training forgets most often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from suite.methods import method
from suite.methods.random import Random
from suite.spec.archs import check_arch
from suite.spec.datasets import REGISTRY
from suite.spec.recipes import teacher_recipe

if TYPE_CHECKING:
    import torch

    from suite.learn.job import Job


@method(name="forgetting", paper="baseline", version=1, needs=("real", "teacher"), labels="hard")
@dataclass(frozen=True)
class Forgetting(Random):
    """Toneva et al., ICLR 2019 (arXiv:1812.05159), sections 2 and 4: keep the images with most forgetting events.

    A network is trained from scratch with the recipe of the dataset's teachers. An event: the network was right about
    an image when it was last presented, and now is wrong. Images that it never learns count as forgotten infinitely
    often; equals are ranked by the seed. The paper removes unforgettable images from the whole set and says nothing of
    sets of a few images a class; keeping the most forgotten `ipc` of each class is how later papers use it. These
    are hard, often mislabelled images: at small IPC the baseline is known to be worse than random. Students learn as
    those of `random`.

    Attributes:
        epochs: Of the training that is watched; the schedule is as long.
        network: Architecture that is trained; empty for that of the first teacher. Teachers' weights are not used.
    """

    epochs: int = 90
    network: str = ""

    #: The length of a teacher's training; the paper trains 200 epochs on CIFAR.
    paper_values: ClassVar[dict[tuple[str, int | None], dict[str, Any]]] = {
        (base, None): {"epochs": teacher_recipe(base).epochs} for base in REGISTRY
    }

    def __post_init__(self) -> None:
        """Refuse unknown networks."""
        super().__post_init__()
        if self.network:
            check_arch(self.network)

    def parts(self, classes: int, ipc: int) -> int:
        """1: all classes are ranked by the training of one network."""
        return 1

    def choose(self, job: Job) -> list[torch.Tensor]:
        """Train, count and rank."""
        from dataclasses import replace

        import torch

        from suite.learn.features import members_per_class
        from suite.learn.forgetting import forgetting_counts, most_forgotten

        members = members_per_class(job)
        recipe = replace(teacher_recipe(job.dataset.base), epochs=self.epochs)
        counts = forgetting_counts(job, self.network or job.teachers[0].arch, recipe)
        ties = torch.rand(len(counts), generator=job.generator("ties"))
        return [m[most_forgotten(counts[m], ties[m], job.ipc)] for m in members]
