"""The environment of workers: the same wherever a launch was typed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suite.cluster.pack import LAUNCHER
from suite.cluster.profile import Profile
from suite.cluster.query import SLURM_VARIABLES

#: What the caller's shell, or the job inside which somebody launches, must not pass on. SLURM_CONF stays.
_PREFIXES = (*SLURM_VARIABLES, "SUBMITIT_", "PMI_", "PMIX_")
_NAMES = frozenset({
    "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONHASHSEED", "PYTHONOPTIMIZE", "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", LAUNCHER,
})  # fmt: skip
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def package_root() -> Path | None:
    """The directory that holds the package, unless it is installed where every interpreter looks anyway."""
    root = Path(__file__).resolve().parents[2]
    return None if root.name in ("site-packages", "dist-packages") else root


def worker_environment(profile: Profile, caller: dict[str, str]) -> dict[str, str]:
    """The environment that workers get.

    Args:
        profile: Gives the number of threads.
        caller: The environment in which somebody launches.

    Returns:
        The caller's environment without what changes jobs silently, and with the profile's threads.
    """
    kept = {k: v for k, v in caller.items() if k == "SLURM_CONF" or not (k.startswith(_PREFIXES) or k in _NAMES)}
    kept |= dict.fromkeys(_THREADS, str(profile.threads))
    kept["PYTHONUNBUFFERED"] = "1"
    if (root := package_root()) is not None:
        kept["PYTHONPATH"] = str(root)  # workers run the code that planned
    return kept


@contextmanager
def as_worker(profile: Profile, **more: str) -> Iterator[None]:
    """Give this process the workers' environment while it starts a local one: submitit passes it on."""
    before = dict(os.environ)
    after = worker_environment(profile, before) | more
    os.environ.clear()
    os.environ.update(after)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
