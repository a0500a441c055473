"""Students: what a step costs, what is decayed and averaged, determinism, divergence, and learning real digits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from suite.data.distilled import DistilledSet
from suite.errors import DataError, NumericError, UserError
from suite.learn import models, students
from suite.learn.label_stream import LabelStream, write_stream
from suite.learn.schedules import factor
from suite.learn.soft_labels import HardLabels, OnlineLabels, StoredLabels
from suite.learn.students import Ema, budget, build_optimizer, parameter_groups, train_student
from suite.learn.validation import Validation, centre, seeded
from suite.learn.view_plans import DrawnViews, Renderer
from suite.spec.recipes import RelabelRecipe, StudentRecipe
from tests.helpers import golden
from tests.learn.training import CPU, DIGITS, Linear, MemoryImages, digits, linear_teacher, some_digits

RECIPE = StudentRecipe(epochs=3, batch=16, crop=(0.5, 1.0), evaluations=2)
HARD = HardLabels(10, 40)


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Linear]]:
    """Students are linear networks that count their calls; the list holds those that were built."""
    built: list[Linear] = []

    def build(arch: str, classes: int, size: int, pretrained: str | None = None) -> nn.Module:
        built.append(Linear(classes, size, seed=int(torch.randint(1 << 30, ()))))
        return built[-1]

    monkeypatch.setattr(models, "build", build)
    yield built


def train(recipe: StudentRecipe = RECIPE, labels: Any = HARD, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    kwargs = {"arch": "convnet1_w4", "distilled": some_digits(4), "val": digits("val"), "device": CPU, **kwargs}
    return train_student(recipe, dataset=DIGITS, labels=labels, seed=seed, **kwargs)


def test_a_step_is_one_student_forward_and_one_forward_of_each_teacher(linear: list[Linear]) -> None:
    teachers = [linear_teacher(seed=s) for s in (0, 1)]
    train(labels=OnlineLabels(teachers))
    (student,) = linear
    assert student.modes.count(True) == 9, "3 epochs of 3 batches"
    assert student.modes.count(False) == 2, "one validation batch at each of two evaluations"
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

    def spy(recipe: StudentRecipe, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        final.append(model.state_dict())
        return original(recipe, model, device)

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
    recipe = StudentRecipe(epochs=None, steps=300, batch=50, crop=(0.5, 1.0), flip=False, evaluations=1)
    numbers = train(recipe, labels, arch="convnet3_w32", distilled=some_digits(10))
    assert numbers["accuracy_last"] > 70


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, schedule="cos2", temperature=4.0),
        replace(RECIPE, optimizer="sgd", lr=0.02, momentum=0.875, weight_decay=0.1, loss="mse_gt", ema=0.9),
        replace(RECIPE, loss="ce", pad=2),
    ],
)
def test_a_training_equals_the_same_loop_written_out(
    recipe: StudentRecipe, linear: list[Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers, distilled = [linear_teacher(seed=s) for s in (3, 4)], some_digits(4)
    labels = HARD if recipe.loss == "ce" else OnlineLabels(teachers)
    scored: list[list[torch.Tensor]] = []
    score = Validation.score

    def spy(self: Validation, model: nn.Module, *args: Any) -> Any:
        scored.append([p.detach().clone() for p in model.parameters()])
        return score(self, model, *args)

    monkeypatch.setattr(Validation, "score", spy)
    train(recipe, labels, seed=5)
    drawn, render = DrawnViews(recipe, 40, 16, 5), Renderer(distilled.images, DIGITS, CPU)
    with seeded(5, "student", CPU):
        model = models.build("convnet1_w4", 10, 16)
    average = [p.detach().clone() for p in model.parameters()]
    groups = [{"params": [model.head.weight]}, {"params": [model.head.bias], "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    for epoch in range(3):
        for batch in range(3):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * factor(recipe.schedule, epoch, 3)
            plan = drawn.plan(epoch, batch)
            assert plan.cutmix is not None
            x, hard = render(plan), distilled.labels[plan.index]
            teacher, y = (teachers[0](x) + teachers[1](x)) / 2, model(x)
            share = plan.cutmix.share(16)
            if recipe.loss == "kl":
                p, log_p = (teacher / 4).softmax(1), (teacher / 4).log_softmax(1)
                loss = (p * (log_p - (y / 4).log_softmax(1))).sum(1).mean()
            elif recipe.loss == "mse_gt":
                loss = (y - teacher).square().mean() + 0.025 * F.cross_entropy(y, hard)
            else:
                loss = (1 - share) * F.cross_entropy(y, hard) + share * F.cross_entropy(y, hard[plan.cutmix.perm])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average = [
                recipe.ema * a + (1 - recipe.ema) * p.detach() for a, p in zip(average, model.parameters(), strict=True)
            ]
    assert len(scored) == 2
    torch.testing.assert_close(scored[-1], average, atol=1e-6, rtol=1e-5)


def test_initial_weights_depend_on_the_seed(linear: list[Linear], monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[torch.Tensor] = []
    original = students.build_optimizer
    monkeypatch.setattr(
        students,
        "build_optimizer",
        lambda r, m, d: (first.append(m.head.weight.detach().clone()), original(r, m, d))[1],
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


def _rates(recipe: StudentRecipe) -> list[float]:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: Any, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        train(recipe)
    return rates


def test_epoch_budgets_change_the_rate_by_epoch_and_step_budgets_by_step() -> None:
    by_epoch = _rates(replace(RECIPE, lr=1.0, schedule="linear"))
    assert by_epoch == pytest.approx([1, 1, 1, 2 / 3, 2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3])
    by_step = _rates(replace(RECIPE, lr=1.0, schedule="linear", epochs=None, steps=4))
    assert by_step == pytest.approx([1, 0.75, 0.5, 0.25])


def test_progress_reaches_the_end() -> None:
    calls: list[tuple[int, int]] = []
    train(progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (9, 9)


def test_a_student_that_diverges_says_at_which_step() -> None:
    with pytest.raises(NumericError, match=r"student diverged at step 6"):
        train(replace(RECIPE, lr=1e25, optimizer="sgd"))


def test_logits_that_are_not_finite_are_no_accuracy() -> None:
    model = Linear(10, 16)
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(NumericError, match="finite"):
        Validation(digits("val"), DIGITS, CPU).score(model)


@pytest.mark.parametrize(
    "wrong", [{"epochs": None}, {"steps": 5}, {"epochs": 0}, {"epochs": None, "steps": 0}, {"evaluations": 0}]
)
def test_contradictory_lengths_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="epochs"):
        budget(replace(RECIPE, **wrong), 3)


def test_weight_decay_touches_weights_with_more_than_one_dimension_only() -> None:
    flags = golden("rded")["wd_group_decay_flag_conv_w_b_bn_w_b_fc_w_b_pos"]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
            self.pos = nn.Parameter(torch.zeros(1, 5, 4))

    net = Net()
    decayed, free = parameter_groups(net, 0.01)
    assert decayed["weight_decay"] == 0.01 and free["weight_decay"] == 0
    names = ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "fc.weight", "fc.bias", "pos"]
    parameters, chosen = dict(net.named_parameters()), {id(p) for p in decayed["params"]}
    assert [int(id(parameters[n]) in chosen) for n in names] == flags.tolist()
    assert len(decayed["params"]) + len(free["params"]) == len(parameters)


def test_optimizers_are_those_of_the_recipe() -> None:
    adamw = build_optimizer(RECIPE, Linear(10, 16), CPU)
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["betas"] == (0.9, 0.999)
    sgd = build_optimizer(replace(RECIPE, optimizer="sgd", momentum=0.875), Linear(10, 16), CPU)
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.875 and not sgd.defaults["nesterov"]


def test_the_parameter_average_equals_the_reference() -> None:
    v = golden("e2d_trace")
    model = nn.Module()
    model.p = nn.Parameter(v["ema.init"].clone())
    ema = Ema(model, 0.99)
    for live, average in zip(v["ema.params"], v["ema.ema"], strict=True):
        model.p.data = live.clone()
        ema.update()
        torch.testing.assert_close(ema.average[0], average, atol=1e-12, rtol=0)
    with ema.swapped():
        torch.testing.assert_close(model.p.data, v["ema.ema"][-1], atol=1e-12, rtol=0)
    assert torch.equal(model.p.data, v["ema.params"][-1])


def test_evaluation_uses_averaged_parameters_and_live_buffers() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model[1].weight.add_(2.0)
    model(torch.randn(8, 3, 4, 4) + 5)
    ema.update()
    live, running = model[1].weight.detach().clone(), model[0].running_mean.clone()
    with ema.swapped():
        torch.testing.assert_close(model[1].weight.data, live - 1.0)
        assert torch.equal(model[0].running_mean, running) and float(running.abs().min()) > 0
    assert torch.equal(model[1].weight.data, live)


def test_validation_sees_the_centre_of_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms.functional import center_crop

    images = torch.randint(0, 256, (300, 3, 18, 18), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    val = MemoryImages(images, torch.arange(300) % 10)
    assert torch.equal(centre(images, 16), center_crop(images, [16, 16]))
    assert torch.equal(centre(images, 13), center_crop(images, [13, 13]))
    model = Linear(10, 16)
    resident = Validation(val, DIGITS, CPU, batch=128).score(model)
    monkeypatch.setattr("suite.learn.validation.RESIDENT_BYTES", 0)
    val.given.zero_()
    streamed = Validation(val, DIGITS, CPU, batch=128).score(model)
    assert resident == streamed and streamed.images == 300 and (val.given == 1).all()
    assert model.calls == 6 and model.training
    expected = models.normalise(center_crop(images, [16, 16]), DIGITS.mean, DIGITS.std)
    torch.testing.assert_close(torch.cat(model.seen[3:]), expected)
    hits = (torch.cat([model(x) for x in expected.split(128)]).argmax(1) == val.labels).sum()
    assert streamed.accuracy == pytest.approx(100 * int(hits) / 300)


def test_validation_that_loses_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.learn.validation.RESIDENT_BYTES", 0)
    val = digits("val")
    monkeypatch.setattr(val, "batches", lambda batch: iter([(val.images[:300], val.labels[:300])]))
    with pytest.raises(DataError, match="300 images of 359"):
        Validation(val, DIGITS, CPU).score(Linear(10, 16))


def test_a_network_that_always_says_the_same_is_flagged() -> None:
    model = Linear(10, 16)
    model.head.weight.data.zero_()
    score = Validation(digits("val"), DIGITS, CPU).score(model)
    assert score.constant and 5 < score.accuracy < 15


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
    assert types == [torch.bfloat16] * 11, "nine steps and two validation batches"


class _HostReads(TorchDispatchMode):
    """Counts reads of a tensor's value by the host, each of which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_reads_no_result_between_evaluations() -> None:
    def reads(epochs: int, evaluations: int) -> int:
        # CutMix draws are read by the host, but they are made there.
        recipe = replace(RECIPE, epochs=epochs, evaluations=evaluations, optimizer="sgd", lr=0.01, cutmix=False)
        with _HostReads() as mode:
            train(replace(recipe, ema=0.9), OnlineLabels([linear_teacher()]))
        return mode.count

    assert reads(1, 1) == reads(6, 1) < reads(6, 2)


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
