"""The engine of the shared loop: questions to the device, precision, stacked batches, checkpoints, hand-over."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from suite.learn import synthesis
from suite.learn.checkpoint import Checkpoint
from suite.learn.critics import bn_critic, feature_critics
from suite.learn.handover import Shelf
from suite.learn.initial import RealStart
from suite.learn.job import Job
from suite.learn.synthesis import BatchRun, Composition, by_class, by_slot, cyclic, distill
from suite.learn.teachers import Teacher
from suite.learn.view_policies import RandomViews
from tests.learn.loop_parts import composition, memory_views
from tests.learn.synthesis_parts import Net, small_teacher, tiny_job


def _questions(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    """How often the host reads a value from a tensor, the optimiser's own step counter on the CPU aside."""
    asked = 0

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal asked
            caller = sys._getframe(1).f_code.co_filename
            if "optim" not in caller:
                asked += 1
            return original(self, *args, **kwargs)

        return method

    with monkeypatch.context() as patch:
        for name in ("item", "cpu", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
        run()
    return asked


def test_no_question_to_the_device_between_log_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(iterations: int, memory: bool) -> Callable[[], object]:
        job = tiny_job(ipc=1, teachers=2)
        random = lambda b, n: RandomViews(job, b, n, iterations, crop=(0.3, 1.0), flips=True, shift=(0, 2))  # noqa: E731
        views = memory_views(job, iterations, explore=3, threshold=-1.0) if memory else random
        critics = [bn_critic(t, 0.01, 10.0) for t in job.teachers]
        plan = composition(job, iterations, views=views, critics=critics, select=cyclic(2), stop_every=1000)
        return lambda: distill(job, plan)

    for memory in (False, True):
        few, many = (_questions(monkeypatch, run(iterations, memory)) for iterations in (5, 95))
        assert few == many
        assert 0 < _questions(monkeypatch, run(205, memory)) - many <= 2 * 6  # two more log points


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_synchronisation_on_a_gpu_between_log_points() -> None:
    device = torch.device("cuda")
    job = tiny_job(ipc=1, device=device)
    job.teachers = [Teacher("net", Net(), job.dataset.mean, job.dataset.std).to(device)]
    plan = composition(
        job, 60, views=memory_views(job, 60, threshold=-1.0), critics=[bn_critic(job.teachers[0], 0.01, 10.0)]
    )
    run = BatchRun(job, replace(plan, stop_every=1000), 0, plan.partition[0])
    step = run._step

    def guarded(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    run._step = guarded  # type: ignore[method-assign]
    run.run()


def test_bf16_keeps_images_and_statistics_in_float32() -> None:
    job = tiny_job(precision="bf16")
    critic = bn_critic(small_teacher(), 0.01, 10.0)
    dtypes = set()

    def matching(seen: synthesis.Seen) -> torch.Tensor:
        dtypes.update({seen.stats.measured.dtype, seen.views.dtype})
        assert critic.matching is not None
        return critic.matching(seen)

    images = distill(job, composition(job, critics=[replace(critic, matching=matching)])).images
    assert dtypes == {torch.float32}
    full = tiny_job()
    expected = distill(full, composition(full, critics=[bn_critic(small_teacher(), 0.01, 10.0)])).images
    assert not torch.equal(images, expected)
    assert (images.int() - expected.int()).abs().float().mean() < 5


def test_hooks_are_removed_when_a_synthesis_ends() -> None:
    job = tiny_job()
    hooks = lambda: sum(len(m._forward_pre_hooks) for m in job.teachers[0].modules())  # noqa: E731
    before = hooks()
    distill(job, composition(job, critics=[bn_critic(job.teachers[0], 0.01, 10.0)]))
    assert hooks() == before


def matched_job(**changes: Any) -> Job:
    """Two random teachers with class-wise statistics of real digits."""
    from suite.learn.statistics import compute_statistics

    job = tiny_job(teachers=2, **changes)
    assert job.real is not None
    x = (job.real.images[:200] / 255 - job.dataset.mean[0]) / job.dataset.std[0]  # type: ignore[attr-defined]
    labels = job.real.labels[:200]  # type: ignore[attr-defined]
    job.statistics = [compute_statistics(t.model, [(x, labels)], 10, 4) for t in job.teachers]
    return job


def e2d_like(job: Job, iterations: int = 24, **changes: Any) -> Composition:
    """Memory, early stop, teachers in turn, averages with dropped layers, an extra term: all that has a state."""
    critics = feature_critics(
        job, 0.1, 10.0, 0.8, drop_rate=0.4, extra=lambda seen: seen.features.square().mean() * (1 + seen.slots[0])
    )
    defaults: dict[str, Any] = {
        "lr": 0.2,
        "partition": by_class(10, job.ipc, 5),
        "views": memory_views(job, iterations, threshold=1.0),
        "start": RealStart(job, flips=True),
        "critics": critics,
        "select": cyclic(2),
    }
    return composition(job, iterations, **(defaults | changes))


@pytest.mark.parametrize("images", [10, 1000])
def test_image_batches_side_by_side_are_what_each_is_alone(images: int) -> None:
    """The objective of a batch does not see the others: same draws, averages, drops, ends; sums differ by rounding."""
    results = []
    for stack in (1, images):
        job = matched_job(ipc=2, stack=stack)
        iterates: dict[int, torch.Tensor] = {}
        plan = e2d_like(job)
        for numbers in synthesis.stacks(plan, stack):
            run = BatchRun(job, plan, numbers)
            for n, part in zip(numbers, run.run().chunk(len(numbers)), strict=True):
                iterates[n] = part
        results.append((torch.cat([iterates[n] for n in sorted(iterates)]), job.counters.image_iterations))
    (alone, updates), (together, same) = results
    assert updates == same < 20 * 24, "no batch stopped early: the test shows nothing"
    # where a gradient is almost zero, its sign is rounding, and Adam makes a whole step of it
    assert ((alone - together).abs() > 1e-3).float().mean() < 0.01


def test_only_equal_batches_whose_teachers_agree_are_stacked() -> None:
    job = tiny_job(ipc=3, teachers=2)
    plan = composition(job, 6, partition=by_slot(10, 3, 4), select=cyclic(2))
    assert list(synthesis.stacks(plan, 1)) == [[n] for n in range(9)]
    assert list(synthesis.stacks(plan, 8)) == [[0, 1], [2], [3, 4], [5], [6, 7], [8]]
    assert list(synthesis.stacks(replace(plan, carry=True), 8)) == [[n] for n in range(9)]
    odd = composition(job, 5, partition=by_slot(10, 3, 5), select=cyclic(2))  # five iterations: turns alternate
    assert list(synthesis.stacks(odd, 100)) == [[n] for n in range(6)]


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("after", [3, 9, 30])
def test_an_interrupted_synthesis_goes_on_to_the_same_bits(tmp_path: Path, carry: bool, after: int) -> None:
    class Interrupted(Checkpoint):
        left = after

        def due(self) -> bool:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return self.left == 0

    def run(checkpoint: Checkpoint | None) -> tuple[torch.Tensor, int, int]:
        job = matched_job(ipc=2, checkpoint=checkpoint)
        images = distill(job, e2d_like(job, carry=carry)).images
        return images, job.counters.image_iterations, job.counters.forward_images

    path = tmp_path / "state"
    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(path))
    resumed = run(Checkpoint(path))
    assert torch.equal(whole[0], resumed[0]) and whole[1:] == resumed[1:]


def test_finished_images_keep_their_places() -> None:
    shelf = Shelf(6, 4, torch.device("cpu"))
    for slots in (torch.tensor([4, 1]), torch.tensor([0, 2, 3, 5])):
        shelf.put(slots, slots.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4))
    assert torch.equal(shelf.all()[:, 0, 0, 0], torch.arange(6, dtype=torch.uint8))


def test_extra_terms_see_features_and_slots_of_one_batch_each() -> None:
    seen: list[tuple[torch.Tensor, torch.Size]] = []
    job = tiny_job(stack=100)

    def extra(what: synthesis.Seen) -> torch.Tensor:
        seen.append((what.slots, what.features.shape))
        return what.features.sum() * 0

    distill(job, composition(job, 1, critics=[bn_critic(small_teacher(), 0.1, 1.0, extra)]))
    assert [s.tolist() for s, _ in seen] == [list(range(0, 20, 2)), list(range(1, 20, 2))]
    assert {shape for _, shape in seen} == {(10, 16)}
