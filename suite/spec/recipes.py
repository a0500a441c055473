"""How networks are trained: recipes for students and teachers, as frozen values that are hashed into keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "cosine", "cosine_half", "linear", "linear_half", "cos2", "step"]
Loss = Literal["kl", "mse_gt", "ce"]
Augment = Literal["none", "randaugment", "dsa"]
Labels = Literal["hard", "vector", "online", "stored"]

#: An area range in which RandomResizedCrop is the identity on square images.
WHOLE = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class StudentRecipe:
    """How a student is trained on a distilled set. Exactly one of `epochs` and `steps` is set.

    Attributes:
        epochs: Passes over the distilled set.
        steps: Optimiser steps, for protocols with an equal budget.
        batch: Images a step; capped at the size of the distilled set.
        optimizer: `adamw` (betas .9, .999) or `sgd` (with `momentum`).
        lr: Initial learning rate.
        weight_decay: Applied to parameters named `weight` with more than one dimension.
        decay_all: Apply it to all parameters.
        momentum: For `sgd`.
        schedule: Factor on the learning rate. With p = progress in [0, 1): `cosine` (1+cos(pi p))/2;
            `cosine_half` (1+cos(pi p/2))/2, which ends at one half (RDED, DELT); `linear` 1-p; `linear_half` 1-p/2;
            `cos2` E2D's cosine to 5/6 of training, then a jump to a low linear tail; `step` multiplies by `gamma` at
            each of `milestones`.
        milestones: Progress, in (0, 1], at which `step` drops.
        gamma: Factor of each drop.
        warmup: Epochs (or steps) of linear warm-up from 0.01, before the schedule.
        loss: `kl`: KL(teacher || student) at `temperature`, batch mean, no T^2; `mse_gt`: mean squared logit error plus
            `ce_weight` times cross-entropy with the un-mixed label (EDC, E2D); `ce`: cross-entropy with hard labels,
            mixed in proportion under CutMix. With hard labels every protocol uses `ce`.
        temperature: Softmax temperature of `kl`.
        squared: Multiply `kl` by the squared temperature.
        ce_weight: Weight of the cross-entropy in `mse_gt`.
        crop: Area range of RandomResizedCrop; (1, 1) is the identity on square images.
        pad: Zero padding of a random crop at full size; 0 for none. Applied instead of `crop` when positive.
        flip: Horizontal flip with probability one half.
        cutmix: One CutMix box a batch, lambda ~ Beta(1, 1), probability 1.
        patch_shuffle: Factor f of RDED's patch shuffle; 1 for none.
        augment: `none`; `randaugment`: two random operations an image of strength `magnitude` before the crop, as timm
            and DELT have them; `dsa`: one operation of differentiable siamese augmentation a batch, on the normalised
            views. Flips are one of its operations, if `flip` is set, and then no view is flipped beside them.
        magnitude: Mean strength of `randaugment`, of 10.
        accumulate: Equal parts of a batch, forwarded one after the other, whose gradients are averaged (CV-DD).
        ema: Decay of a parameter average that is evaluated instead of the live network; 0 for none.
        evaluations: How many times validation accuracy is measured, evenly spread, the last at the end.
    """

    epochs: int | None = 300
    steps: int | None = None
    batch: int = 100
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    decay_all: bool = False
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: int = 0
    loss: Loss = "kl"
    temperature: float = 20.0
    squared: bool = False
    ce_weight: float = 0.025
    crop: tuple[float, float] = (0.08, 1.0)
    pad: int = 0
    flip: bool = True
    cutmix: bool = True
    patch_shuffle: int = 1
    augment: Augment = "none"
    magnitude: float = 6.0
    accumulate: int = 1
    ema: float = 0.0
    evaluations: int = 3


@dataclass(frozen=True, slots=True)
class LabelRecipe:
    """How soft labels follow from the teachers' logits; for policies `vector`, `online` and `stored`.

    Attributes:
        ensemble: Of several teachers: `mean` of raw logits; `norm`: logits scaled to the teachers' mean Frobenius norm
            first (G-VBSM); `weighted`: with `weights` (CV-DD).
        weights: One a teacher, for `weighted`, with sum 1. Those of a method belong to its paper's teachers: with
            others they are refused until a grid sets `label.ensemble` or `label.weights`.
        part: Images whose BatchNorm statistics the teachers use instead of their running ones (CV-DD's batch-specific
            soft labels, in parts of this many images); 0 for running statistics. Dropout is off in both cases.
        prune: Share of a stored stream's batches that is left out (LPLD), in [0, 1).
        temperature: `vector` stores softmax(logits / temperature), in fp16.
    """

    ensemble: Literal["mean", "norm", "weighted"] = "mean"
    weights: tuple[float, ...] = ()
    part: int = 0
    prune: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class RelabelRecipe:
    """How stored labels are made: a stream of views and logits (FKD), or one vector an image.

    With policy `vector` every image is seen once, whole, and the views' fields are not used.

    Attributes:
        epochs: Epochs of views whose logits are stored; a student replays them in order.
        batch: Images a record batch, which is also the student's batch.
        crop: Area range of RandomResizedCrop.
        flip: Horizontal flip with probability one half.
        cutmix: One CutMix box and permutation a batch.
        label: How labels follow from logits.
    """

    epochs: int = 300
    batch: int = 100
    crop: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    cutmix: bool = True
    label: LabelRecipe = LabelRecipe()


@dataclass(frozen=True, slots=True)
class TeacherRecipe:
    """How a teacher is trained from scratch: SGD with cosine decay and crop-and-flip augmentation.

    Attributes:
        epochs: Passes over the training split.
        batch: Images a step.
        lr: Peak learning rate.
        momentum: SGD momentum.
        weight_decay: L2 penalty on all parameters.
        warmup: Epochs of linear warm-up.
        crop: Area range of RandomResizedCrop, used when `pad` is 0.
        pad: Padding of a random crop, for small images.
        flip: Horizontal flip with probability one half.
        label_smoothing: Of the cross-entropy.
        optimizer: `sgd` or `adam`.
        schedule: After the warm-up: `cosine` to 0, `constant`, or `step`: a tenth after each third of all epochs.
        stop: Epoch after which training ends early, with the schedule of the full length; None for the whole.
    """

    epochs: int = 50
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: int = 0
    crop: tuple[float, float] = (0.08, 1.0)
    pad: int = 4
    flip: bool = True
    label_smoothing: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    stop: int | None = None


#: Teacher recipes by dataset base; the first that matches, in this order. Sources: SRe2L (CIFAR, Tiny-ImageNet).
_TEACHERS: dict[str, TeacherRecipe] = {
    "digits": TeacherRecipe(epochs=12, batch=64, lr=0.05, pad=1, flip=False),
    "cifar10": TeacherRecipe(epochs=200),
    "cifar100": TeacherRecipe(epochs=200),
    "tinyimagenet": TeacherRecipe(epochs=50, batch=256, lr=0.2, weight_decay=1e-4, warmup=5, pad=0),
}
_LARGE = TeacherRecipe(epochs=90, batch=256, lr=0.1, weight_decay=1e-4, warmup=5, pad=0)


def teacher_recipe(base: str) -> TeacherRecipe:
    """The recipe with which a teacher for this dataset is trained unless the grid overrides it."""
    return _TEACHERS.get(base, _LARGE)


#: The student recipe that protocol `matched` gives to every method: equal optimiser steps, batch, augmentation, loss
#: and learning-rate tail. 30,000 steps of 100 images are what most decoupled papers use at IPC 10 on ImageNet-1K.
MATCHED = StudentRecipe(
    epochs=None, steps=30_000, batch=100, schedule="cosine", loss="kl", temperature=20.0, crop=(0.25, 1.0)
)
_MATCHED_STEPS = {"digits": 600, "cifar10": 15_000, "cifar100": 30_000, "imagenette": 15_000, "imagewoof": 15_000}


def matched_recipe(base: str) -> StudentRecipe:
    """The one recipe and step budget of protocol `matched` on this dataset."""
    from dataclasses import replace

    return replace(MATCHED, steps=_MATCHED_STEPS.get(base, MATCHED.steps), flip=base != "digits")
