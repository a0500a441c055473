"""`statistics`: class-wise and global statistics of a teacher's layers over real training images."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from suite.learn.job import generator
from suite.learn.models import normalise
from suite.learn.statistics import compute_statistics
from suite.learn.views import crop_resize, flip, rrc_boxes
from suite.stages.context import Context, Outcome, metered


def run(context: Context) -> Outcome:
    """Write `statistics.safetensors`."""
    spec, facts = context.spec, context.dataset
    teacher = context.teachers()[0]
    real = context.real("train")
    chosen = _shuffled(_first_per_class(real.labels, spec.per_class), spec.seed)
    with metered(context.device) as cost:
        statistics = compute_statistics(teacher.model, _views(context, chosen), facts.classes, spec.patch)
    statistics.save(context.dir / "statistics.safetensors")
    cost["forward_images"] = len(chosen)
    return Outcome(cost)


def _first_per_class(labels: torch.Tensor, per_class: int | None) -> torch.Tensor:
    """Indices of the first `per_class` images of every class, in stored order."""
    if per_class is None:
        return torch.arange(len(labels))
    order = torch.argsort(labels, stable=True)
    ranks = torch.arange(len(labels)) - torch.searchsorted(labels[order], labels[order])
    return torch.sort(order[ranks < per_class]).values


def _shuffled(indices: torch.Tensor, seed: int) -> torch.Tensor:
    """The same indices in a seeded order, as the reference's loader shuffles.

    Splits are stored class by class: batches of one class would leave what lies between classes out of the global
    variances of convolutions.
    """
    return indices[torch.randperm(len(indices), generator=generator(seed, "statistics order"))]


def _views(context: Context, chosen: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    spec, facts, device = context.spec, context.dataset, context.device
    real = context.real("train")
    draws = generator(spec.seed, "statistics")
    for start in range(0, len(chosen), spec.batch):
        index = chosen[start : start + spec.batch]
        x = normalise(real.take(index).to(device), facts.mean, facts.std)
        boxes = rrc_boxes(len(index), real.stored, real.stored, area=spec.crop, ratio=(3 / 4, 4 / 3), generator=draws)
        x = crop_resize(x, boxes.to(device), facts.size)
        if spec.flip:
            x = flip(x, (torch.rand(len(index), generator=draws) < 0.5).to(device))
        context.progress(start, len(chosen))
        yield x, real.labels[index].to(device)
