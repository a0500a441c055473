"""Bytes of labels: what a file of each label policy holds, by formula, before it exists and without reading it.

With N = C x IPC distilled images, C classes, E epochs and batches of B images:

=========  ============================================================================================================
hard       N ceil(log2(C) / 8)
vector     2 N C: one fp16 probability a class and image (in fp32, as label-worth's code keeps them, twice that)
stored     P (4 + 2 C + 8 cropped + 1 flipped + 4 mixed) + 16 K mixed, for P positions in K batches:
           all, K = E ceil(N / B) and P = E N; pruned by r, K = int(E floor(N / B) (1 - r)) and P = K B
online     none; the teachers' weight files instead
=========  ============================================================================================================

A safetensors header comes on top: some 100 bytes for vectors, under 2 kB for a stream. The papers' code writes every
batch into a file of its own with wider records (`reference_stream_bytes`), which costs 1 % more at C = 1000 and B = 128
and a multiple at C = 10. A row's ledger holds the bytes on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from suite.spec.recipes import WHOLE, LabelRecipe, RelabelRecipe

#: Safetensors types of the arrays that label files hold, and their bytes.
ITEM_BYTES = {"F64": 8, "I32": 4, "F16": 2, "I16": 2, "U8": 1}
#: Bytes of the zip container of one record as the references write it (torch 2.13; it varies between versions).
REFERENCE_CONTAINER = 2_357
Shapes = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class StreamShape:
    """How many batches a label stream has.

    Attributes:
        batch: Images a batch B, capped at N.
        per_epoch: Batches an epoch: ceil(N / B); floor(N / B) if the stream is pruned, all of them full.
        batches: Batches in the file K.
        span: Positions an epoch.
        positions: Positions in the file P.
    """

    batch: int
    per_epoch: int
    batches: int
    span: int
    positions: int


def kept_batches(epochs: int, per_epoch: int, prune: float) -> int:
    """LPLD's int(E n_b (1 - r)) in binary floats, which for some r is one less than in exact arithmetic."""
    return int(epochs * per_epoch * (1 - prune))


def stream_shape(recipe: RelabelRecipe, images: int) -> StreamShape:
    """The batches that a stream of these labels keeps."""
    batch, prune = min(recipe.batch, images), recipe.label.prune
    if prune == 0:
        per_epoch = -(-images // batch)
        return StreamShape(batch, per_epoch, recipe.epochs * per_epoch, images, recipe.epochs * images)
    per_epoch = images // batch
    kept = kept_batches(recipe.epochs, per_epoch, prune)
    return StreamShape(batch, per_epoch, kept, per_epoch * batch, kept * batch)


def stream_layout(recipe: RelabelRecipe, images: int, classes: int) -> Shapes:
    """Names, safetensors types and shapes of a stream's arrays, widest type first (which keeps every array aligned)."""
    shape = stream_shape(recipe, images)
    arrays: Shapes = {"index": ("I32", (shape.positions,)), "logits": ("F16", (shape.positions, classes))}
    if recipe.cutmix:
        arrays |= {"lam": ("F64", (shape.batches,)), "perm": ("I32", (shape.positions,))}
        arrays |= {"cutmix": ("I16", (shape.batches, 4))}
    if recipe.crop != WHOLE:
        arrays["box"] = ("I16", (shape.positions, 4))
    if recipe.flip:
        arrays["flip"] = ("U8", (shape.positions,))
    return dict(sorted(arrays.items(), key=lambda item: (-ITEM_BYTES[item[1][0]], item[0])))


def stream_bytes(recipe: RelabelRecipe, images: int, classes: int) -> int:
    """Bytes of a label stream without its header."""
    return sum(ITEM_BYTES[code] * prod(shape) for code, shape in stream_layout(recipe, images, classes).values())


def vector_bytes(images: int, classes: int) -> int:
    """Bytes of one fp16 vector an image, without the header."""
    return images * classes * ITEM_BYTES["F16"]


def hard_label_bytes(images: int, classes: int) -> int:
    """Bytes of class numbers: each takes the whole bytes that the largest of them needs."""
    return images * max(1, -(-(classes - 1).bit_length() // 8))


def label_bytes(labels: str, recipe: RelabelRecipe, images: int, classes: int) -> int:
    """Bytes of a relabelling: `stored` or `vector`."""
    return vector_bytes(images, classes) if labels == "vector" else stream_bytes(recipe, images, classes)


def reference_stream_bytes(
    epochs: int, images: int, batch: int, classes: int, prune: float = 0.0, mixed: bool = True
) -> int:
    """Bytes of FKD's and LPLD's own records: P (2C + 17 + 8 mixed) + K containers, one file a batch.

    A record holds fp16 logits, a crop in four fp32 fractions, a flip, and an int64 CutMix partner an image.

    Args:
        epochs: E.
        images: N.
        batch: B; an incomplete batch is left out if the stream is pruned.
        classes: C.
        prune: Share r that is left out.
        mixed: Whether there is a CutMix.
    """
    label = LabelRecipe(prune=prune)
    shape = stream_shape(RelabelRecipe(epochs, batch, label=label), images)
    return shape.positions * (2 * classes + 17 + 8 * mixed) + shape.batches * REFERENCE_CONTAINER
