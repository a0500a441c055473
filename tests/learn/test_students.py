"""Students: what a step costs, determinism, divergence, the numbers of a row, and learning real digits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from suite.data.distilled import DistilledSet
from suite.errors import NumericError
from suite.learn import models, students
from suite.learn.label_stream import LabelStream, write_stream
from suite.learn.soft_labels import HardLabels, OnlineLabels, StoredLabels
from suite.learn.students import parameter_groups
from suite.learn.validation import Validation
from suite.spec.recipes import RelabelRecipe, StudentRecipe
from tests.learn.training import CPU, DIGITS, RECIPE, Linear, digits, linear_teacher, some_digits
from tests.learn.training import train_on_digits as train


def test_a_step_is_one_student_forward_and_one_forward_of_each_teacher(linear: list[Linear]) -> None:
    teachers = [linear_teacher(seed=s) for s in (0, 1)]
    train(labels=OnlineLabels(teachers))
    (student,) = linear
    assert student.modes.count(True) == 9, "3 epochs of 3 batches"
    assert student.modes.count(False) == 2 * -(-359 // 64), "the validation split at each of two evaluations"
    for teacher in teachers:
        assert isinstance(teacher.model, Linear)
        assert teacher.model.calls == 9 and not any(teacher.model.grad_enabled) and not any(teacher.model.modes)
    trained_on = [x for x, mode in zip(student.seen, student.modes, strict=True) if mode]
    assert all(torch.equal(a, b) for a, b in zip(trained_on, teachers[0].model.seen, strict=True))


def test_stored_labels_ask_no_teacher_and_show_the_stored_views(tmp_path: Path, linear: list[Linear]) -> None:
    teacher, distilled = linear_teacher(), some_digits(4)
    write_stream(
        tmp_path / "labels", distilled, [teacher], RelabelRecipe(3, 16, crop=(0.5, 1.0)), 7, DIGITS, CPU, "fp32"
    )
    assert isinstance(teacher.model, Linear)
    asked = teacher.model.calls
    train(labels=StoredLabels(LabelStream(tmp_path / "labels")), seed=99)
    assert teacher.model.calls == asked == 9
    trained_on = [x for x, mode in zip(linear[-1].seen, linear[-1].modes, strict=True) if mode]
    assert all(torch.equal(a, b) for a, b in zip(trained_on, teacher.model.seen, strict=True))


def test_stored_and_online_labels_agree_on_the_same_views(tmp_path: Path) -> None:
    teacher, distilled = linear_teacher(), some_digits(4)
    relabel = RelabelRecipe(3, 16, crop=(0.5, 1.0))
    write_stream(tmp_path / "labels", distilled, [teacher], relabel, 0, DIGITS, CPU)
    stored = train(labels=StoredLabels(LabelStream(tmp_path / "labels")))
    online = train(labels=OnlineLabels([teacher]))  # seed 0 draws the same views
    assert stored["accuracy_last"] == pytest.approx(online["accuracy_last"], abs=1.0)


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, ema=0.9, optimizer="sgd", lr=0.01, loss="mse_gt")])
def test_the_same_seed_is_bit_identical_and_global_generators_are_left_alone(recipe: StudentRecipe) -> None:
    labels = OnlineLabels([linear_teacher()])
    final: list[dict[str, torch.Tensor]] = []
    original = students.build_optimizer

    def spy(recipe: StudentRecipe, model: nn.Module) -> torch.optim.Optimizer:
        final.append(model.state_dict())
        return original(recipe, model)

    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(students, "build_optimizer", spy)
        first = train(recipe, labels)
        torch.rand(3)  # what happens to the global generator in between does not matter
        second, third = train(recipe, labels), train(recipe, labels, seed=1)
    a, b, c = final
    assert first == second and all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a) and third["steps"] == first["steps"]
    torch.random.set_rng_state(before)
    train(recipe, labels)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_student_learns_real_digits_from_ten_a_class() -> None:
    recipe = StudentRecipe(epochs=30, batch=50, crop=(1.0, 1.0), flip=False, cutmix=False, evaluations=3)
    numbers = train(recipe, HardLabels(10, 100), arch="convnet3_w32", distilled=some_digits(10))
    assert numbers["accuracy_last"] > 70
    assert numbers["accuracy_best"] >= numbers["accuracy_last"] and not numbers["constant_prediction"]


def test_a_student_learns_from_a_teacher_under_cutmix() -> None:
    from suite.learn.teachers import Teacher, train_teacher
    from suite.spec.recipes import teacher_recipe
    from suite.spec.stages import TeacherSpec

    recipe = replace(teacher_recipe("digits"), epochs=3)
    spec = TeacherSpec("digits", "convnet3_w32", "scratch", recipe, 0, "torchvision", "fp32")
    state, _ = train_teacher(spec, DIGITS, digits("train"), digits("val"), CPU)
    model = models.build("convnet3_w32", 10, 16)
    model.load_state_dict(state)
    labels = OnlineLabels([Teacher("convnet3_w32", model, DIGITS.mean, DIGITS.std)])
    recipe = StudentRecipe(epochs=None, steps=150, batch=50, crop=(0.5, 1.0), flip=False, evaluations=1)
    numbers = train(recipe, labels, arch="convnet3_w32", distilled=some_digits(10))
    assert numbers["accuracy_last"] > 70


def test_initial_weights_depend_on_the_seed(linear: list[Linear], monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[torch.Tensor] = []
    original = students.build_optimizer
    monkeypatch.setattr(
        students,
        "build_optimizer",
        lambda r, m: (first.append(m.head.weight.detach().clone()), original(r, m))[1],
    )
    for seed in (0, 0, 1):
        train(replace(RECIPE, epochs=1), seed=seed)
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_the_numbers_are_those_of_a_row() -> None:
    val = digits("val")
    numbers = train(replace(RECIPE, epochs=7, evaluations=3), val=val)
    assert [e for e, _ in numbers["curve"]] == [2, 5, 7]
    assert numbers["accuracy_last"] == numbers["curve"][-1][1]
    assert numbers["accuracy_best"] == max(a for _, a in numbers["curve"])
    assert [numbers["best_epoch"], numbers["accuracy_best"]] in numbers["curve"]
    assert numbers["steps"] == 21 and numbers["epochs"] == 7 and numbers["classes"] == 10
    assert numbers["val_images"] == len(val) == 359
    images = numbers["accuracy_last"] / 100 * 359
    assert images == pytest.approx(round(images), abs=1e-6), "percent of all validation images"


def test_a_step_budget_counts_fractions_of_epochs() -> None:
    numbers = train(replace(RECIPE, epochs=None, steps=8, evaluations=4))
    assert numbers["steps"] == 8 and numbers["epochs"] == pytest.approx(8 / 3)
    assert [e for e, _ in numbers["curve"]] == pytest.approx([2 / 3, 4 / 3, 2, 8 / 3])


def test_progress_reaches_the_end() -> None:
    calls: list[tuple[int, int]] = []
    train(progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (9, 9)


def test_a_student_that_diverges_says_at_which_step() -> None:
    with pytest.raises(NumericError, match=r"student diverged at step 6"):
        train(replace(RECIPE, lr=1e25, optimizer="sgd"))


def test_the_last_smaller_batch_is_kept(linear: list[Linear]) -> None:
    train(replace(RECIPE, epochs=1))
    assert [len(x) for x, mode in zip(linear[0].seen, linear[0].modes, strict=True) if mode] == [16, 16, 8]


def test_bf16_is_what_students_compute_in(linear: list[Linear]) -> None:
    types: list[torch.dtype] = []
    forward = Linear.forward

    def spy(self: Linear, x: torch.Tensor) -> torch.Tensor:
        types.append((logits := forward(self, x)).dtype)
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Linear, "forward", spy)
        assert train(precision="bf16")["steps"] == 9
    assert set(types) == {torch.bfloat16} and len(types) > 9, "steps and validation batches"


class _Operations(TorchDispatchMode):
    """Counts operations by name, and notes the layout of what convolutions give."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.layouts: set[bool] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.count[name] += 1
        if name == "convolution":
            self.layouts.add(result.is_contiguous(memory_format=torch.channels_last))
        return result


def test_the_host_reads_no_result_between_evaluations() -> None:
    def reads(epochs: int, evaluations: int) -> int:
        # CutMix draws are read by the host, but they are made there.
        recipe = replace(RECIPE, epochs=epochs, evaluations=evaluations, optimizer="sgd", lr=0.01, cutmix=False)
        with _Operations() as mode:
            train(replace(recipe, ema=0.9), OnlineLabels([linear_teacher()]))
        return mode.count["_local_scalar_dense"]  # a read of a tensor's value waits for the device

    assert reads(1, 1) == reads(6, 1) < reads(6, 2)


def test_convolutions_compute_channels_last_and_one_kernel_updates_a_group() -> None:
    with _Operations() as mode:
        train(replace(RECIPE, epochs=None, steps=4, evaluations=1), arch="resnet10_cifar_w8")
    assert mode.layouts == {True}
    assert mode.count["_fused_adamw_"] == 4 * 2, "parameters with weight decay, and those without"


def test_a_step_of_a_student_launches_few_operations() -> None:
    def operations(steps: int) -> int:
        recipe = replace(RECIPE, epochs=None, steps=steps, batch=40, evaluations=1, ema=0.9)
        with _Operations() as mode:
            train(recipe, arch="convnet3_w4")
        return mode.count.total()

    assert (operations(21) - operations(1)) / 20 < 225, "views, forward, loss, backward, update and average"


def test_the_layout_and_the_fused_update_change_roundings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, epochs=None, steps=3, lr=1e-3, evaluations=1, optimizer="sgd")
    final: list[dict[str, torch.Tensor]] = []
    score = Validation.score

    def spy(self: Validation, model: nn.Module, *args: Any) -> Any:
        final.append({k: v.clone() for k, v in model.state_dict().items()})
        return score(self, model, *args)

    monkeypatch.setattr(Validation, "score", spy)
    train(recipe, arch="resnet10_cifar_w8")
    monkeypatch.setattr(models, "channels_last", lambda model: model)
    monkeypatch.setattr(
        students,
        "build_optimizer",
        lambda r, m: torch.optim.SGD(parameter_groups(m, r.weight_decay), lr=r.lr, momentum=r.momentum, foreach=False),
    )
    train(recipe, arch="resnet10_cifar_w8")
    torch.testing.assert_close(final[0], final[1], atol=1e-5, rtol=1e-4)


def test_networks_whose_narrow_shortcuts_break_the_layout_s_kernels_keep_theirs() -> None:
    for arch, expected in (("resnet10_cifar_w4", False), ("resnet10_cifar_w8", True)):
        model = models.channels_last(models.build(arch, 10, 16))
        assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last) is expected


def test_networks_normalised_by_groups_keep_their_layout() -> None:
    for arch, expected in (("convnet1_w4_in", False), ("convnet1_w4", True)):
        model = models.channels_last(models.build(arch, 10, 16))
        assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
        assert model.features[0].weight.is_contiguous(memory_format=torch.channels_last) is expected


def test_the_contract_of_distilled_sets_is_enough() -> None:
    one = some_digits(1)
    numbers = train(distilled=DistilledSet(one.images, one.labels).check(10, 1, 16), labels=HardLabels(10, 10))
    assert numbers["steps"] == 3, "the batch is capped at ten images"


def test_the_real_loader_feeds_a_teacher_and_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.data.loader import RealImages
    from suite.data.prepare import prepare_spec, write_dataset
    from suite.learn.teachers import train_teacher
    from suite.spec.recipes import TeacherRecipe
    from suite.spec.stages import TeacherSpec

    write_dataset(prepare_spec("digits", "folder"), None, tmp_path, 1, lambda done, total: None)
    real, val = (RealImages(tmp_path, split, "torchvision", workers=0) for split in ("train", "val"))
    spec = TeacherSpec("digits", "convnet1_w4", "scratch", TeacherRecipe(1, 64, pad=1), 0, "torchvision", "fp32")
    _, numbers = train_teacher(spec, DIGITS, real, val, CPU)
    assert numbers["val_images"] == len(val) == DIGITS.val
    chosen = torch.cat([(real.labels == c).nonzero()[:4, 0] for c in range(10)])
    distilled = DistilledSet(real.take(chosen), real.labels[chosen])
    resident = train(distilled=distilled, val=val)
    monkeypatch.setattr("suite.learn.validation.RESIDENT_BYTES", 0)
    assert train(distilled=distilled, val=val) == resident
