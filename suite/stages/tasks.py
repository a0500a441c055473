"""The tasks of one job that train together: how they meet, what the first one orders, and who was at fault.

The first task does what a job of one task does: it opens the attempt, writes checkpoints, artifact and record, and
requeues the job. The others wait for its orders, and compute. They meet in a store that the first task opens at a port
of the system's choice and writes into a file of this start of the job (`ranks/<job>-<restart>.json` in the run
directory). Nobody waits longer than `loader_timeout` for anybody, and a signal ends every wait.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from suite.errors import DataError, InfraError, NumericError, OutOfMemory, SuiteError, UserError
from suite.failures import classified
from suite.learn.distributed import Ranks
from suite.preemption import Notice, Preempted
from suite.spec.stages import Stage
from suite.store.files import read_json, write_json

T = TypeVar("T")
_KINDS = {e.kind: e for e in (UserError, DataError, OutOfMemory, NumericError, InfraError)}
_POLL_SECONDS = 0.05
#: How long the first task stays for others that have not heard yet how it ended.
_GOODBYE_SECONDS = 5.0


@dataclass(frozen=True)
class Order:
    """What the first task wants from the others.

    Attributes:
        micro_batches: Train the stage, with batches in so many parts; 0 if the stage is over.
        published: Whether it is published, if it is over.
    """

    micro_batches: int
    published: bool = False


def trains(stage: Stage) -> bool:
    """Whether a stage trains a network that several tasks can train together."""
    return stage.kind == "evaluation" or getattr(stage.spec, "weights", "") == "scratch"


class Tasks:
    """This task among those of its job; alone, it has nobody to wait for.

    Args:
        rank: Its number.
        size: Tasks of the job.
        gpu: Its GPU among those of the node; None for the default one.
        store: Where they meet.
        seconds: The longest wait.
        notice: Whether this task was asked to leave.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        gpu: int | None = None,
        store: dist.Store | None = None,
        seconds: float = 300.0,
        notice: Notice | None = None,
    ) -> None:
        self.rank, self.size, self.gpu, self.seconds = rank, size, gpu, seconds
        self.notice = notice or Notice()
        self._store, self._orders, self._broken = store, 0, False

    @property
    def leads(self) -> bool:
        """Whether this is the first task."""
        return self.rank == 0

    @property
    def store(self) -> dist.Store:
        """Where several tasks meet."""
        assert self._store is not None
        return self._store

    def order(self, order: Order) -> None:
        """Tell the others what to do; the first task's."""
        if self.size > 1:
            self._orders += 1
            self._tell(f"order/{self._orders}", json.dumps([order.micro_batches, order.published]))

    def next_order(self) -> Order:
        """Wait for the first task.

        Raises:
            InfraError: If it is gone, or silent for too long.
            Preempted: If this task, or another one, was asked to leave.
        """
        self._orders += 1
        key = f"order/{self._orders}"
        return Order(*json.loads(self._until("the first task", lambda: self._told(key))))

    @contextmanager
    def training(self, device: torch.device) -> Iterator[Ranks]:
        """The processes that train together inside the block.

        Raises:
            SuiteError: As another task failed, if it was that one; `InfraError` if one died or fell silent.
            Preempted: If one of them was asked to leave before they met.
        """
        if self.size == 1:
            yield Ranks()
            return
        try:
            self._gather()
            self._connect(device)
            yield Ranks(self.rank, self.size)
        except Exception as error:
            _abandon(device)
            if not _lost(error):
                self.failed(error)
                raise
            self._broken = True
            what = f"another task of this job died or fell silent: {error}"
            raise self._fault() or InfraError(what, hint="see the logs of its tasks") from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def failed(self, error: Exception) -> None:
        """Tell the others why this task cannot go on, unless they know already.

        Raises:
            InfraError: If the first task is gone.
        """
        key, e = f"failed/{self._orders}/{self.rank}", classified(error)
        if self.size > 1 and not self._told(key):
            self._tell(key, json.dumps([e.kind, e.what, e.where, e.hint]))

    def leave(self, signum: int) -> None:
        """Tell the others that this task was asked to leave, and leaves."""
        self._tell("left", str(signum))

    def goodbye(self) -> None:
        """Be through. The first task, whose store goes with it, stays until all others know how it ended, if they live.

        Raises:
            InfraError: If the first task is gone.
        """
        self._tell(f"bye/{self.rank}")
        deadline = time.monotonic() + _GOODBYE_SECONDS
        while self.leads and not self._broken and not self._all_told("bye") and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _gather(self) -> None:
        """Wait until every task is ready for this order, and look whether one never will be."""
        self._tell(f"ready/{self._orders}/{self.rank}")

        def ready() -> bool | None:
            if fault := self._fault():
                raise fault
            return self._all_told(f"ready/{self._orders}") or None

        self._until("the other tasks", ready)
        self._broken = False

    def _connect(self, device: torch.device) -> None:
        backend = "gloo"
        if device.type == "cuda":
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"group/{self._orders}", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.seconds),
        )

    def _fault(self) -> SuiteError | None:
        """The failure that another task has told of."""
        for rank in range(self.size):
            if rank != self.rank and (told := self._told(f"failed/{self._orders}/{rank}")):
                kind, what, where, hint = json.loads(told)
                return _KINDS[kind](f"task {rank}: {what}", where=where, hint=hint)
        return None

    def _tell(self, key: str, value: str = "yes") -> None:
        with _first_task():
            self.store.set(key, value)

    def _told(self, key: str) -> bytes | None:
        with _first_task():
            return self.store.get(key) if self.store.check([key]) else None

    def _all_told(self, what: str) -> bool:
        with _first_task():
            return bool(self.store.check([f"{what}/{rank}" for rank in range(self.size)]))

    def _until(self, whom: str, found: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + self.seconds
        while True:
            self.notice.leave()
            if (value := found()) is not None:
                return value
            if left := self._told("left"):
                self.notice.take(int(left))
            if time.monotonic() > deadline:
                what = f"task {self.rank} has waited {self.seconds:g} s for {whom}"
                raise InfraError(what, hint="see the logs of this job's tasks")
            time.sleep(_POLL_SECONDS)


@contextmanager
def _first_task() -> Iterator[None]:
    """The store is the first task's, and goes with it."""
    try:
        yield
    except dist.DistError as error:
        raise InfraError(f"the first task of this job is gone: {error}", hint="see its log") from error


def _abandon(device: torch.device) -> None:
    """End a group whose tasks no longer meet. NCCL's would wait for the kernels that wait for a lost task."""
    if device.type == "cuda" and dist.is_initialized():
        dist.distributed_c10d._abort_process_group()


def _lost(error: Exception) -> bool:
    """Whether an error says that another process is not there any more."""
    if isinstance(error, SuiteError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text))


@contextmanager
def met(run: Path, size: int, seconds: float, notice: Notice) -> Iterator[Tasks]:
    """The tasks of this job, which have found each other.

    Args:
        run: Run directory.
        size: How many there should be; nothing happens with one.
        seconds: The longest wait.
        notice: Whether this task was asked to leave.

    Raises:
        InfraError: If Slurm started another number of tasks or spread them, or the first one does not show.
        Preempted: If this task was asked to leave while it waited.
    """
    if size == 1:
        yield Tasks(notice=notice)
        return
    started = os.environ.get("SLURM_NTASKS", "1")
    if started != str(size):
        raise InfraError(f"Slurm started {started} of the {size} tasks of this job", where=str(run))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all tasks are on one node
    rank, gpu = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_LOCALID"])
    file = run / "ranks" / f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"
    limit = timedelta(seconds=seconds)
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"host": socket.gethostname(), "port": store.port})
    else:
        store = dist.TCPStore("127.0.0.1", _port(file, seconds, notice), is_master=False, timeout=limit)
    tasks = Tasks(rank, size, gpu, store, seconds, notice)
    try:
        yield tasks
    except Preempted as left:
        with suppress(InfraError):  # if nobody is there any more, nobody has to know
            tasks.leave(left.signum)
        raise
    finally:
        with suppress(InfraError):
            tasks.goodbye()
        if rank == 0:
            file.unlink(missing_ok=True)


def _port(file: Path, seconds: float, notice: Notice) -> int:
    """Where the first task of this start of the job listens, once it has written that down."""
    deadline = time.monotonic() + seconds
    while not file.exists():
        notice.leave()
        if time.monotonic() > deadline:
            raise InfraError(f"the first task of this job did not show within {seconds:g} s", where=str(file))
        time.sleep(_POLL_SECONDS)
    found = read_json(file)
    if found["host"] != socket.gethostname():
        raise InfraError(f"the tasks of this job are on {found['host']} and on {socket.gethostname()}", where=str(file))
    return int(found["port"])
