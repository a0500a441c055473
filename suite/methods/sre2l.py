"""SRe2L: from noise, towards a class and the teacher's BatchNorm statistics, on random crops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from suite.methods import batches_by_class, batches_by_slot, method
from suite.methods._recovery import Recovery
from suite.spec.recipes import LabelRecipe, Labels, StudentRecipe

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job

#: Values by dataset base of the methods that recover as SRe2L does and publish nothing on these sets.
SMALL_VALUES: dict[str, dict[str, Any]] = {
    base: {"iterations": 1000, "crop": (1.0, 1.0), "flip": False, "roll": (0, 4)} for base in ("cifar100", "cifar10")
} | {
    # digits must be neither flipped nor cropped
    "digits": {"iterations": 400, "lr": 0.1, "crop": (1.0, 1.0), "flip": False, "roll": (0, 1)},
}


@method(name="sre2l", paper="arXiv:2306.13092", version=1, needs=("teacher",), labels="stored")
@dataclass(frozen=True)
class SRe2L(Recovery):
    """Yin, Xing and Shen, NeurIPS 2023, section 3.2: cross-entropy plus the teacher's BatchNorm statistics.

    The loss is the mean cross-entropy plus r_bn times the sum over BatchNorm layers of the L2 distances between the
    batch's and the running variances and means. The total-variation and L2 terms of the paper have weight 0 in the
    published scripts and are left out. Of several teachers the first one synthesizes and all label.

    Attributes:
        partition: `slot`: a batch holds one image of each class; `class`: several images of few classes, as the
            reference's multi-GPU script makes of the same values, with another objective.
        reference_quirks: CIFAR's labels come from a teacher in training mode, with each batch's BatchNorm statistics:
            the reference forgets to leave it.
    """

    partition: Literal["slot", "class"] = "slot"
    reference_quirks: bool = False

    # recover.sh, recover_tiny.sh, recover_cifar.sh of the reference; the same for every IPC. CIFAR-10 is not in it and
    # has CIFAR-100's values; digits' are ours.
    paper_values: ClassVar[dict[tuple[str, int | None], dict[str, Any]]] = {
        ("tinyimagenet", None): {"lr": 0.1, "bn_weight": 1.0, "roll": (-4, 4)},
        **{(base, None): values for base, values in SMALL_VALUES.items()},
    }
    paper_teachers: ClassVar[dict[str, tuple[str, ...]]] = {
        "imagenet1k": ("resnet18",),
        "tinyimagenet": ("resnet18_cifar",),
        "cifar100": ("resnet18_cifar",),
    }
    #: The network that guided the recovery labels the views too (section 3.3).
    paper_label_teachers: ClassVar[dict[str, tuple[str, ...]]] = paper_teachers
    #: FKD files on ImageNet; the reference labels small sets while training (`train_kd.sh`, `relabel_cifar.py`).
    paper_labels: ClassVar[dict[str, Labels]] = {"tinyimagenet": "online", "cifar100": "online", "cifar10": "online"}

    def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
        """The recipe of `train_FKD.sh`, and of the small-dataset scripts; see `student_recipe`."""
        return student_recipe(base, classes, ipc)

    def label_recipe(self, base: str, classes: int, ipc: int) -> LabelRecipe:
        """Plain logits; with `reference_quirks` those of a teacher in training mode on CIFAR."""
        quirk = self.reference_quirks and base in ("cifar10", "cifar100")
        return LabelRecipe(part=student_recipe(base, classes, ipc).batch if quirk else 0)

    def parts(self, classes: int, ipc: int) -> int:
        """Batches of the partition."""
        return (batches_by_slot if self.partition == "slot" else batches_by_class)(classes, ipc, self.batch)

    def synthesize(self, job: Job) -> DistilledSet:
        """Run the shared loop from noise."""
        from suite.learn.recovery import recover
        from suite.learn.synthesis import by_class, by_slot

        partition = by_slot if self.partition == "slot" else by_class
        return recover(job, self, partition=partition(job.dataset.classes, job.ipc, self.batch))


def student_recipe(base: str, classes: int, ipc: int) -> StudentRecipe:
    """SRe2L's recipe for a dataset base, its number of classes and IPC; CDA's too, but for the batch on ImageNet.

    Tiny-ImageNet's script multiplies the loss by T^2 and uses SGD with five epochs of warm-up. CIFAR's decays all
    parameters; its mixup is replaced by CutMix. Other ImageNet subsets and digits are not in the paper: batches of
    1024 would leave one step an epoch, so they use 100 [inferred] and 20 (ours).
    """
    size = ipc * classes
    if base == "tinyimagenet":
        return StudentRecipe(
            epochs=100,
            batch=min(256, size),
            optimizer="sgd",
            lr=0.2,
            weight_decay=1e-4,
            warmup=5,
            squared=True,
            cutmix=False,
        )
    if base in ("cifar10", "cifar100"):
        return StudentRecipe(epochs=400, batch=min(128, size), temperature=30.0, crop=(1.0, 1.0), pad=4, decay_all=True)
    if base == "digits":
        return StudentRecipe(batch=min(20, size), crop=(0.5, 1.0), flip=False)
    return StudentRecipe(batch=min(1024 if base.startswith("imagenet") and classes >= 1000 else 100, size))
