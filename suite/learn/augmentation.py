"""RandAugment of uint8 images, as a tensor operation with explicit draws (Cubuk et al., 2020).

The operations, their strengths and their arithmetic are those of timm's `rand-m<magnitude>-n2-mstd1.0` on Pillow
images, which DELT trains its students with: two of fifteen operations an image, each applied with probability one
half, at a strength drawn from a normal distribution. Unlike there, geometric operations always sample bilinearly.

Seven operations map every value of a channel by a table that depends on the image, and so does a change of contrast:
they are one lookup. Five move pixels: one sampling. Colour and sharpness blend with a second image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

#: Strengths are of this; also the largest one.
LEVELS = 10.0
#: Operations an image, applied one after the other.
LAYERS = 2
#: Probability with which each of them is applied.
PROBABILITY = 0.5
#: Standard deviation of strengths.
SPREAD = 1.0

OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "contrast",
    "brightness",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "colour",
    "sharpness",
)


#: change(images uint8 [b, 3, H, W], operation int64 [b], level float32 [b], sign float32 [b]) -> uint8 [b, 3, H, W].
_Change = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RandomOperations:
    """The draws of one batch of B images, on the CPU.

    Attributes:
        operation: int64 [B, LAYERS], positions in `OPERATIONS`; -1 for an operation that is left out.
        level: float32 [B, LAYERS], strengths in [0, LEVELS].
        sign: float32 [B, LAYERS], 1 or -1: the direction of what moves pixels.
    """

    operation: torch.Tensor
    level: torch.Tensor
    sign: torch.Tensor


def draw(n: int, magnitude: float, generator: torch.Generator) -> RandomOperations:
    """Draw the operations of `n` images.

    Args:
        n: Images B.
        magnitude: Mean strength, of `LEVELS`.
        generator: A CPU generator.
    """
    shape = (n, LAYERS)
    operation = torch.randint(len(OPERATIONS), shape, generator=generator)
    applied = torch.rand(shape, generator=generator) < PROBABILITY
    level = (magnitude + SPREAD * torch.randn(shape, generator=generator)).clamp(0, LEVELS)
    sign = (torch.rand(shape, generator=generator) < 0.5).float() * 2 - 1
    return RandomOperations(operation.where(applied, -1), level, sign)


def apply(images: torch.Tensor, draws: RandomOperations, fill: Sequence[int]) -> torch.Tensor:
    """Apply every image's operations to it.

    Args:
        images: uint8 [B, 3, H, W]; they stay as they are.
        draws: For B images.
        fill: Red, green and blue of what comes in from outside of an image.

    Returns:
        uint8 [B, 3, H, W].
    """
    x = images.clone()
    for layer in range(draws.operation.shape[1]):
        operation, level, sign = draws.operation[:, layer], draws.level[:, layer], draws.sign[:, layer]
        changes: tuple[tuple[Iterable[str], _Change], ...] = (
            (_TABLES, _look_up),
            (_MOVES, partial(_move, fill=fill)),
            (_BLENDS, _blended),
        )
        for kinds, change in changes:
            rows = torch.isin(operation, torch.tensor([OPERATIONS.index(name) for name in kinds])).nonzero()[:, 0]
            if len(rows):
                where = rows.to(x.device, non_blocking=True)
                x[where] = change(x[where], operation[rows], level[rows], sign[rows])
    return x


def _look_up(x: torch.Tensor, operation: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Operations that are a table of 256 values for every channel."""
    tables = torch.empty(len(x), 3, 256, dtype=torch.uint8, device=x.device)
    for name, table in _TABLES.items():
        rows = (operation == OPERATIONS.index(name)).nonzero()[:, 0]
        if len(rows):
            where = rows.to(x.device, non_blocking=True)
            values = table(x[where], level[rows].to(x.device, non_blocking=True)[:, None, None])
            tables[where] = values.clamp(0, 255).to(torch.uint8).expand(-1, 3, -1)
    return tables.gather(2, x.flatten(2).long()).view(x.shape)


# Tables: float or int [b, 1 or 3, 256] for uint8 images [b, 3, H, W] and strengths [b, 1, 1]; fractions are cut off.


def _values(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(256, device=x.device).expand(len(x), 3, 256)


def _histogram(x: torch.Tensor) -> torch.Tensor:
    """Pixels of every value, int64 [b, 3, 256]."""
    flat = x.flatten(2).long()
    return torch.zeros(len(x), 3, 256, dtype=torch.int64, device=x.device).scatter_add_(2, flat, torch.ones_like(flat))


def _autocontrast(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    low, high = (v.long()[..., None] for v in torch.aminmax(x.flatten(2), dim=2))
    scale = 255 / (high - low).clamp(min=1).double()
    return torch.where(high > low, (_values(x) * scale - low * scale).trunc().long(), _values(x))


def _equalize(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    counts = _histogram(x)
    last = counts.gather(2, ((counts > 0) * _values(x)).amax(2, keepdim=True))
    step = (counts.sum(2, keepdim=True) - last) // 255
    below = counts.cumsum(2) - counts
    spread = (step // 2 + below) // step.clamp(min=1)
    return torch.where(step > 0, spread, _values(x))


def _invert(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return 255 - _values(x)


def _posterize(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Keep up to four bits, the more the stronger, as timm has it; none leaves black, where new Pillow raises."""
    dropped = 8 - (level / LEVELS * 4).long()
    return (_values(x) >> dropped) << dropped


def _solarize(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    v = _values(x)
    return torch.where(v < (level / LEVELS * 256).long(), v, 255 - v)


def _solarize_add(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    v = _values(x)
    return torch.where(v < 128, v + (level / LEVELS * 110).long(), v)


def _contrast(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    mean = (_grey(x).double().mean((1, 2, 3)) + 0.5).long()[:, None, None]
    return _between(mean, _values(x), _strength(level))


def _brightness(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return _between(torch.zeros_like(_values(x)), _values(x), _strength(level))


_TABLES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "contrast": _contrast,
    "brightness": _brightness,
}


def _strength(level: torch.Tensor) -> torch.Tensor:
    """From 0.1 to 1.9; 1 changes nothing."""
    return level / LEVELS * 1.8 + 0.1


def _between(weak: torch.Tensor, image: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Go from a degenerate image towards the image, or beyond it; float32, neither rounded nor clamped."""
    return weak + strength * (image.float() - weak)


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Luma (ITU-R 601-2) in Pillow's integers, int32 [b, 1, H, W]."""
    r, g, b = x.int().split(1, dim=1)
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


def _smooth(x: torch.Tensor) -> torch.Tensor:
    """Pillow's SMOOTH filter: weight 5 in the middle of 3 x 3, rounded; the image's border is left as it is."""
    v = x.int()
    rows = v[:, :, :-2] + v[:, :, 1:-1] + v[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * v[:, :, 1:-1, 1:-1]
    v[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    return v


_BLENDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"colour": _grey, "sharpness": _smooth}


def _blended(x: torch.Tensor, operation: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    colour = (operation == OPERATIONS.index("colour")).to(x.device, non_blocking=True)[:, None, None, None]
    weak = torch.where(colour, _grey(x), _smooth(x))
    strength = _strength(level).to(x.device, non_blocking=True)[:, None, None, None]
    return _between(weak, x, strength).clamp(0, 255).to(torch.uint8)


#: Matrices [[a, b], [c, d]] and shifts (e, f), in sides, from places in the result to places in the image; strengths
#: are signed shares in [-1, 1]. Those of a rotation are taken from the centre, the others from the corner.
_MOVES: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor | float, ...]]] = {
    "rotate": lambda s: ((s * (math.pi / 6)).cos(), -(s * (math.pi / 6)).sin(), (s * (math.pi / 6)).sin(), 0.0, 0.0),
    "shear_x": lambda s: (1.0, s * 0.3, 0.0, 0.0, 0.0),
    "shear_y": lambda s: (1.0, 0.0, s * 0.3, 0.0, 0.0),
    "translate_x": lambda s: (1.0, 0.0, 0.0, s * 0.45, 0.0),
    "translate_y": lambda s: (1.0, 0.0, 0.0, 0.0, s * 0.45),
}


def _move(
    x: torch.Tensor, operation: torch.Tensor, level: torch.Tensor, sign: torch.Tensor, fill: Sequence[int]
) -> torch.Tensor:
    """Rotate, shear and translate: one bilinear sampling; places outside of the image get `fill`."""
    height, width = x.shape[2:]
    numbers = torch.zeros(len(x), 5)
    for name, matrix in _MOVES.items():
        rows = operation == OPERATIONS.index(name)
        for column, value in enumerate(matrix(level[rows] / LEVELS * sign[rows])):
            numbers[rows, column] = value  # type: ignore[assignment]
    turned = (operation == OPERATIONS.index("rotate"))[:, None, None]
    stay, along_y, along_x, right, down = numbers.to(x.device, non_blocking=True)[..., None, None].unbind(1)
    centre = turned.to(x.device, non_blocking=True).float() / 2
    ys = (torch.arange(height, device=x.device) + 0.5)[:, None] - centre * height
    xs = (torch.arange(width, device=x.device) + 0.5)[None, :] - centre * width
    from_x = stay * xs + along_y * ys + right * width + centre * width
    from_y = along_x * xs + stay * ys + down * height + centre * height
    inside = ((from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height))[:, None]
    grid = torch.stack((from_x * (2 / width) - 1, from_y * (2 / height) - 1), dim=3)
    sampled = F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
    outside = torch.stack([x.new_full((), value, dtype=torch.uint8) for value in fill]).view(1, 3, 1, 1)
    return torch.where(inside, sampled.round().to(torch.uint8), outside)
