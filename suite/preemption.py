"""Preemption: a signal sets a flag, and loops leave at their next step, after a checkpoint.

Nothing else happens in the handler: no file, no device, no process. A second signal changes nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What schedulers send before they kill: USR2 as submitit asks Slurm for, TERM by themselves.
SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Preempted(BaseException):
    """The stage was asked to leave and has left. Not a failure, so that no `except Exception` takes it for one.

    Attributes:
        signum: The first signal that asked for it.
        saves: Checkpoints of the stage so far, which grow by one with every step that is not made again.
        stages: Stages that this process was through with.
    """

    def __init__(self, signum: int, saves: int = 0) -> None:
        self.signum, self.saves, self.stages = signum, saves, 0
        super().__init__(f"asked to leave by {signal.Signals(signum).name}")


class Notice:
    """Whether this process was asked to leave.

    Attributes:
        signum: The first signal; None as long as there is none.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._process = os.getpid()

    @property
    def taken(self) -> bool:
        """Whether there was one."""
        return self.signum is not None

    def take(self, signum: int, frame: FrameType | None = None) -> None:
        """The signal handler. A child that was forked dies of the signal, as if there was none."""
        if os.getpid() != self._process:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        if self.signum is None:
            self.signum = signum

    def leave(self, saves: int = 0) -> None:
        """Leave the stage if that was asked for.

        Raises:
            Preempted: Then.
        """
        if self.signum is not None:
            raise Preempted(self.signum, saves)


@contextmanager
def noticing() -> Iterator[Notice]:
    """Take note of `SIGNALS` inside the block.

    Behind it their handlers are put back, unless there was a signal: then the process is on its way out, and a second
    one still changes nothing. Only a process's main thread can do that; elsewhere the notice stays empty.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = {number: signal.signal(number, notice.take) for number in SIGNALS}
    try:
        yield notice
    finally:
        if not notice.taken:
            for number, handler in before.items():
                signal.signal(number, handler)
