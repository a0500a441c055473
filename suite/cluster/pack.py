"""The thing that submitit pickles and a node runs: some stages of a run directory, in one process."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.cluster.requeue import requeue
from suite.errors import SuiteError
from suite.preemption import Preempted, noticing

#: Environment variable with `pid:start time` of the process that local workers must not outlive.
LAUNCHER = "SUITE_LAUNCHER"
_WATCH_SECONDS = 0.5


class PackFailed(SuiteError):
    """Some stages of a pack failed; their records say why. Makes Slurm show the task as failed."""


@dataclass(frozen=True)
class Pack:
    """Stages that one process runs one after another. Holds no code and no data, only where to find them.

    Attributes:
        run: Run directory.
        indices: Positions of stages in it.
        tasks: Tasks of the job, of which the process is one; they train each stage together.
    """

    run: str
    indices: tuple[int, ...]
    tasks: int = 1

    def __call__(self) -> int:
        """Run the stages; a task of Slurm's that is asked to leave goes back into the queue.

        Raises:
            PackFailed: If some of them failed.
            SystemExit: If the task was asked to leave.
        """
        with noticing() as notice:
            follow_launcher()
            remove_stale_saves()
            try:
                # By name, so that the launcher's layer does not import the workers'.
                code = importlib.import_module("suite.work").run_pack(self.run, list(self.indices), notice, self.tasks)
            except Preempted as left:
                print(f"{left}: {requeue(Path(self.run), self.indices[0], left)}", flush=True)
                # Not an exception: submitit would write it down as the task's result.
                raise SystemExit(128 + left.signum) from None
        if code:
            raise PackFailed(f"some of {len(self.indices)} stages failed", where=self.run, hint="see the log above")
        return int(code)

    def checkpoint(self) -> Any:
        """What submitit's own handler requeues, on a signal before `__call__`: the same pack, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def process_mark(pid: int) -> str | None:
    """`pid:start time`: names a process even after its number was given to another; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else f"{pid}:{fields[19]}"


def follow_launcher() -> None:
    """Die with the launcher of a local run, however it died: nothing is left computing behind anybody's back."""
    mark = os.environ.get(LAUNCHER)
    if not mark:
        return
    pid = int(mark.partition(":")[0])

    def watch() -> None:
        while process_mark(pid) == mark:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="follow-launcher", daemon=True).start()


def remove_stale_saves() -> None:
    """Remove submitit's temporary files of a killed predecessor: it refuses to save while one exists."""
    folder = os.environ.get("SUBMITIT_FOLDER")
    if not folder:
        return
    from submitit.core.job_environment import JobEnvironment

    paths = JobEnvironment().paths
    for path in (paths.submitted_pickle, paths.result_pickle):
        path.with_suffix(path.suffix + ".save_tmp").unlink(missing_ok=True)
