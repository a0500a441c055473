"""The shared loop: exact against golden vectors, equivalences and invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from suite.errors import NumericError, UserError
from suite.learn import synthesis
from suite.learn.critics import bn_critic, plain_critic
from suite.learn.initial import RealStart
from suite.learn.job import Job
from suite.learn.synthesis import BatchRun, Critic, by_class, by_slot, cosine, cyclic, distill
from suite.learn.teachers import Teacher
from suite.learn.view_policies import MemoryViews, RandomViews
from suite.spec.datasets import dataset
from tests.helpers import golden
from tests.learn.loop_parts import composition, memory_views
from tests.learn.synthesis_parts import Net, small_teacher, tiny_job


def test_five_adam_steps_equal_the_reference() -> None:
    v = golden("bn_matching")
    net = Net().double()
    state = {k.removeprefix("net."): t for k, t in v.items() if k.startswith("net.")}
    net.load_state_dict(state, strict=False)
    facts = replace(dataset("imagenet1k"), classes=10, size=16)
    job = Job(facts, 8, 0, torch.device("cpu"), teachers=[Teacher("net", net, facts.mean, facts.std)])
    iterates, critic = [], bn_critic(job.teachers[0], 0.01, 10.0)
    plan = composition(
        job, 5, lr=0.25, start=lambda batch, slots: v["x"], partition=[v["y"] * 8 + torch.arange(8)], critics=[critic]
    )
    BatchRun(job, plan, [0], watch=lambda t, x: iterates.append(x.clone())).run()
    torch.testing.assert_close(torch.stack(iterates), v["adam_x_after"], atol=1e-9, rtol=0)
    factors = torch.tensor([0.25 * cosine(t, 5) for t in range(5)], dtype=torch.float64)
    torch.testing.assert_close(factors, v["adam_lrs"], atol=1e-12, rtol=0)


def test_bn_term_of_weight_zero_is_plain_cross_entropy() -> None:
    results = []
    for critic in (bn_critic(small_teacher(), 0.0, 10.0), plain_critic(small_teacher())):
        job = tiny_job()
        results.append(distill(job, composition(job, critics=[critic])).images)
    assert torch.equal(*results)
    job = tiny_job()
    assert not torch.equal(
        distill(job, composition(job, critics=[bn_critic(small_teacher(), 0.1, 10.0)])).images, results[0]
    )


def test_schedule_starts_at_one_and_is_one_half_in_the_middle() -> None:
    assert cosine(0, 40) == 1 and cosine(20, 40) == pytest.approx(0.5)
    assert cosine(39, 40) == pytest.approx((1 + math.cos(math.pi * 39 / 40)) / 2)


def test_partitions_cover_the_set_once_and_mean_what_they_say() -> None:
    slot, klass = by_slot(7, 3, 4), by_class(7, 3, 4)
    for partition in (slot, klass):
        assert torch.equal(torch.cat(partition).sort().values, torch.arange(21))
    assert [b.tolist() for b in slot[:3]] == [[0, 3, 6, 9], [12, 15, 18], [1, 4, 7, 10]]
    assert [b.tolist() for b in klass[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("pixels", [False, True])
def test_pixels_stay_in_range_after_every_update(pixels: bool) -> None:
    job = tiny_job()
    facts = job.dataset
    low = 0.0 if pixels else -facts.mean[0] / facts.std[0]
    high = 1.0 if pixels else (1 - facts.mean[0]) / facts.std[0]
    seen = []

    def watch(t: int, x: torch.Tensor) -> None:
        assert low - 1e-6 <= x.min() and x.max() <= high + 1e-6
        seen.append(t)

    plan = composition(job, lr=2.0, pixels=pixels)
    BatchRun(job, plan, [0], watch=watch).run()
    assert seen == list(range(6))


def test_optimising_pixels_or_normalised_images_is_the_same_up_to_the_scale_of_steps() -> None:
    """Views are linear, so that only Adam's step, which ignores the scale of gradients, sees the difference."""
    std = tiny_job().dataset.std[0]
    images = []
    for pixels, lr in ((False, 0.2), (True, 0.2 * std)):
        job = tiny_job()
        plan = composition(job, lr=lr, pixels=pixels, start=RealStart(job, flips=False, pixels=pixels))
        images.append(distill(job, plan).images.int())
    # where a gradient is almost zero, its sign is rounding, and Adam makes a whole step of it
    assert ((images[0] - images[1]).abs() > 1).float().mean() < 0.01


def test_counters_say_how_much_was_done() -> None:
    job = tiny_job(ipc=3, teachers=2)
    plan = composition(job, 5, select=lambda counter, batch: [(0, 0.5), (1, 0.5)])
    distill(job, plan)
    assert job.counters.image_iterations == 30 * 5
    assert job.counters.forward_images == 2 * 30 * 5


def test_seeds_decide_and_nothing_else_does() -> None:
    def images(seed: int, noise_seed: int) -> torch.Tensor:
        torch.manual_seed(noise_seed)
        job = tiny_job(seed=seed)
        views = lambda batch, n: RandomViews(  # noqa: E731
            job, batch, n, 6, crop=(0.3, 1.0), flips=True, shift=(-2, 2)
        )
        return distill(job, composition(job, views=views)).images

    assert torch.equal(images(0, 1), images(0, 2))
    assert not torch.equal(images(0, 1), images(1, 1))


def test_batches_do_not_depend_on_each_other() -> None:
    """A shard that starts at the second batch finds the same images."""
    job = tiny_job(teachers=3)
    views = memory_views(job, 20)
    plan = composition(job, 20, views=views, select=cyclic(3), start=RealStart(job, flips=True))
    whole = distill(job, plan).images
    alone = BatchRun(tiny_job(teachers=3), plan, [1]).run()
    facts = job.dataset
    assert torch.equal(whole[plan.partition[1]], synthesis.denormalise(alone, facts.mean, facts.std))


def test_teachers_take_turns_and_references_carry_the_count_over_early_stops() -> None:
    resets: list[int] = []

    def order(carry: bool) -> tuple[list[int], Job]:
        job = tiny_job(teachers=3)
        called: list[int] = []
        resets.clear()

        def critic(i: int) -> Critic:
            teacher = job.teachers[i]
            return Critic(
                lambda x: (called.append(i), (teacher(x), ()))[1],  # type: ignore[func-returns-value]
                reset=lambda *batches: resets.append(i),
            )

        views = memory_views(job, 10, explore=3, threshold=math.inf)
        plan = composition(
            job, 10, views=views, select=cyclic(3), critics=[critic(i) for i in range(3)], carry=carry, stop_every=1
        )
        distill(job, plan)
        return called, job

    called, job = order(carry=True)
    assert called == [0, 1, 2, 0, 1, 2, 0, 1]  # explore + 1 updates each, one after the other
    assert job.counters.image_iterations == 20 * 4 and resets == []
    called, _ = order(carry=False)
    assert resets == [0, 1, 2, 0, 1, 2]
    assert called == [0, 1, 2, 0] + [(10 + t) % 3 for t in range(4)]


@pytest.mark.parametrize("stop_every", [3, 7, 1000])
def test_asking_rarely_whether_a_batch_ended_changes_nothing(stop_every: int) -> None:
    results = []
    for every in (1, stop_every):
        job = tiny_job()
        plan = composition(
            job,
            40,
            lr=0.2,
            views=memory_views(job, 40, threshold=1.0),
            start=RealStart(job, flips=True),
            stop_every=every,
        )
        results.append((distill(job, plan).images, job.counters.image_iterations, job.counters.forward_images))
    (early, updates, forwards), (late, same_updates, more_forwards) = results
    assert updates < 20 * 40, "no batch stopped early: the test shows nothing"
    assert torch.equal(early, late) and updates == same_updates
    assert forwards == updates < more_forwards


def test_infinite_threshold_ends_after_exploration_and_minus_infinity_never() -> None:
    for threshold, expected in ((math.inf, 7), (-math.inf, 15)):
        job = tiny_job()
        distill(job, composition(job, 15, views=memory_views(job, 15, threshold=threshold)))
        assert job.counters.image_iterations == 20 * expected


@pytest.mark.parametrize("explore", [11, 12, 500])
def test_exploration_until_the_end_is_random_cropping(explore: int) -> None:
    job = tiny_job()
    remembering = memory_views(job, 12, explore=explore, threshold=0.1, shift=(0, 3))

    def random(batch: int, n: int) -> RandomViews:
        return RandomViews(job, batch, n, 12, crop=(0.5, 1.0), flips=True, shift=(0, 3), shared=False)

    images = [distill(job, composition(job, 12, views=views)).images for views in (remembering, random)]
    assert torch.equal(*images)


def test_shared_views_of_equal_images_are_equal_and_others_are_not() -> None:
    job = tiny_job()
    x = torch.rand(1, 3, 16, 16).expand(5, -1, -1, -1)
    shared, single = (
        RandomViews(job, 0, 5, 4, crop=(0.2, 0.5), flips=True, shift=(0, 5), shared=s) for s in (True, False)
    )
    for t in range(4):
        seen = shared.views(x, t)
        assert torch.equal(seen, seen[:1].expand_as(seen))
        assert not torch.equal(single.views(x, t)[0], single.views(x, t)[1])


def test_views_of_active_images_use_their_own_boxes() -> None:
    job = tiny_job()
    x = torch.rand(5, 3, 16, 16)
    for memory in (RandomViews(job, 0, 5, 3, crop=(0.2, 0.9), flips=True, shared=False),):
        active = torch.tensor([3, 1])
        assert torch.equal(memory.views(x[active], 2, active), memory.views(x, 2)[active])


def test_crop_ranges_may_change_with_the_iteration() -> None:
    job = tiny_job()
    policy = RandomViews(job, 0, 4, 30, crop=lambda t: (1.0, 1.0) if t < 10 else (0.1, 0.2), shared=False)
    assert policy.boxes is not None
    areas = policy.boxes[..., 2] * policy.boxes[..., 3]
    assert (areas[:10] == 256).all() and (areas[10:] < 80).all()


def test_gradient_of_the_whole_loss_is_zero_outside_the_boxes() -> None:
    job = tiny_job()
    policy = MemoryViews(job, 0, 6, 3, explore=2, threshold=0.0, crop=(0.1, 0.3), flips=True)
    x = torch.rand(6, 3, 16, 16, requires_grad=True)
    critic = bn_critic(small_teacher(), 1.0, 10.0)
    logits, stats = critic.forward(policy.views(x, 0))
    assert critic.matching is not None
    seen = synthesis.Seen(x, torch.arange(6), logits, stats)
    loss = torch.nn.functional.cross_entropy(logits, seen.labels) + critic.matching(seen)
    (gradient,) = torch.autograd.grad(loss, x)
    assert policy.used is not None
    for g, (top, left, height, width) in zip(gradient, policy.used[1].tolist(), strict=True):
        inside = torch.zeros(16, 16, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert (g[:, ~inside] == 0).all() and (g[:, inside] != 0).any()


def test_images_wait_until_they_are_active() -> None:
    """DELT: rows without gradient stay as they are, and a late row's first update is 1.577 times the rate."""
    job = tiny_job(ipc=1)
    late, iterates = torch.arange(5, 10), []
    start = torch.full((10, 3, 16, 16), 0.1)
    plan = composition(
        job,
        201,
        lr=1e-3,
        start=lambda batch, slots: start,
        schedule=lambda t, total: 1.0,
        active=lambda t: torch.arange(5) if t < 200 else late,
    )
    BatchRun(job, plan, [0], watch=lambda t, x: iterates.append(x.clone())).run()
    assert torch.equal(iterates[199][late], start[late])
    moved = (iterates[200][late] - start[late]).abs()
    # sqrt(1 - 0.9^201) / (1 - 0.5^201) * (1 - 0.5) / sqrt(1 - 0.9)
    assert moved.median().item() == pytest.approx(1e-3 * 0.5 / math.sqrt(0.1), rel=1e-2)
    assert job.counters.image_iterations == 5 * 201


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_numeric_error(bad: float) -> None:
    job = tiny_job()
    critic = replace(plain_critic(small_teacher()), matching=lambda seen: seen.logits.sum() * bad)
    with pytest.raises(NumericError, match="batch 0"):
        distill(job, composition(job, critics=[critic]))


def test_a_loss_that_is_not_finite_is_found_at_the_next_log_point() -> None:
    job, seen = tiny_job(ipc=1), []
    critic = replace(
        plain_critic(small_teacher()),
        matching=lambda s: (seen.append(1), s.logits.sum() * math.nan)[1],  # type: ignore[func-returns-value]
    )
    with pytest.raises(NumericError):
        distill(job, composition(job, 100_000, critics=[critic], views=lambda b, n: RandomViews(job, b, n, 1)))
    assert len(seen) == synthesis.LOG_EVERY


def test_a_composition_without_work_is_refused() -> None:
    job = tiny_job()
    for changes in ({"iterations": 0}, {"critics": []}):
        with pytest.raises(UserError, match="at least 1"):
            composition(job, **changes)
