"""Taps: the statistics of what enters a network's BatchNorm2d and Conv2d layers, taken during one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from suite.errors import UserError

BN, CONV = "bn", "conv"
#: Layer types by kind.
LAYERS: dict[str, type[nn.Module]] = {BN: nn.BatchNorm2d, CONV: nn.Conv2d}


@dataclass(frozen=True, slots=True)
class LayerStats:
    """Statistics of one layer's input u [B, C, H, W]; variances are biased.

    Attributes:
        name: The module's name in the network.
        kind: `bn` or `conv`.
        mean: [C], over batch, rows and columns.
        var: [C].
        patch_mean: [U*V], row-major over the cells of a grid of P x P patches, over batch, channels and pixels; of
            convolutions only, and only where taps were given a patch size.
        patch_var: [U*V].
    """

    name: str
    kind: str
    mean: torch.Tensor
    var: torch.Tensor
    patch_mean: torch.Tensor | None = None
    patch_var: torch.Tensor | None = None

    def vectors(self) -> list[torch.Tensor]:
        """Mean, variance and, where present, patch mean and patch variance."""
        patches = [t for t in (self.patch_mean, self.patch_var) if t is not None]
        return [self.mean, self.var, *patches]


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Half precision as float32: sums over a batch need it."""
    return x if x.dtype == torch.float64 else x.float()


def patches(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Cut feature maps into patches (G-VBSM, section 3.3; EDC and E2D do the same).

    Maps whose sides are no multiples of `patch` are first enlarged to the next ones, bilinearly.

    Args:
        x: [B, C, H, W].
        patch: Side P of a patch.

    Returns:
        [B, C, U, P, V, P] with U = ceil(H / P), V = ceil(W / P).
    """
    b, c, height, width = x.shape
    u, v = -(-height // patch), -(-width // patch)
    if (u * patch, v * patch) != (height, width):
        x = F.interpolate(x, (u * patch, v * patch), mode="bilinear", align_corners=False)
    return x.reshape(b, c, u, patch, v, patch)


class _Moments(torch.autograd.Function):
    """Mean and biased variance over `dims`, with a backward pass of one operation on the full map.

    d mean / d x = 1 / n and d var / d x = 2 (x - mean) / n, so the gradient is linear in x with coefficients a channel.
    Autograd's own formula makes several passes over the map, and costs more than the network's backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        var, mean = torch.var_mean(x, dim=dims, correction=0, keepdim=True)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: torch.Tensor, by_var: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, mean = ctx.saved_tensors
        n = x.numel() // mean.numel()
        slope = by_var * (2 / n)
        return torch.addcmul(torch.addcmul(by_mean / n, slope, mean, value=-1), x, slope), None


def moments(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance over `dims`, flattened; differentiable once."""
    mean, var = _Moments.apply(x, dims)
    return mean.flatten(), var.flatten()


def layer_stats(name: str, kind: str, x: torch.Tensor, patch: int | None) -> LayerStats:
    """Statistics of one layer input, differentiable, in float32 (float64 stays float64)."""
    x = full_precision(x)
    mean, var = moments(x, (0, 2, 3))
    if kind != CONV or patch is None:
        return LayerStats(name, kind, mean, var)
    return LayerStats(name, kind, mean, var, *moments(patches(x, patch), (0, 1, 3, 5)))


def tapped_layers(model: nn.Module, kinds: tuple[str, ...]) -> dict[str, tuple[str, nn.Module]]:
    """Names, kinds and modules of the layers to tap, in the order of `model.modules()`.

    Raises:
        UserError: If the network has none.
    """
    found: dict[str, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        for kind in kinds:
            if isinstance(module, LAYERS[kind]):
                found[name] = (kind, module)
    if not found:
        wanted = " or ".join(LAYERS[k].__name__ for k in kinds)
        raise UserError(
            f"{type(model).__name__} has no {wanted} layer whose statistics could be matched",
            hint="choose a teacher with batch normalisation",
        )
    return found


class InputHooks:
    """Pre-hooks on a network's layers, registered once, that act only inside `collecting`.

    Parameters, buffers and the names of the state dict stay as they are. A layer that is called more than once counts
    with its last input, one that is not called is left out.

    Args:
        model: The network.
        kinds: Which layers, `bn` and `conv`.
        measure: Called with (name, kind, input) during the forward pass.
    """

    def __init__(
        self, model: nn.Module, kinds: tuple[str, ...], measure: Callable[[str, str, torch.Tensor], object]
    ) -> None:
        self.model, self.layers, self.measure = model, tapped_layers(model, kinds), measure
        self._slots: dict[str, object] | None = None
        self._handles = [
            module.register_forward_pre_hook(self._hook(name, kind)) for name, (kind, module) in self.layers.items()
        ]

    def _hook(self, name: str, kind: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self._slots is not None:
                self._slots[name] = self.measure(name, kind, inputs[0])

        return hook

    @contextmanager
    def collecting(self) -> Iterator[list[object]]:
        """Collect what `measure` returns; the list is filled, in module order, when the block ends."""
        collected: list[object] = []
        self._slots = {}
        try:
            yield collected
            collected.extend(self._slots[name] for name in self.layers if name in self._slots)
        finally:
            self._slots = None

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


class Taps:
    """A network that also returns the statistics of its layers' inputs.

    `logits, stats = taps(x)`; `stats` is a list of `LayerStats` in module order, differentiable with respect to x. One
    `torch.var_mean` a layer, in the forward pass, in float32 even under autocast; a second one for patches.

    Args:
        model: The network, usually frozen and in eval mode.
        kinds: `("bn",)` or `("bn", "conv")`.
        patch: Side of the patches whose statistics convolutions add; None for none.

    Attributes:
        names: Names of the tapped layers.

    Raises:
        UserError: If the network has no such layer.
    """

    def __init__(self, model: nn.Module, kinds: tuple[str, ...] = (BN,), patch: int | None = None) -> None:
        self.model = model
        self._hooks = InputHooks(model, kinds, lambda name, kind, x: layer_stats(name, kind, x, patch))
        self.names = list(self._hooks.layers)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, list[LayerStats]]:
        """Run the network on x [B, 3, H, W]."""
        with self._hooks.collecting() as collected:
            logits = self.model(x)
        return logits, [s for s in collected if isinstance(s, LayerStats)]

    @property
    def running(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Running mean and variance of the tapped BatchNorm layers, in module order (SRe2L's targets)."""
        return [running_statistics(name, m) for name, (kind, m) in self._hooks.layers.items() if kind == BN]

    def close(self) -> None:
        """Remove the hooks from the network."""
        self._hooks.close()


def running_statistics(name: str, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Running mean and variance of a BatchNorm layer.

    Raises:
        UserError: If it does not keep any.
    """
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if mean is None or var is None:
        raise UserError(f"layer {name} keeps no running statistics", hint="choose another teacher")
    return mean, var
