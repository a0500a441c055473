"""Attempts: one try at a stage, in a directory of its own, published by one rename or recorded as failed."""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from suite.errors import DataError, InfraError
from suite.faults import fault_point
from suite.spec.stages import Stage, input_kind
from suite.store.artifacts import MANIFEST, RECORD, Artifact, Corrupt, Store, build_manifest
from suite.store.checkpoints import discard_checkpoints
from suite.store.files import fingerprint, fsync_dir, fsync_file, write_json
from suite.store.records import Record

#: How long another node's artifact may stay invisible on a network file system.
LATE_SECONDS = 60.0


class Attempt:
    """A working directory for one try at a stage. Use as a context manager; call `publish` at the end.

    Args:
        store: Where to publish.
        stage: What is attempted.
        inputs: Verified artifacts by role.
    """

    def __init__(self, store: Store, stage: Stage, inputs: dict[str, Artifact]) -> None:
        self.store, self.stage = store, stage
        self.inputs = {role: {"key": a.key, "digest": a.digest} for role, a in inputs.items()}
        job = os.environ.get("SLURM_JOB_ID", "local")
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        count = len(list((store.home(stage.kind, stage.key) / "failed").glob("*.json")))
        self.number = count + 1
        # The counter comes first, so that names sort in the order of attempts whatever the hosts' clocks say.
        self.name = f"{count:03d}-{job}-{restart}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.home = store.home(stage.kind, stage.key)
        self.dir = self.home / "attempts" / self.name
        self.published = False

    def __enter__(self) -> Attempt:
        self._sweep()
        try:
            self.dir.mkdir(parents=True)
        except OSError as error:
            raise InfraError(f"cannot create the attempt: {error.strerror}", where=str(self.dir)) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        shutil.rmtree(self.dir, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed attempts of this host left behind; directories of other hosts are left to `clean`."""
        for path in self.store.attempts(self.stage.kind, self.stage.key):
            host, _, rest = path.name.split("-", 3)[3].rpartition("-")[0].rpartition("-")
            if host == socket.gethostname() and rest.isdigit() and not Path(f"/proc/{rest}").exists():
                shutil.rmtree(path, ignore_errors=True)

    def publish(self, record: Record, supersede: bool = False) -> Artifact:
        """Write the record, then the manifest, make both durable, and rename the directory into place.

        Then the stage's checkpoints go. If another attempt was faster, its artifact is verified and this one dropped; a
        corrupt winner is quarantined and replaced.

        Args:
            record: What is known about the attempt.
            supersede: Whether what is published already is quarantined, just before the rename.

        Returns:
            The published artifact.
        """
        self._sign(record)
        write_json(self.dir / RECORD, record.to_json())
        fault_point(self.stage.kind, "recorded")
        self._make_durable()
        manifest = build_manifest(self.stage, self.name, self.inputs, self.dir)
        write_json(self.dir / MANIFEST, manifest)
        fsync_dir(self.dir)
        fault_point(self.stage.kind, "sealed")
        if supersede:
            self.store.quarantine(self.stage.kind, self.stage.key, "superseded")
        for _ in range(3):
            try:
                self.dir.rename(self.home / "out")
            except OSError as error:
                if not (self.home / "out").exists():
                    raise InfraError(f"cannot publish: {error.strerror}", where=str(self.home)) from error
                try:
                    winner = self.store.open(self.stage.kind, self.stage.key)
                    discard_checkpoints(self.store, self.stage)
                    return winner
                except Corrupt:
                    self.store.quarantine(self.stage.kind, self.stage.key, "corrupt")
                    continue
                except FileNotFoundError:
                    continue
            fsync_dir(self.home)
            self.published = True
            fault_point(self.stage.kind, "published")
            discard_checkpoints(self.store, self.stage)
            self._mark([*manifest["files"], *manifest["records"]])
            return Artifact(self.home / "out", manifest)
        raise InfraError("cannot publish: another process keeps replacing the artifact", where=str(self.home))

    def _mark(self, names: list[str]) -> None:
        """Note that these files were just hashed. After the checkpoints are gone: a link less is a change of a file."""
        with suppress(InfraError, FileNotFoundError):  # a full disk, or set aside meanwhile: they are hashed once more
            write_json(self.home / "verified.json", {n: fingerprint(self.home / "out" / n) for n in names})

    def _make_durable(self) -> None:
        """Bring every file to the disk; some file systems say only now that it is full."""
        for path in self.dir.rglob("*"):
            if path.is_file():
                try:
                    fsync_file(path)
                except OSError as error:
                    what = f"cannot write {path.stat().st_size} bytes: {error.strerror}"
                    raise InfraError(what, where=str(path)) from error

    def _sign(self, record: Record, place: tuple[str, str] | None = None) -> None:
        record.attempt, record.number, record.inputs = self.name, self.number, self.inputs
        record.node, record.job = place or (node(), job())

    def fail(self, record: Record, place: tuple[str, str] | None = None) -> Path:
        """Keep the record of an attempt that did not publish.

        Args:
            record: What is known about it.
            place: Node and job of an attempt that died without a record; by default this process's.
        """
        self._sign(record, place)
        path = self.home / "failed" / f"{self.name}.json"
        write_json(path, record.to_json())
        return path


def node() -> str:
    """This machine's name: Slurm's for it inside a job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def job() -> str:
    """The Slurm job that this process belongs to, as squeue prints it; empty elsewhere."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def is_current(artifact: Artifact, inputs: dict[str, Artifact]) -> bool:
    """Whether an artifact was made from exactly these inputs, byte for byte."""
    return bool(artifact.manifest["input_digests"] == {role: a.digest for role, a in inputs.items()})


class Blocked(DataError):
    """A stage that cannot be attempted: an input is not published, or does not verify.

    Attributes:
        stage: Kind and key of the input.
    """

    def __init__(self, stage: str, what: str) -> None:
        super().__init__(f"blocked: {stage} {what}")
        self.stage = stage


def open_inputs(store: Store, stage: Stage, patience: float = 0.0) -> dict[str, Artifact]:
    """Open and verify every input of a stage, by role.

    Args:
        store: Where they are.
        stage: What needs them.
        patience: Seconds to wait for an input that is not there and has not failed: network file systems show what
            another node has published some seconds later.

    Raises:
        Blocked: If one is missing or does not verify, with the failure of its last attempt if it has one.
    """
    opened: dict[str, Artifact] = {}
    for role, key in stage.inputs.items():
        kind = input_kind(role)
        if patience:
            await_published(store, kind, key, patience)
        try:
            opened[role] = store.open(kind, key)
        except Corrupt as error:
            raise Blocked(f"{kind} {key}", f"is corrupt: {error.what}") from error
        except FileNotFoundError as error:
            raise Blocked(f"{kind} {key}", _why_missing(store, kind, key)) from error
    return opened


def patience() -> float:
    """Seconds to wait for what another node has published: in Slurm; elsewhere everything is on this machine."""
    return LATE_SECONDS if os.environ.get("SLURM_JOB_ID") else 0.0


def await_published(store: Store, kind: str, key: str, patience: float) -> None:
    """Wait until an artifact shows, or its failure does, or patience is over."""
    home, pause = store.home(kind, key), 0.1
    deadline = time.monotonic() + patience
    while not (home / "out").is_dir():
        look_afresh(home)
        # Only now: an earlier attempt's failure may be known here, and the artifact not yet.
        if any((home / name).is_dir() for name in ("out", "failed")) or time.monotonic() >= deadline:
            return
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def look_afresh(home: Path) -> None:
    """Make a client of a network file system ask its server again what is in a directory: open it, and those above."""
    for folder in (home.parent.parent, home.parent, home):
        with suppress(OSError), os.scandir(folder):
            pass


def _why_missing(store: Store, kind: str, key: str) -> str:
    try:
        last = store.failures(kind, key)[-1]
    except (OSError, ValueError, TypeError, IndexError):
        return "is missing"
    failure = last.failure or {}
    return f"{last.status} ({failure.get('kind')}: {failure.get('message')})"
