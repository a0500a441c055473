"""A real worker whose first life in Slurm lasts until a signal comes: it waits for it between two steps.

The interpreter of a profile: `held_worker.py -u -m MODULE ARGUMENT...` runs a module of the suite. Lives after a
requeue run freely.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from suite.learn.checkpoint import Checkpoint

#: Steps that are made before the wait: they take two seconds at least, in which checkpoints are due by clock.
STEPS, PAUSE = 200, 0.01
#: A signal that never comes must not hold a node for ever.
PATIENCE = 120.0


def hold() -> None:
    """Let steps of this process take their time, and the last one wait."""
    due, steps = Checkpoint.due, 0

    def held(self: Checkpoint) -> bool:
        nonlocal steps
        steps += 1
        time.sleep(PAUSE)
        end = time.monotonic() + PATIENCE
        while steps >= STEPS and not self.notice.taken and time.monotonic() < end:
            time.sleep(PAUSE)
        return due(self)

    Checkpoint.due = held  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        hold()
    at = sys.argv.index("-m")
    sys.argv = sys.argv[at + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
