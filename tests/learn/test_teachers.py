"""Teachers learn real digits, stay frozen, and load only weights that fit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from suite.data.loader import permutation
from suite.errors import DataError, NumericError, UserError
from suite.learn import models, teachers
from suite.learn.job import generator
from suite.learn.schedules import factor
from suite.learn.teachers import (
    Teacher,
    augment,
    build_optimizer,
    load_teacher,
    train_teacher,
    trained_epochs,
)
from suite.learn.validation import Score, Validation
from suite.learn.views import crop_resize, rrc_boxes
from suite.spec.recipes import TeacherRecipe, teacher_recipe
from suite.spec.stages import TeacherSpec
from tests.learn.training import CPU, DIGITS, Linear, MemoryImages, digits

ARCH = "convnet1_w4"
SPEC = TeacherSpec("digits", "convnet3_w32", "scratch", teacher_recipe("digits"), 0, "torchvision", "fp32")


def test_a_teacher_learns_real_digits() -> None:
    train, val = digits("train"), digits("val")
    state, numbers = train_teacher(replace(SPEC, recipe=replace(SPEC.recipe, epochs=6)), DIGITS, train, val, CPU)
    assert numbers["accuracy_last"] > 90
    assert numbers["val_images"] == len(val) and not numbers["constant_prediction"]
    assert numbers["curve"][-1] == [6, numbers["accuracy_last"]]
    assert numbers["steps"] == 6 * -(-len(train) // 64)
    assert (train.given == 6).all(), "every training image once an epoch"
    model = models.build("convnet3_w32", 10, 16)
    model.load_state_dict(state)


def test_the_same_seed_gives_the_same_teacher_and_leaves_global_generators_alone() -> None:
    spec = replace(SPEC, arch=ARCH, recipe=TeacherRecipe(epochs=1, batch=256, pad=1))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    (a, _), (b, _) = (train_teacher(spec, DIGITS, digits("train"), digits("val"), CPU) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    c, _ = train_teacher(replace(spec, seed=1), DIGITS, digits("train"), digits("val"), CPU)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_a_batch_in_two_parts_learns_what_the_whole_batch_does() -> None:
    spec = replace(SPEC, arch=ARCH, recipe=TeacherRecipe(epochs=1, batch=256, pad=1))
    images = digits("train"), digits("val")
    (whole, a), (cut, b) = (train_teacher(spec, DIGITS, *images, CPU, micro_batches=n) for n in (1, 2))
    assert a["steps"] == b["steps"]
    learnt = [k for k in whole if k.endswith(("weight", "bias"))]
    assert all(torch.allclose(whole[k], cut[k], atol=2e-3) for k in learnt), "up to BatchNorm's view of half a batch"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_early_stopped_teacher_is_a_snapshot_of_the_whole_training(
    optimizer: Literal["sgd", "adam"], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TeacherRecipe(epochs=5, batch=300, lr=0.01, pad=1, warmup=1, optimizer=optimizer)
    snapshots: list[dict[str, torch.Tensor]] = []
    score = Validation.score

    def spy(self: Validation, model: nn.Module, *args: Any) -> Score:
        snapshots.append({k: v.clone() for k, v in model.state_dict().items()})
        return score(self, model, *args)

    monkeypatch.setattr(Validation, "score", spy)
    spec = replace(SPEC, arch=ARCH, recipe=recipe)
    train_teacher(spec, DIGITS, digits("train"), digits("val"), CPU)
    whole = list(snapshots)
    assert len(whole) == 5, "an evaluation each epoch"
    for stop in (2, 5):
        train = digits("train")
        stopped, numbers = train_teacher(
            replace(spec, recipe=replace(recipe, stop=stop)), DIGITS, train, digits("val"), CPU
        )
        assert all(torch.equal(stopped[k], whole[stop - 1][k]) for k in stopped)
        assert numbers["epochs"] == stop == numbers["curve"][-1][0] and (train.given == stop).all()


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"stop": 0}, {"stop": 4}])
def test_a_stop_outside_of_the_training_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="stops after"):
        trained_epochs(replace(TeacherRecipe(epochs=3), **wrong))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.001, 0.0505] + [0.1] * 6), ("step", [0.001, 0.0505, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])],
)
def test_rates_follow_the_schedule_after_the_warm_up(
    schedule: Literal["constant", "step"], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: Any, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    recipe = TeacherRecipe(epochs=4, batch=720, lr=0.1, pad=1, warmup=1, schedule=schedule)
    train_teacher(replace(SPEC, arch=ARCH, recipe=recipe), DIGITS, digits("train"), digits("val"), CPU)
    assert rates == pytest.approx(expected)


def test_optimizers_are_those_of_the_recipe() -> None:
    model = Linear(10, 16)
    adam = build_optimizer(TeacherRecipe(optimizer="adam", weight_decay=0.1), model)
    assert type(adam) is torch.optim.Adam and adam.defaults["weight_decay"] == 0.1, "an L2 penalty, not AdamW"
    sgd = build_optimizer(TeacherRecipe(momentum=0.0), model)
    assert type(sgd) is torch.optim.SGD and sgd.defaults["momentum"] == 0.0


def test_a_teacher_that_diverges_says_so() -> None:
    spec = replace(SPEC, arch=ARCH, recipe=TeacherRecipe(epochs=2, batch=64, lr=1e20, pad=0, flip=False))
    with pytest.raises(NumericError, match=r"teacher"):
        train_teacher(spec, DIGITS, digits("train"), digits("val"), CPU)


def test_a_teacher_training_equals_the_same_loop_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", lambda *_: Linear(10, 16, seed=5))
    recipe = TeacherRecipe(3, 500, lr=0.1, warmup=1, crop=(0.3, 1.0), pad=0, label_smoothing=0.2, weight_decay=0.1)
    train = digits("train")
    state, numbers = train_teacher(replace(SPEC, recipe=recipe, seed=2), DIGITS, train, digits("val"), CPU)
    model = Linear(10, 16, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=0.1)
    step, flipped = 0, 0
    for epoch in range(3):
        draws = generator(2, "teacher views", epoch)
        for images, labels in train.batches(500, seed=2, epoch=epoch):
            boxes = rrc_boxes(len(labels), 16, 16, (0.3, 1.0), (3 / 4, 4 / 3), draws)
            x = crop_resize(images / 255, boxes, 16)
            mirrored = torch.rand(len(labels), generator=draws) < 0.5
            flipped += int(mirrored.sum())
            x = models.normalise(torch.where(mirrored[:, None, None, None], x.flip(3), x), DIGITS.mean, DIGITS.std)
            optimizer.param_groups[0]["lr"] = 0.1 * factor("cosine", step / 3, 3, 1)
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels, label_smoothing=0.2).backward()
            optimizer.step()
            step += 1
    assert numbers["steps"] == step == 9 and flipped > 0
    torch.testing.assert_close(state, dict(model.state_dict()), atol=1e-6, rtol=1e-5)


def test_a_teacher_computes_in_the_precision_of_its_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    types: list[torch.dtype] = []

    class Spy(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            types.append((logits := super().forward(x)).dtype)
            return logits

    monkeypatch.setattr(models, "build", lambda *_: Spy(10, 16))
    spec = replace(SPEC, precision="bf16", recipe=TeacherRecipe(1, 500, pad=1))
    train_teacher(spec, DIGITS, digits("train"), digits("val"), CPU)
    assert set(types) == {torch.bfloat16} and len(types) > 3, "three steps and validation batches"


def test_without_a_recipe_nothing_is_trained() -> None:
    with pytest.raises(UserError, match="recipe"):
        train_teacher(replace(SPEC, recipe=None), DIGITS, digits("train"), digits("val"), CPU)


def test_augmentation_gives_the_side_that_networks_see() -> None:
    x = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    for recipe in (TeacherRecipe(pad=2), TeacherRecipe(pad=0), TeacherRecipe(pad=0, crop=(1.0, 1.0))):
        assert augment(x, recipe, 16, torch.Generator().manual_seed(0)).shape == (4, 3, 16, 16)
    plain = TeacherRecipe(pad=0, crop=(1.0, 1.0), flip=False)
    assert torch.equal(augment(x, plain, 24, torch.Generator().manual_seed(0)), x)


def test_a_teacher_is_frozen_and_stays_in_eval_mode() -> None:
    model = models.build(ARCH, 10, 16).train()
    teacher = Teacher(ARCH, model, DIGITS.mean, DIGITS.std)
    teacher.train()
    assert not model.training and not any(p.requires_grad for p in teacher.parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(8, 3, 16, 16, requires_grad=True)
    teacher(x).sum().backward()
    assert x.grad is not None, "gradients flow to images"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return dict(models.build(ARCH, 10, 16).state_dict())


def test_weights_load_from_every_form_that_is_published(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "c.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "d.pth")
    for name in "abcd":
        teacher = load_teacher(ARCH, DIGITS, path=tmp_path / f"{name}.safetensors")
        found = teacher.model.state_dict()
        assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)
        assert teacher.bytes == next(tmp_path.glob(f"{name}.*")).stat().st_size


def test_loading_leaves_the_global_generator_alone(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "a.safetensors")
    before = torch.random.get_rng_state()
    load_teacher(ARCH, DIGITS, path=tmp_path / "a.safetensors")
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_of_other_classes_are_refused(tmp_path: Path) -> None:
    save_file(dict(models.build(ARCH, 7, 16).state_dict()), tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"classes.*\(7,"):
        load_teacher(ARCH, DIGITS, path=tmp_path / "a.safetensors")


def test_missing_weights_are_named_three_at_a_time(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    names = [k for k in state if not k.endswith("num_batches_tracked")]
    save_file({names[-1]: state[names[-1]]}, tmp_path / "a.safetensors")
    with pytest.raises(DataError) as caught:
        load_teacher(ARCH, DIGITS, path=tmp_path / "a.safetensors")
    assert ", ".join(names[:3]) in caught.value.what and names[3] not in caught.value.what


def test_left_over_weights_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({**state, "extra.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"unexpected: extra\.weight"):
        load_teacher(ARCH, DIGITS, path=tmp_path / "a.safetensors")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


def test_no_code_runs_when_weights_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": _Evil()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(_Evil()))
    (tmp_path / "c.safetensors").write_bytes(b"no tensors here")
    torch.save([1, 2], tmp_path / "d.pth")
    for name in "abcd":
        with pytest.raises(DataError):
            load_teacher(ARCH, DIGITS, path=tmp_path / f"{name}.safetensors")


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no weights"):
        load_teacher(ARCH, DIGITS, path=tmp_path / "a.safetensors")
    with pytest.raises(UserError):
        load_teacher(ARCH, DIGITS)


def test_step_schedule_is_torchvisions_reference_on_imagenet() -> None:
    """A tenth of the rate after 30 and after 60 of 90 epochs; `stop` does not move the drops."""
    rates: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])

    recipe = TeacherRecipe(epochs=90, stop=61, batch=16, lr=1.0, schedule="step", pad=1, flip=False)
    model, train = Linear(10, 16), MemoryImages(digits("train").images[:40], digits("train").labels[:40])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "build_optimizer", lambda recipe, model: Spy(model.parameters(), lr=recipe.lr))
        assert list(teachers.train_epochs(model, recipe, DIGITS, train, CPU, seed=0)) == list(range(1, 62))
    per_epoch = len(rates) // 61
    assert rates == pytest.approx([1.0] * 30 * per_epoch + [0.1] * 30 * per_epoch + [0.01] * per_epoch)


def test_watching_sees_every_image_once_an_epoch_in_the_order_of_the_seed() -> None:
    recipe = TeacherRecipe(epochs=2, batch=500, lr=0.05, pad=1, flip=False)
    train, seen = digits("train"), []
    watched = teachers.train_epochs(
        models.build("convnet1_w4", 10, 16), recipe, DIGITS, train, CPU, seed=3, watch=lambda *four: seen.append(four)
    )
    assert list(watched) == [1, 2]
    for epoch in range(2):
        labels = torch.cat([target for e, _, _, target in seen if e == epoch])
        assert torch.equal(labels, train.labels[permutation(len(train), 3, epoch)])
    assert [n for _, n, _, _ in seen] == [0, 1, 2] * 2
    assert all(not z.requires_grad and len(z) == len(t) for _, _, z, t in seen)
