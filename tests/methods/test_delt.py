"""DELT (arXiv:2411.19946): ranked starts, rounds, what they save, and CDA as the case of one round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.errors import DataError, UserError
from suite.learn import synthesis
from suite.learn.checkpoint import Checkpoint
from suite.learn.early_late import first_rounds, rounds_of
from suite.learn.initial import RankedStart, per_class, rank, true_class_scores
from suite.learn.recovery import recover, shrinking, smallest_area
from suite.learn.synthesis import BETAS, EPS, BatchRun, by_class, cosine
from suite.methods import get
from tests.helpers import golden
from tests.learn.synthesis_parts import DigitImages, tiny_job
from tests.methods.contract import job_for

#: T = 16 and M = 8 keep the paper's proportions.
SCALED: dict[str, Any] = {"iterations": 16, "flip": False, "crop": (0.5, 1.0)}


def joined(ipc: int, iterations: int, rounds: int, slots: torch.Tensor) -> torch.Tensor:
    """bool [rounds, batch]: who is active."""
    plan = rounds_of(slots, ipc, iterations, rounds)
    table = torch.zeros(len(plan.active), len(slots), dtype=torch.bool)
    for row, active in zip(table, plan.active, strict=True):
        row[list(active)] = True
    return table


@pytest.mark.parametrize(
    ("ipc", "iterations", "length"),
    [(3, 4000, 500), (7, 3000, 500), (10, 4000, 500), (10, 1000, 500), (10, 40, 10), (20, 4000, 500), (50, 4000, 500),
     (100, 4000, 500)],
)  # fmt: skip
def test_rounds_are_the_references(ipc: int, iterations: int, length: int) -> None:
    data = golden("delt")
    name = f"ipc{ipc}_T{iterations}_R{length}"
    images = len(data[f"{name}.targets"])
    table = joined(ipc, iterations, iterations // length, torch.arange(images))
    assert torch.equal(table, data[f"{name}.active_by_round"])
    assert torch.equal(table.sum(0) * length, data[f"{name}.updates_per_image"])
    assert len(table) * length == data[f"{name}.total_iterations"].item()


def test_a_class_spread_over_batches_drops_empty_leading_rounds_as_the_reference() -> None:
    data = golden("delt")
    for number, slots in enumerate(by_class(2, 50, 20)):
        name = f"split_ipc50_b20.batch{number}"
        assert torch.equal(slots // 50, data[f"{name}.targets"])
        assert torch.equal(joined(50, 4000, 8, slots), data[f"{name}.active_by_round"])
        assert rounds_of(slots, 50, 4000, 8).iterations == data[f"{name}.total_iterations"].item()


@given(st.integers(1, 120), st.integers(1, 12))
def test_groups_sum_to_ipc_never_grow_and_differ_by_one_at_most(ipc: int, rounds: int) -> None:
    joins = torch.tensor(first_rounds(ipc, rounds))
    sizes = torch.bincount(joins, minlength=rounds)
    assert sizes.sum() == ipc and (sizes.diff() <= 0).all() and sizes.max() - sizes.min() <= 1
    assert (joins.diff() >= 0).all(), "ranks join in order"
    table = joined(ipc, rounds * 5, rounds, torch.arange(2 * ipc))
    assert table[-1].all(), "the last round holds the whole batch"
    assert (table[1:] >= table[:-1]).all(), "once active, always active"
    assert torch.equal(table.sum(0) * 5, ((rounds - joins) * 5).repeat(2))
    planned = get("delt")(iterations=rounds * 5, rounds=rounds).image_iterations(ipc)
    assert planned * ipc == pytest.approx(int((rounds - joins).sum()) * 5, abs=1e-9)


@pytest.mark.parametrize(("ipc", "mean"), [(1, 4000), (10, 2550), (50, 2310), (100, 2290)])
def test_planned_image_iterations_are_those_of_the_papers_schedule(ipc: int, mean: float) -> None:
    method = get("delt").for_dataset("imagenet1k", ipc)
    assert method.image_iterations(ipc) == mean
    counted = sum(joined(ipc, 4000, 8, slots).sum().item() * 500 for slots in by_class(1000 // 10, ipc, 100))
    assert counted == mean * 100 * ipc, "summed over the batches of a tenth of ImageNet-1K"


@pytest.mark.parametrize(("ipc", "saved"), [(10, 36.25), (50, 42.25)])
@pytest.mark.parametrize("other", ["sre2l", "cda"])
def test_delt_saves_36_percent_at_ipc_10_and_42_at_ipc_50(other: str, ipc: int, saved: float) -> None:
    full, early_late = (get(name).for_dataset("imagenet1k", ipc).image_iterations(ipc) for name in (other, "delt"))
    assert 100 * (1 - early_late / full) == pytest.approx(saved, abs=1e-9)


@pytest.mark.parametrize(
    ("ipc", "batch", "share"), [(10, 100, 0.6375), (10, 8, 0.6375), (9, 100, None), (50, 100, 0.5775)]
)
def test_counted_image_iterations_equal_the_planned_ones(ipc: int, batch: int, share: float | None) -> None:
    """A real run in the paper's proportions, also where batches split classes and drop rounds."""
    job = tiny_job(ipc=ipc, classes=2)
    method = get("delt")(**SCALED, batch=batch)
    method.synthesize(job)
    assert job.counters.image_iterations == method.image_iterations(ipc) * 2 * ipc
    if share is not None:
        whole = tiny_job(ipc=ipc, classes=2)
        get("sre2l")(**SCALED, roll=(0, 0), batch=batch).synthesize(whole)
        assert job.counters.image_iterations / whole.counters.image_iterations == share


@pytest.mark.parametrize("n", [9, 10, 40])
def test_rankings_are_the_references(n: int) -> None:
    data = golden("delt")
    for criterion in ("top", "min", "medium"):
        expected = data[f"select.n{n}.{criterion}"]
        assert torch.equal(rank(data[f"select.n{n}.scores"], criterion, len(expected)), expected)


def test_medium_of_nine_goes_outward_from_the_fifth() -> None:
    scores = torch.arange(9.0)
    assert rank(scores, "medium", 9).tolist() == [5, 6, 4, 7, 3, 8, 2, 1, 0]
    assert rank(scores, "medium", 1).tolist() == [5] and rank(scores[:1], "medium", 1).tolist() == [0]
    with pytest.raises(DataError, match="9 images are ranked, 10 are wanted"):
        rank(scores, "medium", 10)


def test_ranked_starts_are_real_images_in_the_teachers_order() -> None:
    job = tiny_job(ipc=3)
    real = DigitImages()
    start = {c: RankedStart(job, c) for c in ("top", "medium", "min")}
    for c, members in enumerate(per_class(job)):
        scores = true_class_scores(job, members, c)
        best, middle, worst = (
            scores[[members.tolist().index(i) for i in start[k].chosen[3 * c : 3 * c + 3].tolist()]]
            for k in ("top", "medium", "min")
        )
        assert (best.diff() <= 0).all() and (worst.diff() >= 0).all()
        assert best[0] == scores.max() and worst[0] == scores.min()
        assert abs((scores < middle[0]).sum() - len(members) / 2) <= 1, "rank 0 is the median"
    x = start["medium"](0, torch.tensor([4, 0]))
    shown = x * job.dataset.std[0] + job.dataset.mean[0]
    chosen = start["medium"].chosen[[4, 0]]
    torch.testing.assert_close(shown, real.take(chosen).float() / 255, atol=1e-6, rtol=0)
    assert (real.labels[chosen] == torch.tensor([1, 0])).all()


def test_late_images_are_unchanged_until_their_round_and_change_in_it() -> None:
    job = tiny_job(ipc=4)
    start = RankedStart(job, "medium")
    slots = by_class(10, 4, 20)[0]
    plan = rounds_of(slots, 4, 8, 4)
    before = start(0, slots)
    seen: list[torch.Tensor] = []
    method = get("delt")(iterations=8, rounds=4, batch=20, flip=False)
    original = synthesis.distill

    def watched(job: Any, composition: synthesis.Composition) -> Any:
        run = BatchRun(job, composition, [0], watch=lambda t, x: seen.append(x.clone()))
        run.run()
        return original(job, composition)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "distill", watched)
        recover(job, method, start=start, partition=[slots], rounds=plan)  # type: ignore[arg-type]
    joins = torch.tensor(first_rounds(4, 4))[slots % 4]
    for t, x in enumerate(seen):
        changed = (x != before).flatten(1).any(1)
        late = joins * 2 > t
        assert (x - before)[late].abs().max() <= 1e-6 if late.any() else True, "at most what the clamp rounds"
        assert changed[~late].all()


def test_late_rows_get_no_bias_correction_as_in_the_reference() -> None:
    data = golden("delt")
    x = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.25, betas=BETAS, eps=EPS)
    started = data["late.start_step_rows2_3"].item()
    for t in range(10):
        optimizer.param_groups[0]["lr"] = 0.25 * cosine(t, 10)
        x.grad = data["late.grad"][t].clone()
        x.grad[2:] *= t >= started
        before = x.detach().clone()
        optimizer.step()
        torch.testing.assert_close(x.detach(), data["late.x_after"][t], atol=1e-10, rtol=0)
        step = (x.detach() - before)[2:].abs() / (0.25 * cosine(t, 10))
        assert (step == 0).all() if t < started else True
        if t == started:
            first = (0.5 / (1 - 0.5 ** (t + 1))) / (0.1 / (1 - 0.9 ** (t + 1))) ** 0.5
            torch.testing.assert_close(step, torch.full_like(step, first), atol=1e-6, rtol=0)
            assert first > 1.15, "1.58 when many steps have gone by; 1 with a counter of its own"


def test_rate_and_crops_follow_all_iterations_not_the_rounds() -> None:
    data = golden("delt")
    for t, lr, area in zip(*(data[k].tolist() for k in ("lr_iters", "lr_T4000_base025", "smin_T4000")), strict=True):
        assert 0.25 * cosine(t, 4000) == pytest.approx(lr, abs=1e-12)
        assert smallest_area(t, 4000, (0.08, 1.0), 1.0, "cosine") == pytest.approx(area, abs=1e-12)


def test_delt_with_one_round_equals_cda_from_the_same_real_images() -> None:
    """CDA's crops and loop, class by class: rounds add nothing when there is one."""
    jobs = [job_for(get("delt"), ipc=4) for _ in range(2)]
    one = get("delt")(rounds=1, iterations=6, batch=20, flip=False).synthesize(jobs[0])
    cda = get("cda")(iterations=6, batch=20, flip=False, roll=(0, 0))
    same = recover(
        jobs[1],
        cda,  # type: ignore[arg-type]
        start=RankedStart(jobs[1], "medium"),
        crop=shrinking((0.08, 1.0), 1.0, "cosine", 6),
        partition=by_class(10, 4, 20),
    )
    assert torch.equal(one.images, same.images) and jobs[0].counters == jobs[1].counters
    two = get("delt")(rounds=2, iterations=6, batch=20, flip=False).synthesize(job_for(get("delt"), ipc=4))
    assert not torch.equal(one.images, two.images)


def test_progress_of_batches_with_unequal_rounds_never_goes_back() -> None:
    job = tiny_job(ipc=10, classes=2)
    told: list[tuple[int, int]] = []
    job.progress = lambda at, total: told.append((at, total))
    get("delt")(**SCALED, batch=8).synthesize(job)
    assert told == sorted(told) and len({total for _, total in told}) == 1 and told[-1][0] == told[-1][1]


class Stop(Exception):
    """What ends a synthesis after some checkpoints."""


class Stopping(Checkpoint):
    """Saves after every step, and fails after a number of them."""

    left = 0

    def save(self, state: Any) -> bool:
        super().save(state)
        self.left -= 1
        if not self.left:
            raise Stop
        return True


@pytest.mark.parametrize("batch", [20, 8], ids=["one part", "three parts"])
def test_an_interrupted_set_goes_on_to_the_same_bits_whatever_part_it_was_at(batch: int, tmp_path: Path) -> None:
    method = get("delt")(**SCALED, batch=batch)
    job = tiny_job(ipc=10, classes=2)
    whole, counters = method.synthesize(job), job.counters
    made = 0
    for after in (1, 7, 3):
        checkpoint = Stopping(tmp_path / "state", seconds=0.0)
        checkpoint.left = after
        with pytest.raises(Stop):
            method.synthesize(tiny_job(ipc=10, classes=2, checkpoint=checkpoint))
        made += after
        assert checkpoint.saves == made, "no step is made twice"
    job = tiny_job(ipc=10, classes=2, checkpoint=Checkpoint(tmp_path / "state"))
    assert torch.equal(method.synthesize(job).images, whole.images) and job.counters == counters


def test_rounds_that_do_not_divide_the_iterations_are_refused() -> None:
    with pytest.raises(UserError, match="delt: out of range: rounds = 3"):
        get("delt").for_dataset("imagenet1k", 10, {"rounds": 3})


def test_recipe_is_rdeds_with_randaugment() -> None:
    make = get("delt").for_dataset("imagenet1k", 10).recipe
    recipe = make("imagenet1k", 1000, 10, "resnet18")
    assert (recipe.augment, recipe.magnitude, recipe.crop, recipe.patch_shuffle) == ("randaugment", 6.0, (0.25, 1.0), 1)
    assert (recipe.schedule, recipe.lr, recipe.temperature, recipe.epochs) == ("cosine_half", 1e-3, 20.0, 300)
    assert [make("imagenet1k", 1000, ipc, "resnet18").batch for ipc in (1, 10, 20, 30, 50, 100)] == [
        20, 100, 100, 200, 200, 200,
    ]  # fmt: skip
    assert [make("imagenet1k", 1000, ipc, "resnet101").batch for ipc in (1, 10, 50)] == [10, 50, 100]
    assert [make("cifar10", 10, ipc, "resnet18").batch for ipc in (1, 10, 50)] == [10, 50, 100]
    assert {make("tinyimagenet", 200, ipc, "resnet18").batch for ipc in (1, 10, 50)} == {100}
    rates = {s: make("imagenet1k", 1000, 10, s).lr for s in ("mobilenet_v2", "efficientnet_b0", "vgg11", "swin_t")}
    assert rates == {"mobilenet_v2": 2.5e-3, "efficientnet_b0": 2e-3, "vgg11": 5e-4, "swin_t": 1e-4}
