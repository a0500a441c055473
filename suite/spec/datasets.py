"""The registry of datasets: facts that a plan needs, known without opening a single image.

A grid names a dataset, optionally with suffixes that make a smaller or resized variant of it:

- `cifar10-n500`: 500 training images a class;
- `tinyimagenet-c20`: 20 of its classes (those that the source holds, or the first 20 in folder order);
- `imagenette-s160`: synthesis and evaluation at 160 pixels.

Suffixes combine in the order c, n, s: `tinyimagenet-c20-n100-s32`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from suite.errors import UserError, did_you_mean

_IMAGENET = "ImageNet terms of access: non-commercial research and education only; see https://image-net.org/download"
_SUBSET = f"no terms of its own are known to us; its images are ImageNet's ({_IMAGENET})"
_FASTAI = f"images are ImageNet's ({_IMAGENET}); for the packaging see https://github.com/fastai/imagenette"
_DIGITS = (
    "CC BY 4.0, see https://archive.ics.uci.edu/dataset/80 (Alpaydin and Kaynak, Optical Recognition of Handwritten "
    "Digits; via scikit-learn)"
)
_TINY_IMAGES = (
    "its page states no licence and asks to cite Krizhevsky's technical report of 2009; its source, 80 Million Tiny "
    "Images, has been withdrawn; see https://www.cs.toronto.edu/~kriz/cifar.html"
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Facts about a dataset, or about a variant of it.

    Attributes:
        name: The name that grids use, suffixes included.
        base: The registry entry that it comes from.
        classes: Number of classes.
        size: Side S in pixels of what networks see.
        train: Training images (all classes); 0 where the registry does not know.
        val: Validation images.
        mean: Channel means, in [0, 1].
        std: Channel standard deviations, in [0, 1].
        per_class: Training images kept a class, None for all of them.
        native: Side of the stored source images where all are square, else None.
        licence: Terms of its images, in one line; distilled images are derived from them. Not part of any key.
    """

    name: str
    base: str
    classes: int
    size: int
    train: int
    val: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    per_class: int | None = None
    native: int | None = None
    licence: str = ""

    @property
    def stored(self) -> int:
        """Side R of the prepared squares: S, or S // 7 * 8 from 96 pixels up, as papers resize at validation."""
        return self.size if self.size < 96 else self.size // 7 * 8

    @property
    def shareable(self) -> bool:
        """Whether its terms let anyone pass its images on."""
        return self.licence.startswith("CC BY")


def _entry(
    name: str,
    classes: int,
    size: int,
    train: int,
    val: int,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    native: int | None = None,
    licence: str = _IMAGENET,
) -> Dataset:
    return Dataset(name, name, classes, size, train, val, mean, std, None, native, licence)


REGISTRY: dict[str, Dataset] = {
    d.name: d
    for d in (
        # 1,797 scans of handwritten digits, 8x8 grey, enlarged to 16x16 RGB; every fifth image of a class validates.
        _entry("digits", 10, 16, 1442, 355, (0.3052,) * 3, (0.3188,) * 3, 8, _DIGITS),
        _entry("cifar10", 10, 32, 50_000, 10_000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 32, _TINY_IMAGES),
        _entry(
            "cifar100", 100, 32, 50_000, 10_000, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), 32, _TINY_IMAGES
        ),
        _entry(
            "tinyimagenet", 200, 64, 100_000, 10_000, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262), 64, _SUBSET
        ),
        _entry("imagenette", 10, 224, 9_469, 3_925, licence=_FASTAI),
        _entry("imagewoof", 10, 224, 9_025, 3_929, licence=_FASTAI),
        _entry("imagenet100", 100, 224, 126_689, 5_000, licence=_SUBSET),
        _entry("imagenet1k", 1000, 224, 1_281_167, 50_000),
        _entry("imagenet21k", 10_450, 224, 11_060_223, 522_500),
    )
}

_SUFFIXES = re.compile(r"(?:-c(?P<c>[1-9]\d*))?(?:-n(?P<n>[1-9]\d*))?(?:-s(?P<s>[1-9]\d*))?")


@lru_cache(maxsize=1024)
def dataset(name: str, where: str = "") -> Dataset:
    """Look a dataset up by the name that a grid uses.

    Args:
        name: A registry name with optional `-c`, `-n`, `-s` suffixes.
        where: Position in the grid, for the error.

    Raises:
        UserError: If the name or a suffix is unknown or out of range.
    """
    head, _, tail = name.partition("-")
    match = _SUFFIXES.fullmatch(f"-{tail}" if tail else "")
    if head not in REGISTRY or match is None or name.endswith("-"):
        hint = did_you_mean(head, REGISTRY) if head not in REGISTRY else "suffixes are -cCLASSES-nPER_CLASS-sSIZE"
        raise UserError(f"unknown dataset {name!r}", where=where, hint=hint)
    base = REGISTRY[head]
    classes = int(match["c"] or base.classes)
    size = int(match["s"] or base.size)
    per_class = int(match["n"]) if match["n"] else None
    if classes < 2 or classes > base.classes:
        raise UserError(f"{name!r} asks for {classes} classes", where=where, hint=f"{head} has {base.classes}")
    if not 8 <= size <= 1024:
        raise UserError(f"{name!r} asks for {size} pixels", where=where, hint="8 to 1024 are allowed")
    share = classes / base.classes
    train = per_class * classes if per_class else round(base.train * share)
    return replace(
        base, name=name, classes=classes, size=size, per_class=per_class, train=train, val=round(base.val * share)
    )
