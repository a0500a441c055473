"""Students: networks trained on a distilled set and scored on the full validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from suite.data.distilled import DistilledSet
from suite.errors import NumericError, UserError
from suite.learn import models
from suite.learn.checkpoint import Checkpoint, Never, Within, draws_state, restore_draws
from suite.learn.distributed import Ranks, agreed, mean_over
from suite.learn.schedules import factor
from suite.learn.soft_labels import LabelSource, loss_function
from suite.learn.validation import Curve, Score, Validation, autocast, seeded
from suite.learn.view_plans import DrawnViews, Renderer
from suite.spec.datasets import Dataset
from suite.spec.recipes import StudentRecipe

if TYPE_CHECKING:
    from suite.data.loader import RealImages

#: Steps between two calls of `progress`.
_PROGRESS = 50


class Ema:
    """An exponential moving average of a network's parameters; its buffers stay those of the live network (EDC, E2D).

    Args:
        model: The network.
        decay: Weight of the old average at every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.live: list[torch.Tensor] = list(model.parameters())
        self.average = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Set average = decay * average + (1 - decay) * live."""
        torch._foreach_lerp_(self.average, self.live, 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The network computes with the average inside the block; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, p in enumerate(self.live):
            p.data, self.average[i] = self.average[i], p.data


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """Weight decay on parameters with "weight" in their name and more than one dimension (RDED, SRe2L, EDC), or all."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        (decayed if decay_all or ("weight" in name and p.ndim > 1) else free).append(p)
    if not free:
        return [{"params": decayed, "weight_decay": weight_decay}]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def build_optimizer(recipe: StudentRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW (betas .9, .999) or SGD with momentum, as the recipe says; one kernel a group updates all parameters."""
    groups = parameter_groups(model, recipe.weight_decay, recipe.decay_all)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)


def budget(recipe: StudentRecipe, batches: int) -> tuple[int, set[int]]:
    """Optimiser steps of a recipe, and the steps after which it is evaluated.

    Args:
        recipe: Exactly one of `epochs` and `steps` is set.
        batches: Batches an epoch.

    Returns:
        All steps, and `evaluations` of them evenly spread (at ends of epochs if the recipe counts epochs).

    Raises:
        UserError: If the recipe's lengths are contradictory or not positive.
    """
    length = recipe.steps if recipe.epochs is None else recipe.epochs
    if (recipe.epochs is None) == (recipe.steps is None) or length is None or length < 1 or recipe.evaluations < 1:
        raise UserError(
            f"student recipe with epochs {recipe.epochs}, steps {recipe.steps}, evaluations {recipe.evaluations}",
            hint="exactly one of epochs and steps, all positive",
        )
    if not 0 <= recipe.warmup < length or recipe.accumulate < 1 or any(not 0 < m <= 1 for m in recipe.milestones):
        raise UserError(
            f"student recipe with warmup {recipe.warmup} of {length}, milestones {recipe.milestones}, "
            f"accumulate {recipe.accumulate}",
            hint="a warm-up shorter than the training, milestones in (0, 1], at least one part of a batch",
        )
    unit = batches if recipe.steps is None else 1
    points = {max(1, round(length * k / recipe.evaluations)) * unit for k in range(1, recipe.evaluations + 1)}
    return length * unit, points


def train_student(
    recipe: StudentRecipe,
    arch: str,
    dataset: Dataset,
    distilled: DistilledSet,
    labels: LabelSource,
    val: RealImages,
    seed: int,
    device: torch.device,
    precision: str = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
    checkpoint: Checkpoint | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train a student on a distilled set: one forward pass of it, and at most one of each teacher, a view.

    The same arguments give the same bits on a CPU, and torch's global generators are left as they were.

    Args:
        recipe: How to train.
        arch: The student's architecture.
        dataset: Facts.
        distilled: N images and classes.
        labels: Where views and targets come from.
        val: The validation split; it is measured and selects nothing.
        seed: Of initial weights, order and views.
        device: Where to train; the distilled images stay there as uint8.
        precision: `fp32`, or `bf16` for autocast.
        progress: Called with (steps done, all steps) now and then.
        checkpoint: Where an interrupted training goes on, to the same bits on a CPU; None to start again.
        ranks: Processes that train together; one by default. Each renders and labels whole batches, whose images are
            mixed with each other, and trains on its own rows. All of them give the same.

    Returns:
        `Record.numbers`: accuracies in percent, the curve over epochs (fractions for budgets in steps), steps.

    Raises:
        NumericError: If the loss is not finite (looked at every 50 steps and at evaluations), or a validation logit.
        UserError: If the recipe is contradictory or does not fit the labels, or several ranks cannot train the network.
        DataError: If a stored stream does not belong to this set.
    """
    planner = labels.planner(DrawnViews(recipe, len(distilled.images), distilled.images.shape[-1], seed))
    per_epoch = planner.batches
    total, points = budget(recipe, per_epoch)
    loss_of = loss_function(recipe, labels.soft)
    render, classes = Renderer(distilled.images, dataset, device), distilled.labels.to(device)
    ranks = ranks or Ranks()
    validation = Validation(val, dataset, device, ranks=ranks)
    seen = Curve()
    outer = agreed(checkpoint or Never(), ranks)
    inner = Within(outer, seen.state, seen.restore(outer.load()))
    with seeded(seed, "student", device):
        model = models.channels_last(models.build(arch, dataset.classes, dataset.size).to(device)).train()
        ranks.prepare(model)
        at = _Position(recipe, model, device)
        at.restore(inner.load())
        for step in range(at.step, total):
            epoch, batch = divmod(step, per_epoch)
            done = (step, total) if recipe.epochs is None else (epoch, recipe.epochs)
            rate = recipe.lr * factor(recipe.schedule, *done, recipe.warmup, recipe.milestones, recipe.gamma)
            for group in at.optimizer.param_groups:
                group["lr"] = rate
            plan = planner.plan(epoch, batch)
            x = render(plan)
            hard = classes[render.to(plan.index)]
            target = labels.targets(plan, x, hard)
            at.optimizer.zero_grad(set_to_none=True)
            losses = []
            for own in ranks.rows(len(x), recipe.accumulate):
                with autocast(precision, device):
                    output = model(x[own])
                loss = mean_over(output, target[own], loss_of, hard[own])
                (loss * (len(output) / len(x))).backward()
                losses.append(loss.detach())
            # Stays on the device: the host looks now and then.
            at.watched += ranks.sum_gradients(model.parameters(), torch.stack(losses).sum())
            at.optimizer.step()
            if at.ema is not None:
                at.ema.update()
            at.step += 1
            if at.step in points:
                seen.add(at.step / per_epoch, _evaluate(at, validation, precision))
            if at.step % _PROGRESS == 0 or at.step == total:
                at.check()
                progress(at.step, total)
            inner.offer(at.state)
    return seen.numbers(total / per_epoch, total, dataset.classes)


class _Position:
    """Where a training is: all that its further steps depend on.

    Attributes:
        step: Steps that are over.
        watched: Sum of all losses.
    """

    def __init__(self, recipe: StudentRecipe, model: nn.Module, device: torch.device) -> None:
        self.model, self.device, self.step = model, device, 0
        self.optimizer = build_optimizer(recipe, model)
        self.ema = Ema(model, recipe.ema) if recipe.ema else None
        self.watched = torch.zeros((), device=device)

    def check(self) -> None:
        """Look whether every loss so far was finite; the host waits for the device.

        Raises:
            NumericError: If one was not.
        """
        if not bool(self.watched.isfinite()):
            raise NumericError(f"student diverged at step {self.step}")

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "step": self.step,
            "watched": self.watched,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.ema and self.ema.average,
            "draws": draws_state(self.device),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a `state`, if there is one."""
        if state is None:
            return
        self.step, self.watched = state["step"], state["watched"].to(self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.average = [t.to(self.device) for t in state["average"]]
        restore_draws(state["draws"], self.device)


def _evaluate(at: _Position, validation: Validation, precision: str) -> Score:
    at.check()
    what = f"student at step {at.step}"
    if at.ema is None:
        return validation.score(at.model, precision, what)
    with at.ema.swapped():
        return validation.score(at.model, precision, what)
