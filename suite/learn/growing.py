"""A file that grows while a stage runs and is too large to be written into every checkpoint: a label stream.

It lies beside the stage's checkpoints, which say what of it is whole, with SHA-256. What is behind that is written
again. Its name says who writes it:

    rows-<id>.<host>-<pid>-<random>.part    somebody, and no checkpoint names it
    rows-<id>.<host>-<pid>                  somebody
    rows-<id>.free                          nobody: its writer left
    rows-<id>.whole                         nobody ever again: it is also in an attempt's directory

No file has two writers. Whoever goes on takes it over, by one rename that only one can win, if its writer left or is a
dead process of this host; else, since hosts cannot ask each other who is alive, its whole part is copied once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from suite.errors import InfraError
from suite.store.files import fsync_dir

FREE, WHOLE = "free", "whole"
_CHUNK = 4 << 20
#: Bytes from which on the disk is asked to begin with them at once, so that a checkpoint waits for little.
_LARGE = 1 << 20
#: What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class Damaged(InfraError):
    """A file that is not what its checkpoint says."""


@dataclass
class Span:
    """A part of a growing file, filled from its beginning.

    Attributes:
        begin: First byte.
        end: Behind the last one that is written.
        sum: SHA-256 of what is between them.
    """

    begin: int
    end: int
    sum: Any = field(default_factory=hashlib.sha256)


class Growing:
    """A growing file, open for its one writer.

    Args:
        file: Open for reading and writing.
        path: Its present name.
        kept: Whether checkpoints speak of it; else no sums are made.
        spans: What is whole of it, by name.

    Attributes:
        spans: What is written, by name.
        spent: Seconds that the sums took.
    """

    def __init__(self, file: IO[bytes], path: Path, kept: bool, spans: dict[str, Span] | None = None) -> None:
        self.file, self.path, self.kept = file, path, kept
        self.spans, self.spent = spans or {}, 0.0

    def begin(self, places: dict[str, int]) -> None:
        """Say where the parts begin; those that are there already stay as they are."""
        self.spans = {name: self.spans.get(name, Span(at, at)) for name, at in places.items()}

    def append(self, name: str, data: bytes) -> None:
        """Write behind what a part has."""
        span = self.spans[name]
        self.file.seek(span.end)
        self.file.write(data)
        if self.kept and len(data) >= _LARGE:
            self.file.flush()
            with suppress(OSError):  # a wish, which a file system need not know
                os.posix_fadvise(self.file.fileno(), span.end, len(data), os.POSIX_FADV_DONTNEED)
        span.end += len(data)
        if self.kept:
            begin = time.monotonic()
            span.sum.update(data)
            self.spent += time.monotonic() - begin

    def durable(self) -> dict[str, Any]:
        """Bring it to the disk, and under a name that stays.

        Returns:
            What a checkpoint says of it.

        Raises:
            OSError: If the file system refuses.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.path.suffix == ".part":
            self.path = self.path.replace(self.path.with_name(self.path.name.rpartition("-")[0]))
        said = {name: [span.begin, span.end, span.sum.hexdigest()] for name, span in self.spans.items()}
        return {"id": _split(self.path)[0], "spans": said}

    def hand_over(self, owner: str) -> None:
        """Name another owner; a file that no checkpoint names goes if nobody wants it."""
        if owner == FREE and self.path.suffix == ".part":
            self.path.unlink(missing_ok=True)
        else:
            self.path = self.path.replace(self.path.with_name(f"{_split(self.path)[0]}.{owner}"))


@contextmanager
def growing(folder: Path, target: Path, said: dict[str, Any] | None) -> Iterator[Growing]:
    """Write a file beside the checkpoints in a folder; at the end of the block it is `target`, too.

    Args:
        folder: Of the checkpoints.
        target: Another name of the finished file, on the same file system.
        said: What the checkpoint says that the stage goes on from; None for a new file.

    Raises:
        Damaged: If the file is not what was said.
        OSError: If the file system refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, spans = (_part(folder), None) if said is None else _own(folder, said)
    file = path.open("x+b" if said is None else "r+b")
    grown = Growing(file, path, True, spans)
    try:
        with file:
            yield grown
        _finish(grown, target)
    except BaseException:
        with suppress(OSError):  # its name says still that a process writes it, which is then found to be dead
            grown.hand_over(FREE)
        raise


def _finish(grown: Growing, target: Path) -> None:
    """Give a whole file its other name; where the file system knows no links, that alone."""
    try:
        os.link(grown.path, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        grown.path.replace(target)  # a kill before it is published costs the stage there
    else:
        grown.hand_over(WHOLE)
    fsync_dir(target.parent)


def verify(folder: Path, said: dict[str, Any]) -> None:
    """Check what a checkpoint says of a growing file.

    Raises:
        Damaged: If it is not so.
        OSError: If it cannot be read.
    """
    with _open(folder, said["id"]) as file:
        _read(file, said)


def alive(owner: str) -> bool:
    """Whether `<host>-<pid>` may be a living process: those of other hosts always may."""
    host, _, pid = owner.rpartition("-")
    return host != socket.gethostname() or not pid.isdigit() or Path(f"/proc/{pid}").exists()


def process() -> str:
    """This process, as `<host>-<pid>`."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _read(file: IO[bytes], said: dict[str, Any], copy: IO[bytes] | None = None) -> dict[str, Span]:
    """Read what is whole of a file, compare the sums, and copy it if that is wanted."""
    spans = {}
    for name, (begin, end, wanted) in said["spans"].items():
        span = spans[name] = Span(begin, begin)
        file.seek(begin)
        if copy is not None:
            copy.seek(begin)
        while chunk := file.read(min(_CHUNK, end - span.end)):
            span.sum.update(chunk)
            span.end += len(chunk)
            if copy is not None:
                copy.write(chunk)
        if span.end != end or span.sum.hexdigest() != wanted:
            raise Damaged(f"{name} in {said['id']}: size or SHA-256 differ")
    return spans


def _own(folder: Path, said: dict[str, Any]) -> tuple[Path, dict[str, Span]]:
    """The file that a checkpoint speaks of, or a copy of it, as this process's own."""
    path, mine = _find(folder, said["id"]), folder / f"{said['id']}.{process()}"
    owner = _split(path)[1]
    if owner == FREE or (owner != WHOLE and not alive(owner)):
        try:
            path.rename(mine)
            with mine.open("rb") as file:
                return mine, _read(file, said)
        except FileNotFoundError:
            pass  # somebody was faster, and writes: it is copied
    part = _part(folder)
    try:
        with _open(folder, said["id"]) as file, part.open("xb") as copy:
            return part, _read(file, said, copy)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _part(folder: Path) -> Path:
    return folder / f"rows-{secrets.token_hex(6)}.{process()}-{secrets.token_hex(3)}.part"


def _find(folder: Path, id_: str) -> Path:
    found = [path for path in folder.glob(f"{id_}.*") if path.suffix != ".part"]
    if not found:
        raise Damaged(f"{id_} is missing")
    return found[0]


def _open(folder: Path, id_: str) -> IO[bytes]:
    """Open a file whose name may change at the same time."""
    for _ in range(5):
        with suppress(FileNotFoundError):
            return _find(folder, id_).open("rb")
    raise Damaged(f"{id_} changes its name all the time")


def _split(path: Path) -> tuple[str, str]:
    """Id and owner."""
    id_, _, owner = path.name.partition(".")
    return id_, owner
