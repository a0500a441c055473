"""Fault points: `SUITE_FAULT=<stage kind>:<point>` kills the process with SIGKILL when it gets there.

They exist so that the promise "kill -9 at any moment, launch again, nothing is lost" can be tested at the moments that
matter. Points: start, computed, recorded (before the manifest), sealed (manifest written, not yet renamed), published.
"""

from __future__ import annotations

import os
import signal


def fault_point(kind: str, point: str) -> None:
    """Die here if `SUITE_FAULT` says so."""
    if os.environ.get("SUITE_FAULT") == f"{kind}:{point}":
        os.kill(os.getpid(), signal.SIGKILL)
