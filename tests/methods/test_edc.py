"""EDC: starts, soft category-aware matching, shared views and recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from suite.errors import UserError
from suite.learn.job import Job
from suite.learn.matchers import FeatureMatcher
from suite.learn.models import denormalise, normalise
from suite.learn.schedules import factor
from suite.learn.synthesis import distill
from suite.learn.taps import BatchStats
from suite.learn.views import flip
from suite.methods import get
from suite.spec.datasets import REGISTRY
from suite.spec.recipes import teacher_recipe
from tests.methods.contract import job_for, statistics

SHORT: dict[str, Any] = {"iterations": 4, "batch": 8, "candidates": 12, "crops": 2, "factor": 2}


def edc_job(**kwargs: Any) -> Job:
    return job_for(get("edc"), **kwargs)


def pixels(x: torch.Tensor, job: Job) -> torch.Tensor:
    return denormalise(x, job.dataset.mean, job.dataset.std).int()


def test_starts_are_the_images_of_rded() -> None:
    job, values = edc_job(ipc=3), {k: SHORT[k] for k in ("candidates", "crops", "factor")}
    mosaics = get("rded")(**values).synthesize(edc_job(ipc=3)).images.int()
    plan = get("edc")(**SHORT, flip=False).compose(job)
    started = torch.cat([pixels(plan.start(n, slots), job) for n, slots in enumerate(plan.partition)])
    assert (started - mosaics).abs().max() <= 1  # truncated twice
    flipped = get("edc")(**SHORT).compose(job)
    x = torch.cat([flipped.start(n, slots) for n, slots in enumerate(flipped.partition)])
    straight = normalise(mosaics.to(torch.uint8), job.dataset.mean, job.dataset.std)
    mirrored = flip(straight, torch.ones(len(x), dtype=torch.bool))
    same, mirror = ((x - y).abs().amax((1, 2, 3)) < 1e-5 for y in (straight, mirrored))
    assert bool((same | mirror).all()) and 5 <= int(mirror.sum()) <= 25


def test_a_start_does_not_depend_on_the_batches_before_it() -> None:
    one, other = (get("edc")(**SHORT, flip=False).compose(edc_job(ipc=3)) for _ in range(2))
    in_order = [one.start(n, slots) for n, slots in enumerate(one.partition)]
    assert torch.equal(other.start(2, other.partition[2]), in_order[2])


def test_the_reference_draws_mosaics_with_replacement() -> None:
    job = edc_job(ipc=6)
    started = {}
    for quirks in (False, True):
        plan = get("edc")(**SHORT, flip=False, reference_quirks=quirks).compose(job)
        x = torch.cat([pixels(plan.start(n, slots), job) for n, slots in enumerate(plan.partition)])
        started[quirks] = x.flatten(1)
    assert len(started[False].unique(dim=0)) == 60
    assert 25 <= len(started[True].unique(dim=0)) <= 50  # 1 - 1/e of them
    for c in range(10):
        mine, all_of_class = ({tuple(r.tolist()) for r in started[q][6 * c : 6 * c + 6]} for q in (True, False))
        assert mine <= all_of_class


def test_real_starts_are_those_of_e2d() -> None:
    job = edc_job(ipc=3)
    edc = get("edc")(**SHORT, start="real").compose(job)
    e2d = get("e2d")(iterations=4, batch=8).compose(job)
    for n, slots in enumerate(edc.partition):
        assert torch.equal(edc.start(n, slots), e2d.start(n, slots))


def test_one_crop_and_flip_is_shared_by_the_batch() -> None:
    job = edc_job()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(8, -1, -1, -1)
    shared = get("edc")(**SHORT).compose(job).views(0, 8)
    own = get("edc")(**SHORT, shared=False).compose(job).views(0, 8)
    for t in range(4):
        assert len(shared.views(image, t).unique(dim=0)) == 1
        assert len(own.views(image, t).unique(dim=0)) > 1


def test_the_target_of_a_batch_is_the_mean_over_its_labels_and_of_one_class_its_own() -> None:
    """A batch whose statistics are exactly those of class 3, or the mean of classes 0 and 1, is at its target."""
    matcher = FeatureMatcher(statistics(0), ema=0.0, global_weight=0.0, class_weight=1.0)
    tables = matcher._classes
    assert tables is not None and len(tables) == 10

    def loss(classes: list[int], labels: list[int]) -> float:
        stats = BatchStats(tables[classes].mean(dim=0, keepdim=True), matcher.places)
        return float(matcher(stats, torch.tensor(labels)))

    assert loss([3], [3, 3, 3]) < 1e-4 < loss([3], [3, 3, 4])
    assert loss([0, 1], [0, 1, 1, 0]) < 1e-4 < loss([0, 1], [0, 1, 1, 1])


def test_teachers_judge_in_turn() -> None:
    plan = get("edc")(**SHORT).compose(edc_job(teachers=3))
    assert [plan.select(t, 0) for t in range(7)] == [[(t % 3, 1.0)] for t in range(7)]


@pytest.mark.parametrize("quirks", [False, True])
def test_batches_are_independent_unless_the_reference_is_reproduced(quirks: bool) -> None:
    """Another start of the first batch leaves the second one alone, but for an average that is carried on."""

    def images(dim: float) -> torch.Tensor:
        job = edc_job(ipc=2)
        values: dict[str, Any] = {"iterations": 6, "batch": 10, "start": "real", "flip": False}
        plan = get("edc")(**values, reference_quirks=quirks).compose(job)
        start = plan.start
        return distill(job, replace(plan, start=lambda n, s: start(n, s) * (dim if n == 0 else 1.0))).images

    one, other = images(1.0), images(0.5)
    assert not torch.equal(one[:10], other[:10])
    assert torch.equal(one[10:], other[10:]) == (not quirks)


def test_values_are_the_scripts() -> None:
    def values(base: str, ipc: int, *names: str) -> tuple[Any, ...]:
        made = get("edc").for_dataset(base, ipc)
        return tuple(getattr(made, n) for n in names)

    names = ("iterations", "lr", "weight", "ema", "batch", "crop", "start")
    assert values("imagenet1k", 10, *names) == (1000, 0.05, 0.1, 0.8, 20, (0.5, 1.0), "mosaic")
    assert values("imagenette", 10, *names) == (1000, 0.05, 0.1, 0.8, 100, (0.5, 1.0), "mosaic")
    assert values("imagenette", 50, *names) == (50, 0.05, 0.01, 0.0, 100, (0.5, 1.0), "mosaic")
    assert values("tinyimagenet", 50, *names) == (2000, 0.05, 0.01, 0.8, 25, (0.5, 1.0), "real")
    assert values("cifar100", 10, *names) == (2000, 0.05, 0.01, 0.8, 25, (0.5, 1.0), "real")
    assert values("cifar10", 1, *names) == (75, 0.05, 0.01, 0.8, 10, (0.08, 1.0), "real")
    assert [get("edc").label_policy(b, "paper") for b in ("imagenet1k", "imagenette", "cifar10")] == [
        "stored",
        "online",
        "online",
    ]


@pytest.mark.parametrize(
    ("base", "ipc", "expected"),
    [
        ("imagenet1k", 10, ("adamw", 1e-3, 0.01, "cosine_half", 300, 100, "none", (0.5, 1.0))),
        ("imagenette", 10, ("adamw", 1e-3, 0.01, "cos2", 1000, 50, "randaugment", (0.5, 1.0))),
        ("cifar10", 1, ("adamw", 1e-3, 0.01, "step", 1000, 10, "randaugment", (0.08, 1.0))),
        ("cifar100", 10, ("sgd", 0.1, 5e-4, "cos2", 1000, 50, "randaugment", (0.5, 1.0))),
        ("tinyimagenet", 10, ("sgd", 0.1, 5e-4, "cosine_half", 300, 100, "randaugment", (0.5, 1.0))),
    ],
)
def test_recipes_are_the_scripts(base: str, ipc: int, expected: tuple[Any, ...]) -> None:
    r = get("edc").for_dataset(base, ipc).recipe(base, REGISTRY[base].classes, ipc, "resnet18")
    assert (r.optimizer, r.lr, r.weight_decay, r.schedule, r.epochs, r.batch, r.augment, r.crop) == expected
    assert (r.loss, r.ce_weight, r.ema, r.cutmix) == ("mse_gt", 0.025, 0.99, True)
    assert r.momentum == (0.875 if r.optimizer == "sgd" else 0.9)


def test_the_schedule_of_the_reference_is_linear_where_the_paper_has_a_smoothed_cosine() -> None:
    def lr(epoch: int, quirks: bool) -> float:
        recipe = get("edc")(reference_quirks=quirks).recipe("imagenet1k", 1000, 10, "resnet18")
        return factor(recipe.schedule, epoch, 300)

    assert all(lr(e, quirks=True) == pytest.approx(1 - e / 600) for e in (0, 1, 150, 299))
    assert lr(0, quirks=False) == 1 and lr(299, quirks=False) == pytest.approx(0.5, abs=0.003)
    assert lr(100, quirks=False) > lr(100, quirks=True) + 0.05


def test_the_step_schedule_of_cifar10_halves_at_epochs_800_900_and_950() -> None:
    r = get("edc").for_dataset("cifar10", 1).recipe("cifar10", 10, 1, "resnet18_cifar")
    at = {e: factor(r.schedule, e, 1000, 0, r.milestones, r.gamma) for e in (799, 800, 899, 900, 949, 950, 999)}
    assert list(at.values()) == [1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_label_teachers_of_small_sets_are_weak_and_the_references_weaker() -> None:
    for base, epochs, stop in (("cifar10", 5, 1), ("cifar100", 50, 41), ("tinyimagenet", 50, 41)):
        fields = get("edc")().label_teacher(base, 10)
        assert replace(teacher_recipe(base), **fields).epochs == epochs and "stop" not in fields
        assert get("edc")(reference_quirks=True).label_teacher(base, 10)["stop"] == stop
    assert get("edc")().label_teacher("imagenet1k", 10) == {}


def test_shares_beyond_one_are_refused_when_planning() -> None:
    with pytest.raises(UserError, match=r"class_weight = 1\.5"):
        get("edc")(class_weight=1.5)
