"""WMDD: barycentres of real features, class-wise statistics, batches of whole classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from suite.learn.barycentre import barycentre_term, class_barycentres
from suite.learn.critics import bn_critic, class_bn_critic
from suite.learn.features import real_features
from suite.learn.initial import noise
from suite.learn.statistics import compute_statistics
from suite.learn.synthesis import Composition, by_class, distill
from suite.learn.taps import running_statistics, tapped_layers
from suite.learn.teachers import Teacher
from suite.learn.view_policies import RandomViews
from suite.methods import get
from tests.helpers import golden
from tests.learn.golden_nets import golden_net
from tests.learn.synthesis_parts import DigitImages, apart, small_teacher, tiny_job
from tests.methods.class_wise import asked, by_hand, compositions
from tests.methods.contract import job_for

PLAIN: dict[str, Any] = {"crop": (1.0, 1.0), "flip": False, "roll": (0, 0)}


@pytest.mark.parametrize(("ipc", "sizes"), [(1, [10]), (3, [9, 9, 9, 3]), (6, [6] * 10), (12, [12] * 10)])
def test_batches_hold_whole_classes(monkeypatch: pytest.MonkeyPatch, ipc: int, sizes: list[int]) -> None:
    """As many as fit into the batch, and at least one."""
    plan = compositions(monkeypatch, "wmdd", job_for(get("wmdd"), ipc=ipc), iterations=1, batch=10, **PLAIN)
    assert [len(slots) for slots in plan.partition] == sizes
    assert torch.equal(torch.cat(list(plan.partition)), torch.arange(10 * ipc))


def test_points_of_a_class_balance_its_real_features() -> None:
    job = tiny_job(ipc=4)
    points = class_barycentres(job).unflatten(0, (10, 4))
    real = DigitImages()
    assert job.counters.forward_images == len(real) and points.dtype == torch.float32
    features = real_features(tiny_job(), torch.arange(len(real)))[0]
    for c in range(10):
        torch.testing.assert_close(points[c].mean(0), features[real.labels == c].mean(0), rtol=1e-4, atol=1e-5)
    assert torch.cdist(points, points)[:, ~torch.eye(4, dtype=torch.bool)].min() > 0.1, "points of a class differ"


def test_points_depend_on_the_seed_and_on_nothing_else() -> None:
    torch.manual_seed(3)
    first = class_barycentres(tiny_job(ipc=3))
    torch.manual_seed(4)
    assert torch.equal(first, class_barycentres(tiny_job(ipc=3)))
    assert not torch.equal(first, class_barycentres(tiny_job(ipc=3, seed=1)))


def test_image_i_of_a_class_is_compared_with_point_i() -> None:
    """Order in the batch does not matter: slots say which point an image belongs to."""
    job = tiny_job(ipc=3)
    critic = class_bn_critic(
        job.teachers[0], statistics(), 0.0, 1.0, extra=barycentre_term(class_barycentres(job), 1.0)
    )
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    slots = torch.arange(3, 9)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    with torch.no_grad():
        term, _ = asked(critic, x, slots // 3, slots)
        both, _ = asked(critic, x[order], slots[order] // 3, slots[order])
        images, _ = asked(critic, x[order], slots // 3, slots)
    torch.testing.assert_close(both, term)
    assert (images - term).abs() > 1e-3


def test_feature_term_is_zero_at_the_points_and_moves_only_the_features() -> None:
    points = class_barycentres(tiny_job(ipc=2))
    term = barycentre_term(points, 2.0)
    features = points[4:8].clone().requires_grad_()
    seen: Any = type("Seen", (), {"features": features, "slots": torch.arange(4, 8)})
    loss = term(seen)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss == 0 and torch.equal(gradient, torch.zeros_like(features))
    seen.features = (points[4:8] + 3.0).requires_grad_()
    torch.testing.assert_close(term(seen), 2 * torch.tensor(9.0 * features.numel()).sqrt())


@pytest.mark.parametrize("tag", ["0_4", "1_3"])
def test_loss_and_gradients_are_the_reference_s(tag: str) -> None:
    g = golden("wmdd")
    first, last = map(int, tag.split("_"))
    x, y = g[f"loss_{tag}.x"].clone().requires_grad_(), g[f"loss_{tag}.y"]
    slots = torch.arange(3 * first, 3 * last)
    points = g[f"loss_{tag}.bary_all"].flatten(0, 1)
    teacher = Teacher("net", golden_net(g), (0.0,) * 3, (1.0,) * 3)
    targets = by_hand({n: (g[f"target.{n}.mean"], g[f"target.{n}.var"]) for n in ("b1", "b2")})

    def near(ours: torch.Tensor, name: str) -> None:
        torch.testing.assert_close(ours.detach(), g[f"loss_{tag}.{name}"], atol=1e-9, rtol=0)

    distance = barycentre_term(points, 1.0)
    bn = asked(class_bn_critic(teacher, targets, 1.0, 1.0), x, y, slots)[0]
    torch.testing.assert_close(bn.detach(), g[f"loss_{tag}.bn_per_layer"].sum(), atol=1e-9, rtol=0)
    near(torch.autograd.grad(bn, x)[0], "grad_bn")
    bary, _ = asked(class_bn_critic(teacher, targets, 0.0, 1.0, extra=distance), x, y, slots)
    near(bary, "bary_term")
    near(torch.autograd.grad(bary, x)[0], "grad_bary")
    both, seen = asked(class_bn_critic(teacher, targets, 10.0, 1.0, extra=distance), x, y, slots)
    near(seen.features, "feature")
    ce = F.cross_entropy(seen.logits, y)
    near(ce, "ce")
    near(ce + both, "total_rwb1_rbn10")
    near(torch.autograd.grad(ce + both, x)[0], "grad_total")


def statistics(moments: bool = True) -> Any:
    """Of the small teacher over real digits; or its running statistics as the moments of every class."""
    teacher, real = small_teacher(), DigitImages()
    if moments:
        x = (real.images / 255 - teacher.mean[0]) / teacher.std[0]
        return compute_statistics(teacher.model, [(x, real.labels)], 10, None, ("bn",))
    layers = {name: running_statistics(name, m) for name, (_, m) in tapped_layers(teacher.model, ("bn",)).items()}
    return by_hand({name: (mean.expand(10, -1), var.expand(10, -1)) for name, (mean, var) in layers.items()})


def test_class_term_is_zero_for_the_classes_themselves() -> None:
    """All real images of several classes in one batch: each is compared with its own moments."""
    teacher, real = small_teacher(), DigitImages()
    keep = (real.labels >= 3) & (real.labels < 6)
    x = ((real.images / 255 - teacher.mean[0]) / teacher.std[0])[keep]
    critic = class_bn_critic(teacher, statistics(), 1.0, 1.0)
    with torch.no_grad():
        assert asked(critic, x, real.labels[keep], torch.arange(len(x)))[0] < 1e-3
        assert asked(critic, x, real.labels[keep] + 1, torch.arange(len(x)))[0] > 1


def test_without_barycentre_and_with_one_group_it_is_the_batch_norm_loss() -> None:
    """A class a batch, whose moments are the running statistics: SRe2L's loss with a first multiplier of 1."""
    job = tiny_job(ipc=4)
    job.statistics = [statistics(moments=False)]
    values: dict[str, Any] = {"iterations": 6, "lr": 0.1, "bn_weight": 0.7, "batch": 4, **PLAIN}
    ours = get("wmdd")(**values, feature_weight=0.0).synthesize(job)
    other = tiny_job(ipc=4)
    plain = distill(
        other,
        Composition(
            iterations=6,
            lr=0.1,
            partition=by_class(10, 4, 4),
            start=partial(noise, other),
            views=lambda batch, images: RandomViews(other, batch, images, 6),
            critics=[bn_critic(other.teachers[0], 0.7, 1.0)],
        ),
    )
    assert apart(ours.images, plain.images) < 0.01
    assert job.counters == other.counters
    unlike = get("wmdd")(**values | {"bn_weight": 0.0}, feature_weight=0.0).synthesize(job)
    assert apart(ours.images, unlike.images) > 0.1


def test_images_approach_their_points() -> None:
    """On the teacher that they were made with; without the term they do not."""
    near = {}
    for weight in (0.0, 1.0):
        job = job_for(get("wmdd"), ipc=2)
        values: dict[str, Any] = {"iterations": 60, "lr": 0.2, "bn_weight": 0.1, "feature_weight": weight, **PLAIN}
        images = get("wmdd")(**values).synthesize(job).images
        points = class_barycentres(tiny_job(ipc=2))
        from suite.learn.features import image_features

        near[weight] = float((image_features(small_teacher(), images)[0] - points).norm())
    assert near[1.0] < 0.5 * near[0.0]


def test_features_of_the_real_images_are_counted() -> None:
    job = job_for(get("wmdd"), ipc=1)
    get("wmdd")(iterations=2, **PLAIN).synthesize(job)
    assert job.counters.forward_images == len(DigitImages()) + 2 * 10


def test_values_are_the_scripts() -> None:
    nette, tiny, full = (get("wmdd").for_dataset(b, 10) for b in ("imagenette", "tinyimagenet", "imagenet1k"))
    assert (nette.iterations, nette.lr, nette.bn_weight, nette.first, nette.batch) == (2000, 0.25, 10, 1, 100)
    assert (tiny.iterations, tiny.lr, tiny.bn_weight, tiny.roll) == (2000, 0.1, 500, (0, 32))
    assert (full.lr, full.crop, full.flip, full.roll, full.feature_weight) == (0.25, (0.08, 1.0), True, (0, 32), 1)
    for base, classes, ipc, batch in (("imagenette", 10, 1, 10), ("imagenet1k", 1000, 50, 100)):
        recipe = nette.recipe(base, classes, ipc, "resnet18")
        assert (recipe.batch, recipe.epochs, recipe.loss, recipe.temperature) == (batch, 300, "kl", 20)
        assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.schedule) == ("adamw", 1e-3, 0.01, "cosine")
