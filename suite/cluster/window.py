"""How many tasks may be in Slurm at once: what the profile allows, and what the site's limits turn out to be."""

from __future__ import annotations

import time
from collections.abc import Callable

from suite.cluster.profile import Profile
from suite.cluster.query import live_tasks
from suite.cluster.sbatch import NoRoom
from suite.cluster.show import say

#: Pauses while there is no room.
_FIRST, _LONGEST = 15.0, 300.0
#: How long a launch that does not stay waits for room.
PATIENCE = 600.0


class Window:
    """Counts this user's tasks in Slurm and makes a launch wait while there are too many.

    Slurm is asked only where the profile limits them, or after a submission was refused. A limit that the site has and
    the profile does not name is learnt from what was accepted and what was refused.

    Args:
        run_id: The run, whose own tasks are counted for `in_flight_per_run`.
        profile: Gives the limits.
        patience: Seconds without any room after which to give up.
        beat: Called before every pause.
    """

    def __init__(
        self, run_id: str, profile: Profile, patience: float = PATIENCE, beat: Callable[[], None] = lambda: None
    ) -> None:
        self.prefix = f"suite-{run_id}-"
        self.per_run = profile.in_flight_per_run
        self.per_user = profile.in_flight_per_user
        self.learnt: int | None = None
        self.patience, self.beat = patience, beat
        self.pause = _FIRST

    def room(self, wanted: int) -> int:
        """How many of some tasks may be submitted now, at least one; waits until there is room.

        Raises:
            NoRoom: If nothing moves for as long as patience lasts.
            QueryFailed: If Slurm has to be asked and does not answer.
        """
        pause, since, before = _FIRST, time.monotonic(), -1
        while limits := [n for n in (self.per_run, self.per_user, self.learnt) if n is not None]:
            own, all_of_them = self._count()
            there = ((self.per_run, own), (self.per_user, all_of_them), (self.learnt, all_of_them))
            free = min(wanted, *(n - count for n, count in there if n is not None))
            # A few at a time would cost a call each: wait until a tenth of the window, or all that is left, fits.
            if free >= min(wanted, max(1, min(limits) // 10)):
                return free
            if all_of_them < before:
                pause, since = _FIRST, time.monotonic()
            if time.monotonic() - since >= self.patience:
                raise NoRoom(f"no room for {wanted} more tasks: {all_of_them} are in Slurm")
            say(f"{all_of_them} tasks are in Slurm: waiting for room for {wanted} more")
            self.beat()
            time.sleep(min(pause, self.patience))
            pause, before = min(pause * 1.5, _LONGEST), all_of_them
        return wanted

    def refused(self, size: int, error: NoRoom) -> None:
        """Take note that Slurm did not take so many tasks, and pause; ever longer while nothing is accepted.

        Raises:
            NoRoom: If not even one task fits although none is there.
        """
        _, there = self._count()
        if there == 0 and size == 1:
            raise error
        self.learnt = there or size // 2
        if there:
            self.beat()
            time.sleep(min(self.pause, self.patience))
            self.pause = min(self.pause * 1.5, _LONGEST)

    def accepted(self, size: int) -> None:
        """Take note that Slurm took so many tasks: a limit that others filled may have room again."""
        self.pause = _FIRST
        if self.learnt is not None:
            self.learnt += max(1, size // 4)

    def _count(self) -> tuple[int, int]:
        tasks = live_tasks()
        return sum(t.name.startswith(self.prefix) for t in tasks), len(tasks)
