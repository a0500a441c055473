"""Directories that leave the suite: written beside their place, sealed by a manifest, published by one rename."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suite.errors import DataError, InfraError, UserError
from suite.store.files import dump_json, fsync_dir, fsync_file, read_json, sha256, write_json

MANIFEST, FORMAT = "manifest.json", "distilled-set-1"


def publish(target: Path, write: Callable[[Path], None], facts: dict[str, Any]) -> bool:
    """Let `write` fill a new directory, and give it its name when every byte of it is on disk.

    Args:
        target: Its name. The parent is made.
        write: Writes files into the directory that it is given.
        facts: What the manifest says beside names, sizes and SHA-256 of all files.

    Returns:
        Whether it was published; False if exactly these files are there already.

    Raises:
        UserError: If something else has the name.
        InfraError: If the file system refuses; nothing is left behind.
    """
    work = target.parent / f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}.tmp"
    try:
        work.mkdir(parents=True)
        write(work)
        files = _listing(work)
        write_json(work / MANIFEST, {"format": FORMAT, **facts, "files": files})
        for path in work.rglob("*"):
            fsync_dir(path) if path.is_dir() else fsync_file(path)
        fsync_dir(work)
        if target.exists():
            _same(target, (work / MANIFEST).read_bytes())
            return False
        work.rename(target)
        fsync_dir(target.parent)
    except OSError as error:
        if target.exists():
            _same(target, (work / MANIFEST).read_bytes())
            return False
        raise InfraError(f"cannot write the export: {error.strerror or error}", where=str(target)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def verify(folder: Path) -> bool:
    """Check a directory against its manifest, if it has one of the suite's.

    Returns:
        Whether there was one.

    Raises:
        DataError: If a file is missing or differs.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        what = f"unreadable manifest ({type(error).__name__})"
        raise DataError(what, where=str(folder / MANIFEST), hint="copy the set again, or remove it") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return False  # somebody else's file of that name
    for name, (size, sum_) in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or sha256(path) != sum_:
            what = "differs from the manifest" if path.is_file() else "is missing"
            raise DataError(f"{name} {what}", where=str(folder), hint="copy the set again, or remove manifest.json")
    return True


def _listing(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file, by its path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): [p.stat().st_size, sha256(p)] for p in files}


def _same(target: Path, manifest: bytes) -> None:
    """Return if a directory holds exactly what a manifest says.

    Raises:
        UserError: Otherwise.
    """
    hint = "remove it, or give another --out"
    if not target.is_dir() or not (target / MANIFEST).is_file():
        raise UserError("exists and is no export", where=str(target), hint=hint)
    listed = {n: v for n, v in _listing(target).items() if n != MANIFEST}
    if (target / MANIFEST).read_bytes() != manifest or dump_json(listed) != dump_json(
        read_json(target / MANIFEST)["files"]
    ):
        raise UserError("exists and differs from this export", where=str(target), hint=hint)
