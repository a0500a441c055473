"""Launches that are still submitting: others that want the same stages wait until these are in Slurm, and find them.

A launch leaves a file in its run while it submits, and ends when somebody who cancels its grid leaves another. No lock:
two launches that begin within the same second may both submit a stage, which is then computed twice and published once.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from suite.cluster.pack import process_mark
from suite.cluster.runs import Run, run_keys
from suite.cluster.show import plural, say
from suite.cluster.window import PATIENCE
from suite.errors import InfraError
from suite.store import Store
from suite.store.attempts import look_afresh
from suite.store.files import read_json, write_json

Node = tuple[str, str]
FILE = "submitting.json"
STOP = "stop.json"
#: Seconds between two signs of life, and without one after which a launch of another host counts as dead: file systems
#: show what another host has changed up to a minute later.
_BEAT, _DEAD = 15.0, 150.0
#: Pauses between two looks.
_FIRST, _LONGEST = 0.5, 15.0


class StillSubmitting(InfraError):
    """Another launch submits the same stages, and does not come to an end."""

    exit_code = 3


class Stopped(InfraError):
    """Somebody cancelled the grid that a launch was submitting."""


@contextmanager
def submitting(run: Run) -> Iterator[None]:
    """Let other launches know that this run is being submitted."""
    path = run.path / FILE
    write_json(path, {"schema": 1, "host": socket.gethostname(), "process": process_mark(os.getpid())})
    over = threading.Event()

    def live() -> None:
        while not over.wait(_BEAT):
            with suppress(OSError):  # for as long as it cannot be shown, other hosts may take this launch for dead
                os.utime(path)

    heart = threading.Thread(target=live, name="submitting", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        path.unlink(missing_ok=True)


def check_stopped(run: Path) -> None:
    """Go on submitting, unless somebody has cancelled the grid.

    Raises:
        Stopped: If so.
    """
    look_afresh(run)
    if (run / STOP).exists():
        raise Stopped("cancelled while it submitted", where=str(run / STOP))


def still_submitting(store: Store, grid: str) -> list[Path]:
    """This account's runs of a grid whose launches live and have not come to the end of submitting."""
    found = []
    for path in sorted(store.root.glob(f"runs/{grid}/*/{FILE}")):
        with suppress(FileNotFoundError):  # it came to its end just now
            if path.stat().st_uid == os.getuid() and _Changes(_DEAD).alive(path) and _shown_of_late(path):
                found.append(path.parent)
    return found


def _shown_of_late(path: Path) -> bool:
    """Whether a launch has shown that it lives of late, by the clock of the file system alone."""
    probe = path.with_name(f".{FILE}-{os.getpid()}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now - path.stat().st_mtime < _DEAD


def stop_submitting(runs: Sequence[Path], patience: float = _LONGEST) -> list[Path]:
    """Let the launches of some runs submit nothing more.

    Waits a little, since one may be in the middle of a submission; one that waits for room ends when it looks again.

    Returns:
        Those that have not ended yet: each cancels what it is just submitting, and ends.
    """
    for run in runs:
        write_json(run / STOP, {"schema": 1})
    begin = time.monotonic()
    while any((run / FILE).exists() for run in runs) and time.monotonic() - begin < patience:
        time.sleep(_FIRST)
    return [run for run in runs if (run / FILE).exists()]


def await_others(store: Store, nodes: Collection[Node], patience: float = PATIENCE) -> bool:
    """Wait while other launches submit some of these stages.

    Args:
        store: The store.
        nodes: What is to be submitted, by (kind, key).
        patience: Half the seconds after which to give up. A launch of another host, which cannot be asked whether it
            lives, counts as dead if its file does not change for two and a half minutes, or for so long.

    Returns:
        Whether there was something to wait for.

    Raises:
        StillSubmitting: If another launch still submits after that time.
    """
    wanted, changes = set(nodes), _Changes(min(patience, _DEAD))
    begin, pause, said = time.monotonic(), _FIRST, set()
    while others := [p for p in sorted(store.root.glob(f"runs/*/*/{FILE}")) if changes.alive(p) and wanted & _of(p)]:
        if time.monotonic() - begin > 2 * patience:
            raise StillSubmitting("another launch still submits the same stages", where=str(others[0]),
                                  hint="launch again later, or remove this file if that launch is dead")  # fmt: skip
        for path in [p for p in others if p not in said]:
            said.add(path)
            count = plural(len(wanted & _of(path)), "stage")
            say(f"run {path.parent.name} is just submitting {count} of these: waiting for it ({path})")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST)
    return bool(said)


def _of(path: Path) -> set[Node]:
    try:
        return set(run_keys(path.parent))
    except FileNotFoundError:  # cleaned away meanwhile
        return set()


class _Changes:
    """Which launches live: by their process on this host, by changes of their files on others; clocks may differ."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.seen: dict[Path, tuple[int, float]] = {}

    def alive(self, path: Path) -> bool:
        try:
            body, changed = read_json(path), path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if body["host"] == socket.gethostname():
            return process_mark(int(body["process"].partition(":")[0])) == body["process"]
        if self.seen.get(path, (0, 0.0))[0] != changed:
            self.seen[path] = changed, time.monotonic()
        return time.monotonic() - self.seen[path][1] < self.patience
