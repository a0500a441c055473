"""Teachers: training them on real images, and loading weights that exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from suite.errors import DataError, NumericError, UserError
from suite.learn import models, views
from suite.learn.checkpoint import Checkpoint, Never, Within, draws_state, restore_draws
from suite.learn.distributed import Ranks, agreed, mean_over
from suite.learn.job import generator
from suite.learn.schedules import factor
from suite.learn.validation import Curve, Numbers, Validation, autocast, centre, seeded
from suite.learn.view_plans import RATIO
from suite.learn.weights import load_weights, read_weights
from suite.spec.datasets import Dataset
from suite.spec.recipes import WHOLE, TeacherRecipe
from suite.spec.stages import TeacherSpec

if TYPE_CHECKING:
    from suite.data.loader import RealImages

#: How often a teacher is evaluated while it trains; the last time at the end.
EVALUATIONS = 5


class Teacher(nn.Module):
    """A frozen network in eval mode; calling it gives logits float [B, C] for normalised images [B, 3, S, S].

    Args:
        arch: Its architecture name.
        model: The network; it is frozen in place.
        mean: Channel means with which its inputs are normalised.
        std: Channel standard deviations.
        bytes_on_disk: Size of the weight file; by default that of the state dict.
    """

    def __init__(
        self, arch: str, model: nn.Module, mean: Sequence[float], std: Sequence[float], bytes_on_disk: int | None = None
    ) -> None:
        super().__init__()
        self.arch, self.mean, self.std = arch, tuple(mean), tuple(std)
        self.model = model.eval().requires_grad_(False)
        state = model.state_dict().values()
        self.bytes = sum(t.numel() * t.element_size() for t in state) if bytes_on_disk is None else bytes_on_disk
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, whatever is asked."""
        super().train(False)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.model(x)
        return logits


def augment(
    x: torch.Tensor,
    recipe: TeacherRecipe,
    size: int,
    draws: torch.Generator,
    batch: int | None = None,
    rows: slice | torch.Tensor = slice(None),
) -> torch.Tensor:
    """Random padded crop (`pad`) or RandomResizedCrop, and flip, of a batch.

    Args:
        x: float [B, 3, R, R] in [0, 1].
        recipe: `pad`, `crop` and `flip`.
        size: Side S of the result.
        draws: A CPU generator.
        batch: Images that are drawn for; by default those of x.
        rows: Where those of x stand among them.

    Returns:
        float [B, 3, S, S].
    """
    n, stored = len(x) if batch is None else batch, x.shape[-1]
    if recipe.pad:
        offsets = torch.randint(0, 2 * recipe.pad + 1, (n, 2), generator=draws)[rows]
        x = views.pad_crop(centre(x, size), recipe.pad, offsets.to(x.device, non_blocking=True))
    elif recipe.crop != WHOLE or stored != size:
        boxes = views.rrc_boxes(n, stored, stored, area=recipe.crop, ratio=RATIO, generator=draws)[rows]
        x = views.crop_resize(x, boxes.to(x.device, non_blocking=True), size)
    if recipe.flip:
        x = views.flip(x, (torch.rand(n, generator=draws) < 0.5)[rows].to(x.device, non_blocking=True))
    return x


def trained_epochs(recipe: TeacherRecipe) -> int:
    """Epochs that are trained: `stop`, or all.

    Raises:
        UserError: If there is none, or `stop` lies beyond the end.
    """
    stop = recipe.epochs if recipe.stop is None else recipe.stop
    if not 1 <= stop <= recipe.epochs:
        raise UserError(f"teacher stops after {stop} of {recipe.epochs} epochs", hint="from 1 to all of them")
    return stop


def build_optimizer(recipe: TeacherRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, or Adam (betas .9, .999), with the weight decay as an L2 penalty."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )


#: Called with the epoch, the number of the batch in it, logits [B, C] before the update, and labels [B].
Watch = Callable[[int, int, torch.Tensor, torch.Tensor], None]
#: Where `step` drops, of all epochs, and the factor: torchvision's reference on ImageNet, at 30 and 60 of 90 epochs.
MILESTONES, GAMMA = (1 / 3, 2 / 3), 0.1


def train_epochs(
    model: nn.Module,
    recipe: TeacherRecipe,
    dataset: Dataset,
    train: RealImages,
    device: torch.device,
    *,
    seed: int,
    precision: str = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Watch | None = None,
    checkpoint: Checkpoint | None = None,
    micro_batches: int = 1,
    ranks: Ranks | None = None,
) -> Iterator[int]:
    """Train a network in place, epoch by epoch: linear warm-up and decay of the rate by step, L2 penalty on all.

    With a checkpoint it goes on where an interrupted training was, to the same bits on a CPU.

    Args:
        model: The network, on the device.
        recipe: How; with `stop`, the training of the full length is left after that many epochs.
        dataset: Facts.
        train: The training split; epoch e visits it in the order `permutation(len(train), seed, e)`.
        device: Where to train.
        seed: Of orders and views.
        precision: `fp32` or `bf16`.
        progress: Called with (steps done, all steps).
        watch: Sees what the network thinks of every batch, or of the rows that are this rank's.
        checkpoint: Where an interrupted training goes on; None to start again.
        micro_batches: Parts of a batch that are in memory one after another; their gradients are summed.
        ranks: Processes that train together; one by default.

    Yields:
        Epochs done, from 1; the caller may look at the network.

    Raises:
        UserError: If the recipe has no epoch, or several ranks cannot train this network on such batches.
        NumericError: If the loss of an epoch is not finite.
    """
    ranks = ranks or Ranks()
    if min(recipe.batch, len(train)) < ranks.size:
        raise UserError(f"batches of {recipe.batch} images for {ranks.size} tasks", hint="fewer `tasks`")
    ranks.prepare(model)
    chosen = partial(ranks.chosen, count=micro_batches)
    per_epoch, epochs = -(-len(train) // recipe.batch), trained_epochs(recipe)
    at = _Position(model, build_optimizer(recipe, model), device, seed)
    checkpoint = checkpoint or Never()
    at.restore(checkpoint.load())
    while at.epoch < epochs:
        epoch = at.epoch
        for images, labels in train.batches(recipe.batch, seed=seed, epoch=epoch, begin=at.number, rows=chosen):
            step, batch = epoch * per_epoch + at.number, min(recipe.batch, len(train) - at.number * recipe.batch)
            x = images.to(device, non_blocking=True).float() / 255
            x = augment(x, recipe, dataset.size, at.draws, batch, chosen(batch))
            x = models.normalise(x, dataset.mean, dataset.std)
            at.optimizer.param_groups[0]["lr"] = recipe.lr * factor(
                recipe.schedule, step / per_epoch, recipe.epochs, recipe.warmup, MILESTONES, GAMMA
            )
            target = labels.to(device, non_blocking=True)
            at.optimizer.zero_grad(set_to_none=True)
            seen, losses = [], []
            for own in ranks.pieces(batch, micro_batches):
                with autocast(precision, device):
                    logits = model(x[own])
                loss = mean_over(logits, target[own], partial(F.cross_entropy, label_smoothing=recipe.label_smoothing))
                (loss * (len(logits) / batch)).backward()
                losses.append(loss.detach())
                seen.append(logits.detach())
            at.watched += ranks.sum_gradients(model.parameters(), torch.stack(losses).sum())
            if watch is not None:
                watch(epoch, at.number, torch.cat(seen), target)
            at.optimizer.step()
            at.number += 1
            progress(step + 1, epochs * per_epoch)
            checkpoint.offer(at.state)
        if not bool(at.watched.isfinite()):
            raise NumericError(f"teacher diverged at step {(epoch + 1) * per_epoch}")
        yield epoch + 1
        at.begin(epoch + 1)


class _Position:
    """Where a training is: all that its further steps depend on.

    Attributes:
        epoch: Epochs that are over, whose ends the caller has seen.
        number: Batches of the present one.
        draws: Of its views.
        watched: Sum of its losses.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, seed: int) -> None:
        self.model, self.optimizer, self.device, self.seed = model, optimizer, device, seed
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Be at the beginning of an epoch."""
        self.epoch, self.number = epoch, 0
        self.draws = generator(self.seed, "teacher views", epoch)
        self.watched = torch.zeros((), device=self.device)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "epoch": self.epoch,
            "number": self.number,
            "views": self.draws.get_state(),
            "watched": self.watched,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "draws": draws_state(self.device),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a `state`, if there is one."""
        if state is None:
            return
        self.epoch, self.number = state["epoch"], state["number"]
        self.draws.set_state(state["views"])
        self.watched = state["watched"].to(self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_draws(state["draws"], self.device)


def train_teacher(
    spec: TeacherSpec,
    dataset: Dataset,
    train: RealImages,
    val: RealImages,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
    checkpoint: Checkpoint | None = None,
    micro_batches: int = 1,
    ranks: Ranks | None = None,
) -> tuple[dict[str, torch.Tensor], Numbers]:
    """Train a network from scratch (`train_epochs`), and measure it now and then.

    With `stop` the weights are the snapshot that the whole training passes through.

    Args:
        spec: Architecture, recipe, seed and precision.
        dataset: Facts.
        train: The training split.
        val: The validation split; it is measured and selects nothing.
        device: Where to train.
        progress: Called with (steps done, all steps).
        checkpoint: Where an interrupted training goes on; None to start again.
        micro_batches: Parts of a batch that are in memory one after another.
        ranks: Processes that train together; one by default. All of them give the same.

    Returns:
        The state dict behind the last epoch, and numbers as in `Record.numbers`.

    Raises:
        UserError: If the spec has no recipe, or one without an epoch, or several ranks cannot train its network.
        NumericError: If the loss of an epoch is not finite.
    """
    recipe = spec.recipe
    if recipe is None:
        raise UserError(f"teacher {spec.arch} has no recipe", hint="`teacher.weights: scratch` brings one")
    ranks = ranks or Ranks()
    validation = Validation(val, dataset, device, ranks=ranks)
    epochs = trained_epochs(recipe)
    points = {round(epochs * k / EVALUATIONS) for k in range(1, EVALUATIONS + 1)} - {0}
    seen = Curve()
    outer = agreed(checkpoint or Never(), ranks)
    inner = Within(outer, seen.state, seen.restore(outer.load()))
    with seeded(spec.seed, "teacher", device):
        model = models.channels_last(models.build(spec.arch, dataset.classes, dataset.size).to(device)).train()
        for done in train_epochs(
            model,
            recipe,
            dataset,
            train,
            device,
            seed=spec.seed,
            precision=spec.precision,
            progress=progress,
            checkpoint=inner,
            micro_batches=micro_batches,
            ranks=ranks,
        ):
            if done in points:
                seen.add(done, validation.score(model, spec.precision, "teacher"))
    steps = epochs * -(-len(train) // recipe.batch)
    return dict(model.state_dict()), seen.numbers(epochs, steps, dataset.classes)


def load_teacher(
    arch: str,
    dataset: Dataset,
    path: Path | None = None,
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
) -> Teacher:
    """A frozen teacher on a device.

    Args:
        arch: Architecture name.
        dataset: For classes, size and normalisation.
        path: Weights: `.safetensors`, or where that file does not exist the `.pth` beside it.
        pretrained: Instead of `path`: the name of weights that `models.build` gets from the hub's cache.
        device: Where it goes.

    Raises:
        DataError: If the weights are missing, unreadable or do not fit the architecture.
        UserError: If neither or both of `path` and `pretrained` are given, or pretrained weights want their inputs
            normalised in another way than the dataset's.
    """
    if (path is None) == (pretrained is None):
        raise UserError(f"teacher {arch} needs either a weight file or the name of pretrained weights")
    if path is None:
        model = models.build(arch, dataset.classes, dataset.size, pretrained=pretrained)
        _check_normalisation(arch, model, dataset)
        return Teacher(arch, models.channels_last(model.to(device)), dataset.mean, dataset.std)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten
        model = models.build(arch, dataset.classes, dataset.size)
    found = path if path.exists() else path.with_suffix(".pth")
    if not found.exists():
        raise DataError(f"no weights for {arch}", where=str(path), hint="a .safetensors or .pth file is expected there")
    load_weights(model, read_weights(found), str(found))
    model = models.channels_last(model.to(device))
    return Teacher(arch, model, dataset.mean, dataset.std, found.stat().st_size)


def _check_normalisation(arch: str, model: nn.Module, dataset: Dataset) -> None:
    """Timm's classifiers say how their inputs are normalised; some differ from ImageNet's usual numbers."""
    config = getattr(model, "pretrained_cfg", None)
    for name, ours in (("mean", dataset.mean), ("std", dataset.std)):
        theirs = config.get(name) if isinstance(config, Mapping) else None
        if theirs is not None and max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) > 1e-3:
            raise UserError(
                f"pretrained {arch} wants inputs with {name} {tuple(theirs)}, {dataset.name} gives {tuple(ours)}",
                hint="choose another teacher",
            )
