"""Where a number comes from: code, environment, device. A row without these is not on a leaderboard."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from suite import __version__

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "ffcv", "submitit", "pandas")
_ROOT = Path(__file__).resolve().parent


def _git(*args: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *args], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def source_digest() -> str:
    """SHA-256 over the package's own Python files: identifies code that is not in a git checkout."""
    h = hashlib.sha256()
    for path in sorted(_ROOT.rglob("*.py")):
        h.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()


@cache
def code() -> dict[str, str]:
    """`commit` (or `source:<digest>` outside git) and `dirty`: empty, or a digest of the uncommitted package."""
    head = _git("rev-parse", "HEAD")
    if head is None or _git("ls-files", "--error-unmatch", str(_ROOT / "__init__.py")) is None:
        return {"commit": f"source:{source_digest()[:40]}", "dirty": ""}
    changed = _git("status", "--porcelain", "--", str(_ROOT))
    return {"commit": head.decode().strip(), "dirty": source_digest()[:16] if changed else ""}


def ancestors(revision: str) -> set[str]:
    """The commits of a revision and everything before it; empty if git knows no such revision here."""
    found = _git("rev-list", "--end-of-options", revision, "--")
    return set(found.decode().split()) if found else set()


@cache
def environment() -> dict[str, Any]:
    """Versions of what computes; packages that are not installed are left out."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform(), "suite": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(loader: str | None = None, seed: int | None = None) -> dict[str, Any]:
    """Everything that identifies the code and the place of an attempt.

    Args:
        loader: `ffcv` or `torchvision`, the one that really read the images; None where none were read.
        seed: Seed of the stage.
    """
    slurm = {k.lower(): v for k in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
                                    "SLURMD_NODENAME", "SLURM_CLUSTER_NAME") if (v := os.environ.get(k))}  # fmt: skip
    return {
        **code(),
        "environment": environment(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm": slurm or None,
        "command": Path(sys.argv[0]).name,
        "loader": loader,
        "seed": seed,
    }
