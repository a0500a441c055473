"""RDED's parts (arXiv:2312.03526, section 4): crops with antialiasing, selection by cross-entropy, mosaics."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from suite.errors import UserError


def antialiased_crops(x: torch.Tensor, boxes: torch.Tensor, out: int) -> torch.Tensor:
    """Crop boxes and resize them to squares, bilinear with antialiasing, as torchvision's `resized_crop` does.

    Both directions are matrix products with triangle filters, so that boxes of all sizes go through at once.

    Args:
        x: float [N, C, H, W].
        boxes: int64 [N, 4] as (top, left, height, width), inside the image.
        out: Side of the results.

    Returns:
        float [N, C, out, out].
    """
    top, left, height, width = boxes.unbind(1)
    rows = _triangle(top, height, x.shape[2], out, x.dtype)
    columns = _triangle(left, width, x.shape[3], out, x.dtype)
    return rows[:, None] @ x @ columns[:, None].transpose(2, 3)


def _triangle(start: torch.Tensor, length: torch.Tensor, side: int, out: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights [N, out, side] that resize the segment [start, start + length) to `out` points."""
    scale = (length.to(dtype) / out)[:, None, None]
    centres = start[:, None, None] + (torch.arange(out, device=start.device)[None, :, None] + 0.5) * scale
    pixels = torch.arange(side, device=start.device)[None, None, :]
    weights = (1 - (pixels + 0.5 - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    inside = (pixels >= start[:, None, None]) & (pixels < (start + length)[:, None, None])
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)


def zero_pad(x: torch.Tensor, size: int) -> torch.Tensor:
    """Centre [N, 3, s, s] on zeros of side `size`: mean grey, in normalised space."""
    before = (size - x.shape[-1]) // 2
    after = size - x.shape[-1] - before
    return F.pad(x, (before, after, before, after))


def select_crops(ce: torch.Tensor, wanted: int) -> torch.Tensor:
    """The crops with the smallest cross-entropy, one of each image as long as there are enough images.

    With fewer images than wanted crops, the best ceil(wanted / images) crops of each image compete (DELT's extension of
    the selector, which is undefined there).

    Args:
        ce: float [images, crops].
        wanted: How many to pick.

    Returns:
        int64 [wanted, 2] as (image, crop), cross-entropy ascending.

    Raises:
        UserError: If there are fewer crops than wanted.
    """
    images, crops = ce.shape
    each = -(-wanted // images)
    if each > crops:
        raise UserError(
            f"{wanted} crops are wanted, {images} images give {images * crops}", hint="raise `crops` or `candidates`"
        )
    best, which = ce.sort(dim=1, stable=True)
    order = best[:, :each].flatten().argsort(stable=True)[:wanted]
    image = torch.div(order, each, rounding_mode="floor")
    return torch.stack([image, which[image, order % each]], dim=1)


def mosaic(crops: torch.Tensor, factor: int, size: int) -> torch.Tensor:
    """Tile ranked crops: cell k (row-major) of image j is the crop of rank `k * images + j`.

    Every image so mixes one crop of each quality level. Where `size` is no multiple of `factor`, the first rows and
    columns of cells are one pixel larger, and crops are resized to them by nearest neighbour.

    Args:
        crops: [images * factor**2, 3, s, s] in rank order.
        factor: Cells a side.
        size: Side of the results.

    Returns:
        [images, 3, size, size].
    """
    images = len(crops) // factor**2
    sides = [size // factor + (i < size % factor) for i in range(factor)]
    bands = []
    for row, height in enumerate(sides):
        first = row * factor
        cells = [
            F.interpolate(crops[(first + column) * images : (first + column + 1) * images], (height, width))
            for column, width in enumerate(sides)
        ]
        bands.append(torch.cat(cells, dim=3))
    return torch.cat(bands, dim=2)
