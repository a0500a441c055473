"""Small file operations that never leave a half-written file under its final name."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from suite.errors import InfraError

_CHUNK = 1 << 20
#: No JSON file of the suite is larger; a bigger one is not read.
MAX_JSON = 512 << 20


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
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
