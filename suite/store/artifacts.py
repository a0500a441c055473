"""The store: where artifacts live, which are done, and opening them verified.

<root>/<kind>/<2 hex>/<key>/out/              the published artifact: files, record.json, manifest.json
/attempts/<name>/  work in progress, one directory an attempt
/failed/<name>.json   records of attempts that did not publish
/verified.json     fingerprints of files whose SHA-256 has been checked
/quarantine/       what was corrupt or superseded; never read again
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from suite.errors import DataError, InfraError, UserError
from suite.spec.keys import canonical, digest
from suite.spec.stages import Stage
from suite.store.files import dump_json, fingerprint, fsync_dir, patiently, read_json, sha256, write_json
from suite.store.records import SCHEMA, Record

MANIFEST, RECORD = "manifest.json", "record.json"
#: What the file system says of an artifact that is not what was published. All else, e.g. a colleague's permissions,
#: says nothing about the artifact and is handed on.
_OTHER_SHAPE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


#: Up to so many keys are looked up one by one, however many artifacts lie beside them.
_FEW = 1000


def _is_dir(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - a Path each would take most of the time of 300,000 of them


class Corrupt(DataError):
    """A published artifact that does not verify."""


@dataclass(frozen=True)
class Artifact:
    """A verified, published directory.

    Attributes:
        path: The directory.
        manifest: Its manifest.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 over the payload's names, sizes and sums: equal digests mean bit-identical payloads."""
        return str(self.manifest["digest"])

    @property
    def key(self) -> str:
        """The stage's key."""
        return str(self.manifest["key"])

    def record(self) -> Record:
        """The record of the attempt that published it."""
        return Record.from_json(read_json(self.path / RECORD))


class Store:
    """All artifacts below one root directory.

    Args:
        root: The directory; created on first use.

    Raises:
        UserError: If something else than a directory is in its place.
    """

    def __init__(self, root: Path | str) -> None:
        if not str(root).strip():
            raise UserError("the store has no name", hint="give a directory, or a name that is free")
        self.root = Path(root).expanduser()
        try:
            usable = stat.S_ISDIR(self.root.stat().st_mode)
            why = "not a directory"
        except FileNotFoundError:
            usable = True
        except (OSError, ValueError) as error:  # a file on the way, a name that is too long, a NUL in it
            usable, why = False, getattr(error, "strerror", None) or str(error)
        if not usable:
            raise UserError(
                f"cannot be the store: {why}", where=str(self.root), hint="give a directory, or a name that is free"
            )

    def home(self, kind: str, key: str) -> Path:
        """The directory of a stage."""
        return self.root / kind / key[:2] / key

    def published(self, kind: str, among: Collection[str] | None = None) -> set[str]:
        """Keys of a kind that have a published directory, verified or not.

        Args:
            kind: The kind.
            among: Where only these keys matter: a few are looked up one by one, else each fan-out directory is scanned;
                what is in it beside them costs no look of its own.
        """
        root = os.fspath(self.root / kind)
        tried = among if among is not None and len(among) <= _FEW else self.attempted(kind, among)
        return {key for key in tried if _is_dir(f"{root}/{key[:2]}/{key}/out")}

    def attempted(self, kind: str, among: Collection[str] | None = None) -> set[str]:
        """Keys of a kind that were ever attempted; arguments are those of `published`."""
        if among is not None and len(among) <= _FEW:
            return {key for key in among if _is_dir(str(self.home(kind, key)))}
        keys: set[str] = set()
        with suppress(FileNotFoundError), os.scandir(self.root / kind) as fans:
            for fan in fans:
                with suppress(NotADirectoryError), os.scandir(fan.path) as homes:
                    keys.update([h.name for h in homes])
        return keys if among is None else keys.intersection(among)

    def open(self, kind: str, key: str) -> Artifact:
        """Open a published artifact after verifying every byte of it.

        A file whose fingerprint (size, times, inode) is unchanged since its last check is not hashed again.

        Raises:
            FileNotFoundError: If nothing is published.
            Corrupt: If what is published does not verify.
        """
        return patiently(lambda: self._open(kind, key))

    def _open(self, kind: str, key: str) -> Artifact:
        home = self.home(kind, key)
        out = home / "out"
        for path in (home, out):
            if path.is_symlink():  # publishing renames a directory; a link may lead anywhere
                raise Corrupt(f"a link to {path.readlink()}, not a directory", where=str(path))
        manifest = self.manifest(kind, key)
        self._verify(home, out, manifest)
        return Artifact(out, manifest)

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """The manifest of a published artifact, whose other files stay unread.

        Raises:
            FileNotFoundError: If nothing is published.
            Corrupt: If the manifest does not verify.
        """
        out = self.home(kind, key) / "out"
        if not out.is_dir():
            raise FileNotFoundError(str(out))
        return self._manifest(out, kind, key)

    def _manifest(self, out: Path, kind: str, key: str) -> dict[str, Any]:
        where = str(out / MANIFEST)
        try:
            m = read_json(out / MANIFEST)
        except (*_OTHER_SHAPE, ValueError) as error:
            raise Corrupt(f"manifest unreadable ({type(error).__name__})", where=where) from error
        if not isinstance(m, dict) or not isinstance(m.get("schema"), int):
            raise Corrupt("not a manifest", where=where)
        if m["schema"] > SCHEMA:
            raise Corrupt(f"manifest of schema {m['schema']}, newer than {SCHEMA}", where=where)
        if m.get("kind") != kind or m.get("key") != key:
            raise Corrupt(f"manifest of {m.get('kind')} {m.get('key')}", where=where)
        try:
            whole = m.get("seal") == seal(m) and dump_json(m) == (out / MANIFEST).read_bytes()
        except (TypeError, ValueError):  # a number that has become NaN or Inf has no canonical form
            whole = False
        if not whole:
            raise Corrupt("manifest was changed after it was written", where=where)
        if outside := [n for n in (*m["files"], *m["records"]) if not _is_inside(n)]:
            raise Corrupt(f"manifest names {outside[0]!r}, outside the artifact", where=where)
        return m

    def _verify(self, home: Path, out: Path, manifest: dict[str, Any]) -> None:
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            known = read_json(home / "verified.json")
        names = {**manifest["files"], **manifest["records"]}
        present = {str(p.relative_to(out)) for p in out.rglob("*") if not p.is_dir() or p.is_symlink()}
        if extra := present - set(names) - {MANIFEST}:
            raise Corrupt(f"unexpected file {sorted(extra)[0]!r}", where=str(out))
        fresh = {}
        for name, (size, sum_) in names.items():
            path = out / name
            try:
                mark = fingerprint(path)
            except _OTHER_SHAPE as error:
                raise Corrupt("missing file", where=str(path)) from error
            if path.is_symlink() or mark[0] != size:
                raise Corrupt(f"{mark[0]} bytes where the manifest says {size}", where=str(path))
            if known.get(name) != mark and sha256(path) != sum_:
                raise Corrupt("SHA-256 differs from the manifest", where=str(path))
            fresh[name] = mark
        if fresh != known:
            with suppress(InfraError):  # a full disk, or a reader without write access: it is hashed again next time
                write_json(home / "verified.json", fresh)

    def quarantine(self, kind: str, key: str, why: str) -> Path | None:
        """Move a published artifact out of the way, keeping it for inspection; None if another process was faster.

        Records of attempts that failed before it was published go with it: they say nothing about the next one.
        """
        home = self.home(kind, key)
        if home.is_symlink():  # what it leads to is not ours
            aside = home.with_name(f"{key}-{why}-{time.time_ns()}")
            home.rename(aside)
            return aside
        target = home / "quarantine" / f"{why}-{time.time_ns()}-{os.getpid()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            (home / "out").rename(target)
        except FileNotFoundError:
            return None
        with suppress(FileNotFoundError):
            (home / "failed").rename(target.with_name(f"{target.name}.failed"))
        fsync_dir(home)
        return target

    def discard(self, kind: str, key: str) -> None:
        """Remove what is published; an interrupted removal leaves what does not verify."""
        shutil.rmtree(self.home(kind, key) / "out", ignore_errors=True)

    def failures(self, kind: str, key: str) -> list[Record]:
        """Records of a stage's attempts that did not publish, oldest first."""
        folder = self.home(kind, key) / "failed"
        try:
            return [Record.from_json(read_json(p)) for p in sorted(folder.glob("*.json"), key=_number)]
        except FileNotFoundError:
            return []

    def records(self, kind: str = "evaluation") -> Iterator[Record]:
        """Records of all published artifacts of a kind, by key. Unverifiable artifacts are left out."""
        for key in sorted(self.published(kind)):
            with suppress(Corrupt, FileNotFoundError):
                yield self.open(kind, key).record()

    def attempts(self, kind: str, key: str) -> list[Path]:
        """Directories of attempts that are running, or were killed."""
        folder = self.home(kind, key) / "attempts"
        return sorted(p for p in folder.glob("*") if p.is_dir())


def _number(path: Path) -> tuple[int, str]:
    """Attempts are ordered by the counter in their names, never by a clock: hosts disagree about the time."""
    count = path.name.partition("-")[0]
    return (int(count) if count.isdigit() else -1, path.name)


def _is_inside(name: str) -> bool:
    """Whether a file's name stays below the directory that it is relative to, spelt in the one way that we write."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name and str(path) == name


def seal(manifest: dict[str, Any]) -> str:
    """A checksum of the manifest itself, so that one flipped byte in it is noticed too."""
    return digest(canonical({k: v for k, v in manifest.items() if k != "seal"}))


def build_manifest(stage: Stage, attempt: str, inputs: dict[str, dict[str, str]], folder: Path) -> dict[str, Any]:
    """The manifest of an attempt's directory: everything in it, with sizes and sums."""
    files: dict[str, list[Any]] = {}
    records: dict[str, list[Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        (records if name == RECORD else files)[name] = [path.stat().st_size, sha256(path)]
    body = {
        "schema": SCHEMA,
        **replace(stage, shards=1).to_json(),  # how it was cut is not a property of what it is
        "attempt": attempt,
        "input_digests": {role: i["digest"] for role, i in inputs.items()},
        "files": files,
        "records": records,
        "digest": digest(canonical(files)),
    }
    return {**body, "seal": seal(body)}
