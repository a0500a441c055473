"""Ensembles of teachers and batch-specific labels equal the references', and leave teachers as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from suite.errors import UserError
from suite.learn import models
from suite.learn.ensembles import combine, label_logits, part_count, teacher_logits
from suite.learn.soft_labels import OnlineLabels
from suite.learn.teachers import Teacher
from suite.learn.view_plans import DrawnViews, Renderer, parts
from suite.spec.recipes import LabelRecipe, StudentRecipe
from tests.helpers import golden
from tests.learn.training import CPU, DIGITS, linear_teacher, some_digits

NORM, WEIGHTED = LabelRecipe(ensemble="norm"), LabelRecipe(ensemble="weighted", weights=(0.5, 0.3, 0.2))


def logits(seed: int = 0, teachers: int = 3) -> torch.Tensor:
    return torch.randn(teachers, 6, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_norm_equalised_logits_equal_the_reference() -> None:
    v = golden("gvbsm_edc_e2d_stats")
    ours = combine(v["norm_eq.logits"], NORM)
    torch.testing.assert_close(ours, v["norm_eq.out"], atol=1e-9, rtol=0)
    assert torch.equal(ours.half(), v["norm_eq.out_fp16"])


def test_weighted_logits_equal_the_sum_by_hand_and_equal_weights_the_mean() -> None:
    x = logits()
    torch.testing.assert_close(combine(x, WEIGHTED), 0.5 * x[0] + 0.3 * x[1] + 0.2 * x[2])
    third = LabelRecipe(ensemble="weighted", weights=(1 / 3, 1 / 3, 1 / 3))
    torch.testing.assert_close(combine(x, third), combine(x, LabelRecipe()))


@pytest.mark.parametrize("label", [LabelRecipe(), NORM, LabelRecipe(ensemble="weighted", weights=(1.0,))])
def test_an_ensemble_of_one_is_that_teacher(label: LabelRecipe) -> None:
    x = logits(teachers=1)
    torch.testing.assert_close(combine(x, label), x[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.integers(0, 2))
def test_norm_equalised_members_count_alike(seed: int, scale: float, teacher: int) -> None:
    """Scaling one teacher's logits changes the result by one common factor: that of the mean norm."""
    x = logits(seed)
    scaled = x.clone()
    scaled[teacher] *= scale
    norms = torch.stack([m.norm() for m in scaled])
    factor = norms.mean() / torch.stack([m.norm() for m in x]).mean()
    torch.testing.assert_close(combine(scaled, NORM), factor * combine(x, NORM))


def test_weights_must_fit_the_teachers() -> None:
    with pytest.raises(UserError, match="3 label weights for 2 teachers"):
        combine(logits(teachers=2), WEIGHTED)


class Reference(nn.Module):
    """Convolution, BatchNorm, ReLU, mean over space, linear head, with the weights of a golden file."""

    def __init__(self, tensors: dict[str, torch.Tensor], prefix: str) -> None:
        super().__init__()
        self.w = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        self.b = nn.BatchNorm2d(len(self.w["b.weight"])).double()
        self.b.load_state_dict({k[2:]: t for k, t in self.w.items() if k.startswith("b.")}, strict=False)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(F.conv2d(x, self.w["c.weight"], padding=1)).relu().mean((2, 3))
        return F.linear(x, self.w["f.weight"], self.w["f.bias"])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("batch", "part"), [(8, 4), (7, 4)])
def test_batch_specific_labels_equal_the_reference(mode: str, batch: int, part: int) -> None:
    v = golden("cvdd")
    tag = f"bssl.{mode}_B{batch}_cutmix"
    x, perm = v[f"{tag}.x"].clone(), v[f"{tag}.perm"]
    x1, y1, x2, y2 = v["bssl.bbox"].tolist()
    x[:, :, x1:x2, y1:y2] = v[f"{tag}.x"][perm][:, :, x1:x2, y1:y2]
    label = LabelRecipe("weighted", tuple(v["bssl.weights"].tolist()), part if mode == "train" else 0)
    nets = [Reference(v, f"bssl.net{i}.") for i in (0, 1)]
    ours = combine(torch.stack([teacher_logits(net, x, part_count(label, batch)) for net in nets]), label)
    torch.testing.assert_close(ours, v[f"{tag}.out"], atol=1e-9, rtol=0)


class WithDropout(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.net(x), 0.5, self.training)


def bn_teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.build("convnet2_w8_bn", 10, 16)
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.normal_(m.running_mean)
    return Teacher("convnet2_w8_bn", WithDropout(net), DIGITS.mean, DIGITS.std)


def views(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


BSSL = LabelRecipe(part=4)


def test_an_image_changes_the_labels_of_its_part_only() -> None:
    teacher, x = bn_teacher(), views()
    changed = x.clone()
    changed[0] += 1
    moved = (label_logits([teacher], x, BSSL) - label_logits([teacher], changed, BSSL)).abs().amax(1)
    assert bool((moved[:4] > 1e-4).all()) and float(moved[4:].max()) == 0
    moved = (label_logits([teacher], x, LabelRecipe()) - label_logits([teacher], changed, LabelRecipe())).abs().amax(1)
    assert float(moved[0]) > 1e-4 and float(moved[1:].max()) == 0


def test_batch_specific_labels_leave_the_teacher_as_it_was_and_repeat() -> None:
    teacher, x = bn_teacher(), views()
    before = {k: t.clone() for k, t in teacher.state_dict().items()}
    plain = label_logits([teacher], x, LabelRecipe())
    first = label_logits([teacher], x, BSSL)
    assert torch.equal(label_logits([teacher], x, BSSL), first), "dropout is off and nothing drifts"
    after = teacher.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert not any(m.training for m in teacher.modules())
    assert torch.equal(label_logits([teacher], x, LabelRecipe()), plain) and not torch.equal(plain, first)


def test_a_teacher_that_fails_gets_its_statistics_back() -> None:
    teacher = bn_teacher()
    before = {k: t.clone() for k, t in teacher.state_dict().items()}
    with pytest.raises(RuntimeError):
        label_logits([teacher], torch.zeros(8, 5, 16, 16), BSSL)
    assert all(torch.equal(t, before[k]) for k, t in teacher.state_dict().items())


def test_without_batch_norm_parts_change_nothing() -> None:
    x = views()
    torch.testing.assert_close(
        label_logits([linear_teacher()], x, BSSL), label_logits([linear_teacher()], x, LabelRecipe())
    )


def test_a_part_without_a_variance_is_refused() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 10))
    teacher = Teacher("tiny", net, DIGITS.mean, DIGITS.std)
    with pytest.raises(UserError, match="no batch-specific labels"):
        label_logits([teacher], views(1), BSSL)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 64), st.integers(2, 64), st.integers(1, 64))
def test_students_forward_the_parts_that_were_labelled(batch: int, part: int, last: int) -> None:
    """A student that accumulates over as many parts as labels have cuts every batch, also the last, in the same way."""
    count = part_count(LabelRecipe(part=part), batch)
    sizes = [p.stop - p.start for p in parts(batch, count)]
    assert sum(sizes) == batch and max(sizes) <= part and max(sizes) - min(sizes) <= 1
    assert count == -(-batch // part)
    assert len(parts(min(last, batch), count)) == min(last, batch, count)


def test_a_short_last_batch_has_as_many_parts_as_a_full_one() -> None:
    teacher, x = bn_teacher(), views(4)
    halves = torch.cat([teacher_logits(teacher, h, 1) for h in x.split(2)])
    torch.testing.assert_close(label_logits([teacher], x, LabelRecipe(part=8), batch=16), halves)


def test_labels_are_asked_for_without_a_graph() -> None:
    teacher = linear_teacher()
    assert not label_logits([teacher], views().requires_grad_(), LabelRecipe()).requires_grad
    assert teacher.model.grad_enabled == [False] and teacher.model.modes == [False]


def test_no_graph_and_float32_whatever_the_precision() -> None:
    for precision in ("fp32", "bf16"):
        found = label_logits([bn_teacher(), linear_teacher()], views().requires_grad_(), BSSL, precision=precision)
        assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("label", [LabelRecipe(), NORM, replace(WEIGHTED, weights=(0.7, 0.3)), replace(NORM, part=3)])
def test_online_labels_follow_the_label_recipe(label: LabelRecipe) -> None:
    distilled, teachers = some_digits(2), [bn_teacher(), linear_teacher()]
    source = OnlineLabels(teachers, "fp32", label)
    planner: Any = source.planner(DrawnViews(StudentRecipe(batch=8, crop=(0.5, 1.0)), 20, 16, 0))
    for batch in range(planner.batches):
        plan = planner.plan(0, batch)
        x = Renderer(distilled.images, DIGITS, CPU)(plan)
        expected = label_logits(teachers, x, label, 8)
        assert torch.equal(source.targets(plan, x, distilled.labels[plan.index]), expected)
    assert source.forward_images == 40
