"""CDA: SRe2L whose crops shrink from whole images to small parts during the recovery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from suite.methods import method
from suite.methods._recovery import Recovery
from suite.methods.sre2l import student_recipe
from suite.spec.recipes import Labels, StudentRecipe

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job


@method(name="cda", paper="arXiv:2311.18838", version=1, needs=("teacher",), labels="stored")
@dataclass(frozen=True)
class CDA(Recovery):
    """Yin and Shen, TMLR 2024, section 3: the lower bound of the crop area is a curriculum; the rest is SRe2L.

    At iteration t crops cover between s_min(t) and 1 of the area. s_min falls from 1 to 0.08 over the first rho T
    iterations. The reference's parser has rho = 0, which is SRe2L; all published commands have rho = 1, as here.

    Attributes:
        curriculum: Milestone rho in [0, 1]; 0 for SRe2L.
        shape: How s_min falls: `step` (at the milestone), `linear` or `cosine` (published).
        pixels: Optimise images in [0, 1] rather than normalised ones, and clamp them there (the ImageNet-21K script).
            Starts are standard normal all the same, so the first clamp blackens half of the pixels. Views are
            normalised for the teacher; that of the script takes [0, 1] as it is.
        crop: Area range of the crops when the curriculum has ended; a whole batch shares each one.
    """

    curriculum: float = 1.0
    shape: Literal["step", "linear", "cosine"] = "cosine"
    pixels: bool = False

    # The three commands of the reference's README; the same for every IPC.
    paper_values: ClassVar[dict[tuple[str, int | None], dict[str, Any]]] = {
        ("tinyimagenet", None): {"lr": 0.4, "bn_weight": 0.05, "roll": (0, 4)},
        ("imagenet21k", None): {"iterations": 2000, "lr": 0.05, "bn_weight": 0.25, "pixels": True},
        # not in the reference: SRe2L's CIFAR-100 values, with the crops and flips that a curriculum needs
        ("cifar100", None): {"iterations": 1000, "roll": (0, 4)},
        ("cifar10", None): {"iterations": 1000, "roll": (0, 4)},
        # ours: digits must not be flipped
        ("digits", None): {"iterations": 400, "lr": 0.1, "crop": (0.5, 1.0), "flip": False, "roll": (0, 1)},
    }
    paper_teachers: ClassVar[dict[str, tuple[str, ...]]] = {
        "imagenet1k": ("resnet18",),
        "imagenet21k": ("resnet18",),
        "tinyimagenet": ("resnet18_cifar",),
        "cifar100": ("resnet18_cifar",),
    }
    paper_label_teachers: ClassVar[dict[str, tuple[str, ...]]] = paper_teachers
    #: As SRe2L; ImageNet-21K's stream would have 1.3 TB at IPC 20, so its labels come online [inferred].
    paper_labels: ClassVar[dict[str, Labels]] = dict.fromkeys(
        ("imagenet21k", "tinyimagenet", "cifar100", "cifar10"), "online"
    )

    def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
        """SRe2L's recipe, in batches of 128 on ImageNet (as the authors confirmed for ImageNet-1K).

        ImageNet-21K's and the small ImageNet subsets' are unknown and take the same [inferred].
        """
        recipe = student_recipe(base, classes, ipc)
        return replace(recipe, batch=min(128, ipc * classes)) if base.startswith("image") else recipe

    def synthesize(self, job: Job) -> DistilledSet:
        """SRe2L's recovery with crops that shrink."""
        from suite.learn.recovery import recover, shrinking

        return recover(
            job,
            self,
            crop=shrinking(self.crop, self.curriculum, self.shape, self.iterations),
            pixels=self.pixels,
        )
