"""Methods that optimise pixels: SRe2L and E2D."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from suite.errors import DataError
from suite.learn import synthesis, view_policies
from suite.learn.job import Job
from suite.methods import get
from suite.spec.datasets import REGISTRY
from tests.learn.synthesis_parts import tiny_job
from tests.methods.contract import job_for


def compositions(monkeypatch: pytest.MonkeyPatch, name: str, job: Job, **values: Any) -> synthesis.Composition:
    """What the method hands to the shared loop."""
    seen: list[synthesis.Composition] = []
    original = synthesis.distill
    monkeypatch.setattr(synthesis, "distill", lambda job, plan: (seen.append(plan), original(job, plan))[1])
    get(name)(**values).synthesize(job)
    return seen[0]


def test_sre2l_batches_hold_one_image_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compositions(monkeypatch, "sre2l", job_for(get("sre2l"), ipc=3), iterations=2, batch=4, roll=(0, 1))
    classes = [(slots // 3).tolist() for slots in plan.partition]
    assert classes == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 3
    assert [(slots % 3).unique().tolist() for slots in plan.partition] == [[0]] * 3 + [[1]] * 3 + [[2]] * 3


def test_sre2l_starts_from_noise_that_differs_between_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compositions(monkeypatch, "sre2l", job_for(get("sre2l")), iterations=1, batch=10)
    x = [plan.start(n, plan.partition[n]) for n in range(2)]
    assert not torch.equal(*x)
    assert all(abs(v.mean()) < 0.05 and abs(v.std() - 1) < 0.05 for v in x)


def test_sre2l_makes_its_class_likelier_and_the_bn_term_smaller() -> None:
    """On the teacher that it was made with, images of 60 iterations beat the noise by a wide margin."""
    teacher = tiny_job().teachers[0]

    def measure(iterations: int) -> tuple[float, float]:
        job = job_for(get("sre2l"), ipc=1)
        values = {"iterations": iterations, "lr": 0.2, "crop": (1.0, 1.0), "flip": False, "roll": (0, 1), "batch": 10}
        made = get("sre2l")(**values, bn_weight=0.1).synthesize(job)
        x = (made.images / 255 - teacher.mean[0]) / teacher.std[0]
        from suite.learn.critics import bn_critic
        from suite.learn.synthesis import Seen

        critic = bn_critic(teacher, 1.0, 10.0)
        with torch.no_grad():
            logits, stats = critic.forward(x)
            assert critic.matching is not None
            distance = critic.matching(Seen(x, made.labels, logits, stats)).item()
        critic.close()
        return torch.nn.functional.cross_entropy(logits, made.labels).item(), distance

    (ce_start, bn_start), (ce_end, bn_end) = measure(1), measure(60)
    assert ce_end < 0.2 * ce_start and bn_end < 0.5 * bn_start


def test_sre2l_values_are_the_scripts() -> None:
    full, tiny, cifar = (get("sre2l").for_dataset(b, 10) for b in ("imagenet1k", "tinyimagenet", "cifar100"))
    assert (full.iterations, full.lr, full.bn_weight, full.roll) == (4000, 0.25, 0.01, (0, 32))
    assert (tiny.iterations, tiny.lr, tiny.bn_weight, tiny.roll) == (4000, 0.1, 1.0, (-4, 4))
    assert (cifar.iterations, cifar.lr, cifar.crop, cifar.flip, cifar.roll) == (1000, 0.25, (1.0, 1.0), False, (0, 4))
    assert full.recipe("imagenet1k", 1000, 10, "resnet18").batch == 1024
    recipe = tiny.recipe("tinyimagenet", 200, 50, "resnet18_cifar")
    assert recipe.lr * recipe.weight_decay == pytest.approx(0.2 * 1e-4)  # T^2 moved from the loss to the optimiser


def test_tiny_imagenet_recipe_without_t_squared_makes_the_scripts_updates() -> None:
    """SGD with loss 400 L, rate lr, decay wd equals SGD with loss L, rate 400 lr, decay wd / 400."""

    def run(scale: float, lr: float, decay: float) -> torch.Tensor:
        w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=lr, momentum=0.9, weight_decay=decay)
        for _ in range(20):
            optimizer.zero_grad()
            (scale * 1e-4 * (w**4).sum()).backward()
            optimizer.step()
        return w.detach()

    torch.testing.assert_close(run(400, 0.2, 1e-4), run(1, 0.2 * 400, 1e-4 / 400), atol=1e-12, rtol=0)


def e2d_job(**kwargs: Any) -> Job:
    return job_for(get("e2d"), **kwargs)


def test_e2d_counts_the_iterations_that_an_early_stop_saves() -> None:
    job = e2d_job(ipc=2)
    get("e2d")(iterations=12, explore=4, threshold=math.inf, flip=False).synthesize(job)
    assert job.counters.image_iterations == 20 * 5
    job = e2d_job(ipc=2)
    get("e2d")(iterations=12, explore=4, threshold=-math.inf, flip=False).synthesize(job)
    assert job.counters.image_iterations == 20 * 12


def test_e2d_takes_its_teachers_in_turn() -> None:
    job = e2d_job(teachers=3, ipc=1)
    called: list[int] = []
    handles = [t.model.register_forward_hook(lambda *_, i=i: called.append(i)) for i, t in enumerate(job.teachers)]
    try:
        get("e2d")(iterations=7, explore=6, batch=5, flip=False).synthesize(job)
    finally:
        for handle in handles:
            handle.remove()
    assert called == [t % 3 for t in range(14)]


def test_e2d_branches_differ_in_partition_and_range(monkeypatch: pytest.MonkeyPatch) -> None:
    edc = compositions(monkeypatch, "e2d", e2d_job(), iterations=2, explore=1, batch=4, flip=False)
    assert [s.tolist() for s in edc.partition[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]] and not edc.pixels
    monkeypatch.undo()
    cda = compositions(monkeypatch, "e2d", e2d_job(), branch="cda", iterations=2, explore=1, batch=4, roll=(0, 2))
    assert [s.tolist() for s in cda.partition[:2]] == [[0, 2, 4, 6], [8, 10, 12, 14]] and cda.pixels
    start = cda.start(0, cda.partition[0])
    assert start.min() >= 0 and start.max() <= 1


def test_e2d_cda_branch_needs_no_statistics() -> None:
    job = e2d_job()
    job.statistics = []
    get("e2d")(branch="cda", iterations=3, explore=1, flip=False).synthesize(job)
    with pytest.raises(DataError, match="1 teachers have 0 statistics"):
        get("e2d")(iterations=3, explore=1, flip=False).synthesize(job)


def test_e2d_without_iterations_of_effect_is_its_real_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a vanishing rate the images are the real ones that were drawn, flipped or not."""
    job = e2d_job(ipc=3)
    images = get("e2d")(iterations=1, explore=1, lr=1e-9).synthesize(job).images.int()
    real = job.real
    assert real is not None
    pool = torch.cat([real.images, real.images.flip(3)]).int()  # type: ignore[attr-defined]
    labels = real.labels.repeat(2)
    for i, image in enumerate(images):
        distance = (pool - image).abs().flatten(1).amax(1)
        assert (labels[distance <= 1] == i // 3).all() and (distance <= 1).any()


def test_e2d_reference_quirks_change_the_images() -> None:
    values: dict[str, Any] = {"iterations": 4, "explore": 2, "batch": 10, "flip": False}
    clean, quirky = (get("e2d")(**values, reference_quirks=q).synthesize(e2d_job()).images for q in (False, True))
    assert not torch.equal(clean, quirky)


def test_e2d_soft_category_matching_uses_the_classes() -> None:
    """Exchanging two classes' statistics changes the images of a batch of one class only through these targets."""
    from dataclasses import replace

    base, swapped = e2d_job(), e2d_job()
    statistics = base.statistics[0]
    order = torch.tensor([1, 0, *range(2, 10)])
    layers = [
        replace(layer, **{k: v[order] for k, v in layer.tensors().items() if k.startswith("class_")})
        for layer in statistics.layers
    ]
    swapped.statistics = [replace(statistics, layers=layers)]
    method = get("e2d")(iterations=6, explore=5, batch=2, flip=False, weight=1.0)
    one, other = (method.synthesize(job).images for job in (base, swapped))
    assert not torch.equal(one[:4], other[:4]) and torch.equal(one[4:], other[4:])


@pytest.mark.parametrize("name", ["sre2l", "e2d"])
def test_digits_are_never_flipped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> torch.Tensor:
        raise AssertionError("flipped")

    monkeypatch.setattr(view_policies, "flip", refuse)
    monkeypatch.setattr("suite.learn.initial.flip", refuse)
    short = {"sre2l": {"iterations": 2}, "e2d": {"iterations": 2, "explore": 1}}
    get(name).for_dataset("digits", 2, short[name]).synthesize(job_for(get(name)))
    with pytest.raises(AssertionError, match="flipped"):
        get(name).for_dataset("digits", 2, short[name] | {"flip": True}).synthesize(job_for(get(name)))


def test_e2d_values_are_the_scripts() -> None:
    one, many = (get("e2d").for_dataset(b, 10) for b in ("imagenet1k", "imagenet21k"))
    assert (one.branch, one.iterations, one.explore, one.threshold) == ("edc", 200, 140, 0.5)
    assert (one.lr, one.weight, one.ema, one.batch, one.crop) == (0.05, 0.1, 0.8, 20, (0.5, 1.0))
    assert (many.branch, many.iterations, many.explore, many.threshold) == ("cda", 400, 280, 0.3)
    assert (many.lr, many.weight, many.batch, many.roll) == (0.005, 0.01, 80, (0, 32))
    recipe = one.recipe("imagenet1k", REGISTRY["imagenet1k"].classes, 10, "resnet18")
    assert (recipe.loss, recipe.ce_weight, recipe.schedule, recipe.ema) == ("mse_gt", 0.025, "cos2", 0.99)
    assert many.recipe("imagenet21k", 10_450, 10, "resnet18").loss == "kl"
