"""A directory with a distilled set that was made elsewhere: found, checked, decoded, and imported into the store."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from suite.data.beton import check_beton
from suite.data.distilled import DistilledSet
from suite.data.external import IMAGES, LABELS, External, teacher_file
from suite.data.ffcv_stream import FfcvStream, require_ffcv
from suite.errors import DataError, UserError
from suite.exchange import label_files
from suite.exchange.folders import class_folders, read_folders
from suite.exchange.label_files import LabelFile, read_labels
from suite.exchange.ledger import image_entries, teacher_entries
from suite.learn.teachers import load_teacher
from suite.learn.weights import read_weights
from suite.provenance import provenance
from suite.spec.archs import check_arch
from suite.spec.datasets import Dataset
from suite.spec.keys import plain
from suite.spec.recipes import Labels
from suite.store import Artifact, Attempt, Record, Store
from suite.store.files import sha256

BETON, FOLDER, TEACHERS = "train.beton", "train", "teachers"
#: Seconds without a batch after which reading a beton counts as stalled.
_TIMEOUT = 300.0


@dataclass(frozen=True)
class Images:
    """Images of a delivered set.

    Attributes:
        form: `imagefolder`, `beton` or `safetensors`.
        root: What names of files are relative to.
        files: All files.
        distilled: Decoded.
        label_bytes: Bytes of class numbers in the files.
    """

    form: str
    root: Path
    files: list[Path]
    distilled: DistilledSet
    label_bytes: int


@dataclass(frozen=True)
class Delivered:
    """A checked set from elsewhere.

    Attributes:
        images: Its images.
        labels: The label policy that it brings what is needed for.
        label_file: Its labels on disk, if it has any.
        teachers: (architecture, weight file) of teachers that came with it.
        external: What the store keeps of all this.
    """

    images: Images
    labels: Labels
    label_file: LabelFile | None
    teachers: list[tuple[str, Path]]
    external: External = field(init=False)

    def __post_init__(self) -> None:
        entries = image_entries(self.images.files, self.labels, self.images.label_bytes)
        named = [(f.relative_to(self.images.root).as_posix(), f) for f in self.images.files]
        if self.label_file is not None:
            entries += self.label_file.entries
            named.append((f"labels{self.label_file.path.suffix}", self.label_file.path))
        entries += teacher_entries(self.teachers)
        named += [(f"teacher.{i}{file.suffix}", file) for i, (_, file) in enumerate(self.teachers)]
        files = tuple((name, file.stat().st_size, sha256(file)) for name, file in named)
        archs = tuple(arch for arch, _ in self.teachers)
        object.__setattr__(self, "external", External(self.images.form, self.labels, archs, files, tuple(entries)))


def read(
    folder: Path,
    facts: Dataset,
    classes: Sequence[str],
    ipc: int,
    *,
    labels: Labels | None = None,
    label_file: Path | None = None,
    teachers: Sequence[tuple[str, Path]] = (),
    relabelled: bool = False,
) -> Delivered:
    """Read a delivered set.

    Args:
        folder: Class folders (in it, or in its `train`), a `train.beton`, or a `distilled.safetensors`; beside them
            perhaps a label file and `teachers/N-ARCH.safetensors`.
        facts: The dataset that it stands for.
        classes: Names of its classes, in the order of labels.
        ipc: Images a class.
        labels: The label policy wanted; by default what the folder brings. What the policy does not use is not read.
        label_file: Labels that lie elsewhere.
        teachers: Teachers whose weights lie elsewhere, instead of the folder's own.
        relabelled: Whether labels are made anew, so that those of the folder are not used.

    Raises:
        UserError: If there is no such folder, or labels that are wanted are not there.
        DataError: If it is not a set of `ipc` images for each class of the dataset.
    """
    if not folder.is_dir():
        raise UserError("no such directory", where=str(folder))
    images = read_images(folder, facts, classes, ipc)
    found = label_file or next((folder / n for n in label_files.NAMES if (folder / n).is_file()), None)
    opened = None
    if found is not None and labels in (None, "vector", "stored") and not relabelled:
        opened = read_labels(found, len(images.distilled.labels), facts.classes)
        if labels not in (None, opened.labels):
            hint = f"--labels {opened.labels}, or --teacher for labels that are made anew"
            raise UserError(
                f"{labels} labels are asked for, but these are {opened.labels}", where=str(found), hint=hint
            )
    own = list(teachers) if relabelled else own_teachers(folder)
    policy: Labels = labels or (opened.labels if opened else "online" if own or relabelled else "hard")
    if policy == "hard" or opened is not None:
        own = []
    for arch, file in own:
        load_teacher(check_arch(arch), facts, path=file)  # refuses weights that do not fit
    return Delivered(images, policy, opened, own)


def own_teachers(folder: Path) -> list[tuple[str, Path]]:
    """(architecture, file) of `teachers/N-ARCH.safetensors` (or .pth) below a folder, in the order of N."""
    found = []
    for path in (folder / TEACHERS).glob("*"):
        if match := re.fullmatch(r"(\d+)-(.+)", path.stem):
            found.append((int(match[1]), match[2], path))
    return [(arch, path) for _, arch, path in sorted(found)]


def read_images(folder: Path, facts: Dataset, classes: Sequence[str], ipc: int) -> Images:
    """Find and decode the images of a delivered set; errors as of `read`."""
    inside = [p for p in (folder / BETON, folder / IMAGES) if p.is_file()]
    root = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    folders = [p for p in class_folders(root) if root != folder or p.name != TEACHERS]
    if len(inside) + bool(folders) != 1:
        seen = [p.name for p in inside] + ["class folders"] * bool(folders)
        what = f"several sets: {', '.join(seen)}" if seen else "no distilled images"
        hint = f"class folders with images, {BETON} or {IMAGES}"
        raise DataError(what, where=str(folder), hint=f"keep one of them, in {hint}" if seen else hint)
    if folders:
        read_ = read_folders(root, classes, ipc, facts.size, facts.name)
        labels = torch.arange(facts.classes).repeat_interleave(ipc)
        return Images("imagefolder", root, read_.files, DistilledSet(read_.images, labels), 0)
    file = inside[0]
    distilled, label_bytes = (_from_beton if file.name == BETON else _from_tensors)(file, facts)
    try:
        distilled.check(facts.classes, ipc, facts.size)
    except DataError as error:
        raise DataError(error.what, where=str(file), hint=f"{error.hint} ({facts.name}, --ipc {ipc})") from error
    return Images("beton" if file.name == BETON else "safetensors", folder, [file], distilled, label_bytes)


def _from_beton(file: Path, facts: Dataset) -> tuple[DistilledSet, int]:
    require_ffcv()
    try:
        beton = check_beton(file, classes=facts.classes)
    except DataError as error:
        raise DataError(error.what, where=error.where, hint="copy it again, or bring the images in folders") from error
    stream = FfcvStream(beton, str(file), _TIMEOUT, None, compiled=False)
    images = torch.cat(list(stream.read(np.arange(len(beton.labels)), 256)))
    return DistilledSet(images, torch.from_numpy(beton.labels)), beton.labels.nbytes


def _from_tensors(file: Path, facts: Dataset) -> tuple[DistilledSet, int]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        hint = "copy it again; a safetensors file with `images` and `labels` is read"
        raise DataError(f"unreadable ({error})", where=str(file), hint=hint) from error
    if not {"images", "labels"} <= set(tensors):
        hint = "tensors `images` (uint8 [N, 3, S, S]) and `labels` (int64 [N])"
        raise DataError(f"tensors {', '.join(sorted(tensors)) or 'missing'}", where=str(file), hint=hint)
    labels = tensors["labels"]
    return DistilledSet(tensors["images"], labels.long()), labels.numel() * labels.element_size()


def import_set(
    store: Store, delivered: Delivered, dataset: str, ipc: int, source: str, say: Callable[[str], None] = print
) -> Artifact:
    """Publish a delivered set in the store; one that is there already is opened.

    Args:
        store: Where.
        delivered: What `read` gave.
        dataset: The dataset that it stands for.
        ipc: Images a class.
        source: Name of the directory that it came from, for provenance.
        say: Told what happens.
    """
    stage = delivered.external.stage(dataset, ipc)
    try:
        artifact = store.open(stage.kind, stage.key)
        say(f"already in the store: synthesis {stage.key}")
        return artifact
    except FileNotFoundError:
        pass
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with Attempt(store, stage, {}) as attempt:
        write_payload(delivered, attempt.dir)
        record = Record("synthesis", stage.key, "", "done", plain(stage.spec), started=started)
        record.storage = list(delivered.external.ledger)
        record.provenance = provenance() | {"external": True, "source": source}
        artifact = attempt.publish(record)
    say(f"imported {os.fspath(source)}: synthesis {stage.key}")
    return artifact


def write_payload(delivered: Delivered, folder: Path) -> None:
    """Write the files of the artifact."""
    delivered.images.distilled.save(folder / IMAGES)
    if delivered.label_file is not None:
        delivered.label_file.save(folder / LABELS)
    for i, (_, file) in enumerate(delivered.teachers):
        if file.suffix == ".safetensors":
            shutil.copyfile(file, folder / teacher_file(i))
        else:
            weights = {name: t.contiguous() for name, t in read_weights(file).items()}
            save_file(weights, folder / teacher_file(i))
    delivered.external.save(folder)
