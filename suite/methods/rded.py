"""RDED: the most realistic crops of real images, tiled into mosaics. No optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from suite.methods import Method, method
from suite.spec.recipes import StudentRecipe

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job

#: Learning rates by student (`argument.py` of the reference; 1e-3 for ResNets and ConvNets).
_LR = {
    "efficientnet_b0": 2e-3,
    "mobilenet_v2": 2.5e-3,
    "vgg11": 5e-4,
    "alexnet": 1e-4,
    "vit_b_16": 1e-4,
    "swin_t": 1e-4,
}
_LARGE = ("imagenette", "imagewoof", "imagenet100", "imagenet1k", "imagenet21k")


@method(name="rded", paper="arXiv:2312.03526", version=1, needs=("real", "teacher"), labels="online")
@dataclass(frozen=True)
class RDED(Method):
    """Sun et al., CVPR 2024, section 4: score random crops by the teacher's cross-entropy, keep and tile the best.

    Every class: `crops` of each of `candidates` images, the best one of each image, of these the best ipc * factor^2;
    cell k of mosaic j is the crop of rank k * ipc + j. Where that is more than there are images, the best
    ceil(wanted / images) crops of an image compete (DELT's extension; the reference fails). Of several teachers the
    first scores.

    Crops are drawn from the prepared squares; the reference draws them from whole images. Inputs are normalised as the
    dataset's teachers were trained; the reference takes ImageNet's numbers everywhere. Its defects concern students
    only (a second forward pass a step that moves BatchNorm's averages, 500 of Imagenette's validation images, the best
    of the last epochs), so there is no `reference_quirks` here.

    Attributes:
        candidates: Real images of a class that are looked at (`mipc`); all of them where a class has fewer,
            where the reference fails.
        crops: Random crops of each candidate image (`num-crop`); the best one may be used.
        factor: Crops along a side of a distilled image: 2 for ImageNet subsets, 1 for CIFAR and Tiny-ImageNet.
        crop: Area range of the crops; their aspect ratio is 1.
    """

    candidates: int = 300
    crops: int = 5
    factor: int = 1
    crop: tuple[float, float] = (0.08, 1.0)

    # argument.py / scripts: factor 2 for every ImageNet subset, 1 for 32 and 64 px; by base, whatever size is asked.
    paper_values: ClassVar[dict[tuple[str, int | None], dict[str, Any]]] = {(b, None): {"factor": 2} for b in _LARGE}

    def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
        """The one recipe of the paper: AdamW, cosine that ends at one half, KL at T = 20, CutMix, patch shuffle.

        Batches are 10 / 50 / 100 for IPC 1 / 10 / 50 (the next lower entry in between), doubled from 100 classes up,
        always 100 on Tiny-ImageNet, at most the whole set. Left out: batch 25 and lr 2e-3, used when teacher and
        student are both ConvNet-3 on CIFAR-100. The digits are never flipped (ours).
        """
        batch = (10 if ipc < 10 else 50 if ipc < 50 else 100) * (2 if classes >= 100 else 1)
        if base == "tinyimagenet":
            batch = 100
        return StudentRecipe(
            epochs=300,
            batch=min(batch, ipc * classes),
            lr=_LR.get(student, 1e-3),
            schedule="cosine_half",
            loss="kl",
            temperature=20.0,
            crop=(1 / self.factor, 1.0),
            flip=base != "digits",
            patch_shuffle=self.factor,
        )

    def parts(self, classes: int, ipc: int) -> int:
        """Classes."""
        return classes

    def synthesize(self, job: Job) -> DistilledSet:
        """Select `ipc * factor**2` crops of every class and tile them."""
        import torch

        from suite.learn.initial import to_distilled
        from suite.learn.mosaics import Mosaics

        mosaics = Mosaics(job, self.candidates, self.crops, self.factor, self.crop)
        images = list(job.each_class(mosaics.of_class).values())
        return to_distilled(job, torch.cat(images))
