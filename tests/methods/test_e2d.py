"""E2D's invariants in real runs, its equivalence with EDC, and what `e2d_adaptive` changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from suite.errors import UserError
from suite.learn import synthesis
from suite.learn.box_memory import BoxMemory
from suite.learn.job import Job
from suite.learn.view_policies import MemoryViews
from suite.learn.views import rrc_boxes
from suite.methods import get
from tests.learn.synthesis_parts import apart
from tests.methods.contract import job_for

SHORT: dict[str, Any] = {"iterations": 16, "explore": 6, "threshold": 0.8, "batch": 6, "flip": False}
BRANCHES: list[dict[str, Any]] = [{}, {"reference_quirks": True}, {"branch": "cda", "roll": (0, 2), "lr": 0.02}]


def made(name: str, ipc: int = 3, teachers: int = 2, **values: Any) -> tuple[torch.Tensor, Job]:
    job = job_for(get(name), ipc=ipc, teachers=teachers)
    return get(name)(**(SHORT | values)).synthesize(job).images, job


@pytest.mark.parametrize(("explore", "quirks"), [(15, False), (500, False), (15, True)])
def test_exploring_to_the_end_is_edc_with_a_box_an_image_and_real_starts(explore: int, quirks: bool) -> None:
    e2d, job = made("e2d", explore=explore, reference_quirks=quirks)
    other = job_for(get("edc"), ipc=3, teachers=2)
    edc = get("edc")(iterations=16, batch=6, flip=False, shared=False, start="real", reference_quirks=quirks)
    assert torch.equal(e2d, edc.synthesize(other).images)
    assert job.counters == other.counters


def test_memory_grows_only_in_exploration_and_holds_hard_crops_only(monkeypatch: pytest.MonkeyPatch) -> None:
    grown, forgotten, original = 0, 0, BoxMemory.observe

    def observe(self: BoxMemory, t: Any, selected: torch.Tensor, boxes: torch.Tensor, ce: torch.Tensor) -> torch.Tensor:
        nonlocal grown, forgotten
        members = (self.boxes == boxes[:, None]).all(dim=2) & self.valid()
        assert (members.any(dim=1) | (selected < 0)).all(), "what is revisited is remembered"
        assert ((selected >= 0) == ((self.count > 0) & (t > self.explore))).all()
        before = self.count
        result = original(self, t, selected, boxes, ce)
        assert t <= self.explore or (self.count <= before).all()
        assert (self.count <= self.explore + 1).all() and (self.ce[self.valid()] > self.threshold).all()
        grown, forgotten = grown + int((self.count > before).sum()), forgotten + int(result.sum())
        return result

    monkeypatch.setattr(BoxMemory, "observe", observe)
    made("e2d")
    assert grown > 0 and forgotten > 0


def test_gradient_of_the_whole_loss_with_edcs_matching_is_zero_outside_the_boxes() -> None:
    job = job_for(get("e2d"), ipc=3)
    plan = get("e2d")(**SHORT | {"crop": (0.1, 0.3), "weight": 10.0}).compose(job)
    policy = plan.views(0, 6)
    assert isinstance(policy, MemoryViews)
    x = plan.start(0, plan.partition[0]).requires_grad_()
    slots = plan.partition[0]
    ce, term = plan.critics[0].judge(policy.views(x, 0), slots // 3, slots, "fp32")
    (gradient,) = torch.autograd.grad(ce.mean() + term, x)
    assert policy.used is not None
    for g, (top, left, height, width) in zip(gradient, policy.used[1].tolist(), strict=True):
        inside = torch.zeros(16, 16, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert (g[:, ~inside] == 0).all() and (g[:, inside] != 0).any()
    for critic in plan.critics:
        critic.close()


def test_boxes_lie_in_the_image_and_cover_half_of_it() -> None:
    draws = torch.Generator().manual_seed(0)
    boxes = rrc_boxes(20_000, 224, 224, area=(0.5, 1.0), ratio=(3 / 4, 4 / 3), generator=draws)
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 224).all() and (left + width <= 224).all()
    assert (height * width >= 0.5 * 224**2 - 224).all()  # sides are rounded


@pytest.mark.parametrize("quirks", [False, True])
def test_teachers_go_on_in_turn_after_an_early_stop_only_as_a_quirk(quirks: bool) -> None:
    job = job_for(get("e2d"), ipc=1, teachers=3)
    called: list[int] = []
    method = get("e2d")(**SHORT | {"threshold": math.inf, "explore": 3, "iterations": 9, "batch": 5})
    plan = method.compose(job)
    critics = [_noting(critic, called, i) for i, critic in enumerate(plan.critics)]
    from dataclasses import replace

    synthesis.distill(job, replace(plan, critics=critics, carry=quirks))
    assert called == [0, 1, 2, 0, *([1, 2, 0, 1] if quirks else [0, 1, 2, 0])]


def _noting(critic: synthesis.Critic, called: list[int], i: int) -> synthesis.Critic:
    from dataclasses import replace

    def forward(*args: Any) -> Any:
        called.append(i)
        return critic.forward(*args)

    return replace(critic, forward=forward)


def test_starts_are_real_images_mosaics_or_noise() -> None:
    values = {"iterations": 1, "explore": 0, "lr": 1e-9}
    images = {start: made("e2d", start=start, **values)[0].float() for start in ("real", "mosaic", "noise")}
    passes = {start: made("e2d", start=start, **values)[1].counters.forward_images for start in images}
    assert passes["real"] == passes["noise"] == 30 < passes["mosaic"], "only mosaics are scored by a teacher"
    assert not torch.equal(images["real"], images["mosaic"])
    channels = images["noise"] - images["noise"].mean(dim=1, keepdim=True)
    assert channels.abs().mean() > 10, "digits are grey, noise is not"
    with pytest.raises(UserError, match="start = 'noise'"):
        get("e2d")(branch="cda", start="noise")


@pytest.mark.parametrize("branch", BRANCHES)
def test_adaptive_without_its_two_parts_is_e2d(branch: dict[str, Any]) -> None:
    one, job = made("e2d", **branch)
    other, same = made("e2d_adaptive", continuous=False, patience=0, **branch)
    assert apart(one, other) < 0.01, "Adam's fused kernel rounds otherwise"
    assert apart(one, made("e2d", **branch | {"explore": 0})[0]) > 0.1
    assert job.counters == same.counters


@pytest.mark.parametrize("branch", BRANCHES)
def test_each_part_of_adaptive_changes_the_images(branch: dict[str, Any]) -> None:
    images = [
        made("e2d_adaptive", continuous=c, patience=m, **branch)[0] for c, m in ((False, 0), (True, 0), (True, 2))
    ]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_negative_patience_is_refused() -> None:
    with pytest.raises(UserError, match="patience"):
        get("e2d_adaptive")(patience=-1)


def test_adaptive_has_e2ds_values_and_its_own() -> None:
    for base in ("imagenet1k", "imagenet21k", "cifar10"):
        own, e2d = (get(name).for_dataset(base, 10) for name in ("e2d_adaptive", "e2d"))
        assert vars(e2d).items() <= vars(own).items() and set(vars(own)) - set(vars(e2d)) == {"continuous", "patience"}
        assert own.recipe(base, 10, 10, "resnet18") == e2d.recipe(base, 10, 10, "resnet18")
