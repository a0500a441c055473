"""The statistics stage: which images, in which order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from suite.data.loader import RealImages
from suite.learn.checkpoint import Never
from suite.learn.models import build
from suite.learn.statistics import ClassStatistics
from suite.spec.datasets import dataset
from suite.spec.stages import StatisticsSpec
from suite.stages import statistics


class ClassByClass:
    """Flat images whose brightness is their class, stored as splits are: class by class."""

    stored = 16

    def __init__(self, per_class: int) -> None:
        self.labels = torch.arange(10).repeat_interleave(per_class)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        shade = (25 * self.labels[indices]).to(torch.uint8)
        return shade.view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()


def compute(folder: Path, real: Any, **values: Any) -> ClassStatistics:
    facts: dict[str, Any] = {"per_class": None, "crop": (1.0, 1.0), "flip": False, "patch": 4, "batch": 30, "seed": 0}
    spec = StatisticsSpec("digits", "convnet1_w4", loader="ffcv", **(facts | values))
    context: Any = SimpleNamespace(
        spec=spec,
        dataset=dataset("digits"),
        dir=folder,
        device=torch.device("cpu"),
        teachers=lambda: [SimpleNamespace(model=build("convnet1_w4", 10, 16).eval())],
        real=lambda split: real,
        progress=lambda done, total: None,
        checkpoint=Never(),
    )
    statistics.run(context)
    return ClassStatistics.load(folder / "statistics.safetensors")


def test_global_variances_hold_what_lies_between_classes(tmp_path: Path) -> None:
    """Each batch of 30 would be a single class, and every variance zero, if the stored order were kept."""
    real: RealImages | Any = ClassByClass(30)
    (conv, *_) = compute(tmp_path, real).layers
    values = (25 * real.labels / 255.0 - dataset("digits").mean[0]) / dataset("digits").std[0]
    assert conv.kind == "conv"
    torch.testing.assert_close(conv.var, values.var(correction=0).expand(3), rtol=0.1, atol=0)
    torch.testing.assert_close(conv.mean, values.mean().expand(3), rtol=1e-4, atol=1e-4)
    assert conv.class_var is not None and float(conv.class_var.abs().max()) < 1e-6


def test_the_order_is_decided_by_the_seed_and_loses_no_image() -> None:
    indices = torch.arange(5, 105)
    first, again, other = (statistics._shuffled(indices, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first.sort().values, indices)
