"""Small file operations that never leave a half-written file under its final name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from suite.errors import InfraError

T = TypeVar("T")

_CHUNK = 1 << 20
#: No JSON file of the suite is larger; a bigger one is not read.
MAX_JSON = 512 << 20
#: Seconds between tries after a stale handle.
_PAUSES = (0.1, 0.3, 1.0, 3.0)


def patiently(function: Callable[[], T]) -> T:
    """Call a function that may be called twice, again and again while it meets stale handles, some seconds at most.

    A network file system answers ESTALE where another machine has just replaced what a name stood for.

    Raises:
        OSError: What the function raises, ESTALE too once the patience is over.
    """
    for pause in _PAUSES:
        try:
            return function()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        time.sleep(pause)
    return function()


def share_with_group() -> None:
    """Let the group read what this process writes from now on, whatever the account's umask."""
    os.umask(os.umask(0o077) & ~0o050)


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as f:
        os.fsync(f.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under its name by one rename, after its bytes are on disk.

    Raises:
        InfraError: If the file system refuses (full, read-only); the old file, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)

    try:
        patiently(write)
    except OSError as error:
        with suppress(OSError):  # a read-only file system refuses this too
            temporary.unlink(missing_ok=True)
        raise InfraError(f"cannot write {len(data)} bytes: {error.strerror}", where=str(path)) from error


def dump_json(value: Any) -> bytes:
    """JSON with sorted keys and a final newline; refuses NaN and Inf."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write JSON by one rename."""
    write_bytes(path, dump_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file of the suite.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON or larger than `MAX_JSON`.
    """
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} is larger than {MAX_JSON} bytes")
    return json.loads(path.read_bytes())


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    h = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            h.update(chunk)
    return h.hexdigest()


def fingerprint(path: Path) -> list[int]:
    """What changes whenever a file's bytes do: size, modification and change time in ns, inode."""
    s = path.lstat()
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
