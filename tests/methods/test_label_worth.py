"""Label-worth (arXiv:2406.10485): random images, one soft label each from an expert that stopped early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import resized_crop

from suite.errors import UserError
from suite.grid import Plan, load_plan
from suite.learn.views import rrc_boxes
from suite.methods import get
from suite.spec.datasets import REGISTRY
from suite.spec.recipes import teacher_recipe
from tests.learn.synthesis_parts import DigitImages, tiny_job

#: Table 7 and the recipes of its code: expert's epochs and rate, student's optimiser and rate.
TABLE_7 = [
    ("imagenet1k", 1, "resnet18", 12, 5e-4, "adamw", 1e-3),
    ("imagenet1k", 10, "resnet18", 44, 5e-4, "adamw", 5e-3),
    ("imagenet1k", 50, "resnet18", 31, 1e-1, "adamw", 5e-3),
    ("imagenet1k", 100, "resnet50", 35, 1e-1, "adamw", 5e-3),
    ("imagenet1k", 200, "resnet18", 35, 1e-1, "adamw", 2e-3),
    ("tinyimagenet", 1, "convnet4_in", 11, 1e-2, "sgd", 1e-2),
    ("tinyimagenet", 10, "convnet4_in", 50, 1e-2, "sgd", 1e-1),
    ("tinyimagenet", 50, "convnet4_in", 90, 1e-2, "sgd", 1e-1),
    ("tinyimagenet", 100, "convnet4_in", 102, 1e-2, "sgd", 1e-1),
    ("cifar100", 1, "convnet3_in", 13, 1e-2, "sgd", 1e-2),
    ("cifar100", 10, "convnet3_in", 36, 1e-2, "sgd", 1e-2),
    ("cifar100", 50, "convnet3_in", 125, 1e-2, "sgd", 1e-2),
    ("cifar100", 100, "convnet3_in", 125, 1e-2, "sgd", 1e-2),
    ("cifar10", 1, "convnet3_in", 20, 5e-4, "sgd", 1e-2),
    ("cifar10", 10, "convnet3_in", 44, 5e-4, "sgd", 1e-2),
    ("cifar10", 50, "convnet3_in", 128, 5e-4, "sgd", 1e-2),
    ("cifar10", 100, "convnet3_in", 164, 5e-4, "sgd", 1e-2),
]


@pytest.mark.parametrize(("base", "ipc", "student", "epochs", "expert", "optimizer", "rate"), TABLE_7)
def test_experts_and_students_are_those_of_table_7(
    base: str, ipc: int, student: str, epochs: int, expert: float, optimizer: str, rate: float
) -> None:
    method = get("label_worth").for_dataset(base, ipc)
    teacher = replace(teacher_recipe(base), **method.label_teacher(base, ipc))
    assert (teacher.stop, teacher.lr, teacher.batch, teacher.warmup) == (epochs, expert, 256, 0)
    large = base == "imagenet1k"
    assert (teacher.momentum, teacher.weight_decay) == ((0.9, 1e-4) if large else (0, 0))
    assert (teacher.schedule, teacher.epochs >= epochs) == ("step" if large else "constant", True)
    recipe = method.recipe(base, REGISTRY[base].classes, ipc, student)
    assert (recipe.optimizer, recipe.lr, recipe.decay_all) == (optimizer, rate, True)
    assert (recipe.loss, recipe.augment, recipe.cutmix, recipe.epochs) == ("ce", "dsa", False, 3000)
    assert recipe.batch == min(256, ipc * REGISTRY[base].classes)
    if optimizer == "sgd":
        assert (recipe.schedule, recipe.milestones, recipe.gamma) == ("step", (0.25, 0.5, 0.75), 0.3)
        assert (recipe.momentum, recipe.weight_decay) == (0.9, 5e-4)
    else:
        assert (recipe.schedule, recipe.weight_decay) == ("cosine", 0.01)


def test_smaller_sets_want_earlier_experts_on_every_dataset() -> None:
    for base in set(REGISTRY) - {"imagenet1k"}:  # where the rate of the experts changes with the size
        stops = [
            get("label_worth").for_dataset(base, i).label_teacher(base, i)["stop"] for i in (1, 2, 10, 20, 50, 300)
        ]
        assert stops == sorted(stops) and stops[0] < stops[-1]


def test_datasets_outside_the_table_stop_their_teacher_after_a_share_of_its_epochs() -> None:
    method = get("label_worth")()
    assert method.label_teacher("imagenette", 1) == {"stop": 9}  # 10 % of 90
    assert method.label_teacher("imagenette", 10) == method.label_teacher("imagenette", 49) == {"stop": 22}
    assert method.label_teacher("imagenette", 50) == {"stop": 45}
    assert [method.label_teacher("digits", i)["stop"] for i in (1, 10, 50)] == [1, 3, 6]
    assert get("label_worth")(stop=7).label_teacher("cifar10", 10)["stop"] == 7  # type: ignore[call-arg]
    with pytest.raises(UserError, match="stop = -1"):
        get("label_worth")(stop=-1)  # type: ignore[call-arg]


def test_small_images_are_those_of_the_random_baseline() -> None:
    expected = get("random")().synthesize(tiny_job(ipc=3)).images
    assert torch.equal(get("label_worth")().synthesize(tiny_job(ipc=3)).images, expected)


def test_large_images_are_one_frozen_training_crop_each() -> None:
    """As torchvision's preset: RandomResizedCrop with antialiasing, then a flip, from whole prepared squares."""
    real, job = DigitImages(stored=24), tiny_job(ipc=2, real=DigitImages(stored=24))
    plain = get("label_worth")(crop=(0.08, 1.0)).synthesize(job).images  # type: ignore[call-arg]
    boxes = rrc_boxes(20, 24, 24, (0.08, 1.0), (3 / 4, 4 / 3), job.generator("crops"))
    for i, (image, box) in enumerate(zip(plain, boxes.tolist(), strict=True)):
        members = torch.nonzero(real.labels == i // 2).flatten()
        index = members[torch.randperm(len(members), generator=job.generator("random", i // 2))[i % 2]]
        expected = resized_crop(real.images[index][None].float(), *box, [16, 16], antialias=True)[0]
        assert (image.float() - expected).abs().max() <= 0.51
    flipped = get("label_worth")(crop=(0.08, 1.0), flip=True).synthesize(job).images  # type: ignore[call-arg]
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert 4 <= int(mirrored.sum()) <= 16
    assert torch.equal(flipped[~mirrored], plain[~mirrored])


def test_values_by_dataset() -> None:
    assert get("label_worth").for_dataset("imagenet1k", 10).crop == (0.08, 1.0)  # type: ignore[attr-defined]
    assert get("label_worth").for_dataset("cifar10", 10).crop == (1.0, 1.0)  # type: ignore[attr-defined]
    assert not get("label_worth").for_dataset("tinyimagenet", 10).flip  # type: ignore[attr-defined]


GRID = """\
name: one
protocol: [paper, matched]
product:
  {method: [label_worth, rded], dataset: [cifar10], ipc: [1, 10, 50], teacher: [resnet18_cifar], student: [convnet3_in]}
"""


def planned(folder: Path, more: str = "") -> Plan:
    path = folder / "one.yaml"
    path.write_text(GRID + more)
    return load_plan(path)


def test_a_plan_trains_one_expert_an_ipc_and_one_usual_teacher(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    teachers = {s.key: s.spec for s in plan.stages if s.kind == "teacher"}
    assert sorted((t.arch, t.recipe.stop) for t in teachers.values() if t.recipe.stop) == [  # type: ignore[union-attr]
        ("convnet3_in", stop) for stop in (20, 44, 128)
    ]
    assert [t.arch for t in teachers.values() if t.recipe.stop is None] == ["resnet18_cifar"]  # type: ignore[union-attr]
    relabel = [s for s in plan.stages if s.kind == "relabel"]
    assert [s.spec.labels for s in relabel] == ["vector"] * 3  # type: ignore[union-attr]
    assert {teachers[s.inputs["teacher.0"]].recipe.stop for s in relabel} == {20, 44, 128}  # type: ignore[union-attr]
    labels = {(s.spec.method, s.spec.protocol): s.spec.labels for s in plan.stages if s.kind == "evaluation"}  # type: ignore[union-attr]
    assert labels == {
        ("label_worth", "paper"): "vector",
        ("label_worth", "matched"): "online",
        ("rded", "paper"): "online",
        ("rded", "matched"): "online",
    }


def test_epoch_and_temperature_of_the_labels_are_fields_of_a_grid(tmp_path: Path) -> None:
    more = (
        "override:\n"
        "  - {when: {method: label_worth}, set: {stop: 5}}\n"
        "  - {when: {method: label_worth, protocol: paper}, set: {label.temperature: 2.0}}\n"
    )
    plan = planned(tmp_path, more)
    relabel = [s.spec for s in plan.stages if s.kind == "relabel"]
    assert {s.recipe.label.temperature for s in relabel} == {2}  # type: ignore[union-attr]
    stops = {s.spec.recipe.stop for s in plan.stages if s.kind == "teacher"}  # type: ignore[union-attr]
    assert stops == {None, 5}


def test_an_expert_that_would_stop_after_its_training_is_refused_when_planned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stops after epoch 20, but trains for 3"):
        planned(tmp_path, "override:\n  - {when: {dataset: cifar10}, set: {teacher.epochs: 3}}\n")


def test_labels_are_nearly_uniform_before_training_and_sharper_behind_it() -> None:
    """Section 9 of the sheet: epoch 0 gives near-uniform labels; temperature 0 gives the argmax."""
    from suite.learn import models
    from suite.learn.teachers import Teacher, train_epochs
    from suite.spec.recipes import TeacherRecipe

    job = tiny_job()
    facts, made = job.dataset, get("label_worth")().synthesize(tiny_job(ipc=5))
    torch.manual_seed(0)
    model = models.build("convnet2_w8", 10, 16)
    x = (made.images / 255 - facts.mean[0]) / facts.std[0]

    def labels(temperature: float = 1.0) -> torch.Tensor:
        with torch.no_grad():
            return torch.softmax(Teacher("convnet2_w8", model, facts.mean, facts.std)(x) / temperature, 1)

    def entropy(p: torch.Tensor) -> float:
        return float(-(p * p.clamp(min=1e-30).log()).sum(1).mean())

    before = labels()
    assert entropy(before) > 0.9 * torch.log(torch.tensor(10.0))
    model.train().requires_grad_(True)
    recipe = TeacherRecipe(epochs=6, batch=64, lr=0.05, pad=1, flip=False)
    entropies = []
    for _ in train_epochs(model, recipe, facts, DigitImages(), job.device, seed=0):  # type: ignore[arg-type]
        entropies.append(entropy(labels()))
        model.train().requires_grad_(True)
    assert entropies[-1] < entropies[0] < entropy(before)
    assert torch.allclose(labels(1e-4), F.one_hot(labels().argmax(1), 10).float(), atol=1e-3)
    assert torch.allclose(labels().sum(1), torch.ones(50), atol=1e-5)
