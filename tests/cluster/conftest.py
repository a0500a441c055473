"""A real Slurm for tests that are marked `slurm`: started once a session, stopped at its end."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.cluster.toys import ROOT, run

SCRIPT = ROOT / "slurm" / "testcluster"


@dataclass(frozen=True)
class SlurmCluster:
    """A running test cluster.

    Attributes:
        conf: Its `slurm.conf`.
    """

    conf: Path

    def call(self, *command: str, timeout: float = 60) -> str:
        """Run a Slurm command on it and return what it prints."""
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=timeout, check=True
        )
        return done.stdout

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment, pointed at the cluster."""
        return os.environ | {"SLURM_CONF": str(self.conf)} | more

    def launch(
        self, grid: Path, store: Path, *words: str, timeout: float = 400, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m suite.launch` on it."""
        return run(
            "suite.launch",
            grid,
            "--profile",
            "testcluster",
            "--store",
            store,
            *words,
            timeout=timeout,
            **self.environment(**environment),
        )


#: Blocks of ports that this process has taken, held by a lock on a file until it ends.
_HELD: list[IO[str]] = []
_BLOCK = 50


def free_ports(count: int) -> int:
    """The first of some consecutive free TCP ports, which no other test session on this machine is given.

    Below 32768: the kernel gives ports from there up to outgoing connections.
    """
    for first in random.sample(range(18000, 32700 - _BLOCK, _BLOCK), k=250):
        lock = (Path(tempfile.gettempdir()) / f"suite-ports-{first}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with ExitStack() as opened:
                for port in range(first, first + count):
                    opened.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _HELD.append(lock)
        return first
    raise AssertionError("no free ports")


def start(folder: Path, nodes: int = 4) -> subprocess.CompletedProcess[str]:
    """Run `slurm/testcluster start`."""
    words = ["start", "--dir", str(folder), "--nodes", str(nodes), "--port", str(free_ports(nodes + 3))]
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=400, check=False)


def stop(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `slurm/testcluster stop`."""
    return subprocess.run(
        [sys.executable, SCRIPT, "stop", "--dir", str(folder)], capture_output=True, text=True, timeout=200, check=False
    )


def skip_unless_possible() -> None:
    """Skip where the cluster cannot run: not root, or Debian packages are missing."""
    done = subprocess.run([sys.executable, SCRIPT, "check"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip())


@contextmanager
def cluster_folder() -> Iterator[Path]:
    """A new directory that munge and mysql may enter (pytest's own are closed to them); its cluster is stopped."""
    with tempfile.TemporaryDirectory(prefix="suite-slurm-") as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "cluster"
        try:
            yield folder
        finally:
            stop(folder)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A real Slurm with four nodes, two pretended GPUs each, and accounting."""
    skip_unless_possible()
    with cluster_folder() as folder:
        done = start(folder)
        assert done.returncode == 0, done.stderr
        yield SlurmCluster(folder / "slurm.conf")
