"""Means and variances of feature maps, and how a loss on them reaches the maps.

d mean / d x = 1 / n and d var / d x = 2 (x - mean) / n: whatever a loss makes of a layer's statistics, its gradient is
a + b x with two numbers a channel (or a patch cell). So the gradient is taken on the small vector of all statistics,
turned into (a, b) for all layers at once, and added to the layer's own gradient when the backward pass comes by.
Autograd's formulas would make several passes over every map, and cost more than the network's own backward pass.

Two autograd functions work together: a tap at each layer, whose `token` output stands for its statistics, and
`suite.learn.assembly.assemble`, which returns the vector. What that sends back through a token is not the statistics'
gradient but (a, b).
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Pair = tuple[torch.Tensor, torch.Tensor]
#: Maps that a thread keeps for its backward passes, and how many.
_SCRATCH, _MOST_SCRATCH = threading.local(), 16
#: Fewer channels than this do not fill a CPU's vectors.
_NARROW = 8


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


class Normalised(NamedTuple):
    """A tapped batch normalisation that just ran: its input x, its output y, the slope, and what was measured of x."""

    x: torch.Tensor
    y: torch.Tensor
    scale: torch.Tensor
    raw: Raw


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


def _update_stats(x: torch.Tensor) -> Pair:
    """Mean and biased variance of x [B, C, ...] over all but the channels, float32 at least."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    unused = torch.empty(2, x.shape[1], dtype=wide, device=x.device)  # gives the precision of the result
    mean, var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
    return mean, var


def channel_moments(x: torch.Tensor, groups: int) -> Pair:
    """Mean and biased variance of every channel and group of images, [G, C] each, float32 at least.

    The whole batch takes one operation that reads half precision directly; `torch.var_mean` would need a float32 copy,
    and is tens of times slower on CPUs, where it does not vectorise. Nor does that operation for a few channels, such
    as an image's: there the columns of the maps count as channels, and their moments are put together.
    """
    if groups == 1 and not torch.compiler.is_compiling():
        if x.device.type == "cpu" and x.shape[1] < _NARROW:
            mean, var = _update_stats(x.permute(0, 2, 3, 1).reshape(len(x) * x.shape[2], -1))
            between, middle = torch.var_mean(mean.view(x.shape[3], -1), 0, correction=0, keepdim=True)
            return middle, between + var.view(x.shape[3], -1).mean(0, keepdim=True)
        mean, var = _update_stats(x)
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

    def cut(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (ctx.groups, -1)).unflatten(4, (v, patch)).unflatten(3, (u, patch))

    a, b = (c[:, None, None].unflatten(3, (u, 1, v, 1)) for c in by_token.unbind(1))
    if big.shape == total.shape:
        cut(total).addcmul_(cut(big), b).add_(a)
        return
    if torch.compiler.is_compiling():  # a compiler plans memory itself, and takes no view as `out`
        total.add_(_shrunk(torch.addcmul(a, cut(big), b).reshape(big.shape), *total.shape[2:]))
        return
    share, small = _scratch(big, big.shape), _scratch(total, total.shape)
    torch.addcmul(a, cut(big), b, out=cut(share))
    sizes = [height, width], list(total.shape)
    torch.ops.aten.upsample_bilinear2d_backward(share, *sizes, False, None, None, grad_input=small)
    total.add_(small)


@torch.library.custom_op("suite::shrunk", mutates_args=())
def _shrunk(share: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The adjoint of `enlarged` as compilers call it: they cannot look into ATen's with sizes that they do not know."""
    sizes = list(share.shape[2:]), [*share.shape[:2], height, width]
    return torch.ops.aten.upsample_bilinear2d_backward(share, *sizes, False)


@_shrunk.register_fake
def _(share: torch.Tensor, height: int, width: int) -> torch.Tensor:
    form = torch.channels_last if share.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return share.new_empty(*share.shape[:2], height, width).contiguous(memory_format=form)


def _scratch(like: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Memory for a map that nobody sees outside of one backward call.

    On CPUs it is kept, since fresh pages cost more than the arithmetic on them; accelerators have their own allocators.
    """
    layout = torch.channels_last if like.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    if like.device.type != "cpu":
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    kept: dict[Any, torch.Tensor] = _SCRATCH.__dict__.setdefault("maps", {})
    key = shape, like.dtype, layout
    if key not in kept:
        if len(kept) >= _MOST_SCRATCH:
            kept.clear()
        kept[key] = torch.empty(shape, dtype=like.dtype, memory_format=layout)
    return kept[key]


class TapInput(torch.autograd.Function):
    """The identity, which measures what passes."""

    @staticmethod
    def measure(x: torch.Tensor, groups: int, patch: int, private: bool = False) -> tuple[torch.Tensor, Raw]:
        """The same x, and its statistics; with those of patches if `patch` is not 0.

        Args:
            x: [G * B, C, H, W].
            groups: G.
            patch: Side of the patches.
            private: The one consumer of the result is a layer that makes a map of its own for the gradient, such as a
                convolution: the statistics' share is added to that map.
        """
        pixels = x.shape[2] * x.shape[3]
        if not patch:
            y, token, mean, var = TapInput.apply(x, groups, patch, private)
            return y, Raw(token, mean, var, None, None, None, 0, pixels)
        y, token, cells, mean, var, pixel_sum, pixel_norm = TapInput.apply(x, groups, patch, private)
        return y, Raw(token, mean, var, cells, pixel_sum, pixel_norm, patch, pixels)

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, groups: int, patch: int, private: bool) -> tuple[torch.Tensor, ...]:
        """See `torch.autograd.Function`."""
        tokens, measured, big = _measure(ctx, x, groups, patch)
        ctx.save_for_backward(x, None if big is x else big)
        ctx.private = private
        return x.view_as(x), *tokens, *measured

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Any, by_token: Any, by_cells: Any, *unused: None) -> tuple[Any, None, None, None]:
        """See `torch.autograd.Function`."""
        if by_token is None:
            return by_y, None, None, None
        x, big = ctx.saved_tensors
        if ctx.private and by_y is not None:
            total = by_y
            a, b = (c[:, None, :, None, None] for c in by_token.unbind(1))
            total.unflatten(0, (ctx.groups, -1)).addcmul_(x.unflatten(0, (ctx.groups, -1)), b).add_(a)
        else:
            total = _affine(ctx, x, by_token)
            if by_y is not None:
                total.add_(by_y)
        if ctx.patch:
            _add_patches(ctx, total, x if big is None else big, by_cells)
        return total, None, None, None


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


class TapRectified(torch.autograd.Function):
    """Batch normalisation followed by a ReLU, in the place of a `TapBatchNorm`.

    Its backward pass works on one map of its own. Where maps are larger than caches, and an allocator fetches fresh
    pages for each, that is most of the time that statistics cost.
    """

    @staticmethod
    def replace(normalised: Normalised) -> tuple[torch.Tensor, Raw]:
        """The rectified maps, in the memory of the normalised ones, and what had been measured, with another token."""
        x, y, scale, raw = normalised
        r, token = TapRectified.apply(x, y.detach().relu_(), raw.mean.shape[0], scale)
        return r, raw._replace(token=token)

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, r: torch.Tensor, groups: int, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `torch.autograd.Function`."""
        ctx.groups = groups
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, r, scale)
        return r.view_as(r), x.new_empty(groups, 2, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_r: Any, by_token: Any) -> tuple[torch.Tensor | None, None, None, None]:
        """See `torch.autograd.Function`."""
        x, r, scale = ctx.saved_tensors
        if by_r is None:
            return None if by_token is None else _affine(ctx, x, by_token), None, None, None
        total = torch.ops.aten.threshold_backward(by_r, r, 0)
        if by_token is None:
            return total.mul_(scale), None, None, None
        a, b = (c[:, None, :, None, None] for c in by_token.unbind(1))
        parts = total.unflatten(0, (ctx.groups, -1))
        torch.addcmul(a, parts, scale, out=parts).addcmul_(x.unflatten(0, (ctx.groups, -1)), b)
        return total, None, None, None
