"""G-VBSM: batches, backbones in turn, statistical matching, data densification, recipes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from suite.learn.job import Job
from suite.learn.models import build
from suite.learn.statistics import ClassStatistics, compute_statistics
from suite.learn.synthesis import Composition, distill
from suite.learn.teachers import Teacher
from suite.learn.view_policies import RandomViews
from suite.methods import get
from suite.spec.archs import check_arch
from suite.spec.datasets import REGISTRY
from tests.learn.synthesis_parts import DigitImages, apart
from tests.methods.contract import job_for, statistics

#: SRe2L's views, for comparisons with it.
VIEWS: dict[str, Any] = {"crop": (0.5, 1.0), "flip": True, "roll": (0, 3)}


def gvbsm_job(**kwargs: Any) -> Job:
    return job_for(get("gvbsm"), **kwargs)


def only(found: ClassStatistics, kind: str) -> ClassStatistics:
    return replace(found, layers=[layer for layer in found.layers if layer.kind == kind])


def test_batches_go_through_the_classes() -> None:
    parts = get("gvbsm")(batch=40).partition(1000, 10)
    classes = [(slots // 10).unique().tolist() for slots in parts[:2]]
    assert classes == [[0, 1, 2, 3], [4, 5, 6, 7]] and len(parts) == 250


def test_tiny_imagenet_goes_through_the_classes_once_a_group() -> None:
    method = get("gvbsm").for_dataset("tinyimagenet", 100)
    parts = method.partition(200, 100)
    assert [len(p) for p in parts] == [50] * 400
    assert torch.equal(parts[0], torch.cat([torch.arange(10) + 100 * c for c in range(5)]))
    assert torch.equal(parts[40], parts[0] + 10)


@pytest.mark.parametrize(("classes", "ipc", "batch", "groups"), [(7, 5, 4, 1), (7, 5, 4, 3), (3, 2, 50, 10)])
def test_every_image_is_in_exactly_one_batch(classes: int, ipc: int, batch: int, groups: int) -> None:
    parts = get("gvbsm")(batch=batch, groups=groups).partition(classes, ipc)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(classes * ipc))
    assert max(map(len, parts)) <= batch


def test_backbones_judge_in_turn() -> None:
    plan = get("gvbsm")(iterations=4).compose(gvbsm_job(teachers=3))
    assert [plan.select(t, 0) for t in range(7)] == [[(t % 3, 1.0)] for t in range(7)]


def test_batchnorm_alone_without_average_and_densification_is_sre2l() -> None:
    """At IPC 1 both partitions are one image a class; the multiplier is then the first BatchNorm layer's."""
    job = gvbsm_job(ipc=1)
    job.statistics = [only(job.statistics[0], "bn")]
    common: dict[str, Any] = {"iterations": 6, "lr": 0.1, "batch": 5, **VIEWS}
    one = get("gvbsm")(**common, weight=0.05, ema=0.0, dd_weight=0.0).synthesize(job)
    other = get("sre2l")(**common, bn_weight=0.05).synthesize(job_for(get("sre2l"), ipc=1))
    assert apart(one.images, other.images) < 0.01
    unlike = get("sre2l")(**common, bn_weight=0.0).synthesize(job_for(get("sre2l"), ipc=1))
    assert apart(one.images, unlike.images) > 0.1


def from_one_start(job: Job, plan: Composition) -> torch.Tensor:
    """The images, int, of a composition in which all 20 are one batch that starts from the same noise, seen whole."""
    x = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.3
    views = partial(RandomViews, job, iterations=plan.iterations)
    plan = replace(plan, start=lambda n, slots: x, views=views, partition=[torch.arange(20)])
    return distill(job, plan).images.int()


def test_edc_with_class_targets_that_are_the_global_ones_matches_as_gvbsm() -> None:
    found = statistics(0)
    layers = [
        replace(
            layer,
            **{
                f"class_{name}": None if value is None else value.expand(10, -1).clone()
                for name in ("mean", "var", "patch_mean", "patch_var")
                for value in [getattr(layer, name)]
            },
        )
        for layer in found.layers
    ]
    common: dict[str, Any] = {"iterations": 15, "lr": 0.05, "weight": 1.0, "ema": 0.8, "batch": 20}
    ends = []
    for name, values, given in (
        ("gvbsm", {"dd_weight": 0.0}, found),
        ("edc", {"start": "real"}, replace(found, layers=layers)),
        ("edc", {"start": "real"}, found),
    ):
        job = job_for(get(name))
        job.statistics = [given]
        ends.append(from_one_start(job, get(name)(**common, **values).compose(job)))
    assert apart(ends[0], ends[1]) < 0.01
    assert apart(ends[0], ends[2]) > 0.1


def test_the_multiplier_is_that_of_the_convolution_that_sees_the_image() -> None:
    assert [layer.name for layer in statistics(0).layers][:2] == ["c1", "b1"]


def test_densification_acts_on_classes_with_several_images_only() -> None:
    def images(ipc: int, **values: Any) -> torch.Tensor:
        job = gvbsm_job(ipc=ipc)
        return get("gvbsm")(iterations=4, lr=0.05, roll=(0, 0), **values).synthesize(job).images

    assert torch.equal(images(1), images(1, dd_weight=0.0))
    assert not torch.equal(images(2), images(2, dd_weight=0.0))
    assert torch.equal(images(2, groups=2), images(2, groups=2, dd_weight=0.0))


def test_convolutions_are_dropped_by_the_seed_and_batchnorm_never() -> None:
    def images(kind: str, drop_rate: float) -> torch.Tensor:
        job = gvbsm_job()
        job.statistics = [only(job.statistics[0], kind)]
        values: dict[str, Any] = {"iterations": 4, "roll": (0, 0), "dd_weight": 0.0}
        return get("gvbsm")(**values, weight=1.0, drop_rate=drop_rate).synthesize(job).images

    assert torch.equal(images("bn", 0.0), images("bn", 0.9))
    assert not torch.equal(images("conv", 0.0), images("conv", 0.9))
    assert torch.equal(images("conv", 0.5), images("conv", 0.5))


def test_batches_side_by_side_are_those_of_one_after_the_other() -> None:
    """Statistics, averages, dropped layers and densification are a batch's own."""

    def images(stack: int, weight: float = 1.0) -> torch.Tensor:
        job = gvbsm_job(ipc=4, teachers=2)
        job.stack = stack
        values: dict[str, Any] = {"iterations": 6, "lr": 0.05, "batch": 10, "roll": (0, 2), "drop_rate": 0.5}
        return get("gvbsm")(**values, weight=weight).synthesize(job).images

    assert apart(images(1), images(40)) < 0.01 < 0.1 < apart(images(1), images(1, weight=0.0))


def test_a_backbone_without_batchnorm_is_matched_by_its_convolutions() -> None:
    job, real = gvbsm_job(), DigitImages()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build("convnet2_w16_in", 10, 16)
    teacher = Teacher("convnet2_w16_in", net, job.dataset.mean, job.dataset.std)
    x = (real.images / 255 - job.dataset.mean[0]) / job.dataset.std[0]
    batches = zip(x.split(256), real.labels.split(256), strict=True)
    found = compute_statistics(teacher.model, batches, 10, 4)
    assert found.kinds == ("conv",)
    job.teachers, job.statistics = [*job.teachers, teacher], [*job.statistics, found]
    values: dict[str, Any] = {"iterations": 8, "roll": (0, 0), "dd_weight": 0.0}
    one, other = (get("gvbsm")(**values, weight=w).synthesize(job).images for w in (0.0, 1.0))
    assert one.shape == other.shape and not torch.equal(one, other)


def test_values_are_the_scripts() -> None:
    def values(base: str, *names: str) -> tuple[Any, ...]:
        made = get("gvbsm").for_dataset(base, 10)
        return tuple(getattr(made, n) for n in names)

    names = ("iterations", "lr", "weight", "ema", "drop_rate", "dd_weight", "tau", "batch", "crop", "pad", "roll")
    assert values("imagenet1k", *names) == (4000, 0.1, 0.01, 0.4, 0.0, 1, 4, 40, (0.08, 1.0), 0, (0, 32))
    assert values("tinyimagenet", *names) == (4000, 0.05, 0.01, 0.8, 0.4, 1, 4, 50, (1.0, 1.0), 8, (0, 32))
    assert values("cifar100", *names) == (4000, 0.05, 0.01, 0.8, 0.4, 1, 4, 50, (1.0, 1.0), 4, (0, 32))
    assert values("cifar10", *names) == (4000, 0.05, 0.01, 0.8, 0.4, 1, 4, 100, (1.0, 1.0), 4, (0, 32))
    backbones = get("gvbsm").paper_teachers
    assert [len(backbones[b]) for b in ("imagenet1k", "tinyimagenet", "cifar100", "cifar10")] == [4, 5, 5, 5]
    assert all(check_arch(a) for archs in backbones.values() for a in archs)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("imagenet1k", ("adamw", 1e-3, 0.01, 300, 1024, 0.1, 1, "norm")),
        ("tinyimagenet", ("sgd", 0.1, 5e-4, 100, 100, 0.1, 2, "mean")),
        ("cifar100", ("sgd", 0.1, 5e-4, 1000, 64, 0.15, 1, "mean")),
        ("cifar10", ("adamw", 1e-3, 0.0, 1000, 100, 0.15, 1, "mean")),
    ],
)
def test_recipes_are_the_scripts(base: str, expected: tuple[Any, ...]) -> None:
    method, classes = get("gvbsm").for_dataset(base, 10), REGISTRY[base].classes
    r = method.recipe(base, classes, 10, "resnet18")
    ensemble = method.label_recipe(base, classes, 10).ensemble
    found = (r.optimizer, r.lr, r.weight_decay, r.epochs, r.batch, r.ce_weight, r.accumulate, ensemble)
    assert found == expected
    assert (r.loss, r.schedule, r.crop, r.ema) == ("mse_gt", "cosine", (0.08, 1.0), 0.0)
    assert get("gvbsm").label_policy(base, "paper") == "stored"


def test_logits_are_scaled_to_equal_norms_on_every_subset_of_imagenet() -> None:
    found = {b: get("gvbsm")().label_recipe(b, facts.classes, 10).ensemble for b, facts in REGISTRY.items()}
    assert {b for b, ensemble in found.items() if ensemble == "norm"} == {b for b in REGISTRY if b.startswith("image")}
    assert {"imagewoof", "imagenette", "imagenet100"} <= {b for b, ensemble in found.items() if ensemble == "norm"}


def test_teachers_of_cifar10_are_weak_on_purpose() -> None:
    fields = get("gvbsm")().label_teacher("cifar10", 10)
    assert (fields["epochs"], fields["weight_decay"], fields["schedule"]) == (5, 0.0, "constant")
    assert get("gvbsm")().label_teacher("imagenet1k", 10) == {}
    assert get("gvbsm")(reference_quirks=True).label_teacher("tinyimagenet", 50)["stop"] == 41
