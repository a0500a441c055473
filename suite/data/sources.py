"""Sources: where a dataset's images come from, and what must hold before any of them is written.

A source is a directory or a tar (plain, .gz, .bz2, .xz) with `train/CLASS/file` and `val/CLASS/file`, possibly inside
one more directory; or the embedded digits. Archives are never extracted: a compressed one is spooled once into an
unnamed temporary file, and members are read from it by position.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

import numpy as np
from PIL import Image

from suite.data.listing import EXPECTED, SPLITS, class_names, first_three, is_image, source_root
from suite.errors import DataError, InfraError, UserError
from suite.spec.datasets import Dataset

_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes:
        split: `train` or `val`.
        label: Its class's name: the directory's.
        name: Path below the class directory.
        place: What the source needs to read it.
    """

    split: str
    label: str
    name: str
    place: object

    @property
    def path(self) -> str:
        """The path inside the source, for messages."""
        return f"{self.split}/{self.label}/{self.name}"


class Source(Protocol):
    """A listing of images, and their bytes. `read` may be called from several threads."""

    where: str

    def items(self) -> list[Item]:
        """All images, in any order."""
        ...

    def read(self, item: Item) -> bytes:
        """The encoded bytes of one image."""
        ...


@dataclass(frozen=True)
class Selection:
    """The images that a dataset variant consists of, in the order in which they are stored.

    Attributes:
        classes: Names in label order: sorted.
        train: Class by class, names sorted.
        val: The same for the validation split.
    """

    classes: list[str]
    train: list[Item]
    val: list[Item]

    def split(self, name: str) -> list[Item]:
        """The images of `train` or `val`."""
        return self.train if name == "train" else self.val

    def counts(self, name: str) -> list[int]:
        """Images of each class in a split."""
        place = {c: i for i, c in enumerate(self.classes)}
        return np.bincount([place[i.label] for i in self.split(name)], minlength=len(self.classes)).tolist()


@contextmanager
def open_source(dataset: Dataset, path: Path | None, scratch: Path) -> Iterator[Source]:
    """Open the source of a dataset.

    Args:
        dataset: Its facts; the embedded digits need no path.
        path: A directory or a tar.
        scratch: An existing directory for the unnamed temporary file of a compressed tar.

    Raises:
        DataError: If there is no path, or it is missing or not readable as a source.
    """
    if dataset.base == "digits":
        if path is not None:
            raise UserError("digits is embedded in scikit-learn and takes no source", where=str(path))
        yield DigitsSource()
        return
    if path is None:
        hint = f"run: python -m suite.prepare {dataset.name} --source DIR_OR_TAR"
        raise DataError(f"dataset {dataset.name} is not prepared and no source is known for {dataset.base}", hint=hint)
    with open_path(path, scratch) as source:
        yield source


@contextmanager
def open_path(path: Path, scratch: Path) -> Iterator[Source]:
    """Open a directory or a tar as a source; arguments and errors are those of `open_source`."""
    if path.is_dir():
        yield FolderSource(path)
    elif path.is_file():
        with _plain_tar(path, scratch) as tar:
            yield TarSource(path, tar)
    elif path.exists():
        raise DataError("neither a directory nor a file", where=str(path))
    else:
        raise DataError("no such directory or tar", where=str(path))


class FolderSource:
    """A directory on disk."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.root = source_root(path)

    def items(self) -> list[Item]:
        """All images below train/ and val/."""
        found = []
        for split in SPLITS:
            seen: dict[tuple[int, int], str] = {}
            for folder, folders, names in os.walk(self.root / split, onerror=self._unlistable, followlinks=True):
                self._once(folder, seen)
                folders[:] = [f for f in folders if not f.startswith(".")]
                inside = Path(folder).relative_to(self.root / split)
                # A class with no file at all still has to be reported as empty.
                if len(inside.parts) == 1 and not names and not folders:
                    found.append(Item(split, inside.parts[0], "", None))
                found.extend(_item(split, (*inside.parts, n), Path(folder, n)) for n in names if _visible(n))
        return found

    def _unlistable(self, error: OSError) -> None:
        """What `os.walk` would pass over, leaving images out."""
        if not isinstance(error, FileNotFoundError):
            raise DataError(f"cannot list {error.filename}: {error.strerror}", where=self.where) from error

    def _once(self, folder: str, seen: dict[tuple[int, int], str]) -> None:
        """Refuse a directory that links lead to twice: its images would count twice, or for ever."""
        mark = Path(folder).stat()
        if (first := seen.setdefault((mark.st_dev, mark.st_ino), folder)) != folder:
            raise DataError(f"links make {folder} and {first} the same directory", where=self.where)

    def read(self, item: Item) -> bytes:
        """The file's bytes.

        Raises:
            DataError: If it is a pipe or a device, which could keep a reader waiting for ever.
        """
        path = Path(str(item.place))
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"not a file: {item.path}", where=self.where)
        return path.read_bytes()


class TarSource:
    """A plain tar, open for reading by position."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.where = str(path)
        self._file = file
        self._lock = threading.Lock()

    def items(self) -> list[Item]:
        """All images, from one pass over the members' headers."""
        members: list[tuple[tuple[str, ...], tarfile.TarInfo]] = []
        bad: list[str] = []
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                    path = PurePosixPath(member.name)
                    parts = tuple(p for p in path.parts if p != ".")
                    if path.is_absolute() or ".." in parts:
                        bad.append(f"{member.name} (leads out of the archive)")
                    elif member.isdir():
                        members.append((parts, member))
                    elif not member.isreg() or member.issparse():
                        bad.append(f"{member.name} (link or special file)")
                    else:
                        members.append((parts, member))
                # tarfile takes a damaged header, or the end of the file, for the end of the archive.
                self._file.seek(tar.offset)
                if self._file.read(512) != bytes(512):
                    raise tarfile.ReadError(f"truncated or damaged at byte {tar.offset}")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"not a readable tar ({error})", where=self.where) from error
        if bad:
            raise DataError(f"refused members: {first_three(bad)}", where=self.where)
        top = {p[0] for p, m in members if p and (len(p) > 1 or m.isdir())}
        skip = 1 if len(top) == 1 and not top & set(SPLITS) else 0
        found = []
        for parts, member in members:
            parts = parts[skip:]
            if not parts or parts[0] not in SPLITS:
                continue
            if member.isdir():
                if len(parts) == 2:
                    found.append(Item(parts[0], parts[1], "", None))
            elif all(map(_visible, parts)):
                found.append(_item(parts[0], parts[1:], (member.offset_data, member.size)))
        return found

    def read(self, item: Item) -> bytes:
        """The member's bytes."""
        start, size = cast(tuple[int, int], item.place)
        with self._lock:
            self._file.seek(start)
            return self._file.read(size)


class DigitsSource:
    """scikit-learn's digits: 1,797 8x8 greys of 0..16; every fifth image of a class, in order, validates."""

    where = "digits (scikit-learn)"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        self._targets = digits.target

    def items(self) -> list[Item]:
        """All images; their place is their index."""
        found = []
        for digit in range(10):
            for rank, index in enumerate(np.flatnonzero(self._targets == digit)):
                split = "val" if rank % 5 == 4 else "train"
                found.append(Item(split, str(digit), f"{int(index):04d}.png", int(index)))
        return found

    def read(self, item: Item) -> bytes:
        """The image as PNG."""
        buffer = io.BytesIO()
        Image.fromarray(self._images[item.place]).save(buffer, "PNG")  # type: ignore[index]
        return buffer.getvalue()


@contextmanager
def _plain_tar(path: Path, scratch: Path) -> Iterator[IO[bytes]]:
    """An uncompressed tar, open for reading: the file itself, or an unnamed temporary copy of what it compresses."""
    with path.open("rb") as file:
        head = file.read(6)
    opener = _opener(head)
    if opener is None:
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=scratch) as spool:
        try:
            with opener(path) as compressed:
                while chunk := compressed.read(_CHUNK):
                    try:
                        spool.write(chunk)
                    except OSError as error:
                        raise InfraError(f"cannot decompress: {error.strerror}", where=str(scratch)) from error
        except InfraError:
            raise
        except Exception as error:  # lzma.LZMAError, zlib.error, EOFError, OSError: each means a damaged file
            raise DataError(f"cannot be decompressed ({error})", where=str(path)) from error
        spool.seek(0)
        yield spool


def _opener(head: bytes) -> Callable[[Path], IO[bytes]] | None:
    if head.startswith(b"\xfd7zXZ\0"):
        import lzma

        return lambda p: lzma.open(p, "rb")
    if head.startswith(b"\x1f\x8b"):
        import gzip

        return lambda p: gzip.open(p, "rb")  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        import bz2

        return lambda p: bz2.open(p, "rb")
    return None


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _item(split: str, parts: tuple[str, ...], place: object) -> Item:
    if len(parts) == 1:  # a file beside the class directories
        return Item(split, "", parts[0], place)
    return Item(split, parts[0], "/".join(parts[1:]), place)


def select(dataset: Dataset, source: Source) -> Selection:
    """Choose a variant's images, after checking that the source is what the registry says.

    `-cK` takes the first K classes in folder order, or exactly K; `-nN` the first N training images of each class in
    the order of their names; validation stays whole.

    Raises:
        DataError: If a split or class is missing or empty, class counts differ, images lie outside class directories,
            or a class has fewer than N training images. The first three offenders are named.
    """
    by_split = by_class(source)
    classes = class_names(dataset, by_split["train"], by_split["val"], source.where)
    empty = [f"{s}/{c}" for s in SPLITS for c in classes if not by_split[s].get(c)]
    if empty:
        raise DataError(f"no images in {first_three(empty)}", where=source.where)
    wanted = dataset.per_class
    short = [f"train/{c} ({len(by_split['train'][c])})" for c in classes if len(by_split["train"][c]) < (wanted or 0)]
    if short:
        raise DataError(f"fewer than {wanted} training images in {first_three(short)}", where=source.where)

    def chosen(split: str, count: int | None) -> list[Item]:
        return [i for c in classes for i in sorted(by_split[split][c], key=lambda i: i.name)[:count]]

    return Selection(classes, chosen("train", wanted), chosen("val", None))


def by_class(source: Source, splits: tuple[str, ...] = SPLITS) -> dict[str, dict[str, list[Item]]]:
    """The images of a source by split and class; a class without images is there, with an empty list.

    Raises:
        DataError: If a split that is asked for has no class directories, images lie beside them, or are listed twice.
    """
    by_split: dict[str, dict[str, list[Item]]] = {s: {} for s in SPLITS}
    flat = []
    for item in source.items():
        image = is_image(item.name)
        if not item.label:
            if image:
                flat.append(item.path.replace("//", "/"))
            continue
        images = by_split[item.split].setdefault(item.label, [])
        if image:
            images.append(item)
    if flat:
        what = f"images outside class directories: {first_three(sorted(flat))}"
        raise DataError(what, where=source.where, hint=EXPECTED)
    missing = [f"{s}/" for s in splits if not by_split[s]]
    if missing:
        raise DataError(f"no class directories in {' and '.join(missing)}", where=source.where, hint=EXPECTED)
    duplicates = _duplicates(i for s in SPLITS for images in by_split[s].values() for i in images)
    if duplicates:
        raise DataError(f"listed twice: {first_three(duplicates)}", where=source.where)
    return by_split


def _duplicates(items: Iterable[Item]) -> list[str]:
    seen: set[str] = set()
    return [i.path for i in items if i.path in seen or seen.add(i.path)]  # type: ignore[func-returns-value]
