"""Fixtures of the tests of trainings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from suite.learn import models
from tests.learn.training import Linear


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Linear]]:
    """Students are linear networks that count their calls; the list holds those that were built."""
    built: list[Linear] = []

    def build(arch: str, classes: int, size: int, pretrained: str | None = None) -> nn.Module:
        built.append(Linear(classes, size, seed=int(torch.randint(1 << 30, ()))))
        return built[-1]

    monkeypatch.setattr(models, "build", build)
    yield built
