"""The selection baselines: herding, k-center and forgetting."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from suite.errors import DataError, UserError
from suite.learn.features import real_features
from suite.learn.forgetting import forgetting_counts
from suite.learn.job import Job
from suite.learn.teachers import Teacher
from suite.methods import get
from suite.methods.herding import herd
from suite.methods.kcenter import spread
from suite.spec.datasets import REGISTRY
from suite.spec.recipes import teacher_recipe
from tests.learn.synthesis_parts import DigitImages, small_teacher, tiny_job

BASELINES = ("herding", "kcenter", "forgetting")
SHORT: dict[str, dict[str, Any]] = {"forgetting": {"epochs": 1, "network": "convnet1_w4"}}


def images(name: str, job: Job, **values: Any) -> torch.Tensor:
    return get(name)(**SHORT.get(name, {}), **values).synthesize(job).images


def clouds(seed: int, n: int = 14, width: int = 5) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).relu()


@pytest.mark.parametrize("name", BASELINES)
def test_selections_are_distinct_real_images_of_their_class_with_hard_labels(name: str) -> None:
    real = DigitImages(stored=20, per_class=30)
    job = tiny_job(ipc=4, real=real)
    made = images(name, job)
    inner = real.images[:, :, 2:18, 2:18]
    for i, image in enumerate(made):
        same = (inner == image).flatten(1).all(1)
        assert same.any() and (real.labels[same] == i // 4).all()
    assert len(made.flatten(1).unique(dim=0)) == 40
    assert get(name).labels == "hard" and get(name).label_policy("cifar10", "matched") == "hard"
    assert job.counters.forward_images == len(real) and job.counters.image_iterations == 0


@pytest.mark.parametrize("name", BASELINES)
def test_selections_refuse_classes_with_too_few_images(name: str) -> None:
    with pytest.raises(DataError, match="class 0 has 3 images, 4 are wanted"):
        images(name, tiny_job(ipc=4, real=DigitImages(per_class=3)))


@pytest.mark.parametrize("name", BASELINES)
def test_the_seed_matters_where_something_is_drawn(name: str) -> None:
    first, again, other = (images(name, tiny_job(ipc=3, seed=s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "herding")


def test_k_center_from_the_mean_draws_nothing() -> None:
    first, other = (images("kcenter", tiny_job(ipc=3, seed=s), start="mean") for s in (0, 1))
    assert torch.equal(first, other)


@pytest.mark.parametrize("name", ["herding", "kcenter"])
def test_a_larger_selection_starts_with_a_smaller_one(name: str) -> None:
    few, many = images(name, tiny_job(ipc=2)), images(name, tiny_job(ipc=5))
    assert torch.equal(many.view(10, 5, 3, 16, 16)[:, :2], few.view(10, 2, 3, 16, 16))


@pytest.mark.parametrize("seed", range(5))
def test_each_herding_step_is_the_best_one_as_brute_force_finds_it(seed: int) -> None:
    x = clouds(seed)
    mean, chosen = x.double().mean(0), herd(x, len(x)).tolist()
    assert sorted(chosen) == list(range(len(x)))
    for k in range(len(x)):
        errors = {i: (mean - x[[*chosen[:k], i]].double().mean(0)).norm() for i in range(len(x)) if i not in chosen[:k]}
        assert errors[chosen[k]] <= min(errors.values()) + 1e-12


def test_the_mean_of_herded_features_comes_closer_and_beats_that_of_random_ones() -> None:
    job = tiny_job(ipc=1)
    members = torch.nonzero(DigitImages().labels == 3).flatten()
    x = real_features(job, members)[0].double()
    chosen, draws = herd(x, 32), torch.Generator().manual_seed(0)

    def error(subset: torch.Tensor) -> float:
        return float((x.mean(0) - x[subset].mean(0)).norm())

    errors = [error(chosen[:n]) for n in (1, 2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 10
    for n in (4, 32):
        by_chance = [error(torch.randperm(len(x), generator=draws)[:n]) for _ in range(50)]
        assert error(chosen[:n]) < min(by_chance)


def test_herding_can_scale_features_to_length_one() -> None:
    x = clouds(1)
    lengths = torch.linspace(1, 50, len(x))[:, None]
    unit = torch.nn.functional.normalize
    assert torch.equal(herd(unit(x), 5), herd(unit(x * lengths), 5))
    assert not torch.equal(herd(x, 5), herd(x * lengths, 5))
    assert not torch.equal(images("herding", tiny_job(ipc=4)), images("herding", tiny_job(ipc=4), normalise=True))


def radius(x: torch.Tensor, centres: tuple[int, ...] | list[int]) -> float:
    return float(torch.cdist(x, x[list(centres)]).min(1).values.max())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_k_center_is_within_twice_the_optimal_radius(seed: int, k: int) -> None:
    x = clouds(seed, n=12).double()
    best = min(radius(x, centres) for centres in combinations(range(12), k))
    for first in (0, 5):
        chosen, radii = spread(x, k, first)
        assert chosen[0] == first and len(set(chosen.tolist())) == k
        assert float(radii[-1]) == pytest.approx(radius(x, chosen.tolist()))
        assert float(radii[-1]) <= 2 * best + 1e-12


def test_the_radius_of_k_center_never_grows_and_ends_at_zero() -> None:
    x = clouds(3, n=30)
    chosen, radii = spread(x, 30, 7)
    assert sorted(chosen.tolist()) == list(range(30))
    assert (radii.diff() <= 0).all() and radii[-1] == 0
    for k in range(1, 30):  # each is the farthest from those before it
        distance = torch.cdist(x.double(), x[chosen[:k]].double()).min(1).values
        assert distance[chosen[k]] == pytest.approx(float(distance.max()))


def test_k_center_chooses_no_image_twice_even_if_all_features_are_equal() -> None:
    chosen, radii = spread(torch.ones(6, 3), 6, 2)
    assert sorted(chosen.tolist()) == list(range(6)) and radii.tolist() == [0] * 6


def test_forgetting_keeps_the_images_with_most_events() -> None:
    job, real = tiny_job(ipc=3, seed=2), DigitImages()
    method = get("forgetting").for_dataset("digits", 3, {"epochs": 4, "network": "convnet1_w4"})
    chosen = method.choose(job)  # type: ignore[attr-defined]
    counts = forgetting_counts(tiny_job(seed=2), "convnet1_w4", replace(teacher_recipe("digits"), epochs=4))
    for c, picked in enumerate(chosen):
        members = torch.nonzero(real.labels == c).flatten()
        left = members[~torch.isin(members, picked)]
        assert torch.isin(picked, members).all() and counts[picked].min() >= counts[left].max()


def test_forgetting_trains_the_teachers_network_for_as_long_as_teachers_are_trained() -> None:
    for base in REGISTRY:
        assert get("forgetting").for_dataset(base, 10).epochs == teacher_recipe(base).epochs  # type: ignore[attr-defined]
    teacher = small_teacher()
    job = tiny_job(teachers=0)
    job.teachers = [Teacher("convnet1_w4", teacher.model, teacher.mean, teacher.std)]
    assert torch.equal(get("forgetting")(epochs=1).synthesize(job).images, images("forgetting", tiny_job()))


def test_values_without_sense_are_refused_when_planning() -> None:
    with pytest.raises(UserError, match="out of range: epochs = 0"):
        get("forgetting").for_dataset("cifar10", 10, {"epochs": 0})
    with pytest.raises(UserError, match="unknown architecture 'resnet_18'"):
        get("forgetting").for_dataset("cifar10", 10, {"network": "resnet_18"})
