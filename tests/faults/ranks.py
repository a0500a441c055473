"""Jobs of two tasks on this machine: forked processes with the variables that Slurm gives each."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from suite.store import Record
from tests.faults.attempts import Bench, pretend_slurm

#: What a task does before it starts: patches that make it slow, or fail.
Prepared = Callable[[int], None]


@dataclass
class Ended:
    """What became of the tasks of a job.

    Attributes:
        codes: Exit codes by rank, negative if a signal ended a task.
        seconds: From the last signal (or the start) to the end of each.
        output: What each printed.
    """

    codes: list[int]
    seconds: list[float]
    output: list[str]


@dataclass
class Job:
    """A job of two tasks that trains one stage.

    Attributes:
        made: The stage.
        folder: For logs, and a `scontrol` that counts.
        limit: Seconds that a task waits for another.
    """

    made: Bench
    folder: Path
    limit: float = 60.0
    starts: int = 0
    environment: dict[str, str] = field(init=False)
    requeues: Callable[[], list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.environment, self.requeues = pretend_slurm(self.folder)
        path = self.made.run / "settings.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"loader_timeout": self.limit}))

    def start(
        self, *ranks: int, prepare: Prepared = lambda rank: None, fault: Mapping[int, str] = MappingProxyType({})
    ) -> list[int]:
        """Start tasks. Returns their process ids."""
        self.starts += 1
        return [self._fork(rank, prepare, fault.get(rank, "")) for rank in ranks or (0, 1)]

    def _fork(self, rank: int, prepare: Prepared, fault: str) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            log = os.open(self._log(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
            os.environ.update(self.environment | {
                "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
                "SLURM_RESTART_COUNT": str(self.starts), "SUITE_FAULT": fault,
            })  # fmt: skip
            prepare(rank)
            from suite.cluster.pack import Pack

            code = Pack(str(self.made.run), (self.made.index,), 2)()
        except SystemExit as error:
            code = int(error.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _log(self, rank: int) -> Path:
        return self.folder / f"{self.starts}-{rank}.log"

    def end(self, tasks: list[int], seconds: float = 60.0) -> Ended:
        """Wait for tasks; those that take longer are killed."""
        begin, left = time.monotonic(), dict(enumerate(tasks))
        codes, took = [0] * len(tasks), [0.0] * len(tasks)
        while left:
            for i, pid in list(left.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[i], took[i] = os.waitstatus_to_exitcode(status), time.monotonic() - begin
                    del left[i]
            if left and time.monotonic() - begin > seconds:
                for pid in left.values():
                    os.kill(pid, signal.SIGKILL)
                seconds += 10
            time.sleep(0.01)
        return Ended(codes, took, [p.read_text() for p in sorted(self.folder.glob(f"{self.starts}-*.log"))])

    def run(self, **more: object) -> Ended:
        """Start both tasks and wait for them."""
        return self.end(self.start(**more))  # type: ignore[arg-type]

    def failures(self) -> list[Record]:
        """Records of failed attempts."""
        return self.made.store.failures(self.made.stage.kind, self.made.stage.key)

    def published(self) -> bool:
        """Whether the stage is."""
        return self.made.stage.key in self.made.store.published(self.made.stage.kind)
