"""Functions that several processes run together, connected by gloo."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from suite.learn.distributed import Ranks


def together(folder: Path, function: Callable[[Ranks], Any], size: int = 2) -> list[Any]:
    """What a function of its ranks gives in each of some forked processes; tensors, numbers and texts."""
    folder.mkdir(exist_ok=True)
    children = [_forked(folder, function, Ranks(rank, size)) for rank in range(size)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * size, [(folder / f"{rank}.txt").read_text() for rank in range(size) if codes[rank] == 1]
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
    (folder / "meeting").unlink(missing_ok=True)
    return found


def _forked(folder: Path, function: Callable[[Ranks], Any], ranks: Ranks) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)  # a team of threads that the parent had, perhaps, is not there any more
        store = dist.FileStore(str(folder / "meeting"), ranks.size)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo", store=store, rank=ranks.rank, world_size=ranks.size, timeout=timedelta(seconds=60)
        )
        torch.save(function(ranks), folder / f"{ranks.rank}.pt")
        dist.destroy_process_group()
        code = 0
    except BaseException:
        (folder / f"{ranks.rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)
