"""What a network's taps found in one batch, as matchers read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from suite.errors import UserError


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


class Place(NamedTuple):
    """Where one layer's statistics lie: name, kind, channels C, patch cells U*V (0 without patches)."""

    name: str
    kind: str
    channels: int
    cells: int


@dataclass(frozen=True)
class BatchStats:
    """What a network's taps found in one batch: matchers work on one small tensor, in a few operations.

    Attributes:
        values: float [G, 2, M] for G groups of images, float32 at least: means, then biased variances. A row holds for
            every layer, in module order, its channels and then its patch cells. None without tapped layers.
        places: The layers.
        features: [b, D], the input of the network's last `Linear`; None if it has none.
    """

    values: torch.Tensor | None = None
    places: tuple[Place, ...] = ()
    features: torch.Tensor | None = None

    @property
    def measured(self) -> torch.Tensor:
        """The values.

        Raises:
            UserError: If no layer was tapped.
        """
        if self.values is None:
            raise UserError("there are no statistics to match", hint="choose a teacher with batch normalisation")
        return self.values

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the segments of a row: for every layer its channels and, where measured, its cells."""
        return tuple(n for place in self.places for n in (place.channels, place.cells) if n)

    @property
    def owners(self) -> tuple[int, ...]:
        """Number of the layer that each segment belongs to."""
        return tuple(i for i, place in enumerate(self.places) for n in (place.channels, place.cells) if n)

    def split(self, groups: int) -> list[BatchStats]:
        """Those of `groups` consecutive parts of the batch; they must have been measured apart."""
        values = [None] * groups if self.values is None else self.values.chunk(groups)
        features = [None] * groups if self.features is None else self.features.chunk(groups)
        return [BatchStats(v, self.places, f) for v, f in zip(values, features, strict=True)]

    def layers(self, group: int = 0) -> list[LayerStats]:
        """The statistics of one group, layer by layer."""
        pieces = iter(self.measured[group].split(self.lengths, dim=1))
        found = []
        for name, kind, _, cells in self.places:
            vectors = [*next(pieces), *(next(pieces) if cells else ())]
            found.append(LayerStats(name, kind, *vectors))
        return found
