"""Means and variances of feature maps, and how a loss on them reaches the maps.

d mean / d x = 1 / n and d var / d x = 2 (x - mean) / n: whatever a loss makes of a layer's statistics, its gradient is
a + b x with two numbers a channel (or a patch cell). So the gradient is taken on the small vector of all statistics,
turned into (a, b) for all layers at once, and added to the layer's own gradient when the backward pass comes by.
Autograd's formulas would make several passes over every map, and cost more than the network's own backward pass.

Two autograd functions work together: a tap at each layer, whose `token` output stands for its statistics, and
`assemble`, which returns the vector. What `assemble` sends back through a token is not the statistics' gradient but
(a, b): both ends are in this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Pair = tuple[torch.Tensor, torch.Tensor]


class Raw(NamedTuple):
    """What a tap measured of one map x [B, C, H, W], in G groups of images.

    Attributes:
        token: [G, 2, C] without content, in the map's precision; carries (a, b) of the channels backwards.
        mean: [G, C].
        var: [G, C], biased.
        cell_token: [G, 2, cells], likewise for the patches; None without.
        pixel_sum: [B, U*P, V*P], over channels of the enlarged map; None without patches.
        pixel_norm: [B, U*P, V*P], L2 norms over channels.
        patch: P; 0 for none.
        pixels: H * W.
    """

    token: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    cell_token: torch.Tensor | None
    pixel_sum: torch.Tensor | None
    pixel_norm: torch.Tensor | None
    patch: int
    pixels: int

    @property
    def cells(self) -> int:
        """Patches of the map."""
        return 0 if self.cell_token is None else self.cell_token.shape[2]


class Shape(NamedTuple):
    """Of one layer: channels C, patch cells (0 without patches), side P of a patch, pixels H * W of the map."""

    channels: int
    cells: int
    patch: int
    pixels: int


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Half precision as float32: sums over a batch need it."""
    return x if x.dtype == torch.float64 else x.float()


def grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows U and columns V of P x P patches that cover a map."""
    return -(-height // patch), -(-width // patch)


def enlarged(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Maps [B, C, H, W] with sides rounded up to multiples of `patch`, bilinearly (G-VBSM, section 3.3)."""
    u, v = grid(x.shape[2], x.shape[3], patch)
    if (u * patch, v * patch) == tuple(x.shape[2:]):
        return x
    return F.interpolate(x, (u * patch, v * patch), mode="bilinear", align_corners=False)


def patches(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Cut feature maps into patches (G-VBSM, section 3.3; EDC and E2D do the same).

    Maps whose sides are no multiples of `patch` are first enlarged to the next ones, bilinearly.

    Args:
        x: [B, C, H, W].
        patch: Side P of a patch.

    Returns:
        [B, C, U, P, V, P] with U = ceil(H / P), V = ceil(W / P).
    """
    u, v = grid(x.shape[2], x.shape[3], patch)
    return enlarged(x, patch).unflatten(3, (v, patch)).unflatten(2, (u, patch))


def channel_moments(x: torch.Tensor, groups: int) -> Pair:
    """Mean and biased variance of every channel and group of images, [G, C] each, float32 at least.

    The whole batch takes one operation that reads half precision directly; `torch.var_mean` would need a float32 copy,
    and is tens of times slower on CPUs, where it does not vectorise.
    """
    if groups == 1 and not torch.compiler.is_compiling():
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        unused = torch.empty(2, x.shape[1], dtype=wide, device=x.device)  # gives the precision of the result
        mean, var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        return mean[None], var[None]
    parts, dims = full_precision(x).unflatten(0, (groups, -1)), (1, 3, 4)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        mean = parts.mean(dims, keepdim=True)
        return mean.flatten(1), (parts - mean).square_().mean(dims)
    var, mean = torch.var_mean(parts, dims, correction=0)
    return mean, var


def _measure(
    ctx: Any, x: torch.Tensor, groups: int, patch: int
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], torch.Tensor]:
    """Measure x in a tap's forward pass. Returns tokens, measured tensors in the order of `Raw`, the enlarged map."""
    tokens: tuple[torch.Tensor, ...] = (x.new_empty(groups, 2, x.shape[1]),)
    big = x
    with torch.autocast(x.device.type, enabled=False):
        measured: tuple[torch.Tensor, ...] = channel_moments(x, groups)
        if patch:
            big = enlarged(x, patch)
            wide = full_precision(big)
            measured += wide.sum(1), torch.linalg.vector_norm(wide, dim=1)
            cells = (big.shape[2] // patch) * (big.shape[3] // patch)
            tokens += (big.new_empty(groups, 2, cells),)
    ctx.groups, ctx.patch = groups, patch
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*measured)
    return tokens, measured, big


def _affine(ctx: Any, x: torch.Tensor, by_token: torch.Tensor) -> torch.Tensor:
    """The channels' a + b x, as a new map."""
    a, b = (c[:, None, :, None, None] for c in by_token.unbind(1))
    if ctx.groups == 1:
        return torch.addcmul(a[0], x, b[0])
    return torch.addcmul(a, x.unflatten(0, (ctx.groups, -1)), b).flatten(0, 1)


def _add_patches(ctx: Any, total: torch.Tensor, big: torch.Tensor, by_token: torch.Tensor) -> None:
    """Add the patch statistics' share to the gradient `total` of x, in place."""
    patch, (height, width) = ctx.patch, big.shape[2:]
    u, v = height // patch, width // patch
    a, b = (c[:, None, None].unflatten(3, (u, 1, v, 1)) for c in by_token.unbind(1))
    parts = big.unflatten(3, (v, patch)).unflatten(2, (u, patch))
    if ctx.groups == 1:
        grown = torch.addcmul(a[0], parts, b[0])
    else:
        grown = torch.addcmul(a, parts.unflatten(0, (ctx.groups, -1)), b).flatten(0, 1)
    share = grown.flatten(4, 5).flatten(2, 3)
    if big.shape != total.shape:
        sizes = [height, width], list(total.shape)
        share = torch.ops.aten.upsample_bilinear2d_backward(share, *sizes, False, None, None)
    total.add_(share)


class TapInput(torch.autograd.Function):
    """The identity, which measures what passes."""

    @staticmethod
    def measure(x: torch.Tensor, groups: int, patch: int) -> tuple[torch.Tensor, Raw]:
        """The same x, and its statistics; with those of patches if `patch` is not 0."""
        pixels = x.shape[2] * x.shape[3]
        if not patch:
            y, token, mean, var = TapInput.apply(x, groups, patch)
            return y, Raw(token, mean, var, None, None, None, 0, pixels)
        y, token, cells, mean, var, pixel_sum, pixel_norm = TapInput.apply(x, groups, patch)
        return y, Raw(token, mean, var, cells, pixel_sum, pixel_norm, patch, pixels)

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, groups: int, patch: int) -> tuple[torch.Tensor, ...]:
        """See `torch.autograd.Function`."""
        tokens, measured, big = _measure(ctx, x, groups, patch)
        ctx.save_for_backward(x, None if big is x else big)
        return x.view_as(x), *tokens, *measured

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Any, by_token: Any, by_cells: Any, *unused: None) -> tuple[Any, None, None]:
        """See `torch.autograd.Function`."""
        if by_token is None:
            return by_y, None, None
        x, big = ctx.saved_tensors
        total = _affine(ctx, x, by_token)
        if by_y is not None:
            total.add_(by_y)
        if ctx.patch:
            _add_patches(ctx, total, x if big is None else big, by_cells)
        return total, None, None


class TapBatchNorm(torch.autograd.Function):
    """Batch normalisation with running statistics, which measures what it normalises."""

    @staticmethod
    def measure(
        x: torch.Tensor,
        groups: int,
        scale: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        var: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, Raw]:
        """The normalised maps, and the statistics of x; `scale` [C, 1, 1] is weight / sqrt(var + eps) in x's dtype."""
        y, token, own_mean, own_var = TapBatchNorm.apply(x, groups, scale, weight, bias, mean, var, eps)
        return y, Raw(token, own_mean, own_var, None, None, None, 0, x.shape[2] * x.shape[3])

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        groups: int,
        scale: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        var: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, ...]:
        """See `torch.autograd.Function`."""
        tokens, measured, _ = _measure(ctx, x, groups, 0)
        ctx.save_for_backward(x, scale)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), *tokens, *measured

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Any, by_token: Any, *unused: None) -> tuple[torch.Tensor | None, ...]:
        """See `torch.autograd.Function`."""
        x, scale = ctx.saved_tensors
        if by_token is None:
            return None if by_y is None else by_y * scale, *[None] * 7
        total = _affine(ctx, x, by_token)
        if by_y is not None:
            total.addcmul_(by_y, scale)
        return total, *[None] * 7


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
