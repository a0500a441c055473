"""`statistics`: class-wise and global statistics of a teacher's layers over real training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from suite.learn.checkpoint import Within
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
    with metered(context.device, context.checkpoint) as cost:
        views = _Views(context, chosen)
        checkpoint = Within(context.checkpoint, views.state, views.restore(context.checkpoint.load()))
        statistics = compute_statistics(teacher.model, views, facts.classes, spec.patch, checkpoint=checkpoint)
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


class _Views:
    """Views of the chosen images, batch by batch.

    Attributes:
        number: Batches that were given.
    """

    def __init__(self, context: Context, chosen: torch.Tensor) -> None:
        self.context, self.chosen, self.number = context, chosen, 0
        self.draws = generator(context.spec.seed, "statistics")

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised views and labels of the batches that are left, on the device."""
        spec, facts, device = self.context.spec, self.context.dataset, self.context.device
        real = self.context.real("train")
        for index in self.chosen.split(spec.batch)[self.number :]:
            x = normalise(real.take(index).to(device), facts.mean, facts.std)
            boxes = rrc_boxes(
                len(index), real.stored, real.stored, area=spec.crop, ratio=(3 / 4, 4 / 3), generator=self.draws
            )
            x = crop_resize(x, boxes.to(device), facts.size)
            if spec.flip:
                x = flip(x, (torch.rand(len(index), generator=self.draws) < 0.5).to(device))
            self.context.progress(self.number * spec.batch, len(self.chosen))
            self.number += 1
            yield x, real.labels[index].to(device)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"number": self.number, "draws": self.draws.get_state()}

    def restore(self, state: dict[str, Any] | None) -> Any:
        """Go on from a checkpoint, if there is one; returns what the loop inside it remembers."""
        if state is None:
            return None
        self.number = state["number"]
        self.draws.set_state(state["draws"])
        return state["inner"]
