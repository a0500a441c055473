"""Label streams: views replay bit for bit, logits to fp16 rounding, bytes as the formula says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from suite.data.distilled import DistilledSet
from suite.errors import DataError, InfraError, NumericError
from suite.learn.label_stream import InOrder, LabelStream, write_stream
from suite.learn.soft_labels import StoredLabels
from suite.learn.teachers import Teacher
from suite.learn.view_plans import DrawnViews, Renderer
from suite.spec.datasets import dataset
from suite.spec.recipes import RelabelRecipe, StudentRecipe
from suite.spec.storage import stream_bytes
from tests.learn.training import CPU, DIGITS, Linear, linear_teacher, some_digits

RECIPE = RelabelRecipe(epochs=3, batch=16, crop=(0.3, 1.0))


def _write(path: Path, recipe: RelabelRecipe = RECIPE, seed: int = 5) -> tuple[DistilledSet, Teacher]:
    distilled, teacher = some_digits(4), linear_teacher()
    assert write_stream(path, distilled, [teacher], recipe, seed, DIGITS, CPU) == recipe.epochs * 40
    return distilled, teacher


def test_replayed_views_are_bit_identical_and_logits_are_those_of_the_teacher(tmp_path: Path) -> None:
    distilled, teacher = _write(tmp_path / "labels")
    assert isinstance(teacher.model, Linear)
    seen = list(teacher.model.seen)
    stream, render = LabelStream(tmp_path / "labels"), Renderer(distilled.images, DIGITS, CPU)
    order = InOrder(stream)
    assert (stream.epochs, order.batches, stream.images, stream.classes) == (3, 3, 40, 10)
    for epoch in (2, 0, 1):  # in any order
        for batch in (1, 0, 2):
            plan = order.plan(epoch, batch)
            views = render(plan)
            assert torch.equal(views, seen[epoch * 3 + batch])
            stored = stream.logits(plan)
            assert stored.dtype == torch.float16 and torch.equal(stored, teacher(views).half())


def test_plans_read_back_equal_the_plans_that_were_drawn(tmp_path: Path) -> None:
    _write(tmp_path / "labels")
    stream, drawn = InOrder(LabelStream(tmp_path / "labels")), DrawnViews(RECIPE, 40, 16, seed=5)
    for epoch in range(3):
        for batch in range(3):
            a, b = stream.plan(epoch, batch), drawn.plan(epoch, batch)
            assert torch.equal(a.index, b.index)
            assert a.boxes is not None and b.boxes is not None and torch.equal(a.boxes, b.boxes)
            assert a.flips is not None and b.flips is not None and torch.equal(a.flips, b.flips)
            assert a.cutmix is not None and b.cutmix is not None
            assert (a.cutmix.lam, a.cutmix.box) == (b.cutmix.lam, b.cutmix.box)
            assert torch.equal(a.cutmix.perm, b.cutmix.perm)


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        _write(tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / n).read_bytes() for n in "abc")
    assert a == b and a != c


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, replace(RECIPE, crop=(1.0, 1.0)), replace(RECIPE, flip=False), replace(RECIPE, cutmix=False)],
)
def test_bytes_are_exactly_those_of_the_formula(tmp_path: Path, recipe: RelabelRecipe) -> None:
    _write(tmp_path / "labels", recipe)
    raw = (tmp_path / "labels").read_bytes()
    positions, batches = 3 * 40, 3 * 3
    each = 4 + 2 * 10 + 8 * (recipe.crop != (1.0, 1.0)) + recipe.flip + 4 * recipe.cutmix
    payload = positions * each + batches * 16 * recipe.cutmix
    assert payload == stream_bytes(recipe, 40, 10)
    assert len(raw) == 8 + int.from_bytes(raw[:8], "little") + payload
    ledger = StoredLabels(LabelStream(tmp_path / "labels")).ledger()
    parts = {"label": positions * 20, "aug": payload - positions * 20, "meta": len(raw) - payload}
    assert {e["kind"]: e["bytes"] for e in ledger} == parts


@pytest.mark.parametrize(("images", "batch"), [(1000, 1024), (10_000, 100), (50_000, 1024)])
def test_size_agrees_with_the_published_accounting_at_1000_classes(images: int, batch: int) -> None:
    ours = stream_bytes(RelabelRecipe(epochs=300, batch=batch), images, 1000)
    payload = images * 300 * (2 * 1000 + 16 + 1 + 8)  # the references' records without their containers
    assert abs(ours / payload - 1) < 0.05


def test_a_measured_file_agrees_with_the_published_accounting_at_1000_classes(tmp_path: Path) -> None:
    facts = replace(dataset("imagenet1k"), size=8)
    images = torch.randint(0, 256, (128, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    distilled = DistilledSet(images, torch.arange(128))
    teacher = Teacher("linear", Linear(1000, 8), facts.mean, facts.std)
    write_stream(tmp_path / "labels", distilled, [teacher], RelabelRecipe(epochs=2, batch=128), 0, facts, CPU)
    published = 2 * (2 * 128 * 1000 + 16 * 128 + 128 + 8 * 128 + 2357)
    assert abs((tmp_path / "labels").stat().st_size / published - 1) < 0.05


def test_any_safetensors_reader_opens_a_stream(tmp_path: Path) -> None:
    _write(tmp_path / "labels.safetensors")
    tensors = load_file(tmp_path / "labels.safetensors")
    assert tensors["logits"].shape == (120, 10) and tensors["logits"].dtype == torch.float16
    assert set(tensors) == {"index", "logits", "box", "flip", "perm", "lam", "cutmix"}
    assert all(np.unique(tensors["index"][e * 40 : (e + 1) * 40]).size == 40 for e in range(3))


def test_more_epochs_than_stored_start_over(tmp_path: Path) -> None:
    _write(tmp_path / "labels")
    stream = InOrder(LabelStream(tmp_path / "labels"))
    assert stream.plan(7, 2).position == stream.plan(1, 2).position


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch": 20}, "batch 16 where 20 is needed"),
        ({"crop": (0.5, 1.0)}, "crop"),
        ({"flip": False}, "flip"),
        ({"cutmix": False}, "cutmix"),
        ({"pad": 2}, "pad"),
        ({"patch_shuffle": 2}, "patch_shuffle"),
        ({"augment": "dsa"}, "augment none where dsa is needed"),
    ],
)
def test_a_stream_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    _write(tmp_path / "labels")
    labels, recipe = StoredLabels(LabelStream(tmp_path / "labels")), StudentRecipe(batch=16, crop=(0.3, 1.0))
    assert isinstance(labels.planner(DrawnViews(recipe, 40, 16, seed=0)), InOrder)
    with pytest.raises(DataError, match=named):
        labels.planner(DrawnViews(replace(recipe, **change), 40, 16, seed=0))
    with pytest.raises(DataError, match="images 40 where 50"):
        labels.planner(DrawnViews(recipe, 50, 16, seed=0))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 12), st.integers(1, 15), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())
def test_every_shape_of_stream_reads_back_as_it_was_drawn(
    tmp_path: Path, images: int, batch: int, epochs: int, cropped: bool, flipped: bool, mixed: bool
) -> None:
    recipe = RelabelRecipe(epochs, batch, (0.2, 1.0) if cropped else (1.0, 1.0), flipped, mixed)
    pixels = torch.randint(0, 256, (images, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    teacher = linear_teacher()
    write_stream(
        tmp_path / "labels", DistilledSet(pixels, torch.zeros(images).long()), [teacher], recipe, 3, DIGITS, CPU
    )
    stream, drawn = LabelStream(tmp_path / "labels"), DrawnViews(recipe, images, 16, 3)
    order = InOrder(stream)
    assert order.batches == drawn.batches
    assert stream.bytes == stream.header_bytes + stream_bytes(recipe, images, 10)
    render = Renderer(pixels, DIGITS, CPU)
    for epoch in range(epochs):
        for b in range(drawn.batches):
            ours, theirs = order.plan(epoch, b), drawn.plan(epoch, b)
            assert torch.equal(render(ours), render(theirs))
            assert torch.equal(stream.logits(ours), teacher(render(theirs)).half())


def test_logits_are_written_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "whole")
    monkeypatch.setattr("suite.learn.label_stream._WAITING", 100)
    _write(tmp_path / "pieces")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_a_plan_that_was_drawn_has_no_stored_logits(tmp_path: Path) -> None:
    _write(tmp_path / "labels")
    with pytest.raises(ValueError, match="drawn"):
        LabelStream(tmp_path / "labels").logits(DrawnViews(RECIPE, 40, 16, seed=5).plan(0, 0))


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "labels")
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "labels").read_bytes()[:-1])
    save_file({"logits": torch.zeros(2)}, tmp_path / "foreign")
    for name in ("cut", "foreign", "absent"):
        with pytest.raises(DataError, match="label stream"):
            LabelStream(tmp_path / name)


def test_logits_beyond_fp16_are_refused(tmp_path: Path) -> None:
    teacher = linear_teacher()
    for p in teacher.model.parameters():
        p.data *= 1e6
    with pytest.raises(NumericError, match="fp16"):
        write_stream(tmp_path / "labels", some_digits(2), [teacher], RECIPE, 0, DIGITS, CPU)


def test_a_full_disk_is_an_error_and_not_a_crash() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("/dev/full is a Linux device")
    with pytest.raises(InfraError, match="cannot write"):
        write_stream(full, some_digits(1), [linear_teacher()], RECIPE, 0, DIGITS, CPU)
