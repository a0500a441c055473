"""Matchers: how far a synthetic batch's layer statistics are from a teacher's, as functions of `Taps`' statistics.

All distances are plain (not squared) L2 norms, summed over layers. The statistics of all layers are compared in a few
operations on one long vector, not layer by layer: on a GPU the number of small operations decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F

from suite.errors import UserError
from suite.learn.statistics import ClassStatistics, LayerTargets
from suite.learn.taps import CONV, BatchStats, Place


@lru_cache(maxsize=64)
def _places(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Positions in a zero-padded matrix [segments, longest], flattened, of concatenated segments."""
    longest = max(lengths)
    with torch.inference_mode(False):
        return torch.cat([torch.arange(n) + i * longest for i, n in enumerate(lengths)]).to(device)


def segment_norms(x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """L2 norms of consecutive segments; the gradient at a zero segment is zero.

    Args:
        x: [..., D].
        lengths: Lengths of the S segments, with sum D.

    Returns:
        [..., S].
    """
    lengths = tuple(lengths)
    places = _places(lengths, x.device)
    padded = x.new_zeros(*x.shape[:-1], len(lengths) * max(lengths)).index_copy(x.dim() - 1, places, x)
    return torch.linalg.vector_norm(padded.unflatten(-1, (len(lengths), -1)), dim=-1)


Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]


def joined(pairs: Pairs) -> torch.Tensor:
    """Means and variances [..., C] of layers as `BatchStats.values` has them, [..., 2, M]."""
    return torch.stack([torch.cat([pair[i] for pair in pairs], dim=-1) for i in (0, 1)], dim=-2)


def bn_terms(stats: BatchStats, running: torch.Tensor | Pairs) -> torch.Tensor:
    """The distance of each layer from its targets, [layers]: mean term plus variance term, summed over groups.

    Args:
        stats: Of BatchNorm layers.
        running: Their targets: `Taps.running`, or those joined, [2, M], once for many calls.
    """
    target = running if isinstance(running, torch.Tensor) else joined(running)
    return segment_norms(stats.measured - target, stats.lengths).sum(dim=(0, 1))


def bn_loss(stats: BatchStats, running: torch.Tensor | Pairs, first: float = 10.0) -> torch.Tensor:
    """SRe2L's BatchNorm term (Yin et al., NeurIPS 2023, equation 6).

    Args:
        stats: Of the BatchNorm layers' inputs.
        running: Running means and variances of the same layers: `Taps.running`, or those joined.
        first: Multiplier of the first layer's term.

    Returns:
        A scalar: the sum over layers of ||mean - running mean|| + ||var - running var||, var biased; of all
        groups.

    Raises:
        UserError: If there are no layers.
    """
    return _weighted(bn_terms(stats, running), first)


def _weighted(terms: torch.Tensor, first: float) -> torch.Tensor:
    return terms @ _multipliers(len(terms), first, terms.device, terms.dtype)


@lru_cache(maxsize=64)
def _multipliers(layers: int, first: float, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor([first] + [1.0] * (layers - 1), device=device, dtype=dtype)


def class_bn_loss(
    stats: BatchStats, labels: torch.Tensor, moments: torch.Tensor, first: float = 10.0, groups: int = 1
) -> torch.Tensor:
    """BatchNorm statistics of each class's images against that class's moments (WMDD, section 3.3; LPLD, section 3.2).

    The moments of a class in the batch are those of all its views together: the mean of the views' variances plus the
    variance of their means. Views are compared through a matrix of who shares a class, so that classes may have any
    numbers of views in any order.

    Args:
        stats: Of BatchNorm layers, every view a group of its own (`Taps(..., per_image=True)`).
        labels: int64 [b].
        moments: [K, 2, M], means and biased variances of every class.
        first: Multiplier of the first layer's term.
        groups: Independent image batches, equally large, in this one.

    Returns:
        A scalar: the mean over the classes of a batch of the sum over layers of both distances; summed over batches.
    """
    values = stats.measured.unflatten(0, (groups, -1))
    own = labels.view(groups, -1)
    alike = (own[:, :, None] == own[:, None, :]).to(values.dtype)
    share = 1 / alike.sum(dim=2, keepdim=True)  # a view's part in its class
    alike = alike * share
    mean, var = values.unbind(2)
    centre = alike @ mean
    spread = alike @ (var + (mean - centre).square())
    distance = torch.stack((centre, spread), dim=2) - moments[own]
    terms = segment_norms(distance, stats.lengths).sum(dim=2)
    weights = share / share.sum(dim=1, keepdim=True)
    return _weighted((terms * weights).sum(dim=(0, 1)), first)


#: Calls whose draws for dropped layers are made together.
_DRAWS = 256


class FeatureMatcher:
    """Global and class-wise matching of BatchNorm and convolution inputs, for one teacher (EDC and E2D; G-VBSM).

    For every statistic s of every layer: `global_weight * ||target - q|| + class_weight * ||class target - q||`, where
    the class target is the average over the batch's labels of the class-wise statistics, and q has the value of an
    exponential moving average over the calls and the gradient of s (straight-through). Sections: EDC, soft
    category-aware matching; G-VBSM, generic statistical matching (`global_weight` 1, `class_weight` 0).

    Args:
        statistics: Targets of the teacher that the stats come from.
        ema: Weight a of the past in the average; 0 for none.
        clean_init: Start the average with the first statistics. The references start it at zero, so that their first
            calls match (1 - a) of the statistics; False reproduces that.
        swap_class_patch: Exchange the class-wise patch means and variances, as the references' files have them.
        global_weight: Weight of the global distance.
        class_weight: Weight of the class-wise distance.
        first: Multiplier of the first layer in module order, usually the convolution that sees the image itself.
        weight: Multiplier of the whole term.
        drop_rate: Probability with which a convolution is left out of a call (G-VBSM); its average then rests
            (inferred).
        draws: Maps the number of an image batch to the generator of its drops; needed with a drop rate.
        device: Where the stats will be.
        dtype: Precision of the targets and of the average.

    Raises:
        UserError: If class-wise distances are asked for but the targets have none, or both weights are zero.
    """

    def __init__(
        self,
        statistics: ClassStatistics,
        *,
        ema: float = 0.8,
        clean_init: bool = True,
        swap_class_patch: bool = False,
        global_weight: float = 0.5,
        class_weight: float = 0.5,
        first: float = 10.0,
        weight: float = 1.0,
        drop_rate: float = 0.0,
        draws: Callable[[int], torch.Generator] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        layers = statistics.layers
        if not layers:
            raise UserError("there are no statistics to match", hint="choose a teacher with BatchNorm2d or Conv2d")
        if class_weight and any(layer.class_mean is None for layer in layers):
            raise UserError("these statistics have no class-wise targets", hint="run the `statistics` stage again")
        if not (global_weight or class_weight):
            raise UserError("both weights of the matcher are zero", hint="leave the matcher out instead")
        if drop_rate and draws is None:
            raise ValueError("a drop rate needs draws")
        self.ema, self.clean_init, self.drop_rate, self.draws = ema, clean_init, drop_rate, draws
        self.device, self.dtype, self.global_weight = torch.device(device), dtype, global_weight
        self.places = tuple(_place(layer) for layer in layers)
        self._target = joined(_pairs(_global(layer) for layer in layers)).to(device, dtype)
        self._classes: torch.Tensor | None = None
        if class_weight:
            self._classes = joined(_pairs(_class_wise(layer, swap_class_patch) for layer in layers)).to(device, dtype)
        shape = BatchStats(places=self.places)
        owners = torch.tensor(shape.owners)
        self.lengths, self._layers = shape.lengths, len(layers)
        self._owners = owners.to(device)
        self._entry_owners = owners.repeat_interleave(torch.tensor(self.lengths)).to(device)
        multipliers = torch.ones(len(layers), dtype=dtype)
        multipliers[0] = first
        distances = torch.tensor([w for w in (global_weight, class_weight) if w], dtype=dtype)
        self._plain = distances.to(device)[:, None, None, None]
        self._weights = weight * self._plain * multipliers.to(device)[self._owners]
        self._droppable = torch.tensor([place.kind == CONV for place in self.places])
        self._of_labels: tuple[torch.Tensor, int, torch.Tensor] | None = None
        self.reset()

    def reset(self, *batches: int) -> None:
        """Forget the moving average; the next calls are about these image batches, side by side."""
        self._average: torch.Tensor | None = None
        self._batches, self._calls = batches or (0,), 0
        self._generators: list[torch.Generator] = []

    def state(self) -> dict[str, Any]:
        """What the next calls depend on."""
        return {"average": self._average, "batches": self._batches, "calls": self._calls}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.reset(*state["batches"])
        self._average, calls = state["average"], state["calls"]
        if self._average is not None:
            self._average = self._average.to(self.device)
        if self.drop_rate:
            for self._calls in range(0, calls, _DRAWS):
                self._kept()
        self._calls = calls

    def _distances(self, stats: BatchStats, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Norms [distances, G, 2, segments], and which layers count [G, layers]. Moves the average on by one call."""
        if stats.places != self.places:
            raise UserError(
                "the tapped layers are not those of the statistics",
                hint="the same network, image size, kinds and patch size are needed",
            )
        kept = self._kept() if self.drop_rate else None
        self._calls += 1
        q = self._through_average(stats.measured, kept)
        return segment_norms(self._targets(labels, len(q)) - q, self.lengths), kept

    def per_layer(self, stats: BatchStats, labels: torch.Tensor) -> torch.Tensor:
        """Distances of the layers, [layers], before all multipliers. Moves the average on by one call."""
        norms, kept = self._distances(stats, labels)
        weighted = norms * self._plain if kept is None else norms * self._plain * kept[:, None, self._owners]
        empty = norms.new_zeros(self._layers)
        return empty.index_add(0, self._owners, weighted.sum(dim=(0, 1, 2)))

    def __call__(self, stats: BatchStats, labels: torch.Tensor) -> torch.Tensor:
        """The matching term of one batch, a scalar; of several groups of images, the sum of theirs.

        Args:
            stats: What this teacher's `Taps` returned, with the kinds and the patch size of the statistics.
            labels: int64 [B], the classes of the batch's images.
        """
        norms, kept = self._distances(stats, labels)
        return (norms * (self._weights if kept is None else self._weights * kept[:, None, self._owners])).sum()

    def _targets(self, labels: torch.Tensor, groups: int) -> torch.Tensor:
        """What a batch is matched with, [distances, G, 2, M]; it stays as long as the labels are the same tensor."""
        known = self._of_labels
        if known is None or known[0] is not labels or known[1] != groups:
            targets = [self._target.expand(groups, -1, -1)] if self.global_weight else []
            if self._classes is not None:
                targets.append(self._classes[labels.view(groups, -1)].mean(dim=1))
            self._of_labels = known = labels, groups, torch.stack(targets)
        return known[2]

    def _kept(self) -> torch.Tensor:
        """Which layers count in this call, float [G, layers]."""
        assert self.draws is not None
        if self._calls % _DRAWS == 0:
            self._generators = self._generators or [self.draws(batch) for batch in self._batches]
            drawn = [torch.rand(_DRAWS, self._layers, generator=g) for g in self._generators]
            dropped = (torch.stack(drawn, dim=1) < self.drop_rate) & self._droppable
            self._masks = (~dropped).to(self.dtype).to(self.device)
        return self._masks[self._calls % _DRAWS]

    def _through_average(self, s: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """The average with the gradient of the current statistics."""
        now = s.detach()
        if self._average is None:
            self._average = now.clone() if self.clean_init else (1 - self.ema) * now
        else:
            average = torch.lerp(now, self._average, self.ema)
            if kept is not None:
                average = torch.where(kept[:, None, self._entry_owners] > 0, average, self._average)
            self._average = average
        moved: torch.Tensor = _StraightThrough.apply(self._average, s)
        return moved


class _StraightThrough(torch.autograd.Function):
    """The value of an average with the gradient of the current statistics, at weight 1."""

    @staticmethod
    def forward(ctx: Any, average: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        """See `torch.autograd.Function`."""
        return average.view_as(average)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        """See `torch.autograd.Function`."""
        return None, gradients[0]


def _place(layer: LayerTargets) -> Place:
    cells = 0 if layer.patch_mean is None else layer.patch_mean.shape[-1]
    return Place(layer.name, layer.kind, layer.mean.shape[-1], cells)


def _pairs(layers: Iterable[list[torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance, and patch mean and variance where there are patches, of layer after layer."""
    return [pair for vectors in layers for pair in zip(vectors[::2], vectors[1::2], strict=True)]


def _global(layer: LayerTargets) -> list[torch.Tensor]:
    return [t for t in (layer.mean, layer.var, layer.patch_mean, layer.patch_var) if t is not None]


def _class_wise(layer: LayerTargets, swap: bool) -> list[torch.Tensor]:
    """Tables [K, length]: means and variances of channels, then of cells."""
    patch = [layer.class_patch_mean, layer.class_patch_var]
    tables = [layer.class_mean, layer.class_var, *(reversed(patch) if swap else patch)]
    return [t for t in tables if t is not None]


def dd_loss(x: torch.Tensor, labels: torch.Tensor, tau: float = 4.0, side: int = 32) -> torch.Tensor:
    """G-VBSM's data densification (Shao et al., CVPR 2024, section 3.2): flatten the spectrum of a class's images.

    Images are average-pooled to `side`; for each class with eigenvalues l of its Gram matrix, KL(softmax(l / tau),
    held constant, || softmax(l)); summed over classes. A single image contributes nothing.

    Args:
        x: Float [B, 3, S, S].
        labels: int64 [B], on the CPU: group sizes are read from it.
        tau: Temperature of the reference distribution.
        side: Side of the pooled images.

    Returns:
        A scalar. Classes of equal size are solved together.
    """
    flat = F.adaptive_avg_pool2d(x, side).flatten(1)
    order = torch.argsort(labels, stable=True)
    counts = torch.unique(labels, return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    loss = x.new_zeros(())
    for n in counts.unique().tolist():
        if n == 1:
            continue
        members = order[starts[counts == n][:, None] + torch.arange(n)].to(x.device)
        group = flat[members]
        values = torch.linalg.eigvalsh(group @ group.transpose(1, 2))
        loss = loss + F.kl_div(values.log_softmax(1), (values.detach() / tau).softmax(1), reduction="sum")
    return loss
