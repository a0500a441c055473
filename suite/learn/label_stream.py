"""Label streams (FKD, as SRe2L uses it): the views of every epoch and the teachers' logits on them, in one file.

The file is plain safetensors, so any safetensors reader opens it; it is written batch by batch and read by slices of a
memory map, so neither side ever holds the whole of it. With P positions in K batches (`suite.spec.storage` says how
many, and how many bytes that is):

    index int32 [P], box int16 [P, 4] (if cropped), flip uint8 [P] (if flipped), perm int32 [P] and lam float64 [K] and
    cutmix int16 [K, 4] (if mixed), logits float16 [P, C]

Boxes are whole pixels of the S x S image, not fractions, so that a replayed view is bit-identical to the one that the
teachers saw. A batch is found by its number; a pruned stream (LPLD) holds only the first K full batches of the same
views, and its students draw from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from suite.data.distilled import DistilledSet
from suite.errors import DataError, InfraError, NumericError, UserError
from suite.learn.checkpoint import Checkpoint, Never
from suite.learn.ensembles import label_logits
from suite.learn.growing import Growing
from suite.learn.job import generator
from suite.learn.teachers import Teacher
from suite.learn.view_plans import CutMix, DrawnViews, Renderer, ViewPlan
from suite.spec.datasets import Dataset
from suite.spec.recipes import RelabelRecipe
from suite.spec.storage import Shapes, StreamShape, stream_layout, stream_shape

FORMAT = "label-stream-2"
_CODES = {"F64": "<f8", "F16": "<f2", "I32": "<i4", "I16": "<i2", "U8": "u1"}
#: Logits that are kept on the device before they are written, by number.
_WAITING = 32 << 20


class _Writer:
    """Fills the arrays of a safetensors file in order of their first axis, through seeks in one open file.

    Plain writes rather than a writable map: a full disk is then an error here and not a SIGBUS.
    """

    def __init__(self, grown: Growing, shapes: Shapes, metadata: dict[str, str]) -> None:
        self.grown = grown
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        self.types: dict[str, np.dtype[Any]] = {}
        begins: dict[str, int] = {}
        end = 0
        for name, (code, shape) in shapes.items():
            self.types[name] = np.dtype(_CODES[code])
            begins[name], end = end, end + self.types[name].itemsize * prod(shape)
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begins[name], end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        grown.file.write(len(text).to_bytes(8, "little") + text)
        grown.file.truncate(8 + len(text) + end)
        grown.begin({name: at + 8 + len(text) for name, at in begins.items()})

    def append(self, name: str, rows: torch.Tensor) -> None:
        self.grown.append(name, rows.numpy().astype(self.types[name]).tobytes())


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
    checkpoint: Checkpoint | None = None,
) -> int:
    """Draw the views of every epoch, ask the teachers, and write both. The same arguments give the same bytes.

    With a checkpoint, the file grows beside it, and an interrupted stream goes on in it.

    Args:
        path: The file to write.
        distilled: The distilled set of N images.
        teachers: At least one.
        recipe: Epochs, batch, crop, flip, CutMix, and how labels follow from the teachers' logits.
        seed: Of the views and of their order.
        dataset: For classes, mean and standard deviation.
        device: Where views are rendered and teachers run.
        precision: Of the teachers' forward passes.
        progress: Called with (epochs done, all epochs).
        checkpoint: Where an interrupted stream goes on; None to start again.

    Returns:
        Images that went through a teacher.

    Raises:
        UserError: If pruning leaves no batch, or weights do not fit the teachers.
        NumericError: If a logit is not finite in fp16.
        InfraError: If the file system refuses.
    """
    images = len(distilled.images)
    shape = stream_shape(recipe, images)
    if shape.batches == 0:
        raise UserError(f"pruning by {recipe.label.prune} leaves no batch of {recipe.epochs} epochs")
    views = DrawnViews(recipe, images, distilled.images.shape[-1], seed)
    render = Renderer(distilled.images, dataset, device)

    def ask(x: torch.Tensor) -> torch.Tensor:
        return label_logits(teachers, x, recipe.label, shape.batch, precision)

    metadata = {
        "format": FORMAT,
        "facts": json.dumps(
            {
                "images": images,
                "size": views.size,
                "shape": asdict(shape),
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
    layout = stream_layout(recipe, images, dataset.classes)
    try:
        checkpoint = checkpoint or Never()
        saved = checkpoint.load()
        with checkpoint.growing(path) as grown:
            writer = _Writer(grown, layout, metadata)
            batches = _Batches(writer, checkpoint, saved["batches"] if saved is not None else 0)
            for number in range(batches.begun, shape.batches):
                plan = views.plan(*divmod(number, shape.per_epoch))
                batches.add(number, plan, ask(render(plan)).half(), last=number + 1 == shape.batches)
                if (number + 1) % shape.per_epoch == 0 or number + 1 == shape.batches:
                    progress(number // shape.per_epoch + 1, -(-shape.batches // shape.per_epoch))
    except OSError as error:
        size = sum(np.dtype(_CODES[code]).itemsize * prod(shape) for code, shape in layout.values())
        raise InfraError(f"cannot write {size} bytes of labels: {error.strerror}", where=str(path)) from error
    return shape.positions * len(teachers)


class _Batches:
    """Batches on their way into a stream.

    Attributes:
        begun: Batches that are in it.
    """

    def __init__(self, writer: _Writer, checkpoint: Checkpoint, begun: int) -> None:
        self.writer, self.checkpoint, self.begun = writer, checkpoint, begun
        self.waiting: list[torch.Tensor] = []

    def add(self, number: int, plan: ViewPlan, logits: torch.Tensor, last: bool) -> None:
        """Write a batch; its logits wait on the device for others, so that the host does not wait for every batch."""
        self.waiting.append(logits)
        _append_plan(self.writer, plan)
        due = self.checkpoint.due()
        if due or last or sum(t.numel() for t in self.waiting) >= _WAITING:
            rows = torch.cat(self.waiting).cpu()
            if not bool(rows.isfinite().all()):
                raise NumericError(f"teacher logits are not finite in fp16 by batch {number}")
            self.writer.append("logits", rows)
            self.waiting.clear()
        if due:
            self.checkpoint.save({"batches": number + 1})


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
    """A label stream opened for reading, by the number of any batch.

    Attributes:
        path: The file.
        images: Distilled images N.
        size: Their side S.
        shape: How many batches it has, of how many images.
        epochs: Epochs of views E that it was made for.
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
        self.shape, self.epochs = StreamShape(**self.facts["shape"]), int(self.facts["epochs"])
        self.classes = int(self.facts["classes"])
        self._slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - not a dict
        self.bytes = path.stat().st_size
        with path.open("rb") as file:
            self.header_bytes = 8 + int.from_bytes(file.read(8), "little")
        self.logit_bytes = 2 * self.shape.positions * self.classes

    def read(self, number: int) -> ViewPlan:
        """The stored plan of one batch, of the K that there are."""
        epoch, batch = divmod(number, self.shape.per_epoch)
        begin = epoch * self.shape.span + batch * self.shape.batch
        end = min(begin + self.shape.batch, (epoch + 1) * self.shape.span)
        mix = None
        if "cutmix" in self._slices:
            x1, y1, x2, y2 = (int(v) for v in self._slices["cutmix"][number : number + 1][0])
            lam = float(self._slices["lam"][number : number + 1][0])
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


class InOrder:
    """A whole stream as a student replays it: in the order in which it was written, from the start after its end."""

    def __init__(self, stream: LabelStream) -> None:
        self.stream = stream

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return self.stream.shape.per_epoch

    def plan(self, epoch: int, batch: int) -> ViewPlan:
        """The stored plan of one batch."""
        return self.stream.read((epoch * self.batches + batch) % self.stream.shape.batches)


def not_last(numbers: torch.Tensor, per_epoch: int) -> torch.Tensor:
    """Replace the numbers of batches that were the last of their epoch by those before them (LPLD, as released).

    With one batch an epoch every batch is a last one, and all stay.
    """
    return numbers - (numbers % per_epoch == per_epoch - 1).long() if per_epoch > 1 else numbers


class Pool:
    """A pruned stream as a student uses it: each epoch draws its batches from all that are kept, with replacement.

    LPLD, section 3.3, "batch to epoch": floor(N / B) batches an epoch, found by their number.

    Args:
        stream: An open stream.
        seed: The student's.
    """

    def __init__(self, stream: LabelStream, seed: int) -> None:
        self.stream, self.seed = stream, seed
        self._drawn: tuple[int, torch.Tensor] | None = None

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return self.stream.shape.per_epoch

    def numbers(self, epoch: int) -> torch.Tensor:
        """The batches of an epoch, int64 [n_b]."""
        if self._drawn is None or self._drawn[0] != epoch:
            draws = generator(self.seed, "label pool", epoch)
            drawn = torch.randint(self.stream.shape.batches, (self.batches,), generator=draws)
            self._drawn = epoch, not_last(drawn, self.batches)
        return self._drawn[1]

    def plan(self, epoch: int, batch: int) -> ViewPlan:
        """The stored plan of a drawn batch."""
        return self.stream.read(int(self.numbers(epoch)[batch]))
