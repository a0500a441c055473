"""LPLD: recovery class by class, so that images differ, and soft labels of which only one in forty is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from suite.methods import method
from suite.methods._recovery import Recovery
from suite.methods.sre2l import SMALL_VALUES, student_recipe
from suite.spec.recipes import LabelRecipe, StudentRecipe

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job


@method(name="lpld", paper="arXiv:2410.15919", version=1, needs=("teacher", "statistics"), labels="stored")
@dataclass(frozen=True)
class LPLD(Recovery):
    """Xiao and He, NeurIPS 2024, section 3.2: SRe2L in batches of one class, towards that class's BN statistics.

    The paper's other half is `label_recipe`: of the label stream only the first K = floor(E floor(N / B) (1 - r))
    batches are made, and every epoch of a student draws from them (section 3.3). Other rates: `label.prune` in grids.

    Class statistics are the exact moments over the views of the `statistics` stage. The reference's are running
    averages of decay 0.9, from mean 0 and variance 1, over the last batches that held the class, on one GPU of several.

    Attributes:
        bn_weight: Weight of the class-wise BatchNorm term (r_bn).
        batch: Most images a batch. All are of one class: as many as it has (IPC) if the batch allows it.
        pixels: Optimise images in [0, 1] rather than normalised ones (the ImageNet-21K script), from the same noise.
            Views are normalised for the teacher; that of the script takes [0, 1] as it is.
    """

    batch: int = 1000
    pixels: bool = False

    # imagenet1k_recover.sh, tiny_recover.sh, in21k_recover.sh of the reference; the same for every IPC.
    paper_values: ClassVar[dict[tuple[str, int | None], dict[str, Any]]] = {
        ("tinyimagenet", None): {"lr": 0.1, "bn_weight": 0.05, "batch": 100, "roll": (-4, 4)},
        ("imagenet21k", None): {"iterations": 2000, "lr": 0.05, "bn_weight": 0.25, "pixels": True},
        # not in the paper: SRe2L's
        **{(base, None): values for base, values in SMALL_VALUES.items()},
    }
    paper_teachers: ClassVar[dict[str, tuple[str, ...]]] = {
        "imagenet1k": ("resnet18",),
        "imagenet21k": ("resnet18",),
        "tinyimagenet": ("resnet18_cifar",),
    }
    paper_label_teachers: ClassVar[dict[str, tuple[str, ...]]] = paper_teachers
    #: Share of the label stream that is left out: the paper's 40x.
    PRUNE: ClassVar[float] = 0.975

    def label_recipe(self, base: str, classes: int, ipc: int) -> LabelRecipe:
        """The pruned stream of section 3.3, at 40x on every dataset; the paper has 10x to 100x (0.9 to 0.99)."""
        return LabelRecipe(prune=self.PRUNE)

    def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
        """The recipes of the reference's `cfg/reproduce`; its batch is that of the stored labels.

        ImageNet-21K's cutout is left out, and its label smoothing, which a defect turns into logits scaled by 0.8.
        Other datasets are not in the paper: ImageNet-1K's recipe in batches of 20, so that an epoch has some to draw
        (ours).
        """
        size = ipc * classes
        if base in ("tinyimagenet", "digits"):  # SRe2L's
            return replace(student_recipe(base, classes, ipc), batch=min(64 if base == "tinyimagenet" else 20, size))
        if base == "imagenet21k":
            return StudentRecipe(batch=min(32, size), lr=2e-3, cutmix=False)
        return StudentRecipe(batch=min(128 if base == "imagenet1k" else 20, size))

    def parts(self, classes: int, ipc: int) -> int:
        """Batches within a class."""
        return classes * -(-ipc // self.batch)

    def synthesize(self, job: Job) -> DistilledSet:
        """Run the shared loop over batches within a class."""
        import torch

        from suite.learn.critics import class_bn_critic
        from suite.learn.recovery import recover

        classes = torch.arange(job.dataset.classes * job.ipc).split(job.ipc)
        return recover(
            job,
            self,
            partition=[part for slots in classes for part in slots.split(self.batch)],
            critics=[class_bn_critic(job.teachers[0], job.statistics[0], self.bn_weight, self.first)],
            pixels=self.pixels,
        )
