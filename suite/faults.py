"""Fault points: `SUITE_FAULT=<stage kind>:<point>[:<n>]` kills the process with SIGKILL when it gets there.

They exist so that the promise "kill -9 at any moment, launch again, nothing is lost" can be tested at the moments that
matter. Points, in the order in which a stage passes them: start, step (after each step, or each report of progress),
saving (while a checkpoint is half written), computed, recorded (before the manifest), sealed (manifest written, not yet
renamed), published (renamed, its checkpoints still there). With n, the process dies when it passes the point for the
n-th time.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_passed: Counter[str] = Counter()


def fault_point(kind: str, point: str) -> None:
    """Die here if `SUITE_FAULT` says so."""
    fault = os.environ.get("SUITE_FAULT")
    if not fault:
        return
    wanted, where, count = (*fault.split(":"), "1")[:3]
    if (wanted, where) != (kind, point):
        return
    _passed[fault] += 1
    if _passed[fault] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
