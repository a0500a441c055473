"""The plain eager step: the objectives of the decoupled family in the manner in which their papers' code computes them.

One hook object a layer that traces its statistics through autograd on copies of the maps, crops image by image, a box
memory of Python lists, fp32, NCHW. It is what `suite.bench synthesis` compares the engine with, and nothing else uses
it. The objective is the engine's; a test compares losses and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import RandomResizedCrop

from suite.learn.statistics import ClassStatistics, LayerTargets


@dataclass
class Objective:
    """What a step computes.

    Attributes:
        kind: `bn` (SRe2L), `classes` (WMDD), or `features` (G-VBSM, EDC, E2D).
        weight: Of the matching term.
        first: Multiplier of the first layer's term.
        ema: Decay of the matched statistics' average (`features`).
        class_weight: Share of the class-wise targets (`features`).
        shared: One crop for the whole batch instead of one for each image.
        crop: Area range of the crops.
        flip: Whether views are flipped.
        roll: Smallest and largest shift.
        memory: Threshold of E2D's box memory; None without one.
        priors: Whether total variation and L2 are computed with weight 0, as SRe2L's code does in every iteration.
    """

    kind: str
    weight: float
    first: float
    ema: float = 0.0
    class_weight: float = 0.0
    shared: bool = True
    crop: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    roll: tuple[int, int] = (0, 0)
    memory: float | None = None
    priors: bool = False


class BatchNormHook:
    """Distance of one layer's input from its running statistics, for the whole batch."""

    def __init__(self, module: nn.Module) -> None:
        self.loss = torch.zeros(())
        self.handle = module.register_forward_hook(self)

    def __call__(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Measure; the distance waits in `loss`."""
        mean, var = _slow_moments(inputs[0])
        self.loss = torch.norm(module.running_var - var, 2) + torch.norm(module.running_mean - mean, 2)


class ClassHook:
    """Distance of every class's images from the class's moments, class by class."""

    def __init__(self, module: nn.Module, moments: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> None:
        self.moments, self.labels, self.loss = moments, labels, torch.zeros(())
        self.handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Measure; the distance waits in `loss`."""
        terms = []
        for label in self.labels.unique().tolist():
            mean, var = _slow_moments(inputs[0][self.labels == label])
            terms.append(torch.norm(self.moments[1][label] - var, 2) + torch.norm(self.moments[0][label] - mean, 2))
        self.loss = torch.stack(terms).mean()


class FeatureHook:
    """Distances of one layer's averaged statistics from global and class-wise targets."""

    def __init__(
        self, module: nn.Module, target: LayerTargets, labels: torch.Tensor, plan: Objective, patch: int | None
    ) -> None:
        self.target, self.classes, self.plan = target, labels.tolist(), plan
        self.patch = patch if target.patch_mean is not None else None
        self.average: dict[str, torch.Tensor] = {}
        self.loss = torch.zeros(())
        self.handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Measure; the distance waits in `loss`."""
        mean, var = _slow_moments(inputs[0])
        found = {"mean": mean, "var": var}
        if self.patch is not None:
            found["patch_mean"], found["patch_var"] = _slow_patches(inputs[0], self.patch)
        loss = torch.zeros(())
        for name, value in found.items():
            before = self.average.get(name)
            now = value.detach() if before is None else before * self.plan.ema + value.detach() * (1 - self.plan.ema)
            self.average[name] = now
            matched = now + (value - value.detach())
            share = self.plan.class_weight
            loss = loss + (1 - share) * torch.norm(getattr(self.target, name) - matched, 2)
            if share:
                of_class = torch.stack([getattr(self.target, f"class_{name}")[y] for y in self.classes]).mean(0)
                loss = loss + share * torch.norm(of_class - matched, 2)
        self.loss = loss


def _slow_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = x.mean([0, 2, 3])
    var = x.permute(1, 0, 2, 3).contiguous().reshape(x.shape[1], -1).var(1, unbiased=False)
    return mean, var


def _total_variation(x: torch.Tensor) -> torch.Tensor:
    """Norms of the differences to four neighbours, summed."""
    right, down = x[..., :-1] - x[..., 1:], x[:, :, :-1] - x[:, :, 1:]
    falling, rising = x[:, :, :-1, :-1] - x[:, :, 1:, 1:], x[:, :, 1:, :-1] - x[:, :, :-1, 1:]
    return right.norm() + down.norm() + falling.norm() + rising.norm()


def _slow_patches(x: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = (-(-side // patch) * patch for side in x.shape[2:])
    if (height, width) != tuple(x.shape[2:]):
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    cells = x.reshape(len(x), x.shape[1], height // patch, patch, width // patch, patch)
    cells = cells.permute(2, 4, 0, 1, 3, 5).contiguous().reshape(height // patch * (width // patch), -1)
    return cells.mean(1), cells.var(1, unbiased=False)


@dataclass
class EagerStep:
    """An image batch and everything that a step in the references' manner needs.

    Attributes:
        model: The frozen teacher; its own copy, in NCHW.
        statistics: Targets of `classes` and `features`.
        plan: The objective.
        x: float32 [b, 3, S, S], optimised in place.
        labels: int64 [b].
        low: [3] smallest values of the channels.
        high: [3] largest values.
        lr: Of Adam.
        seed: Of flips and shifts.
    """

    model: nn.Module
    statistics: ClassStatistics | None
    plan: Objective
    x: torch.Tensor
    labels: torch.Tensor
    low: list[float]
    high: list[float]
    lr: float = 0.05
    seed: int = 0
    hooks: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x = self.x.detach().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.x], lr=self.lr, betas=(0.5, 0.9), eps=1e-8, foreach=False)
        self.draws = torch.Generator().manual_seed(self.seed)
        self.memory: list[list[tuple[tuple[int, ...], float]]] = [[] for _ in range(len(self.x))]
        if not self.plan.weight:
            return
        modules = dict(self.model.named_modules())
        if self.plan.kind == "bn":
            self.hooks = [BatchNormHook(m) for m in modules.values() if isinstance(m, nn.BatchNorm2d)]
            return
        assert self.statistics is not None
        if self.plan.kind == "classes":
            layers = [layer for layer in self.statistics.layers if layer.kind == "bn"]
            pairs = zip(layers, self.statistics.class_moments, strict=True)
            self.hooks = [ClassHook(modules[layer.name], moments, self.labels) for layer, moments in pairs]
            return
        patch = self.statistics.patch
        self.hooks = [FeatureHook(modules[t.name], t, self.labels, self.plan, patch) for t in self.statistics.layers]

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.handle.remove()

    def loss(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of some views [b, 3, S, S], and cross-entropies [b]."""
        ce = F.cross_entropy(self.model(views), self.labels, reduction="none")
        total = ce.mean()
        if self.hooks:
            scale = [self.plan.first] + [1.0] * (len(self.hooks) - 1)
            matching = sum(hook.loss * s for hook, s in zip(self.hooks, scale, strict=True))
            total = total + self.plan.weight * matching
        if self.plan.priors:
            total = total + 0.0 * _total_variation(views) + 0.0 * views.flatten(1).norm(dim=1).mean()
        return total, ce

    def step(self) -> torch.Tensor:
        """One update. Returns the loss."""
        boxes, views = self.views()
        self.optimizer.zero_grad()
        loss, ce = self.loss(views)
        if self.plan.memory is not None:
            self._remember(boxes, ce.detach().cpu().numpy())
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for channel in range(3):
                self.x[:, channel] = torch.clamp(self.x[:, channel], self.low[channel], self.high[channel])
        return loss.detach()

    def views(self) -> tuple[list[list[int]], torch.Tensor]:
        """Boxes (top, left, height, width) and views."""
        size, rows = self.x.shape[-1], 1 if self.plan.shared else len(self.x)
        if self.plan.crop == (1.0, 1.0):
            boxes = [[0, 0, size, size]] * rows
        else:
            # One draw an image, as torchvision's transform makes it, from torch's global generator.
            whole, area, ratio = self.x[0].detach(), list(self.plan.crop), [3 / 4, 4 / 3]
            boxes = [list(RandomResizedCrop.get_params(whole, area, ratio)) for _ in range(rows)]
        heads = (torch.rand(rows, generator=self.draws) < 0.5).tolist()
        parts = [self.x] if self.plan.shared else list(self.x.unsqueeze(1))
        seen = []
        for part, (top, left, height, width), heads_up in zip(parts, boxes, heads, strict=True):
            view = part[:, :, top : top + height, left : left + width]
            view = F.interpolate(view, (size, size), mode="bilinear", align_corners=False)
            seen.append(torch.flip(view, [3]) if heads_up and self.plan.flip else view)
        views = torch.cat(seen)
        if self.plan.roll != (0, 0):
            shift = torch.randint(self.plan.roll[0], self.plan.roll[1] + 1, (2,), generator=self.draws).tolist()
            views = torch.roll(views, shift, (2, 3))
        return boxes, views

    def _remember(self, boxes: list[list[int]], ce: Any) -> None:
        """Exploration: boxes with a high loss, image by image."""
        assert self.plan.memory is not None
        for entries, box, value in zip(self.memory, boxes, ce, strict=True):
            if value.item() > self.plan.memory:
                known = [b for b, _ in entries]
                if tuple(box) in known:
                    entries[known.index(tuple(box))] = (tuple(box), value.item())
                else:
                    entries.append((tuple(box), value.item()))
