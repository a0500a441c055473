"""Checkpoints by clock: two files that take turns, so that a whole one exists at any moment.

A file is a header (magic, serial number, size and SHA-256 of the rest) and what `torch.save` wrote. It appears under
its name by one rename; before it is used its size and sum are checked, and what it says of a file that grows beside it.
The newest whole one is taken, by serial number and never by a clock. Tensors load with `weights_only`.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import secrets
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from suite.faults import fault_point
from suite.learn.growing import Damaged, Growing, alive, growing, process, verify
from suite.preemption import Notice
from suite.store.files import fsync_dir

#: Bumped when the state of some loop changes its layout: files of other formats are not read.
FORMAT = 2
#: Of a stage's time, what saving may take.
SHARE = 0.05
NAMES = ("a.ckpt", "b.ckpt")
_MAGIC = b"SUITECKP"
_HEADER = struct.Struct("<8sQQ32s8x")
_CHUNK = 1 << 20
#: What stands around the process in the name of a half-written file.
_SCRATCH = re.compile(r"^(\w\.ckpt|rows-\w+)\.|-\w+\.part$")
State = Any


class _Hashed:
    """A file that sums up what is written to it."""

    def __init__(self, file: IO[bytes], kind: str) -> None:
        self.file, self.kind, self.sum, self.size = file, kind, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        written = self.file.write(data)
        self.sum.update(data)
        self.size += written
        if self.size > written:  # some of it is there
            fault_point(self.kind, "saving")
        return int(written)

    def flush(self) -> None:
        self.file.flush()


class Checkpoint:
    """The checkpoints of one stage in one place.

    Two live attempts cannot harm each other: every file is written under a name of its own and then renamed.

    Args:
        folder: The directory; it belongs to one stage, its inputs' bytes and one kind of device.
        seconds: Between two checkpoints; 0 for one after every step, whatever that costs.
        kind: Of the stage, for fault points.
        notice: Whether the process was asked to leave.
        attempt: What is remembered of this attempt in the checkpoints that it writes.

    Attributes:
        attempts: Those that went before, oldest first, as they described themselves.
        before: What they measured: the result of the last one's `measure`.
        measure: Called at every save; what it returns is `before` for the next attempt.
        saves: Checkpoints of the stage, those of earlier attempts included.
        used: Whether the stage's loop keeps checkpoints at all.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float = 600.0,
        *,
        kind: str = "",
        notice: Notice | None = None,
        attempt: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.seconds, self.kind = folder, seconds, kind
        self.notice = Notice() if notice is None else notice
        self.attempt = attempt or {}
        self.attempts: list[dict[str, Any]] = []
        self.before: dict[str, Any] = {}
        self.measure: Callable[[], dict[str, Any]] = dict
        self.saves, self.used = 0, False
        self._spent = 0.0
        self._said: dict[str, Any] | None = None  # of a growing file, in the checkpoint that the stage goes on from
        self._grown: Growing | None = None
        self._newest = NAMES[1]
        self._last, self._took = time.monotonic(), 0.0

    @property
    def spent(self) -> float:
        """Seconds that this attempt spent on checkpoints."""
        return self._spent + (self._grown.spent if self._grown is not None else 0.0)

    def due(self) -> bool:
        """Whether it is time for the next one, or for leaving. Called between two steps, after every one."""
        fault_point(self.kind, "step")
        return self.notice.taken or time.monotonic() - self._last >= self.interval(self._took)

    def interval(self, took: float) -> float:
        """Seconds until the next one, after one that took some: as wished, but saving is 5 % of the time at most."""
        return max(self.seconds, (1 / SHARE - 1) * took) if self.seconds else 0.0

    def offer(self, state: Callable[[], State]) -> None:
        """Save what `state` returns if it is time for it."""
        if self.due():
            self.save(state())

    def save(self, state: State) -> bool:
        """Write a checkpoint over the older of the two; then leave if the process was asked to.

        A file system that refuses costs a warning and no more: the stage may well finish without.

        Args:
            state: Dicts, lists, numbers, texts and tensors.

        Returns:
            Whether it was written.

        Raises:
            Preempted: If the process was asked to leave.
        """
        begin, saves = time.monotonic(), self.saves
        try:
            self._write(state, self._grown.durable() if self._grown is not None else None)
        except OSError as error:
            what = f"no checkpoint: {error.strerror or error}"
            print(f"warning: {self.folder}: {what}", file=sys.stderr, flush=True)
        self._last = time.monotonic()
        self._took = self._last - begin
        self._spent += self._took
        self.notice.leave(self.saves)
        return self.saves > saves

    def _write(self, state: State, grown: dict[str, Any] | None) -> None:
        payload = {
            "format": FORMAT,
            "serial": self.saves + 1,
            "grown": grown,
            "attempts": [*self.attempts, self.attempt],
            "measured": self.measure(),
            "state": state,
        }
        target = NAMES[1 - NAMES.index(self._newest)]
        scratch = self._scratch(target)
        try:
            with scratch.open("wb") as file:
                file.write(b"\0" * _HEADER.size)
                hashed = _Hashed(file, self.kind)
                torch.save(payload, cast(IO[bytes], hashed))
                file.seek(0)
                file.write(_HEADER.pack(_MAGIC, self.saves + 1, hashed.size, hashed.sum.digest()))
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.folder / target)
            fsync_dir(self.folder)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        self.saves, self._newest = self.saves + 1, target

    def _scratch(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name}.{process()}-{secrets.token_hex(3)}.part"

    def load(self) -> State | None:
        """The state of the newest whole checkpoint; None if there is none. Damaged ones are named on standard error."""
        self.used = True
        self._sweep()
        for name in sorted(NAMES, key=self._serial, reverse=True):
            try:
                payload = self._read(self.folder / name)
            except FileNotFoundError:
                continue
            except (OSError, Damaged) as error:
                print(f"warning: {self.folder / name}: not used: {error}", file=sys.stderr, flush=True)
                continue
            self.saves, self._newest = payload["serial"], name
            self._said, self.attempts, self.before = payload["grown"], payload["attempts"], payload["measured"]
            return payload["state"]
        return None

    def _serial(self, name: str) -> int:
        """Number of a file by its header; 0 if there is none, above all others if it has no header, to be named so."""
        try:
            with (self.folder / name).open("rb") as file:
                header = file.read(_HEADER.size)
            return int(_HEADER.unpack(header)[1])
        except struct.error:
            return 1 << 64
        except OSError:
            return 0

    def _read(self, path: Path) -> dict[str, Any]:
        """Verify a file and load it.

        Raises:
            Damaged: If it is not whole, or something that it names is not.
        """
        with path.open("rb") as file:
            try:
                magic, serial, size, sum_ = _HEADER.unpack(file.read(_HEADER.size))
            except struct.error as error:
                raise Damaged("no header") from error
            if magic != _MAGIC or os.fstat(file.fileno()).st_size != _HEADER.size + size or _digest(file) != sum_:
                raise Damaged("size or SHA-256 differ from its header")
            file.seek(_HEADER.size)
            payload: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if payload.get("format") != FORMAT or payload["serial"] != serial:
            raise Damaged(f"format {payload.get('format')}, number {payload.get('serial')} in a file of {serial}")
        if payload["grown"] is not None:
            verify(self.folder, payload["grown"])
        return payload

    def _sweep(self) -> None:
        """Remove half-written files of dead processes of this host."""
        for path in self.folder.glob("*.part"):
            if not alive(_SCRATCH.sub("", path.name)):
                path.unlink(missing_ok=True)

    @contextmanager
    def growing(self, target: Path) -> Iterator[Growing]:
        """Write a file that every checkpoint within the block speaks of; call `load` before.

        Args:
            target: What the finished file is called, on the file system of the checkpoints.

        Raises:
            OSError: If the file system refuses.
        """
        with growing(self.folder, target, self._said) as self._grown:
            yield self._grown


class Never(Checkpoint):
    """No checkpoints: a loop that is given none starts at its beginning, and is not asked to leave.

    Args:
        kind: Of the stage, for fault points.
        notice: Whether the process was asked to leave, for those who agree on that with others.
    """

    def __init__(self, kind: str = "", notice: Notice | None = None) -> None:
        super().__init__(Path(os.devnull), kind=kind, notice=notice)

    def due(self) -> bool:
        """Never."""
        fault_point(self.kind, "step")
        return False

    def load(self) -> None:
        """There is nothing to go on from."""

    @contextmanager
    def growing(self, target: Path) -> Iterator[Growing]:
        """Write the file, of which no checkpoint speaks."""
        with target.open("wb") as file:
            yield Growing(file, target, kept=False)


class Within(Checkpoint):
    """The checkpoints of a loop inside another: what both remember is saved together.

    Args:
        outer: Where they are written.
        state: What the outer loop remembers, called at every save.
        saved: The state of the inner loop that it goes on from, from an `outer.load()["inner"]`; None for none.
    """

    def __init__(self, outer: Checkpoint, state: Callable[[], dict[str, Any]], saved: State | None = None) -> None:
        self.outer, self.notice, self._state, self._saved = outer, outer.notice, state, saved

    def due(self) -> bool:
        """As the outer one's."""
        return self.outer.due()

    def save(self, state: State) -> bool:
        """Save both states."""
        return self.outer.save({**self._state(), "inner": state})

    def load(self) -> State | None:
        """The state of the inner loop, once."""
        saved, self._saved = self._saved, None
        return saved


def draws_state(device: torch.device) -> dict[str, Any]:
    """All global generators: Python's, NumPy's and torch's on the CPU and on the device."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_draws(state: dict[str, Any], device: torch.device) -> None:
    """Set all global generators."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _digest(file: IO[bytes]) -> bytes:
    """SHA-256 of what is left of a file."""
    found = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return found.digest()
