"""E2D's box memory against golden traces, and its invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.learn.box_memory import BoxMemory
from tests.helpers import golden


@pytest.fixture(params=["A", "B"])
def trace(request: pytest.FixtureRequest) -> dict[str, Any]:
    tensors = golden("e2d_trace")
    return {k[2:]: v for k, v in tensors.items() if k.startswith(f"{request.param}.")} | {
        "eps": tensors["A.eps"].item()
    }


def test_replays_the_reference_traces_exactly(trace: dict[str, Any]) -> None:
    iterations, explore = trace["T_K"].tolist()
    images, capacity = trace["mem_box"].shape[1:3]
    memory = BoxMemory(images, explore, trace["eps"])
    forgotten_total = 0
    for t in range(iterations):
        if t == trace["stop_iter"]:
            assert t > explore and memory.empty()
            break
        assert t <= explore or not memory.empty()
        selected = trace["selected"][t]
        width = memory.ce.shape[1]
        # the reference draws only in exploitation; its probabilities are stored before the draw
        for b in torch.nonzero(selected >= 0).flatten().tolist():
            n = int(memory.count[b])
            torch.testing.assert_close(memory.probabilities()[b, :n], trace["select_prob"][t, b, :n])
        boxes = memory.choose(selected, trace["boxes_offered"][t])
        assert torch.equal(boxes, trace["box_used"][t])
        forgotten = memory.observe(t, selected, boxes, trace["ce"][t])
        assert torch.equal(forgotten, trace["deleted"][t])
        assert torch.equal(memory.count, trace["mem_count"][t])
        valid = memory.valid()
        assert capacity >= width
        assert torch.equal(memory.boxes[valid], trace["mem_box"][t, :, :width][valid])
        assert torch.equal(memory.ce[valid], trace["mem_ce"][t, :, :width][valid])
        forgotten_total += int(forgotten.sum())
    else:
        assert trace["stop_iter"] == iterations
    assert forgotten_total > 0


def _random_run(memory: BoxMemory, iterations: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    images = len(memory.count)
    counts = []
    for t in range(iterations):
        selected = memory.select(t, torch.rand(images, generator=g))
        offered = torch.randint(0, 3, (images, 4), generator=g)  # few values: identical boxes do occur
        was_member = [
            bool((memory.boxes[b, : memory.count[b]] == memory.boxes[b, s]).all(1).any()) if s >= 0 else None
            for b, s in enumerate(selected.tolist())
        ]
        assert all(m is not False for m in was_member)
        assert torch.equal(selected >= 0, (memory.count > 0) & torch.tensor(t > memory.explore))
        memory.observe(t, selected, memory.choose(selected, offered), 2 * torch.rand(images, generator=g))
        assert (memory.ce[memory.valid()] > memory.threshold).all()
        counts.append(memory.count.clone())
    return counts


def test_memory_grows_only_in_exploration_and_is_bounded() -> None:
    memory = BoxMemory(6, explore=10, threshold=0.7)
    counts = torch.stack(_random_run(memory, 40))
    steps = counts[1:] - counts[:-1]
    assert (steps[:10] >= 0).all() and (steps[:10] > 0).any()
    assert (steps[10:] <= 0).all() and (steps[10:] < 0).any()
    assert counts.max() <= 11


def test_no_box_is_remembered_twice() -> None:
    memory = BoxMemory(5, explore=60, threshold=0.1)
    _random_run(memory, 61)
    for b in range(5):
        boxes = memory.boxes[b, : memory.count[b]]
        assert len(boxes.unique(dim=0)) == len(boxes)


def test_selection_follows_the_softmax_of_stored_losses() -> None:
    memory = BoxMemory(1, explore=2, threshold=0.0)
    for t, ce in enumerate((0.5, 1.5, 3.0)):
        memory.observe(t, torch.tensor([-1]), torch.full((1, 4), t), torch.tensor([ce]))
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    many = BoxMemory(20_000, explore=2, threshold=0.0)
    many.boxes, many.ce = memory.boxes.expand(20_000, -1, -1), memory.ce.expand(20_000, -1)
    many.count = memory.count.expand(20_000)
    frequency = torch.bincount(many.select(3, draws), minlength=3) / 20_000
    expected = torch.softmax(torch.tensor([0.5, 1.5, 3.0]), 0)
    assert (frequency - expected).abs().max() < 0.015


def test_draws_close_to_one_stay_inside_the_list() -> None:
    memory = BoxMemory(2, explore=50, threshold=-1.0)
    for t in range(51):
        memory.observe(t, torch.full((2,), -1), torch.full((2, 4), t), torch.rand(2))
    last = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    assert (memory.select(51, last.expand(2)) <= 50).all()
    assert (memory.select(51, torch.zeros(2)) == 0).all()


@pytest.mark.parametrize("threshold", [float("inf"), float("-inf")])
def test_infinite_thresholds(threshold: float) -> None:
    memory = BoxMemory(3, explore=4, threshold=threshold)
    counts = _random_run(memory, 12)
    if threshold > 0:
        assert all(c.sum() == 0 for c in counts) and memory.empty()
    else:
        assert (counts[-1] == counts[4]).all() and not memory.empty()


def test_an_easy_revisit_of_a_known_box_in_exploration_changes_nothing() -> None:
    memory = BoxMemory(1, explore=5, threshold=0.5)
    box = torch.tensor([[1, 2, 3, 4]])
    none = torch.tensor([-1])
    memory.observe(0, none, box, torch.tensor([0.9]))
    memory.observe(1, none, box, torch.tensor([0.2]))
    assert memory.count.item() == 1 and memory.ce[0, 0].item() == pytest.approx(0.9)
    memory.observe(2, none, box, torch.tensor([0.7]))
    assert memory.count.item() == 1 and memory.ce[0, 0].item() == pytest.approx(0.7)


def test_patience_ends_exploration_after_consecutive_easy_crops() -> None:
    memory = BoxMemory(3, explore=9, threshold=0.5, patience=3)
    # hard at every third iteration, never, always
    ce = torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.1, 0.9], [0.1, 0.5, 0.9]])
    ends: list[int | None] = [None, None, None]
    for t in range(12):
        clock = torch.full((3,), t)
        exploring = memory.exploring(clock)
        assert isinstance(exploring, torch.Tensor)
        for b in range(3):
            if not exploring[b] and ends[b] is None:
                ends[b] = t
        selected = memory.select(clock, torch.rand(3, generator=torch.Generator().manual_seed(t)))
        assert torch.equal(selected >= 0, ~exploring & (memory.count > 0))
        before = memory.count
        memory.observe(clock, selected, torch.full((3, 4), t), ce[t % 3])
        assert ((memory.count > before) <= exploring).all(), "only exploration remembers"
    assert ends == [10, 3, 10]
    assert memory.done(torch.full((3,), 12)).tolist() == [False, True, False]


def test_images_may_have_clocks_of_their_own() -> None:
    """A late image's memory is what it would be in a batch of its own time."""
    together, alone = BoxMemory(2, 4, 0.6), BoxMemory(1, 4, 0.6)
    g = torch.Generator().manual_seed(0)
    boxes, ce, u = torch.randint(0, 9, (20, 4), generator=g), torch.rand(20, generator=g), torch.rand(20, generator=g)
    for t in range(18):
        own = alone.select(t, u[t : t + 1])
        alone.observe(t, own, alone.choose(own, boxes[t : t + 1]), ce[t : t + 1])
        clock = torch.tensor([t + 2, t])
        index = clock.clamp(max=19)
        selected = together.select(clock, u[index])
        together.observe(clock, selected, together.choose(selected, boxes[index]), ce[index])
        assert together.count[1] == alone.count[0] and selected[1] == own[0]
        assert torch.equal(together.ce[1, : alone.count[0]], alone.ce[0, : alone.count[0]])


def test_cleared_rows_start_afresh_and_others_stay() -> None:
    memory = BoxMemory(3, explore=3, threshold=0.5, patience=2)
    memory.observe(torch.zeros(3, dtype=torch.int64), torch.full((3,), -1), torch.ones(3, 4).long(), torch.ones(3))
    memory.clear(torch.tensor([True, False, False]))
    assert memory.count.tolist() == [0, 1, 1]
