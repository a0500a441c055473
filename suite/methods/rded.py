"""RDED: the most realistic crops of real images, tiled into mosaics. No optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from suite.methods import Method, method
from suite.spec.recipes import StudentRecipe

if TYPE_CHECKING:
    import torch

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
#: Crops a teacher forward; scores do not depend on it.
SCORED = 500
_LARGE = ("imagenette", "imagewoof", "imagenet100", "imagenet1k", "imagenet21k")


@method(name="rded", paper="arXiv:2312.03526", version=1, needs=("real", "teacher"), labels="online")
@dataclass(frozen=True)
class RDED(Method):
    """Sun et al., CVPR 2024, section 4: score random crops by the teacher's cross-entropy, keep and tile the best.

    Crops are drawn from the prepared squares; the reference draws them from whole images. Inputs are normalised as the
    dataset's teachers were trained; the reference takes ImageNet's numbers everywhere. Of several
    teachers the first scores.

    Attributes:
        candidates: Real images of a class that are looked at (`mipc`); all of them where a class has fewer. The
            reference fails in that case.
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
        always 100 on Tiny-ImageNet, at most the whole set. Left out: batch 25 and lr 2e-3, used when both teacher
        and student are both ConvNet-3 on CIFAR-100. The digits are never flipped (ours).
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

    def synthesize(self, job: Job) -> DistilledSet:
        """Select `ipc * factor**2` crops of every class and tile them."""
        import torch

        from suite.learn.initial import pick_per_class, to_distilled
        from suite.learn.models import denormalise
        from suite.learn.mosaics import mosaic, select_crops

        facts, wanted = job.dataset, job.ipc * self.factor**2
        images = []
        for c, members in enumerate(pick_per_class(job, "candidates", self.candidates, fewer=True)):
            crops, ce = self._score(job, c, members, kept=min(self.crops, -(-wanted // len(members))))
            picked = select_crops(ce, wanted)
            tiled = mosaic(crops[picked[:, 0], picked[:, 1]], self.factor, facts.size)
            images.append(denormalise(tiled, facts.mean, facts.std).cpu())
            job.progress(c + 1, facts.classes)
        return to_distilled(job, torch.cat(images))

    def _score(self, job: Job, c: int, members: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random crops of a class's candidates and the teacher's cross-entropies.

        Returns:
            The `kept` best crops of each image, normalised float [n, kept, 3, S/f, S/f], and float [n, kept].

        Raises:
            NumericError: If the teacher gives logits that are not finite.
        """
        import torch
        import torch.nn.functional as F

        from suite.errors import NumericError
        from suite.learn.initial import real_images
        from suite.learn.models import normalise
        from suite.learn.mosaics import antialiased_crops, zero_pad
        from suite.learn.validation import autocast
        from suite.learn.views import rrc_boxes

        facts, real, teacher = job.dataset, real_images(job), job.teachers[0]
        side = facts.size // self.factor
        boxes = rrc_boxes(
            len(members) * self.crops,
            real.stored,
            real.stored,
            area=self.crop,
            ratio=(1.0, 1.0),
            generator=job.generator("crops", c),
        ).view(len(members), self.crops, 4)
        best_crops, best_ce = [], []
        per_batch = max(1, SCORED // self.crops)
        for index, part in zip(members.split(per_batch), boxes.split(per_batch), strict=True):
            x = normalise(real.take(index).to(job.device), facts.mean, facts.std)
            x = x.repeat_interleave(self.crops, dim=0)
            crops = antialiased_crops(x, part.flatten(0, 1).to(job.device), side)
            with torch.no_grad(), autocast(job.precision, job.device):
                logits = teacher(zero_pad(crops, facts.size)).float()
            labels = torch.full((len(logits),), c, device=job.device)
            ce = F.cross_entropy(logits, labels, reduction="none").view(len(index), self.crops)
            ce, order = ce.sort(dim=1, stable=True)
            rows = torch.arange(len(index), device=job.device)[:, None]
            best_crops.append(crops.view(len(index), self.crops, *crops.shape[1:])[rows, order[:, :kept]])
            best_ce.append(ce[:, :kept])
            job.counters.forward_images += len(logits)
        ce = torch.cat(best_ce)
        if not bool(ce.isfinite().all()):
            raise NumericError(f"the teacher's cross-entropy is not finite on class {c}", where=teacher.arch)
        return torch.cat(best_crops), ce
