"""What stages will cost before anything has run: GPU-hours and bytes by kind, from multiply-accumulates and shapes.

One constant turns work into time, so the figures rank and size jobs; they do not predict them. Measured rows do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from suite.grid.plan import Plan
from suite.methods import get
from suite.spec.archs import gmacs, parse_cifar_resnet, parse_convnet
from suite.spec.datasets import Dataset, dataset
from suite.spec.recipes import StudentRecipe, TeacherRecipe
from suite.spec.stages import KINDS, Stage, input_kind
from suite.spec.storage import label_bytes, stream_shape

#: Forward and backward to the input, in forward passes (the teacher's weights get no gradient).
SYNTHESIS_PASSES = 2
#: Forward and backward to the weights, in forward passes.
TRAINING_PASSES = 3
#: Multiply-accumulates a second that are sustained: CDA reports 29 h for 50,000 images x 4,000 updates by ResNet-18 at
#: 224 px on one RTX 4090 in fp32, which is 1,916 image-iterations a second of 2 x 1.81 GMAC.
MACS_PER_SECOND = 1_916 * SYNTHESIS_PASSES * 1.81e9
#: Bytes a pixel of a JPEG at quality 90: FFCV's ImageNet of 256-pixel images has 22 GB for 1,281,167 of them.
JPEG_BYTES_PER_PIXEL = 0.26

#: Millions of parameters of torchvision classifiers with 1,000 classes (from torchvision's own table).
_MILLIONS: dict[str, float] = {
    "alexnet": 61.1, "convnext_base": 88.6, "convnext_large": 197.8, "convnext_small": 50.2, "convnext_tiny": 28.6,
    "densenet121": 7.98, "densenet161": 28.7, "densenet169": 14.15, "densenet201": 20.0, "efficientnet_b0": 5.29,
    "efficientnet_b1": 7.79, "efficientnet_b2": 9.11, "efficientnet_b3": 12.23, "efficientnet_b4": 19.34,
    "efficientnet_b5": 30.4, "efficientnet_b6": 43.0, "efficientnet_b7": 66.3, "efficientnet_v2_l": 118.5,
    "efficientnet_v2_m": 54.1, "efficientnet_v2_s": 21.5, "googlenet": 6.62, "inception_v3": 27.2, "maxvit_t": 30.9,
    "mnasnet0_5": 2.22, "mnasnet0_75": 3.17, "mnasnet1_0": 4.38, "mnasnet1_3": 6.28, "mobilenet_v2": 3.5,
    "mobilenet_v3_large": 5.48, "mobilenet_v3_small": 2.54, "regnet_x_16gf": 54.3, "regnet_x_1_6gf": 9.19,
    "regnet_x_32gf": 107.8, "regnet_x_3_2gf": 15.3, "regnet_x_400mf": 5.5, "regnet_x_800mf": 7.26,
    "regnet_x_8gf": 39.6, "regnet_y_128gf": 644.8, "regnet_y_16gf": 83.6, "regnet_y_1_6gf": 11.2,
    "regnet_y_32gf": 145.0, "regnet_y_3_2gf": 19.44, "regnet_y_400mf": 4.34, "regnet_y_800mf": 6.43,
    "regnet_y_8gf": 39.4, "resnet101": 44.5, "resnet152": 60.2, "resnet18": 11.69, "resnet34": 21.8, "resnet50": 25.6,
    "resnext101_32x8d": 88.8, "resnext101_64x4d": 83.5, "resnext50_32x4d": 25.0, "shufflenet_v2_x0_5": 1.37,
    "shufflenet_v2_x1_0": 2.28, "shufflenet_v2_x1_5": 3.5, "shufflenet_v2_x2_0": 7.39, "squeezenet1_0": 1.25,
    "squeezenet1_1": 1.24, "swin_b": 87.8, "swin_s": 49.6, "swin_t": 28.3, "swin_v2_b": 87.9, "swin_v2_s": 49.7,
    "swin_v2_t": 28.4, "vgg11": 132.9, "vgg11_bn": 132.9, "vgg13": 133.0, "vgg13_bn": 133.1, "vgg16": 138.4,
    "vgg16_bn": 138.4, "vgg19": 143.7, "vgg19_bn": 143.7, "vit_b_16": 86.6, "vit_b_32": 88.2, "vit_h_14": 633.5,
    "vit_l_16": 304.3, "vit_l_32": 306.5, "wide_resnet101_2": 126.9, "wide_resnet50_2": 68.9,
}  # fmt: skip
_CIFAR_MILLIONS = {10: 4.9, 18: 11.17, 34: 21.28, 50: 23.52, 101: 42.51}  # width 64, 10 classes


@dataclass
class Estimate:
    """What a list of stages is expected to cost.

    Attributes:
        hours: Hours of one GPU, by kind.
        bytes: Bytes that the stages publish, by kind.
        basis: What the figures rest on and what they leave out.
    """

    hours: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    basis: str = ""

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU, of all kinds."""
        return sum(self.hours.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes.values())


def parameters(arch: str, classes: int, size: int) -> int | None:
    """Number of a network's parameters: exact for ConvNets, within some percent for others, None if unknown."""
    if conv := parse_convnet(arch):
        depth, width, _ = conv
        convolutions = sum(9 * (3 if i == 0 else width) * width + 3 * width for i in range(depth))
        return convolutions + (width * (size >> depth) ** 2 + 1) * classes
    if resnet := parse_cifar_resnet(arch):
        depth, width = resnet
        return round(_CIFAR_MILLIONS[depth] * 1e6 * (width / 64) ** 2)
    return round(_MILLIONS[arch] * 1e6) if arch in _MILLIONS else None


def student_images(recipe: StudentRecipe, images: int, full_batches: bool = False) -> int:
    """Images that a student sees in training: epochs over the set, or steps of a batch.

    Args:
        recipe: How long it trains.
        images: Distilled images.
        full_batches: Whether an epoch has full batches only, as with pruned labels.
    """
    batch = min(recipe.batch, images)
    if recipe.epochs is not None:
        return recipe.epochs * (images - images % batch * full_batches)
    return (recipe.steps or 0) * batch


def teacher_epochs(recipe: TeacherRecipe) -> int:
    """Epochs that a teacher really trains."""
    return recipe.epochs if recipe.stop is None else recipe.stop


def estimate(plan: Plan, stages: Iterable[Stage] | None = None) -> Estimate:
    """GPU-hours and bytes of stages.

    Args:
        plan: Where the inputs of stages are found.
        stages: Some of the plan's stages, e.g. those that are missing; all by default.
    """
    by_key = {stage.key: stage for stage in plan.stages}
    result = Estimate(dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0))
    unknown: set[str] = set()
    for stage in plan.stages if stages is None else stages:
        macs, size = _COSTS[stage.kind](stage, by_key)
        result.hours[stage.kind] += macs / MACS_PER_SECOND / 3600
        result.bytes[stage.kind] += size
        if stage.kind == "teacher" and size == 0:
            unknown.add(stage.spec.arch)  # type: ignore[union-attr]
    result.basis = _basis(sorted(unknown))
    return result


def _basis(unknown: list[str]) -> str:
    omitted = ["statistics files", "reports"] + [f"weights of {arch}" for arch in unknown]
    return (
        f"{MACS_PER_SECOND / 1e12:.1f} TMAC/s sustained, from 1,916 image-iterations/s of ResNet-18 at 224 px on one"
        " RTX 4090 in fp32 (CDA); a synthesis update counts as 2 forward passes of one teacher, a training image as 3;"
        " small networks reach less, bf16 more; synthesis without early stops; reading and decoding cost no GPU time;"
        f" bytes from shapes, without {', '.join(omitted)}"
    )


Cost = tuple[float, int]


def _forward(archs: Iterable[str], size: int) -> float:
    """Multiply-accumulates of one image through all networks."""
    return sum(gmacs(arch, size) for arch in archs) * 1e9


def _prepare(stage: Stage, by_key: dict[str, Stage]) -> Cost:
    spec: Any = stage.spec
    d = dataset(spec.dataset)
    pixels = (d.train + d.val) * d.stored**2
    return 0.0, 3 * pixels if d.size < 96 else round(pixels * JPEG_BYTES_PER_PIXEL)


def _teacher(stage: Stage, by_key: dict[str, Stage]) -> Cost:
    spec: Any = stage.spec
    d = dataset(spec.dataset)
    images = 0 if spec.recipe is None else teacher_epochs(spec.recipe) * d.train * TRAINING_PASSES + d.val
    return images * _forward([spec.arch], d.size), 4 * (parameters(spec.arch, d.classes, d.size) or 0)


def _statistics(stage: Stage, by_key: dict[str, Stage]) -> Cost:
    spec: Any = stage.spec
    d = dataset(spec.dataset)
    images = d.train if spec.per_class is None else min(d.train, spec.per_class * d.classes)
    return images * _forward([spec.arch], d.size), 0


def scored_images(params: dict[str, Any], d: Dataset) -> int:
    """Real crops that a method with `candidates` images a class and `crops` of each sends through its teacher."""
    available = -(-d.train // d.classes)
    return d.classes * min(params.get("candidates", 0), available) * params.get("crops", 1)


def _synthesis(stage: Stage, by_key: dict[str, Stage]) -> Cost:
    spec: Any = stage.spec
    d = dataset(spec.dataset)
    images = d.classes * spec.ipc
    passes = SYNTHESIS_PASSES * images * get(spec.method)(**spec.params).image_iterations(spec.ipc)
    passes += scored_images(spec.params, d)
    # Several teachers take turns.
    each = _forward(spec.teachers, d.size) / len(spec.teachers) if spec.teachers else 0.0
    if stage.shards > 1:  # its shards do the work
        return 0.0, 3 * d.size**2 * images
    return passes * each, 3 * d.size**2 * images


def _shard(stage: Stage, by_key: dict[str, Stage]) -> Cost:
    macs, size = _synthesis(stage, by_key)
    return macs / stage.spec.count, size // stage.spec.count  # type: ignore[union-attr]


def _relabel(stage: Stage, by_key: dict[str, Stage]) -> Cost:
    spec: Any = stage.spec
    d = dataset(spec.dataset)
    images = d.classes * spec.ipc
    seen = images if spec.labels == "vector" else stream_shape(spec.recipe, images).positions
    return seen * _forward(spec.teachers, d.size), label_bytes(spec.labels, spec.recipe, images, d.classes)


def _evaluation(stage: Stage, by_key: dict[str, Stage]) -> Cost:
    spec: Any = stage.spec
    d = dataset(spec.dataset)
    seen = student_images(spec.recipe, d.classes * spec.ipc, spec.label.prune > 0)
    student = _forward([spec.student], d.size)
    macs = (TRAINING_PASSES * seen + spec.recipe.evaluations * d.val) * student
    if spec.labels == "online":
        teachers: list[Any] = [by_key[k].spec for role, k in stage.inputs.items() if input_kind(role) == "teacher"]
        macs += seen * _forward([t.arch for t in teachers], d.size)
    return macs, 0


_COSTS: dict[str, Callable[[Stage, dict[str, Stage]], Cost]] = {
    "prepare": _prepare,
    "teacher": _teacher,
    "statistics": _statistics,
    "shard": _shard,
    "synthesis": _synthesis,
    "relabel": _relabel,
    "evaluation": _evaluation,
}
