"""Where a student's targets come from: hard labels, a vector an image, teachers asked online, or a stored stream.

A label source answers two questions, so that the student's loop has no branches: which views a step uses (`planner`),
and which targets they have (`targets`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from suite.errors import DataError, UserError
from suite.learn.ensembles import label_logits
from suite.learn.label_stream import InOrder, LabelStream, Pool
from suite.learn.label_vectors import LabelVectors
from suite.learn.teachers import Teacher
from suite.learn.view_plans import DrawnViews, Planner, ViewPlan
from suite.spec.recipes import LabelRecipe, StudentRecipe
from suite.spec.storage import hard_label_bytes, vector_bytes

#: loss(student logits [B, C], targets [B, C], un-mixed classes int64 [B]) -> scalar.
LossFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class LabelSource(Protocol):
    """What a student learns from, beside the images.

    Attributes:
        soft: Whether targets are logits (the recipe's loss applies) or probabilities (cross-entropy applies).
    """

    soft: bool

    def planner(self, drawn: DrawnViews) -> Planner:
        """The views of every step: those that were drawn, or those that the labels belong to."""

    def targets(self, plan: ViewPlan, views: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        """float32 [B, C] targets of rendered views [B, 3, S, S], whose un-mixed classes are `hard` [B]."""

    def ledger(self) -> list[dict[str, Any]]:
        """Storage entries {"name", "kind", "bytes", "shipped", "needed_for"} of what the labels need on disk."""


def entry(name: str, kind: str, size: int) -> dict[str, Any]:
    """A ledger entry for something that is shipped with a distilled set and that training needs."""
    return {"name": name, "kind": kind, "bytes": size, "shipped": True, "needed_for": "train"}


def mixed(y: torch.Tensor, plan: ViewPlan, size: int) -> torch.Tensor:
    """Probabilities of a batch [B, C], mixed in proportion to the area that CutMix pasted into S x S views."""
    if plan.cutmix is None:
        return y
    share = plan.cutmix.share(size)
    return (1 - share) * y + share * y[plan.cutmix.perm.to(y.device, non_blocking=True)]


class HardLabels:
    """Classes as labels, mixed in proportion to the pasted area under CutMix.

    Args:
        classes: Number of classes C.
        images: Number of distilled images N, for the ledger.
    """

    soft = False

    def __init__(self, classes: int, images: int) -> None:
        self.classes, self.images = classes, images

    def planner(self, drawn: DrawnViews) -> Planner:
        """The drawn views."""
        return drawn

    def targets(self, plan: ViewPlan, views: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        """Probabilities: one-hot rows, or their mixture by area."""
        return mixed(F.one_hot(hard, self.classes).float(), plan, views.shape[-1])

    def ledger(self) -> list[dict[str, Any]]:
        """N labels of ceil(log2(C) / 8) bytes; they lie in the file of the images."""
        return [entry("hard labels", "label", hard_label_bytes(self.images, self.classes))]


class VectorLabels:
    """One probability vector an image, whatever its view; mixed by area under CutMix (label-worth).

    Args:
        vectors: An open file of vectors.
        device: Where all of them are kept, as fp16.
    """

    soft = False

    def __init__(self, vectors: LabelVectors, device: torch.device) -> None:
        self.vectors, self.rows = vectors, vectors.rows.to(device)

    def planner(self, drawn: DrawnViews) -> Planner:
        """The drawn views.

        Raises:
            DataError: If there are not as many vectors as images.
        """
        if len(self.rows) != drawn.images:
            raise DataError(f"{len(self.rows)} label vectors for {drawn.images} images", where=str(self.vectors.path))
        return drawn

    def targets(self, plan: ViewPlan, views: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        """Probabilities."""
        rows = self.rows[plan.index.to(self.rows.device, non_blocking=True)].float()
        return mixed(rows, plan, views.shape[-1])

    def ledger(self) -> list[dict[str, Any]]:
        """The file of the vectors, split into them and its header."""
        size = vector_bytes(*self.rows.shape)
        return [entry("soft label vectors", "label", size), entry("label header", "meta", self.vectors.bytes - size)]


class OnlineLabels:
    """The logits of frozen teachers on the student's own views.

    Args:
        teachers: At least one; all see views normalised by the dataset.
        precision: `fp32` or `bf16` for the teachers' forward passes.
        label: How labels follow from their logits.

    Attributes:
        forward_images: Images that went through a teacher so far.
    """

    soft = True

    def __init__(self, teachers: Sequence[Teacher], precision: str = "fp32", label: LabelRecipe | None = None) -> None:
        if not teachers:
            raise UserError("online labels need a teacher")
        self.teachers, self.precision, self.label = list(teachers), precision, label or LabelRecipe()
        self.batch: int | None = None
        self.forward_images = 0

    def planner(self, drawn: DrawnViews) -> Planner:
        """The drawn views."""
        self.batch = drawn.batch
        return drawn

    def targets(self, plan: ViewPlan, views: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        """Logits: one forward pass of every teacher, without a graph."""
        self.forward_images += len(views) * len(self.teachers)
        return label_logits(self.teachers, views, self.label, self.batch, self.precision)

    def ledger(self) -> list[dict[str, Any]]:
        """The teachers' weight files."""
        return [entry(f"teacher {t.arch}", "teacher", t.bytes) for t in self.teachers]


class StoredLabels:
    """Logits read from a label stream, together with the views that they belong to.

    Args:
        stream: An open stream. A whole one is replayed in order, and from its start by a student that trains for more
            epochs; from a pruned one every epoch draws its batches (`Pool`).
    """

    soft = True

    def __init__(self, stream: LabelStream) -> None:
        self.stream = stream

    def planner(self, drawn: DrawnViews) -> Planner:
        """The stored views, if they are those of a training like this one.

        Raises:
            DataError: If the stream was made for another number of images, their size, batch or augmentation.
        """
        recipe = self.stream.facts["recipe"]
        stored = {
            "images": self.stream.images,
            "size": self.stream.size,
            "batch": self.stream.shape.batch,
            "crop": tuple(recipe["crop"]),
            "pad": 0,
            "flip": recipe["flip"],
            "cutmix": recipe["cutmix"],
            "patch_shuffle": 1,
            "augment": "none",
        }
        wanted = drawn.facts()
        if differ := [name for name in stored if stored[name] != wanted[name]]:
            texts = (f"{name} {stored[name]} where {wanted[name]} is needed" for name in differ)
            raise DataError(f"the label stream has {', '.join(texts)}", where=str(self.stream.path))
        return Pool(self.stream, drawn.seed) if recipe["label"]["prune"] else InOrder(self.stream)

    def targets(self, plan: ViewPlan, views: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        """Logits as the teachers gave them, up to fp16 rounding."""
        return self.stream.logits(plan).to(views.device, non_blocking=True).float()

    def ledger(self) -> list[dict[str, Any]]:
        """The stream's file, split into logits, the records of views, and its header."""
        logits, header = self.stream.logit_bytes, self.stream.header_bytes
        return [
            entry("stored soft labels", "label", logits),
            entry("stored view records", "aug", self.stream.bytes - logits - header),
            entry("label header", "meta", header),
        ]


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)), batch mean, without the factor T^2 (SRe2L, section 3.3)."""
    return F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def mse_gt(student: torch.Tensor, teacher: torch.Tensor, hard: torch.Tensor, weight: float) -> torch.Tensor:
    """Mean squared logit error over B x C plus `weight` times cross-entropy with the un-mixed class (G-VBSM, EDC)."""
    return F.mse_loss(student, teacher) + weight * F.cross_entropy(student, hard)


def loss_function(recipe: StudentRecipe, soft: bool) -> LossFunction:
    """The loss of a recipe. With hard labels it is cross-entropy whatever the recipe says.

    Raises:
        UserError: If the recipe wants cross-entropy but the labels are soft.
    """
    if not soft:
        return lambda output, target, hard: F.cross_entropy(output, target)
    if recipe.loss == "kl":
        scale = recipe.temperature**2 if recipe.squared else 1.0
        return lambda output, target, hard: kl(output, target, recipe.temperature) * scale
    if recipe.loss == "mse_gt":
        return lambda output, target, hard: mse_gt(output, target, hard, recipe.ce_weight)
    raise UserError("loss `ce` learns from hard labels", hint="set `labels: hard`, or loss `kl` or `mse_gt`")
