"""Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021, section 3.2 and appendix).

Six operations on normalised images [B, C, H, W]. Each is a pure function of images and raw draws, on one of which a
whole batch can agree: draws of length B give every image its own parameters, draws of length 1 the same ones to all,
which is how a synthetic and a real batch are made siamese. All let gradients through. Zero is what enters at borders
and what is cut out; for normalised images that is the dataset's mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from suite.errors import UserError, did_you_mean

#: The strategy of the papers; for digits without `flip`.
STRATEGY = "color_crop_cutout_flip_scale_rotate"
#: Largest shift of `crop`, as a share of the side.
SHIFT = 0.125
#: Side of the square of `cutout`, as a share of the side.
CUT = 0.5
#: Largest factor of `scale`; the smallest one is its reciprocal.
ZOOM = 1.2
#: Largest angle of `rotate`, in degrees.
DEGREES = 15.0


@dataclass(frozen=True)
class Draws:
    """One operation and its raw draws, on the CPU.

    Attributes:
        operation: One of `OPERATIONS`.
        values: What it draws, in order: float32 uniform in [0, 1), or int64 pixels for `crop` and `cutout`; [B] or [1].
    """

    operation: str
    values: tuple[torch.Tensor, ...]

    def siamese(self) -> Draws:
        """The first image's draws for all images, of whatever batches they are applied to."""
        return Draws(self.operation, tuple(v[:1] for v in self.values))


def operations(strategy: str) -> tuple[str, ...]:
    """The operations of a strategy such as `STRATEGY`.

    Raises:
        UserError: If one is unknown, or there is none.
    """
    names = tuple(strategy.split("_"))
    for name in names:
        if name not in OPERATIONS:
            raise UserError(f"unknown augmentation {name!r} in {strategy!r}", hint=did_you_mean(name, OPERATIONS))
    return names


def draw(strategy: str, n: int, height: int, width: int, generator: torch.Generator) -> Draws:
    """Draw one operation of a strategy, all equally likely, and its parameters for `n` images.

    Args:
        strategy: Operations joined by underscores.
        n: Images B, or 1 for siamese draws.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        generator: A CPU generator.

    Raises:
        UserError: If the strategy has an unknown operation.
    """
    names = operations(strategy)
    name = names[int(torch.randint(len(names), (), generator=generator))]
    if name == "crop":
        limits = [(-reach, reach) for reach in (int(side * SHIFT + 0.5) for side in (height, width))]
    elif name == "cutout":
        # A square of even side has its centre on one of H + 1 borders between pixels.
        limits = [(0, side - int(side * CUT + 0.5) % 2) for side in (height, width)]
    else:
        return Draws(name, tuple(torch.rand(n, generator=generator) for _ in range(OPERATIONS[name])))
    return Draws(name, tuple(torch.randint(low, high + 1, (n,), generator=generator) for low, high in limits))


def apply(x: torch.Tensor, draws: Draws, align_corners: bool = False) -> torch.Tensor:
    """Apply an operation with its draws.

    Args:
        x: Float [B, C, H, W], normalised.
        draws: For B images, or for one that stands for all.
        align_corners: How `scale` and `rotate` sample: False in DC, DSA and DM, True in MTT's code.

    Returns:
        [B, C, H, W].

    Raises:
        UserError: If the operation is unknown.
    """
    values = [v.to(x.device, non_blocking=True) for v in draws.values]
    match draws.operation:
        case "color":
            return contrast(saturation(brightness(x, values[0]), values[1]), values[2])
        case "crop":
            return crop(x, values[0], values[1])
        case "cutout":
            return cutout(x, values[0], values[1])
        case "flip":
            return flip(x, values[0])
        case "scale":
            return scale(x, values[0], values[1], align_corners)
        case "rotate":
            return rotate(x, values[0], align_corners)
    raise UserError(f"unknown augmentation {draws.operation!r}", hint=did_you_mean(draws.operation, OPERATIONS))


#: Operations of a strategy, and how many values each draws.
OPERATIONS = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}


def brightness(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Add u - 1/2."""
    return x + (_each(u) - 0.5)


def saturation(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Scale the distance from every pixel's mean over channels by 2 u."""
    mean = x.mean(1, keepdim=True)
    return (x - mean) * (2 * _each(u)) + mean


def contrast(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Scale the distance from every image's mean by u + 1/2."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (_each(u) + 0.5) + mean


def flip(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Mirror left to right where u < 1/2."""
    return torch.where(_each(u) < 0.5, x.flip(3), x)


def crop(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Move the window by whole pixels: the result at (r, c) is x at (r + rows, c + columns), zero outside of it."""
    height, width = x.shape[2:]
    r = rows.view(-1, 1) + torch.arange(height, device=x.device)
    c = columns.view(-1, 1) + torch.arange(width, device=x.device)
    inside = ((r >= 0) & (r < height))[:, None, :, None] & ((c >= 0) & (c < width))[:, None, None, :]
    by_row = r.clamp(0, height - 1)[:, None, :, None].expand(x.shape)
    by_column = c.clamp(0, width - 1)[:, None, None, :].expand(x.shape)
    return x.gather(2, by_row).gather(3, by_column) * inside


def cutout(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Set a square around (rows, columns) to zero. What lies outside of the image moves onto its border, as in DSA."""
    height, width = x.shape[2:]
    hit_rows, hit_columns = _span(rows, height), _span(columns, width)
    return x * ~(hit_rows[:, None, :, None] & hit_columns[:, None, None, :])


def _span(centre: torch.Tensor, side: int) -> torch.Tensor:
    """Which of `side` positions a cut of half the side touches, bool [B, side]."""
    cut = int(side * CUT + 0.5)
    first = (centre - cut // 2).clamp(0, side - 1).view(-1, 1)
    last = (centre - cut // 2 + cut - 1).clamp(0, side - 1).view(-1, 1)
    positions = torch.arange(side, device=centre.device)
    return (positions >= first) & (positions <= last)


def scale(x: torch.Tensor, ux: torch.Tensor, uy: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    """Sample at coordinates times a factor between 1 / 1.2 and 1.2, uniform and independent along x and y."""
    low = 1 / ZOOM
    sx, sy = (u * (ZOOM - low) + low for u in (ux, uy))
    zero = torch.zeros_like(sx)
    return _affine(x, [[sx, zero], [zero, sy]], align_corners)


def rotate(x: torch.Tensor, u: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    """Rotate by 2 (u - 1/2) times 15 degrees about the centre."""
    angle = (u - 0.5) * 2 * DEGREES / 180 * math.pi
    return _affine(x, [[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]], align_corners)


def _affine(x: torch.Tensor, matrix: list[list[torch.Tensor]], align_corners: bool) -> torch.Tensor:
    """Bilinear samples at matrix times coordinates in -1 ... 1, zero outside."""
    zero = torch.zeros_like(matrix[0][0])
    theta = torch.stack([torch.stack([*row, zero], 1) for row in matrix], 1).to(x.dtype).expand(len(x), 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=align_corners)
    return F.grid_sample(x, grid, align_corners=align_corners)


def _each(u: torch.Tensor) -> torch.Tensor:
    return u.view(-1, 1, 1, 1)
