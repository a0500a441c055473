"""A tiny world for synthesis tests: a random teacher, a job, real digits behind the interface of `RealImages`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn

from suite.learn.job import Job
from suite.learn.teachers import Teacher
from suite.spec.datasets import Dataset, dataset
from tests.learn.training import MemoryImages

#: Tests of many small steps: a second thread costs more than it gives, and sums stay the same everywhere.
torch.set_num_threads(1)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The share of values, uint8 or int, that are more than a grey level apart.

    For sets that are the same up to the order of summation, which processors choose otherwise. Rounding now and
    then takes a ReLU or one of Adam's steps across zero, and some pixels go another way: a share below 0.01 is one
    set where one of another objective is far above it, which a test has to show.
    """
    return float(((one.int() - other.int()).abs() > 1).float().mean())


class DigitImages(MemoryImages):
    """Real digits in memory, 16x16 RGB, as `suite.data.loader.RealImages` gives them."""

    def __init__(self, stored: int = 16, classes: int = 10, per_class: int | None = None) -> None:
        data = load_digits()
        keep = data.target < classes
        images, labels = torch.tensor(data.images[keep]), torch.tensor(data.target[keep], dtype=torch.int64)
        if per_class is not None:
            few = torch.cat([torch.nonzero(labels == c).flatten()[:per_class] for c in range(classes)])
            images, labels = images[few], labels[few]
        grey = (images * (255 / 16)).to(torch.uint8)[:, None].float()
        super().__init__(
            nn.functional.interpolate(grey, (stored, stored)).to(torch.uint8).expand(-1, 3, -1, -1), labels
        )

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        return self.images[indices]


class Net(nn.Module):
    """Three convolutions with BatchNorm, as in the golden vectors."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.c3, self.b3 = nn.Conv2d(12, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b1(self.c1(x)))
        x = torch.relu(self.b2(self.c2(x)))
        return self.fc(torch.relu(self.b3(self.c3(x))).mean((2, 3)))


@cache
def small_teacher(seed: int = 0, classes: int = 10) -> Teacher:
    """A small network after a second of training on real digits: it knows them roughly."""
    facts, real = dataset("digits"), DigitImages(classes=classes)
    x = (real.images / 255 - facts.mean[0]) / facts.std[0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(classes).train()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for batch in torch.randperm(len(x)).split(128)[:14] * 3:
            loss = nn.functional.cross_entropy(net(x[batch]), real.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.zero_grad()
    return Teacher("net", net, facts.mean, facts.std)


def tiny_facts(classes: int = 10, size: int = 16) -> Dataset:
    return replace(dataset("digits"), classes=classes, size=size)


def tiny_job(ipc: int = 2, seed: int = 0, teachers: int = 1, classes: int = 10, **changes: object) -> Job:
    job = Job(tiny_facts(classes), ipc, seed, torch.device("cpu"))
    job.teachers = [small_teacher(i, classes) for i in range(teachers)]
    job.real = DigitImages(classes=classes)  # type: ignore[assignment]
    for name, value in changes.items():
        setattr(job, name, value)
    return job
