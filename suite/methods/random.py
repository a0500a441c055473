"""Real images drawn at random: the two baselines that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from suite.methods import Method, get, method
from suite.spec.recipes import StudentRecipe

if TYPE_CHECKING:
    import torch

    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job

_SMALL = frozenset({"digits", "cifar10", "cifar100"})


@method(name="random", paper="baseline", version=1, needs=("real",), labels="hard")
@dataclass(frozen=True)
class Random(Method):
    """Real images of each class without replacement, with their hard labels."""

    def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
        """Hard labels. Inferred: no single recipe is canonical for this baseline.

        Up to 32 px: the evaluation of Dataset Condensation with siamese augmentation (Zhao and Bilen, ICML 2021): SGD
        0.01 with one drop at half-time, momentum 0.9, weight decay 5e-4 on all parameters, 1000 epochs, batch 256; its
        optimiser starts afresh at the drop, ours does not. Larger images: AdamW, RandomResizedCrop and CutMix as the
        decoupled methods use. Digits are never flipped.
        """
        size = ipc * classes
        if base in _SMALL:
            return StudentRecipe(
                epochs=1000,
                batch=min(256, size),
                optimizer="sgd",
                lr=0.01,
                weight_decay=5e-4,
                decay_all=True,
                schedule="step",
                milestones=(0.5,),
                loss="ce",
                crop=(1.0, 1.0),
                flip=base != "digits",
                cutmix=False,
                augment="dsa",
            )
        return StudentRecipe(epochs=300, batch=min(100, size), loss="ce", crop=(0.25, 1.0))

    def choose(self, job: Job) -> list[torch.Tensor]:
        """Indices int64 [ipc] of training images to keep, for each class of the job; selections override this."""
        from suite.learn.initial import pick_per_class

        chosen = pick_per_class(job, "random", job.ipc)
        return [chosen[c] for c in job.classes()]

    def parts(self, classes: int, ipc: int) -> int:
        """Classes."""
        return classes

    def synthesize(self, job: Job) -> DistilledSet:
        """Keep `ipc` images of every class; of larger stored images the centre is kept, as at validation."""
        import torch

        from suite.learn.initial import real_images, to_distilled
        from suite.learn.validation import centre

        return to_distilled(job, centre(real_images(job).take(torch.cat(self.choose(job))), job.dataset.size))


@method(name="random_soft", paper="baseline", version=1, needs=("real",), labels="online")
@dataclass(frozen=True)
class RandomSoft(Random):
    """The same images as `random`, with the teacher's soft labels under RDED's student recipe."""

    def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
        """RDED's recipe without patch shuffle, since these are whole images.

        Inferred: crops of area (0.5, 1) above 32 px, as RDED's students see at factor 2.
        """
        from dataclasses import replace

        recipe = get("rded").for_dataset(base, ipc, {"factor": 1}).recipe(base, classes, ipc, student)
        return recipe if base in _SMALL else replace(recipe, crop=(0.5, 1.0))
