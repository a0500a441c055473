"""LPLD: batches of one class towards its own statistics, and labels of which one in forty is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from suite.learn.critics import class_bn_critic
from suite.learn.features import image_features
from suite.learn.job import Job
from suite.learn.statistics import compute_statistics
from suite.learn.teachers import Teacher
from suite.methods import get
from suite.spec.recipes import RelabelRecipe
from suite.spec.storage import stream_shape
from tests.helpers import golden
from tests.learn.synthesis_parts import DigitImages, apart, small_teacher
from tests.methods.class_wise import asked, by_hand, compositions
from tests.methods.contract import job_for

PLAIN: dict[str, Any] = {"crop": (1.0, 1.0), "flip": False, "roll": (0, 0)}


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised real digits, and their labels."""
    teacher, real = small_teacher(), DigitImages()
    return (real.images / 255 - teacher.mean[0]) / teacher.std[0], real.labels


def test_every_batch_lies_within_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compositions(monkeypatch, "lpld", job_for(get("lpld"), ipc=3), iterations=1, **PLAIN)
    assert [slots.tolist() for slots in plan.partition] == [[3 * c, 3 * c + 1, 3 * c + 2] for c in range(10)]
    plan = compositions(monkeypatch, "lpld", job_for(get("lpld"), ipc=3), iterations=1, batch=2, **PLAIN)
    assert [slots.tolist() for slots in plan.partition[:4]] == [[0, 1], [2], [3, 4], [5]]


def test_the_class_itself_in_one_batch_costs_nothing() -> None:
    """With exact moments, the BatchNorm term of a class's real images is zero; that of another class's is not."""
    x, y = digits()
    teacher = small_teacher()
    statistics = compute_statistics(teacher.model, zip(x.split(100), y.split(100), strict=True), 10, None, ("bn",))
    critic = class_bn_critic(teacher, statistics, 1.0, 10.0)
    with torch.no_grad():
        for c in (0, 7):
            own, other = x[y == c], x[y == (c + 1) % 10]
            zero = asked(critic, own, torch.full((len(own),), c), torch.arange(len(own)))[0]
            far = asked(critic, other, torch.full((len(other),), c), torch.arange(len(other)))[0]
            assert zero < 1e-3 < 1 < far


def test_permuting_the_images_of_a_batch_changes_no_loss() -> None:
    x, y = digits()
    statistics = compute_statistics(small_teacher().model, [(x, y)], 10, None, ("bn",))
    critic = class_bn_critic(small_teacher(), statistics, 0.5, 10.0)
    batch, labels = x[y == 4][:20], torch.full((20,), 4)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (asked(critic, batch[i], labels, i)[0] for i in (torch.arange(20), order))
    torch.testing.assert_close(a, b)


def test_class_wise_term_and_gradient_are_the_reference_s() -> None:
    """Against the golden running averages, which the reference matches in place of exact moments."""
    g = golden("lpld")
    net = nn.Sequential(nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double()
    teacher = Teacher("net", net, (0.0,) * 3, (1.0,) * 3)
    critic = class_bn_critic(teacher, by_hand({"0": (g["classbn.mean_after2"], g["classbn.var_after2"])}), 1.0, 1.0)
    x = g["classbn.recover_x"].clone().requires_grad_()
    term, _ = asked(critic, x, torch.full((len(x),), 2), torch.arange(len(x)))
    torch.testing.assert_close(term.detach(), g["classbn.recover_loss_class2"], atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(term, x)[0], g["classbn.recover_grad"], atol=1e-10, rtol=0)


def within_class_similarity(images: torch.Tensor, ipc: int) -> float:
    """Mean cosine similarity of the teacher's features of two images of a class."""
    f = nn.functional.normalize(image_features(small_teacher(), images)[0], dim=1).unflatten(0, (-1, ipc))
    return float(((f @ f.mT).sum((1, 2)) - ipc).mean() / (ipc * (ipc - 1)))


def test_images_of_a_class_differ_more_than_those_of_sre2l() -> None:
    values = {"iterations": 100, "lr": 0.1, "bn_weight": 0.5, **PLAIN}
    apart = {}
    for name in ("lpld", "sre2l"):
        job: Job = job_for(get(name), ipc=10)
        apart[name] = 1 - within_class_similarity(get(name)(**values).synthesize(job).images, 10)
    assert apart["lpld"] > 1.2 * apart["sre2l"]


def test_values_are_the_scripts() -> None:
    full, tiny, large = (get("lpld").for_dataset(b, 10) for b in ("imagenet1k", "tinyimagenet", "imagenet21k"))
    assert (full.iterations, full.lr, full.bn_weight, full.first, full.roll) == (4000, 0.25, 0.01, 10, (0, 32))
    assert (tiny.iterations, tiny.lr, tiny.bn_weight, tiny.roll, tiny.batch) == (4000, 0.1, 0.05, (-4, 4), 100)
    assert (large.iterations, large.lr, large.bn_weight, large.pixels) == (2000, 0.05, 0.25, True)
    assert full.batch >= 200, "the largest IPC of the paper is one batch"


def test_students_learn_as_the_configurations_say() -> None:
    method = get("lpld")()
    full = method.recipe("imagenet1k", 1000, 10, "resnet18")
    assert (full.batch, full.epochs, full.optimizer, full.lr, full.weight_decay) == (128, 300, "adamw", 1e-3, 0.01)
    assert full.cutmix and full.temperature == 20 and not full.squared
    tiny = method.recipe("tinyimagenet", 200, 50, "resnet18_cifar")
    assert (tiny.batch, tiny.epochs, tiny.optimizer, tiny.lr, tiny.weight_decay) == (64, 100, "sgd", 0.2, 1e-4)
    assert tiny.warmup == 5 and tiny.squared and not tiny.cutmix and tiny.momentum == 0.9


@pytest.mark.parametrize(("ipc", "batches"), [(10, 585), (20, 1170), (50, 2925), (100, 5857), (200, 11715)])
def test_one_label_batch_in_forty_is_kept(ipc: int, batches: int) -> None:
    """The numbers of batches from which the paper's label sizes on ImageNet-1K follow."""
    method = get("lpld")()
    recipe = method.recipe("imagenet1k", 1000, ipc, "resnet18")
    label = method.label_recipe("imagenet1k", 1000, ipc)
    stored = RelabelRecipe(recipe.epochs or 0, recipe.batch, recipe.crop, recipe.flip, recipe.cutmix, label)
    assert stream_shape(stored, 1000 * ipc).batches == batches
    assert get("lpld").label_policy("imagenet1k", "paper") == "stored"


def test_the_share_of_labels_is_no_part_of_the_images() -> None:
    """Sets are made once for all rates of pruning."""
    from suite.methods import parameters

    assert not any("prune" in name for name in parameters(get("lpld")))


@pytest.mark.parametrize("name", ["lpld", "wmdd"])
def test_batches_side_by_side_make_the_images_that_they_make_alone(name: str) -> None:
    """Several classes in one forward pass keep their own statistics, points and crops."""
    made = []
    for stack, weight in ((1, 0.5), (40, 0.5), (1, 0.0)):
        job = job_for(get(name), ipc=2)
        job.stack = stack
        values = {"iterations": 5, "lr": 0.1, "bn_weight": weight, "batch": 2, "flip": False}
        made.append(get(name)(**values).synthesize(job).images)
    assert apart(made[0], made[1]) < 0.01 < 0.1 < apart(made[0], made[2])
