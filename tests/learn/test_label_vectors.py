"""One vector an image (label-worth): what is stored, how it is learnt from, and what it takes on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from suite.data.distilled import DistilledSet
from suite.errors import DataError, InfraError, NumericError
from suite.learn.label_vectors import LabelVectors, write_vectors
from suite.learn.models import normalise
from suite.learn.soft_labels import HardLabels, VectorLabels, loss_function
from suite.learn.students import train_student
from suite.learn.view_plans import CutMix, DrawnViews, ViewPlan
from suite.spec.datasets import dataset
from suite.spec.recipes import LabelRecipe, RelabelRecipe, StudentRecipe
from suite.spec.storage import vector_bytes
from tests.helpers import golden
from tests.learn.training import CPU, DIGITS, Linear, digits, linear_teacher, some_digits

RECIPE = RelabelRecipe(epochs=1, batch=16, crop=(1.0, 1.0), flip=False, cutmix=False)


def _write(path: Path, recipe: RelabelRecipe = RECIPE, ipc: int = 4) -> tuple[DistilledSet, LabelVectors]:
    distilled, teacher = some_digits(ipc), linear_teacher()
    assert write_vectors(path, distilled, [teacher], recipe, DIGITS, CPU) == 10 * ipc
    assert isinstance(teacher.model, Linear)
    whole = normalise(distilled.images.float() / 255, DIGITS.mean, DIGITS.std)
    assert torch.equal(torch.cat(teacher.model.seen), whole), "each image once, whole"
    return distilled, LabelVectors(path)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_vector_is_the_softmax_of_the_teachers_logits(tmp_path: Path, temperature: float) -> None:
    distilled, vectors = _write(tmp_path / "v", replace(RECIPE, label=LabelRecipe(temperature=temperature)))
    x = normalise(distilled.images.float() / 255, DIGITS.mean, DIGITS.std)
    expected = torch.softmax(linear_teacher()(x) / temperature, 1)
    assert vectors.rows.dtype == torch.float16
    torch.testing.assert_close(vectors.rows.float(), expected, rtol=2**-11, atol=2**-25)
    torch.testing.assert_close(vectors.rows.float().sum(1), torch.ones(40), rtol=0, atol=2e-3)


def test_the_temperature_is_the_inverse_of_the_papers() -> None:
    v = golden("students_labels")
    for name, factor in (("0p5", 0.5), ("1p0", 1.0), ("2p0", 2.0)):
        torch.testing.assert_close(
            torch.softmax(v["soft.logits"] / (1 / factor), 1), v[f"soft.softmax_temp{name}"], atol=1e-12, rtol=0
        )


def test_the_loss_is_cross_entropy_with_probabilities_as_in_the_reference() -> None:
    v = golden("students_labels")
    student = v["soft.student_logits"].clone().requires_grad_()
    loss = loss_function(StudentRecipe(loss="ce"), VectorLabels.soft)(
        student, v["soft.softmax_temp1p0"], v["soft.hard_label"]
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), v["soft.ce"], atol=1e-10, rtol=0)
    torch.testing.assert_close(student.grad, v["soft.ce.grad"], atol=1e-10, rtol=0)


def test_vectors_are_mixed_by_the_area_that_was_pasted(tmp_path: Path) -> None:
    _, vectors = _write(tmp_path / "v")
    mix = CutMix(lam=0.5, perm=torch.tensor([2, 0, 1]), box=(0, 0, 8, 4))
    plan = ViewPlan(torch.tensor([7, 30, 12]), cutmix=mix)
    target = VectorLabels(vectors, CPU).targets(plan, torch.zeros(3, 3, 16, 16), torch.zeros(3, dtype=torch.int64))
    own, other = vectors.rows[[7, 30, 12]].float(), vectors.rows[[12, 7, 30]].float()
    torch.testing.assert_close(target, 0.875 * own + 0.125 * other)
    assert target.dtype == torch.float32


def test_certain_teachers_give_hard_labels(tmp_path: Path) -> None:
    distilled, vectors = _write(tmp_path / "v", replace(RECIPE, label=LabelRecipe(temperature=1e-4)))
    x = normalise(distilled.images.float() / 255, DIGITS.mean, DIGITS.std)
    winners = linear_teacher()(x).argmax(1)
    plan = DrawnViews(StudentRecipe(batch=16), 40, 16, 0).plan(0, 0)
    ours = VectorLabels(vectors, CPU).targets(plan, torch.zeros(16, 3, 16, 16), distilled.labels[plan.index])
    hard = HardLabels(10, 40).targets(plan, torch.zeros(16, 3, 16, 16), winners[plan.index])
    torch.testing.assert_close(ours, hard)


def test_students_learn_from_vectors_with_views_of_their_own(tmp_path: Path) -> None:
    distilled, vectors = _write(tmp_path / "v")
    recipe = StudentRecipe(epochs=3, batch=16, crop=(0.5, 1.0), loss="ce", evaluations=1)
    labels = VectorLabels(vectors, CPU)
    drawn = DrawnViews(recipe, 40, 16, 0)
    assert labels.planner(drawn) is drawn
    first = train_student(recipe, "convnet1_w4", DIGITS, distilled, labels, digits("val"), 0, CPU)
    assert first == train_student(recipe, "convnet1_w4", DIGITS, distilled, labels, digits("val"), 0, CPU)
    with pytest.raises(DataError, match="40 label vectors for 50 images"):
        labels.planner(DrawnViews(recipe, 50, 16, 0))


def test_a_file_takes_the_bytes_of_the_formula(tmp_path: Path) -> None:
    facts = replace(dataset("cifar100"), size=16)
    images = torch.randint(0, 256, (500, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = DistilledSet(images, torch.arange(100).repeat_interleave(5))
    write_vectors(tmp_path / "v", made, [linear_teacher(facts)], RECIPE, facts, CPU)
    found = {e["kind"]: e["bytes"] for e in VectorLabels(LabelVectors(tmp_path / "v"), CPU).ledger()}
    assert found["label"] == vector_bytes(500, 100) == 500 * 100 * 2
    assert sum(found.values()) == (tmp_path / "v").stat().st_size < 1.01 * found["label"]
    assert list(load_file(tmp_path / "v")) == ["labels"]


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "v")
    (tmp_path / "cut").write_bytes((tmp_path / "v").read_bytes()[:-1])
    save_file({"labels": torch.zeros(2)}, tmp_path / "foreign")
    for name in ("cut", "foreign", "absent"):
        with pytest.raises(DataError, match="label vectors"):
            LabelVectors(tmp_path / name)


def test_labels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    teacher = linear_teacher()
    teacher.model.head.bias.data[0] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(NumericError, match="not finite"):
        write_vectors(tmp_path / "v", some_digits(1), [teacher], RECIPE, DIGITS, CPU)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="cannot write"):
        write_vectors(tmp_path / "no" / "v", some_digits(1), [linear_teacher()], RECIPE, DIGITS, CPU)


def test_cross_entropy_of_a_vector_is_smallest_at_the_vector() -> None:
    y = torch.softmax(torch.randn(4, 10, generator=torch.Generator().manual_seed(0)), 1)
    loss = loss_function(StudentRecipe(loss="ce"), soft=False)
    best = loss(y.log(), y, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(best, -(y * y.log()).sum(1).mean())
    assert loss(y.log() + F.one_hot(torch.arange(4), 10), y, torch.zeros(4, dtype=torch.int64)) > best
