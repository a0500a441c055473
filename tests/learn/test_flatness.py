"""EDC's flatness term and the moving average of images that it looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from suite.learn.checkpoint import Checkpoint
from suite.learn.flatness import AveragedViews, flatness_loss
from suite.learn.view_policies import RandomViews
from suite.methods import get
from tests.helpers import golden
from tests.learn.synthesis_parts import apart, tiny_job
from tests.methods.contract import job_for

VALUES: dict[str, Any] = {"iterations": 5, "batch": 10, "start": "real", "flip": True, "crop": (0.5, 1.0)}


def test_flatness_equals_the_golden_loss_and_gradient() -> None:
    g = golden("gvbsm_edc_e2d_stats")
    logits = g["flatness.logits"].clone().requires_grad_()
    loss = flatness_loss(logits, g["flatness.ema_logits"])
    torch.testing.assert_close(loss.detach(), g["flatness.loss"], atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, g["flatness.grad"], atol=1e-9, rtol=0)
    assert abs(flatness_loss(logits, logits).item()) < 1e-12


def test_the_average_is_seen_through_the_boxes_and_flips_of_the_images() -> None:
    job, beside = tiny_job(), []
    looks: dict[str, Any] = {"iterations": 6, "crop": (0.3, 1.0), "flips": True}
    averaged = AveragedViews(job, 0, 4, **looks, decay=0.75, beside=beside.append)
    plain = RandomViews(job, 0, 4, **looks)
    draws = torch.Generator().manual_seed(0)
    x = [torch.randn(4, 3, 16, 16, generator=draws) for _ in range(6)]
    average = x[0]
    for t in range(6):
        average = 0.75 * average + 0.25 * x[t]
        assert torch.equal(averaged.views(x[t], t), plain.views(x[t], t))
        torch.testing.assert_close(beside[t], plain.views(average, t))
    again = AveragedViews(job, 0, 4, **looks, decay=0.75, beside=beside.append)
    again.restore(averaged.state())
    again.views(x[0], 0)
    averaged.views(x[0], 0)
    assert torch.equal(beside[-1], beside[-2])


def images(ipc: int = 2, teachers: int = 2, stack: int = 1, **values: Any) -> tuple[torch.Tensor, int]:
    job = job_for(get("edc"), ipc=ipc, teachers=teachers)
    job.stack = stack
    made = get("edc")(**{**VALUES, **values}).synthesize(job).images
    return made, job.counters.forward_images


def test_the_term_changes_images_costs_a_second_pass_and_is_off_by_default() -> None:
    (plain, passes), (off, same) = images(), images(flatness=0.0, flatness_ema=0.5)
    assert torch.equal(plain, off) and same == passes == 20 * 5
    flat, twice = images(flatness=100.0)
    assert not torch.equal(plain, flat) and twice == 2 * passes


def test_a_strong_term_holds_predictions_closer_to_those_of_the_average() -> None:
    """With the average fixed at the start, nearly, the teacher's predictions move less the heavier the term is."""
    teacher = tiny_job().teachers[0]

    def moved(weight: float) -> float:
        start, _ = images(teachers=1, iterations=1, lr=1e-6)
        end, _ = images(teachers=1, iterations=25, crop=(1.0, 1.0), flip=True, weight=0.0, flatness=weight,
                        flatness_ema=0.999)  # fmt: skip
        logits = [teacher((x / 255 - teacher.mean[0]) / teacher.std[0]) for x in (start, end)]
        return float(F.kl_div(logits[1].log_softmax(1), logits[0].softmax(1), reduction="batchmean"))

    assert moved(1e4) < 0.5 * moved(0.0)


def test_batches_side_by_side_meet_their_own_average() -> None:
    values: dict[str, Any] = {"iterations": 10, "flatness": 1000.0}
    one, side_by_side = images(**values)[0], images(**values, stack=20)[0]
    assert apart(one, side_by_side) < 0.01 < 0.1 < apart(one, images(**values, flatness_ema=0.5)[0])


class Interrupted(Exception):
    """What ends a synthesis after some checkpoints."""


class Fragile(Checkpoint):
    """Saves after every iteration, and fails after the seventh."""

    def save(self, state: Any) -> bool:
        super().save(state)
        if self.saves == 7:
            raise Interrupted
        return True


@pytest.mark.parametrize("name", ["edc", "gvbsm"])
def test_an_interrupted_synthesis_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    """Averages of images and of statistics, dropped layers and the teachers' turn survive."""
    extra: dict[str, Any] = {"flatness": 50.0, "start": "real"} if name == "edc" else {"drop_rate": 0.5, "roll": (0, 1)}
    method = get(name)(iterations=5, batch=10, **extra)

    def run(checkpoint: Checkpoint | None) -> tuple[torch.Tensor, int]:
        job = job_for(get(name), teachers=2)
        job.checkpoint = checkpoint
        return method.synthesize(job).images, job.counters.forward_images

    whole, passes = run(None)
    with pytest.raises(Interrupted):
        run(Fragile(tmp_path / "state", seconds=0.0))
    resumed, counted = run(Checkpoint(tmp_path / "state"))
    assert torch.equal(resumed, whole) and counted == passes
