"""Pruned label streams (LPLD): what is kept, how it is drawn, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from suite.errors import UserError
from suite.learn.ensembles import label_logits
from suite.learn.label_stream import InOrder, LabelStream, Pool, not_last, write_stream
from suite.learn.soft_labels import OnlineLabels, StoredLabels
from suite.learn.students import train_student
from suite.learn.view_plans import DrawnViews, Renderer
from suite.spec.recipes import LabelRecipe, RelabelRecipe, StudentRecipe
from suite.spec.storage import kept_batches, stream_bytes, stream_shape
from tests.helpers import golden
from tests.learn.test_label_ensembles import bn_teacher
from tests.learn.training import CPU, DIGITS, digits, linear_teacher, some_digits

WHOLE = RelabelRecipe(epochs=6, batch=16, crop=(0.3, 1.0))
PRUNED = replace(WHOLE, label=LabelRecipe(prune=0.6))


def _write(path: Path, recipe: RelabelRecipe) -> LabelStream:
    seen = write_stream(path, some_digits(4), [linear_teacher()], recipe, 5, DIGITS, CPU)
    stream = LabelStream(path)
    assert seen == stream.shape.positions, "labels that are left out are never made"
    return stream


def test_kept_batches_equal_the_reference() -> None:
    v = golden("lpld")
    rows = v["pool.E_N_B_r_nb_K_epochdirs_poolsize"].tolist()
    for epochs, images, batch, prune, per_epoch, kept, _, pool in rows:
        assert kept_batches(int(epochs), int(images) // int(batch), prune) == kept == pool
        if prune:
            shape = stream_shape(RelabelRecipe(int(epochs), int(batch), label=LabelRecipe(prune=prune)), int(images))
            assert (shape.per_epoch, shape.batches) == (per_epoch, kept)
    exact = v["pool.K_exact_arithmetic"].tolist()
    assert any(row[5] != k for row, k in zip(rows, exact, strict=True)), "binary floats make a difference"


def test_drawn_batches_are_replaced_as_in_the_reference() -> None:
    v = golden("lpld")
    assert torch.equal(not_last(v["b2e.drawn"], 6), v["b2e.batch_ids"])
    assert torch.equal(not_last(torch.arange(4), 1), torch.arange(4)), "a single batch an epoch stays"


def test_a_pruned_stream_is_the_first_full_batches_of_the_same_views(tmp_path: Path) -> None:
    stream = _write(tmp_path / "pruned", PRUNED)
    distilled, teacher, drawn = some_digits(4), linear_teacher(), DrawnViews(WHOLE, 40, 16, 5)
    render = Renderer(distilled.images, DIGITS, CPU)
    assert (stream.shape.per_epoch, stream.shape.batches) == (2, int(6 * 2 * (1 - 0.6))) == (2, 4)
    for number in (3, 0, 2, 1):  # random access
        plan, expected = stream.read(number), drawn.plan(*divmod(number, 2))
        views = render(plan)
        assert len(plan.index) == 16 and torch.equal(views, render(expected))
        assert torch.equal(stream.logits(plan), label_logits([teacher], views, LabelRecipe()).half())


def test_a_pool_draws_with_replacement_and_never_a_batch_that_is_not_kept(tmp_path: Path) -> None:
    stream = _write(tmp_path / "pruned", replace(WHOLE, epochs=20, batch=10, label=LabelRecipe(prune=0.5)))
    pool = Pool(stream, seed=0)
    assert pool.batches == 4 and stream.shape.batches == 40
    drawn = [pool.numbers(epoch) for epoch in range(400)]
    counts = Counter(torch.cat(drawn).tolist())
    assert set(counts) == {n for n in range(40) if n % 4 != 3}, "last batches of an epoch are replaced"
    # 1,600 draws of 40 numbers: 40 each, and 80 where the next one is replaced.
    assert all(abs(c - (80 if n % 4 == 2 else 40)) < 40 for n, c in counts.items())
    assert any(len(set(numbers.tolist())) < 4 for numbers in drawn), "with replacement"
    again = Pool(stream, seed=0)
    assert torch.equal(again.numbers(7), drawn[7]) and not torch.equal(Pool(stream, seed=1).numbers(7), drawn[7])


def test_a_drawn_batch_is_replayed_by_its_number(tmp_path: Path) -> None:
    """Two batches that begin with the same image keep their own crops and logits (the reference confuses them)."""
    stream = _write(tmp_path / "pruned", replace(WHOLE, epochs=40, label=LabelRecipe(prune=0.1)))
    pool, render, teacher = Pool(stream, 3), Renderer(some_digits(4).images, DIGITS, CPU), linear_teacher()
    firsts = Counter(int(stream.read(n).index[0]) for n in range(stream.shape.batches))
    assert firsts.most_common(1)[0][1] > 1
    for epoch in range(5):
        for batch, number in enumerate(pool.numbers(epoch).tolist()):
            plan = pool.plan(epoch, batch)
            assert plan.position == stream.read(number).position == number * 16
            assert torch.equal(stream.logits(plan), teacher(render(plan)).half())


def test_the_pool_covers_images_evenly(tmp_path: Path) -> None:
    stream = _write(tmp_path / "pruned", replace(WHOLE, epochs=20, batch=10, label=LabelRecipe(prune=0.55)))
    seen = torch.cat([stream.read(n).index for n in range(stream.shape.batches)]).bincount(minlength=40)
    assert set(seen.tolist()) <= {9, 10} and int(seen.sum()) == 360, "a prefix, so each image 9 times, or once more"


def test_a_student_of_pruned_labels_takes_full_batches_only(tmp_path: Path) -> None:
    stream, distilled = _write(tmp_path / "pruned", PRUNED), some_digits(4)
    recipe = StudentRecipe(epochs=4, batch=16, crop=(0.3, 1.0), evaluations=1)

    def train(seed: int) -> dict[str, object]:
        labels = StoredLabels(stream)
        return train_student(recipe, "convnet1_w4", DIGITS, distilled, labels, digits("val"), seed, CPU)

    first = train(0)
    assert first["steps"] == 4 * 2 and first == train(0) and first != train(1)


def test_nothing_pruned_is_the_stream_of_sre2l_bit_for_bit(tmp_path: Path) -> None:
    whole, zero = _write(tmp_path / "a", WHOLE), _write(tmp_path / "b", replace(WHOLE, label=LabelRecipe(prune=0.0)))
    assert whole.path.read_bytes() == zero.path.read_bytes()
    planner = StoredLabels(zero).planner(DrawnViews(StudentRecipe(batch=16, crop=(0.3, 1.0)), 40, 16, 9))
    assert isinstance(planner, InOrder) and planner.batches == 3
    drawn, render = DrawnViews(WHOLE, 40, 16, 5), Renderer(some_digits(4).images, DIGITS, CPU)
    for epoch in range(6):
        for batch in range(3):
            assert torch.equal(render(planner.plan(epoch, batch)), render(drawn.plan(epoch, batch)))


def test_pruning_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves no batch"):
        _write(tmp_path / "none", replace(WHOLE, label=LabelRecipe(prune=0.99)))


@pytest.mark.parametrize("prune", [0.0, 0.5])
@pytest.mark.parametrize("label", [LabelRecipe(), LabelRecipe("weighted", (0.7, 0.3), 4), LabelRecipe("norm", part=8)])
def test_stored_and_online_labels_of_the_same_views_agree_to_fp16_rounding(
    tmp_path: Path, label: LabelRecipe, prune: float
) -> None:
    distilled, teachers = some_digits(4), [bn_teacher(), linear_teacher()]
    recipe = replace(WHOLE, epochs=2, label=replace(label, prune=prune))
    write_stream(tmp_path / "labels", distilled, teachers, recipe, 5, DIGITS, CPU)
    drawn = DrawnViews(StudentRecipe(batch=16, crop=(0.3, 1.0)), 40, 16, 1)
    stored, online = StoredLabels(LabelStream(tmp_path / "labels")), OnlineLabels(teachers, "fp32", label)
    online.planner(drawn)
    planner, render = stored.planner(drawn), Renderer(distilled.images, DIGITS, CPU)
    for batch in range(planner.batches):
        plan = planner.plan(1, batch)
        x, hard = render(plan), distilled.labels[plan.index]
        kept, asked = stored.targets(plan, x, hard), online.targets(plan, x, hard)
        assert torch.equal(kept, asked.half().float())
        assert float((kept - asked).abs().max()) <= 2**-11 * float(asked.abs().max())


def test_bytes_of_a_pruned_file_are_those_of_the_formula(tmp_path: Path) -> None:
    stream = _write(tmp_path / "pruned", PRUNED)
    assert stream.bytes == stream.header_bytes + stream_bytes(PRUNED, 40, 10)
    assert stream_bytes(PRUNED, 40, 10) == 4 * (16 * (4 + 2 * 10 + 8 + 1 + 4) + 16)
