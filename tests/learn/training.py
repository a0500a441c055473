"""Real digits in memory, and small networks, for the tests of teachers, students and labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from suite.data.distilled import DistilledSet
from suite.data.loader import Rows, permutation, whole_batch
from suite.learn.soft_labels import HardLabels, LabelSource
from suite.learn.students import train_student
from suite.learn.teachers import Teacher
from suite.spec.datasets import Dataset, dataset
from suite.spec.recipes import StudentRecipe

CPU = torch.device("cpu")
DIGITS = dataset("digits")
#: A short training on the forty images of `some_digits(4)`: three epochs of three batches.
RECIPE = StudentRecipe(epochs=3, batch=16, crop=(0.5, 1.0), evaluations=2)


class MemoryImages:
    """The interface of `RealImages` over tensors, counting how often each image was given."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, resident: bool = True) -> None:
        self.images, self.labels = images, labels
        self.classes, self.stored = int(labels.max()) + 1, images.shape[-1]
        self.fits = resident
        self.given = torch.zeros(len(labels), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def tensor(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.given += 1
        return self.images, self.labels

    def batches(
        self,
        batch: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        drop_last: bool = False,
        begin: int = 0,
        rows: Rows = whole_batch,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.arange(len(self)) if seed is None else permutation(len(self), seed, epoch)
        for part in order.split(batch)[begin:]:
            chosen = part[rows(len(part))]
            self.given[chosen] += 1
            yield self.images[chosen], self.labels[chosen]


@cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)
    images = F.interpolate(grey, size=16, mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return images, torch.from_numpy(raw.target).long()


def digits(split: str) -> MemoryImages:
    """Handwritten digits at 16 px: four fifths train, one fifth validates."""
    images, labels = _digits()
    held_out = torch.arange(len(labels)) % 5 == 4
    mask = held_out if split == "val" else ~held_out
    return MemoryImages(images[mask], labels[mask])


def some_digits(ipc: int) -> DistilledSet:
    """The first `ipc` training digits of every class."""
    train = digits("train")
    index = torch.cat([(train.labels == c).nonzero()[:ipc, 0] for c in range(10)])
    return DistilledSet(train.images[index], train.labels[index])


class Linear(nn.Module):
    """A linear classifier that counts its forward passes and remembers what it saw."""

    def __init__(self, classes: int, size: int, seed: int = 0) -> None:
        super().__init__()
        self.head = nn.Linear(3 * size * size, classes)
        draws = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=draws) / size
        self.calls = 0
        self.seen: list[torch.Tensor] = []
        self.grad_enabled: list[bool] = []
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x.detach().clone())
        self.grad_enabled.append(torch.is_grad_enabled())
        self.modes.append(self.training)
        return self.head(x.flatten(1))


def linear_teacher(facts: Dataset = DIGITS, seed: int = 0) -> Teacher:
    """A frozen linear teacher with fixed random weights."""
    return Teacher("linear", Linear(facts.classes, facts.size, seed), facts.mean, facts.std)


def train_on_digits(
    recipe: StudentRecipe = RECIPE, labels: LabelSource | None = None, seed: int = 0, **kwargs: Any
) -> dict[str, Any]:
    """Train a tiny student on four digits a class, with hard labels unless others are given."""
    labels = labels or HardLabels(10, 40)
    kwargs = {"arch": "convnet1_w4", "distilled": some_digits(4), "val": digits("val"), "device": CPU, **kwargs}
    return train_student(recipe, dataset=DIGITS, labels=labels, seed=seed, **kwargs)
