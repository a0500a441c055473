"""Random views of image batches: crops, flips, rolls, CutMix and patch shuffles, as tensor operations.

Every function works on a whole batch [B, 3, H, W] at once, takes its random draws as arguments, copies nothing from
the device to the host, and lets gradients through. Draws are made on the CPU by seeded generators, so that they do not
depend on the device, and can be stored and replayed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch.nn import functional as F

#: Attempts of a RandomResizedCrop before it settles for the central crop.
ATTEMPTS = 10

#: Rows x1 up to x2 and columns y1 up to y2, as the references name them.
Box = tuple[int, int, int, int]


def rrc_boxes(
    n: int,
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> torch.Tensor:
    """Draw boxes as torchvision's RandomResizedCrop does.

    Up to ten attempts an image: an area uniform in `area` times the image's, a ratio width / height log-uniform in
    `ratio`, both sides rounded; the first box that fits is placed uniformly. Else the largest central box within
    `ratio`. The same distribution as torchvision's, not the same stream of draws.

    Args:
        n: Number of boxes.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        area: Smallest and largest share of the image's area.
        ratio: Smallest and largest aspect ratio.
        generator: A CPU generator.

    Returns:
        int64 [n, 4] on the CPU: top, left, height, width.
    """
    u = torch.rand(n, ATTEMPTS, 2, generator=generator, dtype=torch.float64)
    place = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    target = height * width * (area[0] + u[..., 0] * (area[1] - area[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + u[..., 1] * (high - low))
    w = torch.round(torch.sqrt(target * aspect)).long()
    h = torch.round(torch.sqrt(target / aspect)).long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # 0 where none fits
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    top = (place[:, 0] * (height - h + 1)).long()
    left = (place[:, 1] * (width - w + 1)).long()
    boxes = torch.stack((top, left, h, w), dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), boxes, _central_box(height, width, ratio))


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> torch.Tensor:
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return torch.tensor([(height - h) // 2, (width - w) // 2, h, w])


def crop_resize(
    x: torch.Tensor,
    boxes: torch.Tensor,
    out: int,
    flips: torch.Tensor | None = None,
    shift: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Cut a box out of every image, resize it to a square, flip and shift it, in one sampling operation.

    Equal to slicing and `F.interpolate(mode="bilinear", align_corners=False, antialias=False)`, then `flip` and `roll`.
    A source coordinate never leaves its box, so neither values nor gradients leak in from outside it. Boxes larger than
    `out` are sampled plainly; papers that go through Pillow smooth them first (`suite.learn.mosaics.antialiased_crops`
    does).

    Args:
        x: Float [B, C, H, W].
        boxes: int64 [B, 4], or [1, 4] for one box that all images share: top, left, height, width. Two pixels or more
            a side, where the image is that large.
        out: Side of the result in pixels.
        flips: bool [B], or [1]: which views are mirrored; None for none.
        shift: Rows and columns by which all views are then shifted circularly.

    Returns:
        [B, C, out, out] in x's dtype; half precision is sampled in float32.
    """
    _check_float(x)
    work = x if x.dtype in (torch.float32, torch.float64) else x.float()
    positions = _coordinates(boxes.to(device=x.device, dtype=work.dtype), tuple(x.shape[2:]), out)
    ys, xs = positions.unbind(1)
    if flips is not None:
        xs = torch.where(flips.to(x.device)[:, None], xs.flip(1), xs)
    if shift is not None and shift[0] % out:
        ys = ys.roll(shift[0], 1)
    if shift is not None and shift[1] % out:
        xs = xs.roll(shift[1], 1)
    n = max(len(xs), len(ys))
    grid = torch.stack((xs[:, None, :].expand(n, out, out), ys[:, :, None].expand(n, out, out)), dim=3)
    grid = grid.expand(len(x), out, out, 2)
    return F.grid_sample(work, grid, mode="bilinear", padding_mode="border", align_corners=False).to(x.dtype)


@lru_cache(maxsize=64)
def _steps(sizes: tuple[int, ...], out: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Pixel centres [out] of the result; for both axes [2, 1] a hair inside a box, and what scales to -1 to 1."""
    with torch.inference_mode(False):
        centres = torch.arange(out, device=device, dtype=dtype) + 0.5
        size = torch.tensor(sizes, device=device, dtype=dtype)[:, None]
        # A hair inside the box, more than the rounding of the units below: no weight ever falls on the pixel beyond.
        return centres, size * torch.finfo(dtype).eps, size


def _coordinates(boxes: torch.Tensor, sizes: tuple[int, ...], out: int) -> torch.Tensor:
    """Source positions [n, 2, out] of rows and columns, in grid_sample's units (-1 to 1)."""
    centres, hair, size = _steps(sizes, out, boxes.device, boxes.dtype)
    start, length = boxes[:, :2, None], boxes[:, 2:, None]
    position = (start + centres * (length / out)).sub_(0.5)
    low, high = start + hair, start + (length - 1 - hair).clamp(min=hair)
    return torch.clamp(position, low, high).mul_(2).add_(1).div_(size).sub_(1)


def flip(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mirror images left to right.

    Args:
        x: [B, C, H, W].
        mask: bool [B], or [1] for the whole batch.
    """
    return torch.where(mask.to(x.device).view(-1, 1, 1, 1), x.flip(3), x)


def roll(x: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Shift a batch [B, C, H, W] circularly by `dy` rows and `dx` columns."""
    return torch.roll(x, (int(dy), int(dx)), dims=(2, 3))


def pad_crop(x: torch.Tensor, pad: int, offsets: torch.Tensor, fill: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Pad every side and cut out windows of the original size (RandomCrop with padding).

    Args:
        x: [B, C, H, W].
        pad: Pixels added at every side.
        offsets: int64 [B, 2] or [1, 2], top and left in 0 ... 2 * pad.
        fill: The value of padding, a number or [C]. Papers pad before normalisation: black is `-mean / std` after it.
    """
    height, width = x.shape[2:]
    offsets = offsets.to(x.device) - pad
    rows = offsets[:, :1] + torch.arange(height, device=x.device)
    columns = offsets[:, 1:] + torch.arange(width, device=x.device)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    by_row = rows.clamp(0, height - 1)[:, None, :, None].expand(x.shape)
    by_column = columns.clamp(0, width - 1)[:, None, None, :].expand(x.shape)
    if isinstance(fill, int | float):  # written by the device: a number from the host would have to be waited for
        padding = x.new_full((), fill)
    else:
        padding = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
    return torch.where(inside, x.gather(2, by_row).gather(3, by_column), padding.view(1, -1, 1, 1))


def cutmix_box(size: int, lam: float, cx: int, cy: int) -> Box:
    """The box of CutMix around (cx, cy) (Yun et al., ICCV 2019), as FKD relabelling rounds it.

    The side is `2 * (floor(size * sqrt(1 - lam)) // 2)` before clipping at the border: odd sides lose one pixel.

    Returns:
        x1, y1, x2, y2: rows x1 up to x2, columns y1 up to y2.
    """
    half = int(size * math.sqrt(1.0 - lam)) // 2
    x1, x2 = max(cx - half, 0), min(cx + half, size)
    y1, y2 = max(cy - half, 0), min(cy + half, size)
    return x1, y1, x2, y2


def draw_cutmix(batch: int, size: int, generator: torch.Generator) -> tuple[float, torch.Tensor, Box]:
    """Draw lambda ~ Beta(1, 1), a permutation int64 [batch] and a box, one for the whole batch."""
    lam = float(torch.rand((), generator=generator, dtype=torch.float64))
    permutation = torch.randperm(batch, generator=generator)
    cx, cy = torch.randint(size, (2,), generator=generator).tolist()
    return lam, permutation, cutmix_box(size, lam, cx, cy)


def cutmix(x: torch.Tensor, permutation: torch.Tensor, box: Box) -> torch.Tensor:
    """Paste a box of each image's partner into it; `x` [B, C, H, W] stays as it is.

    Args:
        x: The images.
        permutation: int64 [B], the partners.
        box: What `cutmix_box` returns.
    """
    x1, y1, x2, y2 = box
    mixed = x.clone()
    mixed[:, :, x1:x2, y1:y2] = x[permutation.to(x.device), :, x1:x2, y1:y2]
    return mixed


def patch_shuffle(x: torch.Tensor, f: int, col_perm: torch.Tensor, row_perm: torch.Tensor) -> torch.Tensor:
    """Reorder `f` column strips, then `f` row strips (RDED, section 4.3).

    Where `f` does not divide the side, the strips are `side // f` wide and the remainder stays at the right and the
    bottom; the reference drops it, which changes the size of the images.

    Args:
        x: [B, C, H, W].
        f: Strips along a side; 1 changes nothing.
        col_perm: int64 [f], or [B, f] for one order an image; strip i of the result is strip `col_perm[i]` of x.
        row_perm: int64 of the same shape.
    """
    columns = _strip_index(col_perm.to(x.device), x.shape[3], f)
    rows = _strip_index(row_perm.to(x.device), x.shape[2], f)
    if columns.dim() == 1:
        return x[:, :, rows[:, None], columns]
    by_row = rows[:, None, :, None].expand(x.shape)
    return x.gather(2, by_row).gather(3, columns[:, None, None, :].expand(x.shape))


def _strip_index(permutation: torch.Tensor, size: int, f: int) -> torch.Tensor:
    """Source positions [size] or [B, size] of shuffled strips."""
    width = size // f
    strips = permutation[..., None] * width + torch.arange(width, device=permutation.device)
    rest = torch.arange(width * f, size, device=permutation.device)
    return torch.cat((strips.flatten(-2), rest.expand(*permutation.shape[:-1], -1)), dim=-1)


def _check_float(x: torch.Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"views are sampled from float images, not {x.dtype}")
