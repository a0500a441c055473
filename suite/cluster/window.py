"""How many tasks may be in Slurm at once: what the profile allows, and what the site's limits turn out to be."""

from __future__ import annotations

import time
from collections.abc import Callable

from suite.cluster.profile import Profile
from suite.cluster.query import SILENCE, QueryFailed, live_tasks
from suite.cluster.sbatch import NoRoom
from suite.cluster.show import say

#: Pauses while there is no room.
_FIRST, _LONGEST = 15.0, 300.0
#: How long a launch that does not stay waits for room.
PATIENCE = 600.0


class Window:
    """Counts this user's tasks in Slurm and makes a launch wait while there are too many.

    Slurm is asked only where the profile limits them, or after a submission was refused. A limit that the site has and
    the profile does not name is learnt from what was accepted and what was refused; since others may fill it, too, one
    task more than was learnt is tried now and then when nothing has ended for some minutes.

    Args:
        run_id: The run, whose own tasks are counted for `in_flight_per_run`.
        profile: Gives the limits.
        patience: Seconds without any room after which to give up.
        check: Called before every pause.
    """

    def __init__(
        self, run_id: str, profile: Profile, patience: float = PATIENCE, check: Callable[[], None] = lambda: None
    ) -> None:
        self.prefix = f"suite-{run_id}-"
        self.per_run = profile.in_flight_per_run
        self.per_user = profile.in_flight_per_user
        self.learnt: int | None = None
        self.patience, self.check = patience, check
        self.pause, self.still, self.before = _FIRST, 0.0, -1
        self.why = ""
        self._moved()

    def room(self, wanted: int) -> int:
        """How many of some tasks may be submitted now, at least one; waits until there is room.

        Raises:
            NoRoom: If nothing moves for as long as patience lasts.
            QueryFailed: If Slurm has to be asked and does not answer for so long.
        """
        waited = False
        while limits := [n for n in (self.per_run, self.per_user, self.learnt) if n is not None]:
            own, there = self._count()
            profile = ((self.per_run, own), (self.per_user, there))
            allowed = min([wanted, *(n - count for n, count in profile if n is not None)])
            free = allowed if self.learnt is None else min(allowed, self.learnt - there)
            # A few at a time would cost a call each: wait until a tenth of the window, or all that is left, fits.
            if free >= min(wanted, max(1, min(limits) // 10)):
                return free
            if there < self.before:
                self._moved()
            elif waited and allowed > 0 and time.monotonic() - self.still >= min(self.patience / 2, _LONGEST):
                return max(1, free)  # the site's limit may be one that others fill, too: they may have made room
            self.before = there
            if time.monotonic() - self.still >= self.patience:
                raise NoRoom(f"no room for {wanted} more tasks: {there} are in Slurm{self.why}")
            say(f"{there} tasks are in Slurm: waiting for room for {wanted} more")
            self._sleep(self.pause)
            self.pause, waited = min(self.pause * 1.5, _LONGEST), True
        return wanted

    def refused(self, size: int, error: NoRoom) -> None:
        """Take note that Slurm did not take so many tasks: half of them may fit, or, if it was one, none for now."""
        _, there = self._count()
        self.learnt, self.why = there + size // 2, f" ({error.what})"

    def accepted(self, size: int) -> None:
        """Take note that Slurm took so many tasks: a limit that others filled may have room again."""
        self._moved()
        if self.learnt is not None:
            self.learnt += max(1, size // 4)

    def _moved(self) -> None:
        self.pause, self.still, self.before = _FIRST, time.monotonic(), -1

    def _sleep(self, seconds: float) -> None:
        self.check()
        time.sleep(min(seconds, self.patience))

    def _count(self) -> tuple[int, int]:
        """Tasks of this run and of this user in Slurm; a controller that restarts is asked again."""
        begin = time.monotonic()
        while True:
            try:
                tasks = live_tasks()
                return sum(t.name.startswith(self.prefix) for t in tasks), len(tasks)
            except QueryFailed:
                if time.monotonic() - begin >= min(self.patience, SILENCE):
                    raise
            self._sleep(_FIRST)
