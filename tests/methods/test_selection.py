"""Methods that select: random and RDED."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import resized_crop

from suite.errors import DataError, UserError
from suite.learn.job import Job
from suite.learn.views import rrc_boxes
from suite.methods import get
from suite.spec.datasets import REGISTRY
from suite.spec.recipes import StudentRecipe
from tests.learn.synthesis_parts import DigitImages, small_teacher, tiny_job


def synthesize(name: str, job: Job, **values: Any) -> torch.Tensor:
    return get(name)(**values).synthesize(job).images


@pytest.mark.parametrize("name", ["random", "random_soft"])
def test_random_images_are_distinct_real_images_of_their_class(name: str) -> None:
    job, real = tiny_job(ipc=4), DigitImages()
    images = synthesize(name, job)
    for i, image in enumerate(images):
        same = (real.images == image).flatten(1).all(1)
        assert same.any() and (real.labels[same] == i // 4).all()
    assert torch.equal(images, synthesize("random", tiny_job(ipc=4)))


def test_random_keeps_the_centre_of_larger_images() -> None:
    large = DigitImages(stored=20)
    job = tiny_job(ipc=1, real=large)
    inner = large.images[:, :, 2:18, 2:18]
    assert all((inner == image).flatten(1).all(1).any() for image in synthesize("random", job))


def test_random_refuses_classes_with_too_few_images() -> None:
    with pytest.raises(DataError, match="class 0 has 3 images, 4 are wanted"):
        synthesize("random", tiny_job(ipc=4, real=DigitImages(per_class=3)))


def test_a_class_draw_does_not_depend_on_other_classes() -> None:
    """What a shard of classes needs."""
    few = synthesize("random", tiny_job(ipc=3, classes=4, real=DigitImages(classes=4)))
    assert torch.equal(few, synthesize("random", tiny_job(ipc=3))[:12])


def test_methods_say_which_input_is_missing() -> None:
    with pytest.raises(DataError, match="reads real images"):
        synthesize("random", tiny_job(real=None))


def test_labels_that_miss_a_class_are_refused() -> None:
    with pytest.raises(DataError, match=r"missing \[9\]"):
        synthesize("random", tiny_job(real=DigitImages(classes=9)))


def test_rded_with_whole_crops_takes_the_images_that_the_teacher_finds_easiest() -> None:
    """Crop (1, 1) and factor 1: RDED is the ranking of whole images, which can be computed directly."""
    real, teacher, job = DigitImages(per_class=20), small_teacher(), tiny_job(ipc=5)
    job.real = real  # type: ignore[assignment]
    images = synthesize("rded", job, candidates=20, crops=1, crop=(1.0, 1.0))
    x = (real.images / 255 - teacher.mean[0]) / teacher.std[0]
    with torch.no_grad():
        ce = F.cross_entropy(teacher(x), real.labels, reduction="none")
    for c in range(10):
        members = torch.nonzero(real.labels == c).flatten()
        best = members[ce[members].argsort()[:5]]
        # truncation to uint8 may lose one level
        assert (images[5 * c : 5 * c + 5].int() - real.images[best].int()).abs().max() <= 1
    assert job.counters.forward_images == 200 and job.counters.image_iterations == 0


def test_rded_equals_a_plain_recomputation_crop_by_crop() -> None:
    job, teacher = tiny_job(ipc=2), small_teacher()
    images = synthesize("rded", job, factor=2, candidates=12, crops=4)
    real = DigitImages()
    for c in (0, 7):
        members = torch.nonzero(real.labels == c).flatten()
        members = members[torch.randperm(len(members), generator=job.generator("candidates", c))[:12]]
        boxes = rrc_boxes(48, 16, 16, (0.08, 1.0), (1.0, 1.0), job.generator("crops", c)).tolist()
        best = []
        for i, index in enumerate(members.tolist()):
            x = ((real.images[index] / 255 - teacher.mean[0]) / teacher.std[0])[None]
            crops = [resized_crop(x, *box, [8, 8], antialias=True) for box in boxes[4 * i : 4 * i + 4]]
            with torch.no_grad():
                ce = [F.cross_entropy(teacher(F.pad(v, (4, 4, 4, 4))), torch.tensor([c])).item() for v in crops]
            best.append(min(zip(ce, crops, strict=True), key=lambda pair: pair[0]))
        ranked = [crop[0] for _, crop in sorted(best, key=lambda pair: pair[0])[:8]]
        for j in range(2):
            rows = [torch.cat([ranked[k * 2 + j] for k in (row, row + 1)], dim=2) for row in (0, 2)]
            expected = (torch.cat(rows, dim=1) * teacher.std[0] + teacher.mean[0]).clamp(0, 1) * 255
            assert (images[2 * c + j] - expected).abs().max() <= 1.01


@pytest.mark.parametrize(("factor", "ipc"), [(1, 3), (2, 2), (3, 1)])
def test_rded_counts_every_crop_that_was_scored(factor: int, ipc: int) -> None:
    job = tiny_job(ipc=ipc)
    images = synthesize("rded", job, factor=factor, candidates=15, crops=4)
    assert images.shape == (10 * ipc, 3, 16, 16)
    assert job.counters.forward_images == 10 * 15 * 4


def test_rded_uses_all_images_of_small_classes() -> None:
    job = tiny_job(ipc=2, real=DigitImages(per_class=6))
    synthesize("rded", job, candidates=300, crops=3)
    assert job.counters.forward_images == 10 * 6 * 3


def test_rded_uses_several_crops_of_an_image_only_if_it_must() -> None:
    job = tiny_job(ipc=3, real=DigitImages(per_class=6))
    assert synthesize("rded", job, factor=2, crops=3).shape == (30, 3, 16, 16)  # 12 crops of 6 images
    with pytest.raises(UserError, match="12 crops are wanted, 6 images give 6"):
        synthesize("rded", tiny_job(ipc=3, real=DigitImages(per_class=6)), factor=2, crops=1)


def test_rded_does_not_depend_on_how_many_crops_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import suite.learn.mosaics as module

    expected = synthesize("rded", tiny_job(), factor=2, candidates=20)
    monkeypatch.setattr(module, "SCORED", 35)
    images = synthesize("rded", tiny_job(), factor=2, candidates=20)
    assert (images.int() - expected.int()).abs().float().mean() < 0.1


@pytest.mark.parametrize(
    ("base", "ipc", "student", "batch", "lr", "factor"),
    [
        ("cifar10", 1, "convnet3", 10, 1e-3, 1),
        ("cifar10", 10, "resnet18_cifar", 50, 1e-3, 1),
        ("cifar100", 10, "resnet18_cifar", 100, 1e-3, 1),
        ("cifar100", 50, "resnet18_cifar", 200, 1e-3, 1),
        ("tinyimagenet", 1, "convnet4", 100, 1e-3, 1),
        ("tinyimagenet", 50, "convnet4", 100, 1e-3, 1),
        ("imagenette", 50, "resnet18", 100, 1e-3, 2),
        ("imagenet1k", 1, "efficientnet_b0", 20, 2e-3, 2),
        ("imagenet1k", 10, "mobilenet_v2", 100, 2.5e-3, 2),
        ("imagenet1k", 50, "swin_t", 200, 1e-4, 2),
    ],
)
def test_rded_recipe_is_the_papers_table(base: str, ipc: int, student: str, batch: int, lr: float, factor: int) -> None:
    method = get("rded").for_dataset(base, ipc)
    recipe = method.recipe(base, REGISTRY[base].classes, ipc, student)
    assert (recipe.batch, recipe.lr, recipe.patch_shuffle) == (batch, lr, factor)
    assert (recipe.schedule, recipe.temperature, recipe.epochs) == ("cosine_half", 20, 300)
    assert recipe.crop == (1 / factor, 1)


@pytest.mark.parametrize("name", ["random", "herding", "kcenter", "forgetting"])
def test_hard_label_baselines_learn_as_in_dataset_condensation_or_as_decoupled_methods(name: str) -> None:
    def recipe(base: str, ipc: int) -> StudentRecipe:
        return get(name).for_dataset(base, ipc).recipe(base, REGISTRY[base].classes, ipc, "convnet3")

    small = recipe("cifar10", 50)
    assert (small.optimizer, small.lr, small.momentum, small.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (small.schedule, small.milestones, small.gamma, small.decay_all) == ("step", (0.5,), 0.1, True)
    assert (small.epochs, small.batch, small.augment, small.cutmix) == (1000, 256, "dsa", False)
    assert recipe("cifar10", 1).batch == 10 and not recipe("digits", 1).flip
    for base in ("tinyimagenet", "imagenet1k"):
        large = recipe(base, 10)
        assert (large.optimizer, large.epochs, large.batch, large.loss) == ("adamw", 300, 100, "ce")
        assert large.cutmix and large.crop == (0.25, 1.0) and large.augment == "none"


@pytest.mark.parametrize(
    ("base", "crop"), [("cifar10", (1.0, 1.0)), ("tinyimagenet", (0.5, 1.0)), ("imagenet1k", (0.5, 1.0))]
)
def test_random_soft_learns_as_rded_without_patch_shuffle(base: str, crop: tuple[float, float]) -> None:
    classes = REGISTRY[base].classes
    mine = get("random_soft").for_dataset(base, 10).recipe(base, classes, 10, "mobilenet_v2")
    rded = get("rded").for_dataset(base, 10).recipe(base, classes, 10, "mobilenet_v2")
    assert mine == replace(rded, patch_shuffle=1, crop=crop)
