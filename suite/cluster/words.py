"""One fixed word for every state that Slurm can name, so that a person reads the same thing on every site.

An odd or unknown state is neither finished nor failed: what is published decides, and `follow` gives up on tasks that
stay in such a state for too long.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_STATES: Final[dict[str, tuple[str, ...]]] = {
    "pending": ("PENDING", "CONFIGURING"),
    "running": ("RUNNING", "RESIZING", "SIGNALING", "STAGE_OUT"),
    "suspended": ("SUSPENDED", "STOPPED"),
    "requeued": ("REQUEUED", "REQUEUE_FED"),
    "on hold": ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
    "preempted": ("PREEMPTED",),
    "ending": ("COMPLETING",),
    "ended": ("COMPLETED", "REVOKED"),
    "cancelled": ("CANCELLED",),
    "failed": (
        "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL",
    ),
}  # fmt: skip
WORDS: Final[dict[str, str]] = {state: word for word, states in _STATES.items() for state in states}
UNKNOWN: Final = "unknown"
#: Words of tasks that may still bring something about.
LIVE: Final = ("running", "pending", "suspended", "requeued", "on hold", UNKNOWN)
#: Words of tasks that go on by themselves; the other live ones may stay as they are for ever.
MOVING: Final = ("running", "pending")


@lru_cache(maxsize=1024)  # a hundred thousand tasks are in a handful of states
def word(state: str) -> str:
    """The word for a state as Slurm prints it: `CANCELLED by 123`, `CANCELLED+` and `cancelled` are the same."""
    first = state.split()[0].rstrip("+").upper() if state.strip() else ""
    return WORDS.get(first, UNKNOWN)
