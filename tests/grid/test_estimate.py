"""Estimates, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from suite.grid import Plan, estimate
from suite.grid.estimate import MACS_PER_SECOND, parameters, student_images, teacher_epochs
from suite.spec.archs import gmacs
from suite.spec.recipes import RelabelRecipe, StudentRecipe, TeacherRecipe
from suite.spec.stages import Stage, SynthesisSpec
from suite.spec.storage import kept_batches, stream_bytes
from tests.grid.conftest import Planned
from tests.grid.test_plan import grid


def of(plan: Plan, kind: str) -> tuple[float, int]:
    """Multiply-accumulates and bytes of one kind."""
    e = estimate(plan)
    return e.hours[kind] * 3600 * MACS_PER_SECOND, e.bytes[kind]


def test_the_constant_is_the_published_29_hours() -> None:
    # CDA, ImageNet-1K, IPC 50: 50,000 images x 4,000 updates on one RTX 4090 in 29 hours.
    assert pytest.approx(6.936e12, rel=1e-3) == MACS_PER_SECOND
    images = 50_000 * 4_000
    assert images * 2 * 1.81e9 / MACS_PER_SECOND / 3600 == pytest.approx(29, rel=0.01)


def test_sre2l_on_imagenet_takes_the_hours_that_were_reported(planned: Planned) -> None:
    plan = planned(grid(method="sre2l", dataset="imagenet1k", ipc=50, teacher="resnet18", student="resnet18"))
    e = estimate(plan)
    assert e.hours["synthesis"] == pytest.approx(29, rel=0.01)
    assert e.bytes["synthesis"] == 50_000 * 3 * 224 * 224  # 7.53 GB
    assert e.hours["teacher"] == 0 and e.bytes["teacher"] == 46_760_000  # pretrained; the published file has 46.76 MB
    assert e.gpu_hours == pytest.approx(sum(e.hours.values())) and e.total_bytes == sum(e.bytes.values())


def test_digits_by_hand(planned: Planned) -> None:
    # convnet2_w8 at 16 px: 9 x (3 x 8 x 256 + 8 x 8 x 64) = 92,160 multiply-accumulates.
    assert gmacs("convnet2_w8", 16) * 1e9 == pytest.approx(92_160)
    plan = planned(
        grid(method="e2d", ipc=2, teacher="convnet2_w8", student="convnet2_w8")
        + "override:\n  - {set: {student.steps: 30, student.batch: 50, teacher.epochs: 4, statistics.per_class: 50}}\n"
        + "  - {when: {method: e2d}, set: {iterations: 10, explore: 7}}\n"
    )
    c = 92_160
    assert of(plan, "prepare") == (0, (1442 + 355) * 3 * 16 * 16)
    # 4 epochs of 1,442 images, forward and backward as three passes, then one pass over 355.
    macs, size = of(plan, "teacher")
    assert macs == pytest.approx((4 * 1442 * 3 + 355) * c)
    # 3x3 convolutions 3 -> 8 -> 8 with bias, two norms of 16, 8 x 4 x 4 features to 10 classes: 840 + 1,290 + 32.
    assert size == 4 * ((216 + 8) + (576 + 8) + 2 * 16 + (128 * 10 + 10))
    assert of(plan, "statistics")[0] == pytest.approx(500 * c)
    # 20 images x 10 updates x 2 passes.
    assert of(plan, "synthesis") == (pytest.approx(20 * 10 * 2 * c), 20 * 3 * 16 * 16)
    # 30 steps of all 20 images (the batch is capped): 3 passes of the student, 1 of the teacher; 3 evaluations.
    assert of(plan, "evaluation") == (pytest.approx((30 * 20 * (3 + 1) + 3 * 355) * c), 0)


def test_selection_costs_its_scoring_whatever_the_ipc(planned: Planned) -> None:
    # 1,000 classes x 300 candidates x 5 crops by ResNet-18 (1.81 GMAC).
    for ipc in (1, 10):
        plan = planned(grid(method="rded", dataset="imagenet1k", ipc=ipc, teacher="resnet18", student="resnet18"))
        assert of(plan, "synthesis")[0] == pytest.approx(1_500_000 * 1.81e9)
    # The digits have 145 images a class at most.
    plan = planned(grid(method="rded", teacher="convnet2_w8"))
    assert of(plan, "synthesis")[0] == pytest.approx(10 * 145 * 5 * 92_160)


def test_random_images_cost_no_gpu_time(planned: Planned) -> None:
    assert of(planned(grid(method="random")), "synthesis") == (0, 10 * 3 * 16 * 16)


def test_several_teachers_take_turns_in_synthesis_and_all_label(planned: Planned) -> None:
    one = planned(grid(method="sre2l", teacher="convnet2_w8", student="convnet1_w8"))
    two = planned(grid(method="sre2l", teacher="convnet2_w8+convnet2_w8_in", student="convnet1_w8"))
    assert of(two, "synthesis")[0] == pytest.approx(of(one, "synthesis")[0])
    steps = 600 * 10
    assert of(two, "evaluation")[0] - of(one, "evaluation")[0] == pytest.approx(steps * 92_160)


def test_stored_labels_by_hand(planned: Planned) -> None:
    # Published: 5.67 GiB at IPC 10 and 28.33 GiB at IPC 50 for 300 epochs of 1,000 classes in fp16.
    recipe = RelabelRecipe(epochs=300, batch=1024)
    assert stream_bytes(recipe, 10_000, 1000) == 300 * (10_000 * 2017 + 10 * 16)
    assert stream_bytes(recipe, 10_000, 1000) / 2**30 == pytest.approx(5.67, rel=0.01)
    assert stream_bytes(recipe, 50_000, 1000) / 2**30 == pytest.approx(28.33, rel=0.01)
    plain = RelabelRecipe(epochs=2, batch=8, crop=(1.0, 1.0), flip=False, cutmix=False)
    assert stream_bytes(plain, 20, 10) == 2 * 20 * (4 + 2 * 10)
    plan = planned(grid(method="sre2l", dataset="imagenet1k", ipc=10, protocol="paper", teacher="resnet18"))
    macs, size = of(plan, "relabel")
    assert macs == pytest.approx(300 * 10_000 * 1.81e9)
    assert size == stream_bytes(recipe, 10_000, 1000)
    # With stored labels the student asks no teacher: 300 epochs of 10,000 images, and three validations.
    student = gmacs("convnet2", 224) * 1e9
    assert of(plan, "evaluation")[0] == pytest.approx((3 * 300 * 10_000 + 3 * 50_000) * student)


def test_pruned_labels_by_hand(planned: Planned) -> None:
    # 200 images in batches of 20 are 10 an epoch; 40x leaves 50 of 2,000 in 200 epochs; 1,000 images see the teacher.
    plan = planned(
        grid(method="sre2l", ipc=20, protocol="paper", teacher="convnet2_w8", student="convnet1_w8")
        + "override:\n  - {set: {label.prune: 0.975, student.epochs: 200, student.batch: 20}}\n"
    )
    assert kept_batches(200, 10, 0.975) == 50
    assert of(plan, "relabel") == (pytest.approx(50 * 20 * 92_160), 50 * (20 * (4 + 2 * 10 + 8 + 4) + 16))
    # An incomplete batch is neither labelled nor seen: 190 images are 9 batches of 20.
    short = planned(
        grid(method="sre2l", ipc=19, protocol="paper", teacher="convnet2_w8", student="convnet1_w8")
        + "override:\n  - {set: {label.prune: 0.5, student.epochs: 10, student.batch: 20}}\n"
    )
    student = gmacs("convnet1_w8", 16) * 1e9
    assert of(short, "relabel")[0] == pytest.approx(45 * 20 * 92_160)
    assert of(short, "evaluation")[0] == pytest.approx((3 * 10 * 180 + 3 * 355) * student)


def test_one_vector_an_image_by_hand(planned: Planned) -> None:
    plan = planned(
        grid(method="random", ipc=3, protocol="paper", teacher="convnet2_w8+convnet1_w8", student="convnet1_w8")
        + "override:\n  - {set: {labels: vector}}\n"
    )
    both = 92_160 + gmacs("convnet1_w8", 16) * 1e9
    assert of(plan, "relabel") == (pytest.approx(30 * both), 30 * 10 * 2)


def test_an_early_stopped_teacher_costs_its_epochs() -> None:
    assert teacher_epochs(TeacherRecipe(epochs=90)) == 90
    assert teacher_epochs(TeacherRecipe(epochs=90, stop=11)) == 11


@pytest.mark.parametrize(
    "arch", ["convnet3", "convnet4_w32_in", "resnet10_cifar", "resnet18_cifar", "resnet18_cifar_w16", "resnet50_cifar"]
)
def test_parameters_are_those_of_the_networks(arch: str) -> None:
    from suite.learn.models import build

    actual = sum(p.numel() for p in build(arch, 10, 32).parameters())
    assert parameters(arch, 10, 32) == pytest.approx(actual, rel=0 if arch.startswith("convnet") else 0.02)
    assert parameters("timm.vit_tiny_patch16_224", 10, 32) is None


def test_a_step_budget_and_epochs_count_the_images_that_a_student_sees() -> None:
    assert student_images(StudentRecipe(epochs=300), 1000) == 300_000
    assert student_images(StudentRecipe(epochs=None, steps=100, batch=50), 1000) == 5_000
    assert student_images(StudentRecipe(epochs=None, steps=100, batch=50), 10) == 1_000


def test_only_the_given_stages_are_counted(planned: Planned) -> None:
    plan = planned(grid(method="[random, sre2l]", ipc="[1, 2]"))
    rest = [s for s in plan.stages if s.kind == "evaluation"]
    part = estimate(plan, rest)
    assert part.hours["synthesis"] == part.bytes["synthesis"] == 0
    assert part.hours["evaluation"] == pytest.approx(estimate(plan).hours["evaluation"])
    assert estimate(plan, []).gpu_hours == 0 and estimate(plan, []).total_bytes == 0


def test_the_basis_says_what_it_rests_on_and_what_it_leaves_out(planned: Planned) -> None:
    plan = planned(grid(method="random_soft", dataset="imagenet1k", teacher="[resnet18, timm.vit_tiny]"))
    basis = estimate(plan).basis
    assert "6.9 TMAC/s" in basis and "RTX 4090" in basis
    assert "weights of timm.vit_tiny" in basis and "weights of resnet18" not in basis


def test_stages_read_back_from_json_cost_the_same(planned: Planned) -> None:
    from suite.spec.stages import stage_from_json

    plan = planned(grid(method="[rded, e2d]", protocol="[paper, matched]"))
    again: list[Stage] = [stage_from_json(s.to_json()) for s in plan.stages]
    assert estimate(plan, again).hours == estimate(plan).hours
    assert any(isinstance(s.spec, SynthesisSpec) for s in again)
