"""The device that a worker computes on: chosen, and tried out before a stage opens its inputs."""

from __future__ import annotations

import ctypes
import gc
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from suite.data.ffcv_stream import within
from suite.errors import InfraError, UserError

#: Seconds in which a GPU has to add up eight numbers. Drivers without persistence take many for each of eight GPUs, and
#: file servers theirs when many tasks read PyTorch's libraries at once.
TRIAL_SECONDS = 120.0
#: `mallopt`'s M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; older glibc accepts at most the second number of bytes.
_TRIM, _MMAP, _LARGEST = -1, -3, (2**30, 2**25)


def usable_device(wanted: str, number: int | None = None) -> torch.device:
    """The device that the profile wants, after a GPU has shown that it computes; on a CPU, memory is kept from now on.

    Args:
        wanted: `auto` (CUDA where a GPU is visible, else the CPU), `cpu` or `cuda`.
        number: Of a task's own GPU among those that its job has; None where it has a job for itself.

    Raises:
        UserError: If `cuda` is wanted and this machine has no GPU, or PyTorch has no code for it.
        InfraError: If there is a GPU, or Slurm gave one, and CUDA cannot use it; or if a task has none of its own.
    """
    if wanted == "cpu":
        return _cpu()
    with warnings.catch_warnings(record=True) as said:  # why CUDA cannot be used is a warning only
        warnings.simplefilter("always")
        there = within(TRIAL_SECONDS, "CUDA's initialization", torch.cuda.is_available)
    if not there:
        why = " ".join(str(w.message) for w in said)
        if gpu := visible_gpu():
            hint = "`nvidia-smi` on this node; `device: cpu` computes without it"
            raise InfraError(f"CUDA cannot use the GPU that is here: {why or 'no reason given'}", where=gpu, hint=hint)
        if wanted == "cuda":
            raise UserError("no CUDA device is visible", hint="set `device: auto` or `device: cpu` in the site profile")
        return _cpu()
    if number is not None and torch.cuda.device_count() == 1:  # the site shows each task its own GPU alone
        number = 0
    if number is not None and number >= (visible := torch.cuda.device_count()):
        hint = "`gpus: 1` in the site profile is one GPU a task"
        raise InfraError(f"task {number} of this job has no GPU of its own: {visible} visible", hint=hint)
    device = torch.device("cuda") if number is None else torch.device("cuda", number)
    within(TRIAL_SECONDS, "a first computation on the GPU", lambda: float(torch.ones(8, device=device).sum()))
    return device


def _cpu() -> torch.device:
    keep_memory()
    return torch.device("cpu")


def keep_memory() -> None:
    """Give back what earlier stages left, and from now on keep freed memory for the next maps.

    By itself, glibc returns large blocks to the kernel at once and fetches new pages for the next: up to half the time
    of a training step on a CPU. Kept blocks fit less well: that took a tenth more memory, and two thirds in the
    worst case tried. Nothing changes where the environment has a `MALLOC_` variable, or the C library no `mallopt`.
    """
    free_memory()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_TRIM, -1)
        any(mallopt(_MMAP, size) for size in _LARGEST)


def free_memory() -> None:
    """Give back what is not in use any more: what earlier stages or failed attempts left."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def visible_gpu() -> str:
    """What says that this process should have a GPU: Slurm's variable, or a device file; empty if nothing does."""
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return ""
    return next((str(p) for p in sorted(Path("/dev").glob("nvidia[0-9]*"))), "")


def peak_memory(device: torch.device | None = None) -> dict[str, Any]:
    """The most memory that was in use since it was last reset: `peak_memory_bytes` and what was counted.

    Args:
        device: Of the computation; None where it is not known, which takes CUDA if that was used.
    """
    cuda = torch.cuda.is_initialized() if device is None else device.type == "cuda"
    if cuda:
        return {
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
            "peak_memory_kind": "cuda allocated",
        }
    return {"peak_memory_bytes": _peak_rss(), "peak_memory_kind": "resident set"}


def reset_peak_memory(device: torch.device) -> bool:
    """Start counting again, without what was freed; False where the kernel does not offer it for a CPU's memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("VmHWM is missing from /proc/self/status")
