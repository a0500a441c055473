"""Label streams (FKD, as SRe2L uses it): the views of every epoch and the teachers' logits on them, in one file.

The file is plain safetensors, so any safetensors reader opens it; it is written epoch by epoch and read by slices of a
memory map, so neither side ever holds the whole of it. With E epochs of N images in batches of B (the last one smaller
and kept), P = E N positions and K = E ceil(N / B) batches:

    index int32 [P], box int16 [P, 4] (if cropped), flip uint8 [P] (if flipped), perm int32 [P] and lam float64 [K] and
    cutmix int16 [K, 4] (if mixed), logits float16 [P, C]

Boxes are whole pixels of the S x S image, not fractions, so that a replayed view is bit-identical to the one that the
teachers saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from suite.data.distilled import DistilledSet
from suite.errors import DataError, InfraError, NumericError
from suite.learn.teachers import Teacher, mean_logits
from suite.learn.view_plans import WHOLE, CutMix, DrawnViews, Renderer, ViewPlan
from suite.spec.datasets import Dataset
from suite.spec.recipes import RelabelRecipe

FORMAT = "label-stream-1"
_CODES = {"F64": "<f8", "F16": "<f2", "I32": "<i4", "I16": "<i2", "U8": "u1"}
#: Logits that are kept on the device before they are written, by number.
_WAITING = 32 << 20
Shapes = dict[str, tuple[str, tuple[int, ...]]]


def layout(recipe: RelabelRecipe, images: int, classes: int) -> Shapes:
    """Names, safetensors types and shapes of the arrays, widest type first (which keeps every array aligned)."""
    positions = recipe.epochs * images
    batches = recipe.epochs * -(-images // min(recipe.batch, images))
    mixed = {"lam": ("F64", (batches,)), "perm": ("I32", (positions,)), "cutmix": ("I16", (batches, 4))}
    arrays: Shapes = {"index": ("I32", (positions,)), "logits": ("F16", (positions, classes))}
    arrays |= mixed if recipe.cutmix else {}
    arrays |= {"box": ("I16", (positions, 4))} if recipe.crop != WHOLE else {}
    arrays |= {"flip": ("U8", (positions,))} if recipe.flip else {}
    return dict(sorted(arrays.items(), key=lambda item: (-np.dtype(_CODES[item[1][0]]).itemsize, item[0])))


def payload_bytes(recipe: RelabelRecipe, images: int, classes: int) -> int:
    """Bytes of a stream without its header: P (4 + 2C + 8 cropped + 1 flipped + 4 mixed) + K (16 mixed)."""
    shapes = layout(recipe, images, classes).values()
    return sum(np.dtype(_CODES[code]).itemsize * prod(shape) for code, shape in shapes)


class _Writer:
    """Fills the arrays of a safetensors file in order of their first axis, through seeks in one open file.

    Plain writes rather than a writable map: a full disk is then an error here and not a SIGBUS.
    """

    def __init__(self, file: IO[bytes], shapes: Shapes, metadata: dict[str, str]) -> None:
        self.file = file
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        self.cursor: dict[str, int] = {}
        self.types: dict[str, np.dtype[Any]] = {}
        end = 0
        for name, (code, shape) in shapes.items():
            self.types[name] = np.dtype(_CODES[code])
            begin, end = end, end + self.types[name].itemsize * prod(shape)
            self.cursor[name] = begin
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self.cursor = {name: begin + 8 + len(text) for name, begin in self.cursor.items()}
        file.truncate(8 + len(text) + end)

    def append(self, name: str, rows: torch.Tensor) -> None:
        data = rows.numpy().astype(self.types[name]).tobytes()
        self.file.seek(self.cursor[name])
        self.file.write(data)
        self.cursor[name] += len(data)


def write_stream(
    path: Path,
    distilled: DistilledSet,
    teachers: Sequence[Teacher],
    recipe: RelabelRecipe,
    seed: int,
    dataset: Dataset,
    device: torch.device,
    precision: str = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Draw the views of every epoch, ask the teachers, and write both. The same arguments give the same bytes.

    Args:
        path: The file to write.
        distilled: The distilled set of N images.
        teachers: Their raw logits are averaged.
        recipe: Epochs, batch, crop, flip, CutMix.
        seed: Of the views and of their order.
        dataset: For classes, mean and standard deviation.
        device: Where views are rendered and teachers run.
        precision: Of the teachers' forward passes.
        progress: Called with (epochs done, all epochs).

    Returns:
        Images that went through a teacher.

    Raises:
        NumericError: If a logit is not finite in fp16.
        InfraError: If the file system refuses.
    """
    images = len(distilled.images)
    views = DrawnViews(recipe, images, distilled.images.shape[-1], seed)
    render = Renderer(distilled.images, dataset, device)
    metadata = {
        "format": FORMAT,
        "facts": json.dumps(
            {
                "images": images,
                "size": views.size,
                "batch": views.batch,
                "epochs": recipe.epochs,
                "classes": dataset.classes,
                "dataset": dataset.name,
                "teachers": [t.arch for t in teachers],
                "recipe": asdict(recipe),
                "seed": seed,
                "precision": precision,
            },
            sort_keys=True,
        ),
    }
    try:
        with path.open("wb") as file:
            writer = _Writer(file, layout(recipe, images, dataset.classes), metadata)
            for epoch in range(recipe.epochs):
                _write_epoch(writer, epoch, views, render, teachers, precision)
                progress(epoch + 1, recipe.epochs)
    except OSError as error:
        raise InfraError(f"cannot write the label stream: {error.strerror}", where=str(path)) from error
    return recipe.epochs * images * len(teachers)


def _write_epoch(
    writer: _Writer, epoch: int, views: DrawnViews, render: Renderer, teachers: Sequence[Teacher], precision: str
) -> None:
    waiting: list[torch.Tensor] = []
    for batch in range(views.batches):
        plan = views.plan(epoch, batch)
        waiting.append(mean_logits(teachers, render(plan), precision).half())
        _append_plan(writer, plan)
        # Logits wait on the device for one another, so that the host does not wait for it at every batch.
        if batch + 1 == views.batches or sum(t.numel() for t in waiting) >= _WAITING:
            logits = torch.cat(waiting).cpu()
            if not bool(logits.isfinite().all()):
                raise NumericError(f"teacher logits of epoch {epoch} are not finite in fp16")
            writer.append("logits", logits)
            waiting.clear()


def _append_plan(writer: _Writer, plan: ViewPlan) -> None:
    writer.append("index", plan.index)
    if plan.boxes is not None:
        writer.append("box", plan.boxes)
    if plan.flips is not None:
        writer.append("flip", plan.flips)
    if plan.cutmix is not None:
        writer.append("perm", plan.cutmix.perm)
        writer.append("lam", torch.tensor([plan.cutmix.lam], dtype=torch.float64))
        writer.append("cutmix", torch.tensor([plan.cutmix.box]))


class LabelStream:
    """A label stream opened for reading, by any epoch and batch.

    Attributes:
        path: The file.
        images: Distilled images N.
        size: Their side S.
        batch: Images a batch B.
        epochs: Stored epochs E.
        classes: Classes C.
        facts: Everything the file says about itself.
        bytes: Size of the file.
        header_bytes: Bytes of the safetensors header in it.
        logit_bytes: Bytes of the logits in it.

    Args:
        path: What `write_stream` wrote.

    Raises:
        DataError: If the file is not a whole label stream.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="pt").__enter__()
            metadata = self._file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise DataError(f"unreadable label stream ({error})", where=str(path)) from error
        if metadata.get("format") != FORMAT:
            raise DataError("not a label stream", where=str(path), hint=f"format {FORMAT} is read")
        self.facts: dict[str, Any] = json.loads(metadata["facts"])
        self.images, self.size = int(self.facts["images"]), int(self.facts["size"])
        self.batch, self.epochs = int(self.facts["batch"]), int(self.facts["epochs"])
        self.classes = int(self.facts["classes"])
        self._slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - not a dict
        self.bytes = path.stat().st_size
        with path.open("rb") as file:
            self.header_bytes = 8 + int.from_bytes(file.read(8), "little")
        self.logit_bytes = 2 * self.epochs * self.images * self.classes

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return -(-self.images // self.batch)

    def plan(self, epoch: int, batch: int) -> ViewPlan:
        """The stored plan of one batch; epochs beyond the last start over at the first."""
        epoch %= self.epochs
        first = batch * self.batch
        begin, end = epoch * self.images + first, epoch * self.images + min(first + self.batch, self.images)
        mix = None
        if "cutmix" in self._slices:
            k = epoch * self.batches + batch
            x1, y1, x2, y2 = (int(v) for v in self._slices["cutmix"][k : k + 1][0])
            lam = float(self._slices["lam"][k : k + 1][0])
            mix = CutMix(lam, self._slices["perm"][begin:end].long(), (x1, y1, x2, y2))
        return ViewPlan(
            index=self._slices["index"][begin:end].long(),
            boxes=self._slices["box"][begin:end].long() if "box" in self._slices else None,
            flips=self._slices["flip"][begin:end].bool() if "flip" in self._slices else None,
            cutmix=mix,
            position=begin,
        )

    def logits(self, plan: ViewPlan) -> torch.Tensor:
        """float16 [B, C] logits of a plan that this stream gave."""
        if plan.position is None:
            raise ValueError("this plan was drawn, not read from a stream")
        rows: torch.Tensor = self._slices["logits"][plan.position : plan.position + len(plan.index)]
        return rows
