"""Images with clocks of their own: E2D without the additions, savings with them, and what the host may not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from suite.errors import NumericError, UserError
from suite.learn import continuous
from suite.learn.continuous import ImageAdam, Stream, distill_by_image
from suite.learn.critics import bn_critic, plain_critic
from suite.learn.initial import RealStart
from suite.learn.job import Job
from suite.learn.synthesis import BETAS, EPS, Composition, by_class, cosine, cyclic, distill
from suite.learn.view_policies import MemoryViews, RandomViews
from tests.learn.synthesis_parts import apart, tiny_job


def plan_of(job: Job, iterations: int = 40, **changes: Any) -> Composition:
    settings = {"explore": 10, "threshold": 1.0, "crop": (0.4, 1.0), "flips": True, "shift": (0, 0)}
    settings |= {k: changes.pop(k) for k in list(changes) if k in settings}
    defaults: dict[str, Any] = {
        "iterations": iterations,
        "lr": 0.1,
        "partition": by_class(job.dataset.classes, job.ipc, 6),
        "start": RealStart(job, flips=True),
        "views": lambda batch, images: MemoryViews(job, batch, images, iterations, **settings),
        "critics": [bn_critic(t, 0.01, 10.0) for t in job.teachers],
        "select": cyclic(len(job.teachers)),
    }
    return Composition(**(defaults | changes))


def run(patience: int = 0, continuous: bool = False, ipc: int = 3, **changes: Any) -> tuple[torch.Tensor, int, int]:
    job = tiny_job(ipc=ipc, teachers=2)
    made = distill_by_image(job, plan_of(job, **changes), patience=patience, continuous=continuous)
    return made.images, job.counters.image_iterations, job.counters.forward_images


@pytest.mark.parametrize(
    "changes", [{}, {"carry": True}, {"shift": (0, 3)}, {"threshold": -math.inf}, {"flips": False}]
)
def test_without_its_two_parts_it_is_e2d_up_to_roundings(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Adam's plain arithmetic; its fused kernel rounds otherwise."""
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda x, fused=None, **settings: adam(x, **settings))
    job = tiny_job(ipc=3, teachers=2)
    images = distill(job, plan_of(job, **changes)).images
    own, updates, forwards = run(**changes)
    assert apart(own, images) < 0.01 < 0.1 < apart(run(**changes | {"crop": (0.2, 0.8)})[0], images)
    assert (updates, forwards) == (job.counters.image_iterations, job.counters.forward_images)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("stop_every", [3, 8, 90])
def test_exchanging_on_the_device_makes_rare_questions_harmless(stop_every: int, continuous: bool) -> None:
    """Images enter and leave at the same iterations however rarely the host brings new ones and takes others away."""
    often, rarely = (run(4, continuous, stop_every=every) for every in (1, stop_every))
    assert often[1] < 30 * 40, "nothing ended early: the test shows nothing"
    assert torch.equal(often[0], rarely[0]) and often[1] == rarely[1]
    assert often[2] <= rarely[2]


def test_each_part_saves_forward_passes_and_both_save_more() -> None:
    passes = {(c, m): run(m, c, explore=25, threshold=1.5, ipc=6)[2] for c in (False, True) for m in (0, 4)}
    assert passes[True, 0] < passes[False, 0] and passes[False, 4] <= passes[False, 0]
    assert passes[True, 4] < passes[True, 0] and passes[True, 4] < passes[False, 4]


@pytest.mark.parametrize("continuous", [False, True])
def test_images_that_are_never_hard_leave_after_patience_draws(continuous: bool) -> None:
    """Five batches of six places: all leave together, so that no place is idle."""
    assert run(7, continuous, threshold=math.inf)[1:] == (30 * 7, 30 * 7)
    assert run(0, continuous, threshold=math.inf)[1:] == (30 * 11, 30 * 11)
    assert run(20, continuous, threshold=math.inf)[1:] == (30 * 11, 30 * 11), "explore bounds patience"


@pytest.mark.parametrize("continuous", [False, True])
def test_images_that_are_always_hard_are_updated_t_times(continuous: bool) -> None:
    assert run(3, continuous, threshold=-math.inf)[1:] == (30 * 40, 30 * 40)


def test_every_image_of_the_set_is_made_once_and_starts_from_its_own_real_image() -> None:
    """At a vanishing rate each slot holds the start that E2D gives it, whoever had the place before."""
    own = run(2, True, lr=1e-9, threshold=2.0)[0].int()
    job = tiny_job(ipc=3, teachers=2)
    plan = plan_of(job)
    for number, slots in enumerate(plan.partition):
        start = continuous.denormalise(plan.start(number, slots), job.dataset.mean, job.dataset.std).int()
        assert (own[slots] - start).abs().max() <= 1


def test_an_image_keeps_the_draws_that_it_has_in_e2d() -> None:
    job = tiny_job(ipc=3, teachers=2)
    plan = plan_of(job)
    stream = Stream(job, plan, range(5), 3, 0)
    rest = [*stream.images]
    for image in rest:
        number, row = divmod(image.slot, 6)
        views = plan.views(number, 6)
        assert isinstance(views, MemoryViews) and views.boxes is not None and views.flips is not None
        assert torch.equal(image.boxes, views.boxes[:, row]) and torch.equal(image.flips, views.flips[:, row])
        assert torch.equal(image.uniforms, views.uniforms[:, row])
    assert [image.slot for image in rest] == list(range(12, 30)), "six in places, six in line"


def test_who_enters_has_a_fresh_clock_memory_and_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = 0
    original = Stream._exchange

    def exchange(self: Stream) -> None:
        nonlocal entered
        before = self.entry.clone()
        original(self)
        new = self.entry != before
        entered += int(new.sum())
        assert (self.clock[new] == 0).all() and (self.memory.count[new] == 0).all()
        assert (self.memory.misses[new] == 0).all()
        assert (self.adam.first[new] == 0).all() and (self.adam.second[new] == 0).all()
        assert len(set(self.entry.tolist())) == len(self.entry)

    monkeypatch.setattr(Stream, "_exchange", exchange)
    run(4, True)
    assert entered == 24


def test_rows_of_adam_are_what_torch_gives_each_of_them_alone() -> None:
    """Three rows that start at iterations 0, 3 and 5 equal three optimisers of their own, bit by bit."""
    total, starts = 9, (0, 3, 5)
    g = torch.Generator().manual_seed(0)
    x, gradients = torch.randn(3, 3, 4, 4, generator=g), torch.randn(total + 5, 3, 3, 4, 4, generator=g)
    expected = []
    for row, start in enumerate(starts):
        alone = x[row : row + 1].clone().requires_grad_()
        optimizer = torch.optim.Adam([alone], lr=0.1, betas=BETAS, eps=EPS)
        for t in range(total):
            optimizer.param_groups[0]["lr"] = 0.1 * cosine(t, total)
            alone.grad = gradients[start + t, row : row + 1]
            optimizer.step()
        expected.append(alone.detach()[0])
    adam = ImageAdam(x, [0.1 * cosine(t, total) for t in range(total)], BETAS, EPS)
    for step in range(total + 5):
        clock = torch.tensor([step - s for s in starts])
        adam.clear(clock == 0)
        alive = ((clock >= 0) & (clock < total)).view(-1, 1, 1, 1)
        x.copy_(torch.where(alive, adam.step(gradients[step], clock.clamp(0, total)), x))
    assert torch.equal(x, torch.stack(expected))


def test_a_row_that_has_had_its_steps_stands_still() -> None:
    x = torch.ones(1, 3, 2, 2)
    adam = ImageAdam(x, [0.1, 0.1], BETAS, EPS)
    assert torch.equal(adam.step(torch.ones_like(x), torch.tensor([2])), x)


def test_the_host_asks_only_when_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = Stream._ask
    monkeypatch.setattr(Stream, "_ask", lambda self: (asked.append(1), original(self))[1])
    run(4, True, stop_every=10, threshold=-math.inf)
    assert len(asked) == 5 * 40 // 10 + 1


def test_seeds_decide() -> None:
    torch.manual_seed(1)
    first = run(4, True)
    torch.manual_seed(2)
    assert torch.equal(first[0], run(4, True)[0])


def test_what_it_cannot_run_is_refused() -> None:
    job = tiny_job()
    for changes in ({"views": lambda b, n: RandomViews(job, b, n, 40)}, {"active": lambda t: torch.arange(2)}):
        with pytest.raises(UserError, match="box memory"):
            distill_by_image(job, plan_of(job, **changes), patience=2, continuous=True)


def test_a_loss_that_is_not_finite_is_a_numeric_error() -> None:
    from dataclasses import replace

    job = tiny_job()
    critic = replace(plain_critic(job.teachers[0]), matching=lambda seen: seen.logits.sum() * math.nan)
    with pytest.raises(NumericError):
        distill_by_image(job, plan_of(job, critics=[critic]), patience=2, continuous=True)
