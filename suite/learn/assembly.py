"""The vector of all layers' statistics, put together from what the taps of `suite.learn.moments` measured.

On the way back the gradient of the vector becomes two numbers a channel or cell, (a, b), for every layer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from suite.learn.moments import Pair, Raw


class Shape(NamedTuple):
    """Of one layer: channels C, patch cells (0 without patches), side P of a patch, pixels H * W of the map."""

    channels: int
    cells: int
    patch: int
    pixels: int


@lru_cache(maxsize=256)
def _factors(shapes: tuple[Shape, ...], images: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Rows of M factors: 1 / n and 2 / n of the n values behind each entry, and two for cells.

    Those are 1 / n and 1 for cells, to come from sums of values and of squares to mean and variance; 1 and 0 for
    channels, which have both.
    """
    rows: list[list[tuple[int, float]]] = [[], [], [], []]
    for channels, cells, patch, pixels in shapes:
        n, m = images * pixels, images * channels * patch * patch or 1
        rows[0] += [(channels, 1 / n), (cells, 1 / m)]
        rows[1] += [(channels, 2 / n), (cells, 2 / m)]
        rows[2] += [(channels, 1.0), (cells, 1 / m)]
        rows[3] += [(channels, 0.0), (cells, 1.0)]
    kind: dict[str, Any] = {"dtype": dtype, "device": device}
    with torch.inference_mode(False):
        return torch.stack([torch.cat([torch.full((n,), value, **kind) for n, value in row]) for row in rows])


def _cell_sums(shapes: Sequence[Shape], maps: dict[int, Pair], groups: int) -> dict[int, Pair]:
    """For each layer with patches: sums, and sums of squared norms, over the pixels of every cell, [G, cells].

    Maps of one size are reduced together.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, (mean, _) in maps.items():
        alike.setdefault((*mean.shape, shapes[i].patch), []).append(i)
    found: dict[int, Pair] = {}
    for (_, height, width, patch), members in alike.items():
        both = torch.stack([maps[i][k] for k in (0, 1) for i in members])
        both[len(members) :].square_()
        cut = both.view(len(both), groups, -1, height // patch, patch, width // patch, patch)
        cells = cut.sum((2, 4, 6)).flatten(2)
        found |= {i: (cells[j], cells[j + len(members)]) for j, i in enumerate(members)}
    return found


class _Assemble(torch.autograd.Function):
    """Statistics [G, 2, M] of all layers from what their taps measured; sends (a, b) back through the tokens."""

    @staticmethod
    def forward(
        ctx: Any, shapes: tuple[Shape, ...], order: tuple[int, ...], images: int, *tensors: torch.Tensor
    ) -> torch.Tensor:
        """See `torch.autograd.Function`; the tensors are all layers' first ones of a `Raw`, then their second ones."""
        n, patched = len(shapes), [i for i, shape in enumerate(shapes) if shape.cells]
        tokens, means, variances = tensors[:n], tensors[n : 2 * n], tensors[2 * n : 3 * n]
        groups, k = means[0].shape[0], 3 * n + len(patched)
        pairs = zip(tensors[k : k + len(patched)], tensors[k + len(patched) :], strict=True)
        cells = _cell_sums(shapes, dict(zip(patched, pairs, strict=True)), groups)
        first = [t for i in order for t in (means[i], *(cells[i][:1] if i in cells else ()))]
        second = [t for i in order for t in (variances[i], *(cells[i][1:] if i in cells else ()))]
        values = torch.cat(first + second, dim=1).unflatten(1, (2, -1))
        expanded = tuple(shapes[i] for i in order)
        make = _factors.__wrapped__ if torch.compiler.is_compiling() else _factors
        factors = make(expanded, images // groups, values.device, values.dtype)
        if cells:
            mean, var = values.mul_(factors[2]).unbind(1)
            var.addcmul_(mean * factors[3], mean, value=-1)
        ctx.save_for_backward(values, factors)
        # Where (a, b) of every segment of a row go: which of the tensors, how many, and in which precision.
        ctx.segments = []
        for i in order:
            ctx.segments.append((i, shapes[i].channels, tokens[i].dtype))
            if shapes[i].cells:
                ctx.segments.append((3 * n + patched.index(i), shapes[i].cells, tokens[i].dtype))
        ctx.tensors = len(tensors)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_values: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """See `torch.autograd.Function`."""
        values, factors = ctx.saved_tensors
        by_mean, by_var = by_values.unbind(1)
        b = by_var * factors[1]
        a = torch.addcmul(by_mean * factors[0], b, values[:, 0], value=-1)
        both, widths = torch.stack((a, b), dim=1), [width for _, width, _ in ctx.segments]
        pieces = {d: both.to(d).split(widths, dim=2) for d in {d for _, _, d in ctx.segments}}
        grads: list[torch.Tensor | None] = [None] * ctx.tensors
        for place, (at, _, dtype) in enumerate(ctx.segments):
            piece, before = pieces[dtype][place], grads[at]
            grads[at] = piece if before is None else before + piece  # layers that share an input
        return None, None, None, *grads


def assemble(layers: Sequence[Raw], images: int) -> torch.Tensor:
    """Statistics of all layers, float [G, 2, M]: see `suite.learn.taps.BatchStats`.

    Args:
        layers: What was measured, in module order; layers that share an input may share it.
        images: B of the batch.
    """
    unique = list({id(raw.token): raw for raw in layers}.values())
    index = {id(raw.token): i for i, raw in enumerate(unique)}
    shapes = tuple(Shape(raw.mean.shape[1], raw.cells, raw.patch, raw.pixels) for raw in unique)
    found = [getattr(raw, name) for name in Raw._fields[:6] for raw in unique]
    tensors = [t for t in found if t is not None]
    values: torch.Tensor = _Assemble.apply(shapes, tuple(index[id(raw.token)] for raw in layers), images, *tensors)
    return values
