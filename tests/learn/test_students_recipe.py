"""What the fields of a student's recipe do: lengths, rates, decay, averages, losses and parts of batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from suite.errors import UserError
from suite.learn import models
from suite.learn.schedules import factor
from suite.learn.soft_labels import HardLabels, OnlineLabels, loss_function
from suite.learn.students import Ema, budget, build_optimizer, parameter_groups
from suite.learn.validation import Validation, seeded
from suite.learn.view_plans import DrawnViews, Renderer, parts
from suite.spec.recipes import StudentRecipe
from tests.helpers import golden
from tests.learn.training import CPU, DIGITS, RECIPE, Linear, linear_teacher, some_digits
from tests.learn.training import train_on_digits as train


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


def test_a_warm_up_counts_epochs_or_steps_as_the_budget_does() -> None:
    by_epoch = _rates(replace(RECIPE, lr=1.0, schedule="linear", warmup=1))
    assert by_epoch == pytest.approx([0.01] * 3 + [1.0] * 3 + [0.5] * 3)
    by_step = _rates(replace(RECIPE, lr=1.0, schedule="linear", warmup=2, epochs=None, steps=4))
    assert by_step == pytest.approx([0.01, 0.505, 1, 0.5])


def test_steps_drop_where_the_recipe_says() -> None:
    rates = _rates(replace(RECIPE, lr=1.0, schedule="step", milestones=(1 / 3, 2 / 3), gamma=0.3))
    assert rates == pytest.approx([1] * 3 + [0.3] * 3 + [0.09] * 3)


@pytest.mark.parametrize(
    "wrong", [{"warmup": 3}, {"warmup": -1}, {"accumulate": 0}, {"milestones": (0.5, 30)}, {"milestones": (0.0,)}]
)
def test_recipes_that_cannot_be_followed_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        budget(replace(RECIPE, **wrong), 3)


def test_parts_of_a_batch_are_the_halves_of_the_reference() -> None:
    assert parts(16, 2) == [slice(0, 8), slice(8, 16)]
    assert parts(9, 2) == [slice(0, 4), slice(4, 9)]
    assert parts(1, 2) == [slice(0, 1)]
    assert parts(5, 1) == [slice(0, 5)]


@given(st.integers(1, 200), st.integers(1, 20))
def test_parts_cover_a_batch_in_order_and_differ_by_one_image(images: int, count: int) -> None:
    cut = parts(images, count)
    assert [i for part in cut for i in range(images)[part]] == list(range(images))
    sizes = {part.stop - part.start for part in cut}
    assert max(sizes) - min(sizes) <= 1 and len(cut) == min(images, count)


def test_an_accumulated_batch_is_forwarded_part_by_part_and_asks_its_teacher_once(linear: list[Linear]) -> None:
    teacher = linear_teacher()
    train(replace(RECIPE, accumulate=2, epochs=1, evaluations=1), OnlineLabels([teacher]))
    (student,) = linear
    seen = [x for x, mode in zip(student.seen, student.modes, strict=True) if mode]
    assert [len(x) for x in seen] == [8, 8, 8, 8, 4, 4]
    assert isinstance(teacher.model, Linear) and [len(x) for x in teacher.model.seen] == [16, 16, 8]
    assert torch.equal(torch.cat(seen), torch.cat(teacher.model.seen))


def test_batch_norm_sees_the_parts_of_an_accumulated_batch() -> None:
    widths: list[int] = []
    forward = nn.BatchNorm2d.forward

    def spy(self: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        widths.append(len(x))
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", spy)
        train(replace(RECIPE, accumulate=2, epochs=1, evaluations=1))
    assert widths[:6] == [8, 8, 8, 8, 4, 4]


def test_squared_is_temperature_squared_times_the_loss() -> None:
    draws = torch.Generator().manual_seed(0)
    y, z = torch.randn(2, 6, 10, generator=draws, dtype=torch.float64).unbind(0)
    hard = torch.zeros(6, dtype=torch.int64)
    plain, squared = (loss_function(replace(RECIPE, squared=s), soft=True)(y, z, hard) for s in (False, True))
    torch.testing.assert_close(squared, plain * 400, atol=0, rtol=1e-14)


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
    (everything,) = parameter_groups(net, 0.01, decay_all=True)
    assert everything["weight_decay"] == 0.01 and len(everything["params"]) == len(parameters)


def test_optimizers_are_those_of_the_recipe() -> None:
    adamw = build_optimizer(RECIPE, Linear(10, 16))
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["betas"] == (0.9, 0.999)
    sgd = build_optimizer(replace(RECIPE, optimizer="sgd", momentum=0.875), Linear(10, 16))
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


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, schedule="cos2", temperature=4.0),
        replace(RECIPE, optimizer="sgd", lr=0.02, momentum=0.875, weight_decay=0.1, loss="mse_gt", ema=0.9),
        replace(RECIPE, loss="ce", pad=2),
        replace(RECIPE, temperature=4.0, squared=True, warmup=1, decay_all=True, optimizer="sgd", lr=0.001),
        replace(RECIPE, temperature=4.0, accumulate=3, schedule="step", milestones=(1 / 3, 2 / 3), gamma=0.5),
    ],
)
def test_a_training_equals_the_same_loop_written_out(
    recipe: StudentRecipe, linear: list[Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers, distilled = [linear_teacher(seed=s) for s in (3, 4)], some_digits(4)
    labels = HardLabels(10, 40) if recipe.loss == "ce" else OnlineLabels(teachers)
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
    if recipe.decay_all:
        del groups[1]["weight_decay"]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    for epoch in range(3):
        for batch in range(3):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * factor(recipe.schedule, epoch, 3, recipe.warmup, (1 / 3, 2 / 3), 0.5)
            plan = drawn.plan(epoch, batch)
            assert plan.cutmix is not None
            x, hard = render(plan), distilled.labels[plan.index]
            teacher, y = (teachers[0](x) + teachers[1](x)) / 2, model(x)
            share = plan.cutmix.share(16)
            if recipe.loss == "kl":
                p, log_p = (teacher / 4).softmax(1), (teacher / 4).log_softmax(1)
                loss = (p * (log_p - (y / 4).log_softmax(1))).sum(1).mean() * (16 if recipe.squared else 1)
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
