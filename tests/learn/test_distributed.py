"""Several ranks train what one rank trains: the same network up to rounding, to the same bits when interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from suite.errors import UserError
from suite.learn import models
from suite.learn.checkpoint import Checkpoint
from suite.learn.distributed import Ranks
from suite.learn.soft_labels import OnlineLabels
from suite.learn.teachers import train_teacher
from suite.preemption import Notice, Preempted
from suite.spec.recipes import StudentRecipe, TeacherRecipe
from suite.spec.stages import TeacherSpec
from tests.learn.ranks import together
from tests.learn.training import CPU, DIGITS, MemoryImages, digits, linear_teacher, train_on_digits

#: Relative difference of float64 states after some updates: the order of sums, and what Adam makes of it where the
#: gradient is 0 (biases before BatchNorm).
EXACT = 1e-8
#: The same in float32 after one update. Later a ReLU at its kink may make more of it, whatever the number of ranks.
ROUNDING = 2e-5
#: Batches of 25: ranks have 12 and 13 rows; the last one of an epoch has 21, or, of 77 images, two.
TEACHER = TeacherSpec(
    "digits",
    "resnet10_cifar_w8",
    "scratch",
    TeacherRecipe(epochs=1, batch=25, lr=0.01, pad=1),
    0,
    "torchvision",
    "fp32",
)


def test_ranks_are_forked_beside_a_team_of_threads(tmp_path: Path) -> None:
    """Which is not there in the forked processes: an operation that waits for it never ends."""

    def convolved(ranks: Ranks) -> float:
        return float(F.conv2d(torch.ones(8, 3, 64, 64).double(), torch.ones(4, 3, 3, 3).double()).sum())

    torch.set_num_threads(2)
    expected = convolved(Ranks(0, 1))
    assert together(tmp_path / "ranks", convolved) == [expected, expected]


def far(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of any tensor of a state, by norms."""
    assert list(found) == list(wanted)
    return max(
        float((found[k].double() - w.double()).norm() / w.double().norm().clamp_min(1e-12)) for k, w in wanted.items()
    )


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[k], w) for k, w in wanted.items())


@contextmanager
def in_float64() -> Iterator[None]:
    """Everything that computes in float32 by itself uses float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def few(images: int) -> MemoryImages:
    train = digits("train")
    return MemoryImages(train.images[:images], train.labels[:images])


def exact_steps(ranks: Ranks, arch: str, batch: int, count: int, steps: int = 3) -> dict[str, torch.Tensor]:
    """Updates of a float64 network by batches of random images, cut into parts."""
    torch.manual_seed(0)
    model = models.channels_last(models.build(arch, 10, 16)).double().train()
    ranks.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        x, y = torch.randn(batch, 3, 16, 16, dtype=torch.float64), torch.randint(0, 10, (batch,))
        optimizer.zero_grad()
        for own in ranks.rows(batch, count):
            output = model(x[own])
            loss = F.cross_entropy(output, y[own]) if len(output) else output.sum()
            (loss * (len(output) / batch)).backward()
        ranks.sum_gradients(model.parameters(), torch.zeros(()))
        optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("arch", "batch", "count", "size"),
    [("convnet2_w8", 25, 1, 2), ("resnet10_cifar_w8", 25, 3, 2), ("convnet2_w8", 8, 4, 3)],
    ids=["uneven", "uneven parts", "ranks without rows"],
)
def test_updates_in_float64_are_those_of_one_rank_but_for_the_order_of_sums(
    tmp_path: Path, arch: str, batch: int, count: int, size: int
) -> None:
    wanted = exact_steps(Ranks(), arch, batch, count)
    found = together(tmp_path, lambda ranks: exact_steps(ranks, arch, batch, count), size)
    assert all(same(other, found[0]) for other in found[1:]), "every rank holds the same network, to the last bit"
    assert 0 < far(found[0], wanted) < EXACT


def test_a_batch_whose_ranks_normalise_alone_is_far_from_that() -> None:
    """What the tolerance would show: BatchNorm over the half of a batch."""
    wanted, halved = (exact_steps(Ranks(), "convnet2_w8", 25, n) for n in (1, 2))
    assert far(halved, wanted) > 1e-3


def teacher(ranks: Ranks, images: int = 71, **more: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return train_teacher(TEACHER, DIGITS, few(images), digits("val"), CPU, ranks=ranks, **more)


@pytest.mark.parametrize(
    ("images", "parts"), [(71, 1), (77, 2), (75, 2)], ids=["uneven", "ranks without rows", "micro-batches"]
)
def test_a_teacher_of_two_ranks_is_that_of_one(tmp_path: Path, images: int, parts: int) -> None:
    with in_float64():
        wanted, numbers = teacher(Ranks(), images, micro_batches=parts)
        (found, told), (other, also) = together(tmp_path, lambda ranks: teacher(ranks, images, micro_batches=parts))
    assert same(found, other) and told == also == numbers
    assert far(found, wanted) < EXACT


def test_an_update_in_float32_differs_by_rounding(tmp_path: Path) -> None:
    (wanted, _), found = teacher(Ranks(), 25), together(tmp_path, lambda ranks: teacher(ranks, 25))
    assert same(found[0][0], found[1][0]) and 0 < far(found[0][0], wanted) < ROUNDING


def test_each_rank_reads_its_own_rows_only(tmp_path: Path) -> None:
    def given(ranks: Ranks) -> torch.Tensor:
        train = few(71)
        train_teacher(TEACHER, DIGITS, train, digits("val"), CPU, ranks=ranks)
        return train.given

    mine, theirs = together(tmp_path, given)
    assert mine.sum() in (34, 35) and torch.equal(mine + theirs, torch.ones(71, dtype=torch.int64))


STUDENT = StudentRecipe(epochs=None, steps=6, batch=25, crop=(0.5, 1.0), evaluations=2)
RECIPES: dict[str, StudentRecipe] = {
    "cutmix": replace(STUDENT, cutmix=True),
    "averaged": replace(STUDENT, ema=0.9, optimizer="sgd", lr=0.05),
    "parts": replace(STUDENT, accumulate=2),
}


def student(ranks: Ranks, recipe: StudentRecipe, online: bool = False, **more: Any) -> dict[str, Any]:
    """Numbers of a student, and its weights as they were when it was last evaluated."""
    from suite.learn.validation import Validation

    seen: list[dict[str, torch.Tensor]] = []
    score = Validation.score

    def spy(self: Validation, model: nn.Module, *args: Any) -> Any:
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return score(self, model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "score", spy)
        labels = OnlineLabels([linear_teacher()]) if online else None
        recipe = replace(recipe, loss="kl") if online else recipe
        numbers = train_on_digits(recipe, labels, arch="convnet2_w8", ranks=ranks, **more)
    return {"numbers": numbers, "state": seen[-1]}


@pytest.mark.parametrize(
    ("name", "online"), [("cutmix", False), ("averaged", False), ("parts", False), ("cutmix", True)]
)
def test_a_student_of_two_ranks_is_that_of_one(tmp_path: Path, name: str, online: bool) -> None:
    with in_float64():
        wanted = student(Ranks(), RECIPES[name], online)
        found, other = together(tmp_path, lambda ranks: student(ranks, RECIPES[name], online))
    assert same(found["state"], other["state"]) and found["numbers"] == other["numbers"] == wanted["numbers"]
    assert far(found["state"], wanted["state"]) < EXACT


def interrupted(train: Callable[..., Any], folder: Path) -> Callable[[Ranks], Any]:
    """A training whose second rank, and nobody else, is asked to leave after the second step; then it goes on."""

    def run(ranks: Ranks) -> Any:
        notice = Notice()
        kept = Checkpoint(folder, 600, notice=notice)
        steps = 0
        due = Checkpoint.due

        def asked(self: Checkpoint) -> bool:
            nonlocal steps
            steps += 1
            if steps == 2 and ranks.rank == 1:
                notice.take(10)
            return due(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoint, "due", asked)
            with pytest.raises(Preempted):
                train(ranks, checkpoint=kept)
        assert steps == 2 and notice.signum == 10, "both leave at the same step"
        return kept.saves, train(ranks, checkpoint=Checkpoint(folder, 600))

    return run


def test_an_interrupted_teacher_of_two_ranks_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    wanted = together(tmp_path / "whole", teacher)[0]
    (saves, found), (none, other) = together(tmp_path / "cut", interrupted(teacher, tmp_path / "kept"))
    assert (saves, none) == (1, 0), "the first rank writes, alone"
    assert same(found[0], wanted[0]) and same(other[0], wanted[0]) and found[1] == wanted[1]


def test_an_interrupted_student_of_two_ranks_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def train(ranks: Ranks, **more: Any) -> dict[str, Any]:
        return student(ranks, RECIPES["averaged"], **more)

    wanted = together(tmp_path / "whole", train)[0]
    (saves, found), _ = together(tmp_path / "cut", interrupted(train, tmp_path / "kept"))
    assert saves == 1 and same(found["state"], wanted["state"]) and found["numbers"] == wanted["numbers"]


class Dropping(nn.Module):
    """A network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class OwnNorm(nn.BatchNorm2d):
    """BatchNorm that does something of its own."""


@pytest.mark.parametrize(("layer", "why"), [(Dropping, "dropout"), (lambda: OwnNorm(3), "OwnNorm")])
def test_networks_whose_numbers_would_depend_on_the_number_of_ranks_are_refused(
    layer: Callable[[], nn.Module], why: str
) -> None:
    def use(model: nn.Module, ranks: Ranks) -> torch.Tensor:
        ranks.prepare(model)
        return model(torch.rand(4, 3, 16, 16))

    model = layer().train()
    use(deepcopy(model), Ranks())
    with pytest.raises(UserError, match=why):
        use(model, Ranks(0, 2))
