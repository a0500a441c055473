"""Running a plan on this machine: submitit's local executor with a bounded number of slots, wave after wave."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite.cluster.environment import as_worker
from suite.cluster.pack import LAUNCHER, Pack, process_mark
from suite.cluster.profile import Profile
from suite.cluster.runs import Array, Run
from suite.cluster.waves import Wave
from suite.errors import InfraError, UserError
from suite.spec.keys import plain
from suite.spec.stages import Stage, input_kind
from suite.store import Attempt, Record, Store
from suite.store.retries import decide

#: submitit signals local jobs before their limit; stages here are bounded by what they compute, not by a clock.
_LIMIT_MINUTES = 60 * 24 * 365
_POLL_SECONDS = 0.2
_STOP_SECONDS = 3.0


@dataclass
class Running:
    """A pack that runs in a slot.

    Attributes:
        pack: Positions of its stages.
        job: submitit's job.
        folder: Where its output goes.
        failed: Failed attempts of each stage before it started.
        killed: Processes that the kernel had killed for memory before it started.
    """

    pack: tuple[int, ...]
    job: Any
    folder: Path
    failed: dict[int, int] = field(default_factory=dict)
    killed: int = 0


class Crew:
    """Runs packs in the slots of this machine.

    Args:
        run: The run directory.
        stages: The stages of the run.
        store: Where they publish.
        profile: The place.
        progress: Called with the positions of newly published stages.
    """

    def __init__(
        self,
        run: Run,
        stages: Sequence[Stage],
        store: Store,
        profile: Profile,
        progress: Callable[[list[int]], None] = lambda done: None,
    ) -> None:
        self.run, self.stages, self.store, self.profile = run, stages, store, profile
        self.progress = progress
        self.slots: dict[int, Running] = {}
        self.gpus = local_gpus(profile)
        self.reported: set[int] = set()

    def work(self, waves: Sequence[Wave]) -> None:
        """Run waves in order, leaving out stages whose inputs did not get published.

        Workers are stopped if this ends by an exception.
        """
        try:
            for wave in waves:
                packs = [p for pack in wave.packs if (p := tuple(i for i in pack if self._ready(i)))]
                if packs:
                    self._wave(wave.kind, packs)
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop every worker and wait until they are gone."""
        for running in self.slots.values():
            running.job.cancel()
        deadline = time.monotonic() + _STOP_SECONDS
        while any(not r.job.done() for r in self.slots.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        # A controller that still lives is killed; its worker follows when this process ends.
        for running in self.slots.values():
            if not running.job.done():
                running.job._process.kill()
        self.slots.clear()

    def _published(self, kind: str, key: str) -> bool:
        return (self.store.home(kind, key) / "out").is_dir()

    def _ready(self, index: int) -> bool:
        return all(self._published(input_kind(role), key) for role, key in self.stages[index].inputs.items())

    def _wave(self, kind: str, packs: list[tuple[int, ...]]) -> None:
        waiting = list(packs)
        while waiting or self.slots:
            free = [s for s in range(self.profile.slots) if s not in self.slots]
            for slot in free[: len(waiting)]:
                self.slots[slot] = self._start(kind, waiting.pop(0), slot)
            time.sleep(_POLL_SECONDS)
            for slot, running in list(self.slots.items()):
                finished = running.job.done()
                self._report(running)
                if finished:
                    del self.slots[slot]
                    if rest := self._settle(running):
                        waiting.insert(0, rest)

    def _start(self, kind: str, pack: tuple[int, ...], slot: int) -> Running:
        from submitit import LocalExecutor

        name = f"{len(self.run.arrays):04d}-{kind}"
        folder = self.run.logs / name
        folder.mkdir()
        executor = LocalExecutor(folder, python=shlex.quote(self.profile.python))
        gpu = [self.gpus[slot % len(self.gpus)]] if self.gpus else []
        executor.update_parameters(timeout_min=_LIMIT_MINUTES, gpus_per_node=len(gpu), visible_gpus=gpu)
        failed, killed = {i: self._failures(i) for i in pack}, killed_for_memory()
        mark = process_mark(os.getpid()) or ""
        with as_worker(self.profile, **{LAUNCHER: mark}), _stderr_to(folder / "controller.err"):
            job = executor.submit(Pack(str(self.run.path), pack))
        self.run.arrays.append(Array(name, kind, [list(pack)], str(job.job_id)))
        self.run.save()
        return Running(pack, job, folder, failed, killed)

    def _failures(self, index: int) -> int:
        stage = self.stages[index]
        return len(list((self.store.home(stage.kind, stage.key) / "failed").glob("*.json")))

    def _report(self, running: Running) -> None:
        fresh = [i for i in running.pack if i not in self.reported and self._is_published(i)]
        if fresh:
            self.reported.update(fresh)
            self.progress(fresh)

    def _is_published(self, index: int) -> bool:
        return self._published(self.stages[index].kind, self.stages[index].key)

    def _settle(self, running: Running) -> tuple[int, ...]:
        """Account for stages that a finished process left without artifact and without record.

        If the process died (signal, memory), the stage it was at is recorded as failed and the ones behind it are
        returned, to be run by another process; so is the stage itself if smaller batches may help. If it came back with
        an error, all of them are recorded with it.
        """
        untouched = [i for i in running.pack if not self._is_published(i) and self._failures(i) <= running.failed[i]]
        if not untouched:
            return ()
        last = _last_line(running.folder)
        if running.job.paths.result_pickle.exists():
            for index in untouched:
                self._record(index, "infra", f"the worker stopped: {last}", running.folder)
            return ()
        if killed_for_memory() == running.killed:
            self._record(untouched[0], "infra", f"the process died: {last}", running.folder)
            return tuple(untouched[1:])
        self._record(untouched[0], "oom", "the process died while the kernel killed for lack of memory", running.folder)
        stage = self.stages[untouched[0]]
        smaller = decide(self.store.failures(stage.kind, stage.key)).micro_batches > 1
        return tuple(untouched if smaller else untouched[1:])

    def _record(self, index: int, kind: str, message: str, folder: Path) -> None:
        stage = self.stages[index]
        record = Record(stage.kind, stage.key, "", "failed", plain(stage.spec))
        record.started = datetime.now(UTC).isoformat(timespec="seconds")
        record.failure = {"kind": kind, "message": f"{folder}: {message}"[:2000]}
        Attempt(self.store, stage, {}).fail(record)


def killed_for_memory() -> int:
    """How many processes the kernel has killed for lack of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _last_line(folder: Path) -> str:
    """The last thing that a worker printed to its error log."""
    for name in ("*_log.err", "controller.err"):
        for path in folder.glob(name):
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - 8192))
                lines = log.read().decode(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].strip()
    return "its log is empty (killed, or out of memory)"


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Send what child processes inherit as standard error to a file: a stopped controller prints a traceback."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with path.open("ab") as log:
            os.dup2(log.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def local_gpus(profile: Profile) -> list[int]:
    """GPUs that local slots use in turn: the profile's, else those that the caller's shell shows, else all.

    Raises:
        UserError: If `CUDA_VISIBLE_DEVICES` names GPUs otherwise than by numbers.
    """
    if profile.device == "cpu" or profile.gpus == 0:
        return []
    if profile.visible_gpus is not None:
        return list(profile.visible_gpus)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return sorted(int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit())
    try:
        return [int(n) for n in shown.split(",") if n.strip()]
    except ValueError as error:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={shown!r} names GPUs otherwise than by numbers",
            hint="set `visible_gpus: [0, ...]` in the site profile",
        ) from error


def run_local(
    run: Run,
    waves: Sequence[Wave],
    stages: Sequence[Stage],
    store: Store,
    profile: Profile,
    progress: Callable[[list[int]], None] = lambda done: None,
) -> None:
    """Run waves on this machine and come back when they are through.

    Raises:
        InfraError: If worker processes cannot be started.
    """
    try:
        Crew(run, stages, store, profile, progress).work(waves)
    except OSError as error:
        raise InfraError(f"cannot start workers: {error}", where=str(run.path)) from error
