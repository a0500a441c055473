"""Taps: the statistics of what enters a network's BatchNorm2d and Conv2d layers, taken during one forward pass.

A tapped network is a frozen copy that shares its parameters' values: layers are exchanged for measuring ones, so there
are no hooks, and `torch.compile` sees plain modules. `suite.learn.moments` says how the gradient finds its way back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from suite.errors import UserError
from suite.learn.assembly import assemble
from suite.learn.batch_stats import BatchStats, LayerStats, Place
from suite.learn.moments import Normalised, Raw, TapBatchNorm, TapInput, TapRectified, full_precision, patches

__all__ = ["BN", "CONV", "BatchStats", "InputHooks", "LayerStats", "Taps", "full_precision", "patches",
           "running_statistics", "tapped_layers"]  # fmt: skip

BN, CONV = "bn", "conv"
#: Layer types by kind.
LAYERS: dict[str, type[nn.Module]] = {BN: nn.BatchNorm2d, CONV: nn.Conv2d}


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
    if kinds and not found:
        wanted = " or ".join(LAYERS[k].__name__ for k in kinds)
        raise UserError(
            f"{type(model).__name__} has no {wanted} layer whose statistics could be matched",
            hint="choose a teacher with batch normalisation",
        )
    return found


class InputHooks:
    """Pre-hooks on a network's layers, registered once, that act only inside `collecting`; for passes over real images.

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


class _Sink:
    """What one forward pass has measured so far, by number of the layer."""

    def __init__(self, patch: int) -> None:
        self.patch = patch
        self.groups = 1
        self.clear()

    def clear(self) -> None:
        self.found: dict[int, Raw] = {}
        self.features: torch.Tensor | None = None
        self._inputs: dict[tuple[int, int, int], tuple[torch.Tensor, Raw]] = {}
        self._normalised: tuple[int, Normalised] | None = None

    def known(self, x: torch.Tensor, patch: int) -> Raw | None:
        """What was measured of this very tensor: a block's first convolution and its shortcut share their input."""
        if torch.compiler.is_compiling():
            return None
        entry = self._inputs.get((id(x), x._version, patch))
        return None if entry is None else entry[1]

    def add(self, index: int, x: torch.Tensor, patch: int, raw: Raw) -> None:
        self.found[index] = raw
        if not torch.compiler.is_compiling():
            self._inputs[id(x), x._version, patch] = x, raw

    def normalised(self, index: int, just: Normalised) -> None:
        """Remember the last batch normalisation, as a ReLU may follow."""
        if not torch.compiler.is_compiling():
            self._normalised = index, just

    def rectified(self, y: torch.Tensor) -> torch.Tensor | None:
        """The ReLU of y if y is what the last batch normalisation returned: both become one step of the graph."""
        if self._normalised is None or self._normalised[1].y is not y or y._version:
            return None
        index, just = self._normalised
        self._normalised = None
        r, raw = TapRectified.replace(just)
        self.found[index] = raw
        self._inputs[id(just.x), just.x._version, 0] = just.x, raw
        return r


@cache
def _measuring(kind: Hashable) -> type[nn.Module]:
    """A subclass of a layer's class that measures its input first; parameters and names stay as they are."""

    class Measuring(kind):  # type: ignore[misc, valid-type]
        _sink: _Sink
        _index: int
        _scales: dict[torch.dtype, torch.Tensor]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sink, patch = self._sink, self._sink.patch if isinstance(self, nn.Conv2d) else 0
            raw = sink.known(x, patch)
            if raw is not None:
                sink.found[self._index] = raw
            elif kind is nn.BatchNorm2d and self.running_var is not None:
                affine = (self.weight, self.bias, self.running_mean, self.running_var)
                y, raw = TapBatchNorm.measure(x, sink.groups, self._scale_for(x), *affine, self.eps)
                sink.add(self._index, x, patch, raw)
                sink.normalised(self._index, Normalised(x, y, self._scale_for(x), raw))
                return y
            else:
                source = x
                x, raw = TapInput.measure(x, sink.groups, patch, private=not torch.compiler.is_compiling())
                sink.add(self._index, source, patch, raw)
            out: torch.Tensor = super().forward(x)
            return out

        def _scale_for(self, x: torch.Tensor) -> torch.Tensor:
            """The slope of a frozen batch normalisation, [C, 1, 1]."""
            kept = self._scales.get(x.dtype)
            if kept is None:
                scale = torch.rsqrt(self.running_var + self.eps)
                scale = scale if self.weight is None else scale * self.weight
                kept = scale.to(x.dtype)[:, None, None]
                if not torch.compiler.is_compiling():  # to compilers, a network that remembers something is another one
                    self._scales[x.dtype] = kept
            return kept

    Measuring.__name__ = f"Measuring{getattr(kind, '__name__', '')}"
    return Measuring


@cache
def _rectifying(kind: Hashable) -> type[nn.Module]:
    """A subclass of an in-place ReLU's class that joins the batch normalisation before it."""

    class Rectifying(kind):  # type: ignore[misc, valid-type]
        _sink: _Sink

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            joined = self._sink.rectified(x)
            if joined is not None:
                return joined
            out: torch.Tensor = super().forward(x)
            return out

    Rectifying.__name__ = f"Rectifying{getattr(kind, '__name__', '')}"
    return Rectifying


@cache
def _remembering(kind: Hashable) -> type[nn.Module]:
    """A subclass of the classifier's class that keeps its input."""

    class Remembering(kind):  # type: ignore[misc, valid-type]
        _sink: _Sink

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self._sink.features = x
            out: torch.Tensor = super().forward(x)
            return out

    Remembering.__name__ = f"Remembering{getattr(kind, '__name__', '')}"
    return Remembering


class _Tapped(nn.Module):
    """The frozen copy of a network: channels-last weights, already in autocast's precision where it would cast them."""

    def __init__(self, model: nn.Module, names: dict[str, str], patch: int | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.net, self.names, self.sink = _frozen(model, dtype), names, _Sink(patch or 0)
        for i, name in enumerate(names):
            layer: Any = self.net.get_submodule(name)
            layer._sink, layer._index, layer._scales = self.sink, i, {}
            layer.__class__ = _measuring(layer.__class__)
        for module in self.net.modules():
            if type(module) is nn.ReLU and module.inplace:
                rectifier: Any = module
                rectifier._sink = self.sink
                rectifier.__class__ = _rectifying(nn.ReLU)
        linear: Any = [m for m in self.net.modules() if isinstance(m, nn.Linear)]
        if linear:
            linear[-1]._sink = self.sink
            linear[-1].__class__ = _remembering(linear[-1].__class__)

    def forward(self, x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        sink = self.sink
        sink.clear()
        sink.groups = groups
        try:
            logits = self.net(x)
            found = [sink.found[i] for i in range(len(self.names)) if i in sink.found]
            self.places = tuple(
                Place(name, kind, sink.found[i].mean.shape[1], sink.found[i].cells)
                for i, (name, kind) in enumerate(self.names.items())
                if i in sink.found
            )
            return logits, assemble(found, len(x)) if found else None, sink.features
        finally:
            sink.clear()


def _frozen(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy in eval mode that shares all values but those whose layout or precision changes."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        cast = dtype if type(module) in (nn.Conv2d, nn.Linear) else None
        for p in module._parameters.values():
            if p is not None and id(p) not in memo:
                value = p.detach() if cast is None else p.detach().to(cast)
                if value.dim() == 4:
                    value = value.contiguous(memory_format=torch.channels_last)
                memo[id(p)] = nn.Parameter(value, requires_grad=False)
        memo |= {id(b): b for b in module._buffers.values() if b is not None}
    frozen = copy.deepcopy(model, memo)
    return frozen.eval()


@cache
def _code_of(network: str) -> CodeType:
    """A copy of the code of a tapped network's pass, one for each network as `str` tells it.

    Compilers count how often they compiled a function, by its code, and refuse from the ninth time on. Networks of
    one kind share what was compiled.
    """
    return _Tapped.forward.__code__.replace()


class Taps:
    """A network that also returns the statistics of its layers' inputs.

    `logits, stats = taps(x)`. The statistics are differentiable with respect to x (once), and float32 even
    under autocast; each layer's channels are measured by one operation in the forward pass. The network is frozen when
    it first runs: change its weights, and make new taps.

    Args:
        model: The network, usually frozen and in eval mode. It stays as it is.
        kinds: `("bn",)` or `("bn", "conv")`; none to read logits and features only.
        patch: Side of the patches whose statistics convolutions add; None for none.
        per_image: Every image is a group of its own.
        compiled: Run through `torch.compile`, all of it in one graph; or the name of its back end.

    Attributes:
        names: Names of the tapped layers.

    Raises:
        UserError: If the network has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        kinds: tuple[str, ...] = (BN,),
        patch: int | None = None,
        *,
        per_image: bool = False,
        compiled: bool | str = False,
    ) -> None:
        self.model, self.patch, self.per_image, self.compiled = model, patch, per_image, compiled
        self.layers = tapped_layers(model, kinds)
        self.names = list(self.layers)
        self._ready: dict[torch.dtype | None, tuple[_Tapped, Callable[..., Any]]] = {}

    def __call__(self, x: torch.Tensor, groups: int = 1) -> tuple[torch.Tensor, BatchStats]:
        """Run the network on x [G * b, 3, H, W]; statistics are those of `groups` consecutive parts of the batch."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if dtype not in self._ready:
            tapped = _Tapped(self.model, {n: k for n, (k, _) in self.layers.items()}, self.patch, dtype)
            self._ready[dtype] = tapped, self._compile(tapped) if self.compiled else tapped
        tapped, run = self._ready[dtype]
        x = x.contiguous(memory_format=torch.channels_last)
        logits, values, features = run(x, len(x) if self.per_image else groups)
        return logits, BatchStats(values, tapped.places, None if features is None else features.flatten(1))

    def _compile(self, tapped: nn.Module) -> Callable[..., Any]:
        backend = self.compiled if isinstance(self.compiled, str) else "inductor"
        forward = type(tapped).forward
        own = FunctionType(_code_of(str(tapped)), forward.__globals__, forward.__name__)
        tapped.forward = MethodType(own, tapped)
        compiled: Callable[..., Any] = torch.compile(tapped, backend=backend, fullgraph=True)
        return compiled

    @property
    def running(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Running mean and variance of the tapped BatchNorm layers, in module order (SRe2L's targets)."""
        return [running_statistics(name, m) for name, (kind, m) in self.layers.items() if kind == BN]


def running_statistics(name: str, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Running mean and variance of a BatchNorm layer.

    Raises:
        UserError: If it does not keep any.
    """
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if mean is None or var is None:
        raise UserError(f"layer {name} keeps no running statistics", hint="choose another teacher")
    return mean, var
