"""Matchers: how far a synthetic batch's layer statistics are from a teacher's, as functions of `Taps`' statistics.

All distances are plain (not squared) L2 norms, summed over layers. The statistics of all layers are compared in a few
operations on one long vector, not layer by layer: on a GPU the number of small operations decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

from suite.errors import UserError
from suite.learn.statistics import ClassStatistics, LayerTargets
from suite.learn.taps import LayerStats


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


def bn_terms(stats: Sequence[LayerStats], running: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The distance of each BatchNorm layer from its running statistics, [layers]: mean term plus variance term."""
    if not stats:
        raise UserError("there are no statistics to match", hint="choose a teacher with batch normalisation")
    if len(stats) != len(running):
        raise ValueError(f"{len(stats)} layers were tapped, {len(running)} have targets")
    flat = torch.cat([v for s in stats for v in (s.mean, s.var)])
    target = torch.cat([t for pair in running for t in pair])
    lengths = [len(v) for s in stats for v in (s.mean, s.var)]
    return segment_norms(flat - target, lengths).view(-1, 2).sum(dim=1)


def bn_loss(
    stats: Sequence[LayerStats], running: Sequence[tuple[torch.Tensor, torch.Tensor]], first: float = 10.0
) -> torch.Tensor:
    """SRe2L's BatchNorm term (Yin et al., NeurIPS 2023, equation 6).

    Args:
        stats: Of the BatchNorm layers' inputs, in module order.
        running: Running mean and variance of the same layers (`Taps.running`).
        first: Multiplier of the first layer's term.

    Returns:
        A scalar: the sum over layers of ||mean - running mean|| + ||var - running var||, var biased.

    Raises:
        UserError: If there are no layers.
    """
    terms = bn_terms(stats, running)
    return terms.sum() + (first - 1) * terms[0]


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
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        layers = statistics.layers
        if not layers:
            raise UserError("there are no statistics to match", hint="choose a teacher with BatchNorm2d or Conv2d")
        if class_weight and any(layer.class_mean is None for layer in layers):
            raise UserError("these statistics have no class-wise targets", hint="run the `statistics` stage again")
        self.ema, self.clean_init, self.first = ema, clean_init, first
        self.global_weight = global_weight
        self.names = [layer.name for layer in layers]
        vectors = [_global(layer) for layer in layers]
        self.lengths = [len(v) for vs in vectors for v in vs]
        self._target = torch.cat([v for vs in vectors for v in vs]).to(device, dtype)
        self._classes: torch.Tensor | None = None
        if class_weight:
            tables = [t.to(dtype) for layer in layers for t in _class_wise(layer, swap_class_patch)]
            self._classes = torch.cat(tables, dim=1).to(device)
        # Each layer has two or four segments; its distance is their sum.
        owner = [i for i, vs in enumerate(vectors) for _ in vs]
        self._layer_of = F.one_hot(torch.tensor(owner), len(layers)).to(device, dtype)
        weights = [w for w in (global_weight, class_weight) if w]
        if not weights:
            raise UserError("both weights of the matcher are zero", hint="leave the matcher out instead")
        self._weights = torch.tensor(weights, device=device, dtype=dtype)
        self._average: torch.Tensor | None = None

    def reset(self) -> None:
        """Forget the moving average."""
        self._average = None

    def per_layer(self, stats: Sequence[LayerStats], labels: torch.Tensor) -> torch.Tensor:
        """Distances of the layers, [layers], before the first one's multiplier. Moves the average on by one call."""
        q = self._through_average(self._flatten(stats))
        targets = [self._target] if self.global_weight else []
        if self._classes is not None:
            targets.append(self._classes[labels].mean(dim=0))
        norms = segment_norms(torch.stack(targets) - q, self.lengths)
        return (self._weights @ norms) @ self._layer_of

    def __call__(self, stats: Sequence[LayerStats], labels: torch.Tensor) -> torch.Tensor:
        """The matching term of one batch, a scalar.

        Args:
            stats: What this teacher's `Taps` returned, with the kinds and the patch size of the statistics.
            labels: int64 [B], the classes of the batch's images.
        """
        terms = self.per_layer(stats, labels)
        return terms.sum() + (self.first - 1) * terms[0]

    def _flatten(self, stats: Sequence[LayerStats]) -> torch.Tensor:
        vectors = [v for s in stats for v in s.vectors()]
        if [s.name for s in stats] != self.names or [len(v) for v in vectors] != self.lengths:
            raise UserError(
                "the tapped layers are not those of the statistics",
                hint="the same network, image size, kinds and patch size are needed",
            )
        return torch.cat(vectors)

    def _through_average(self, s: torch.Tensor) -> torch.Tensor:
        """The average with the gradient of the current statistics."""
        now = s.detach()
        if self._average is None:
            self._average = now.clone() if self.clean_init else (1 - self.ema) * now
        else:
            self._average = torch.lerp(now, self._average, self.ema)
        return self._average + (s - now)


def _global(layer: LayerTargets) -> list[torch.Tensor]:
    return [t for t in (layer.mean, layer.var, layer.patch_mean, layer.patch_var) if t is not None]


def _class_wise(layer: LayerTargets, swap: bool) -> list[torch.Tensor]:
    """Tables [K, length] in the order of `LayerStats.vectors`."""
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
