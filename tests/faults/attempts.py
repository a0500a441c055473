"""Attempts in forked processes, which get real signals at chosen steps; and Slurm's word, from a script."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from suite.grid import Plan
from suite.spec.stages import Stage
from suite.store import Artifact, Store
from tests.tiny import write_run

#: A checkpoint after every step.
ALWAYS = 0.0
#: What a record says of a stage that does not depend on time, place or the number of attempts.
COUNTS = ("image_iterations", "forward_images", "images")
#: What stands before the real `scontrol`: it writes down what it is asked, and knows one running task.
SCONTROL = """\
#!/bin/sh
echo "$@" >> "{log}"
[ "$1" = show ] && echo "JobId=7 JobState={state} Requeue=1"
exit 0
"""


@dataclass(frozen=True)
class Signals:
    """When a process gets signals.

    Attributes:
        step: After this step, counted from 1; 0 for never.
        numbers: Which.
        gaps: Seconds before each.
        during_save: Wait until a checkpoint is half written first.
    """

    step: int = 0
    numbers: tuple[int, ...] = (signal.SIGUSR2,)
    gaps: tuple[float, ...] = (0.0,)
    during_save: bool = False


@dataclass(frozen=True)
class Attempt:
    """What became of an attempt: its exit code (negative if a signal ended it), and its steps."""

    code: int
    steps: int


def attempt(
    run: Path, index: int, signals: Signals | None = None, environment: dict[str, str] | None = None
) -> Attempt:
    """Run one stage as a task of Slurm's would, in a forked process that has the parent's imports."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.environ.update(environment or {})
            _count_steps(writing, signals or Signals())
            from suite.cluster.pack import Pack

            code = Pack(str(run), (index,))()
        except SystemExit as error:
            code = int(error.code or 0)
        except Exception:
            code = 1
        finally:
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        steps = len(pipe.read())
    return Attempt(os.waitstatus_to_exitcode(status), steps)


def _count_steps(pipe: int, signals: Signals) -> None:
    """Tell the parent of every step by one byte, and send this process its signals from a thread of its own."""
    from suite.learn import checkpoint

    due, write = checkpoint.Checkpoint.due, checkpoint._Hashed.write
    reached, saving, count = threading.Event(), threading.Event(), 0

    def send() -> None:
        reached.wait()
        if signals.during_save:
            saving.wait()
        for gap, number in zip(signals.gaps, signals.numbers, strict=True):
            time.sleep(gap)
            os.kill(os.getpid(), number)

    def counted(self: checkpoint.Checkpoint) -> bool:
        nonlocal count
        count += 1
        os.write(pipe, b".")
        if count == signals.step:
            reached.set()
            if not (signals.during_save or any(signals.gaps)):
                sender.join()
        return due(self)

    def written(self: Any, data: Any) -> int:
        if reached.is_set() and self.size:
            saving.set()
        return write(self, data)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    checkpoint.Checkpoint.due = counted  # type: ignore[method-assign]
    checkpoint._Hashed.write = written  # type: ignore[method-assign]


@dataclass
class Bench:
    """One stage of a finished store, in a copy of it, to be run again and again.

    Attributes:
        run: Run directory.
        store: The copy, without the stage.
        stage: The stage.
        index: Its position.
        wanted: The artifact of the run that was left alone.
    """

    run: Path
    store: Store
    stage: Stage
    index: int
    wanted: Artifact
    environment: dict[str, str] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget every attempt at the stage."""
        shutil.rmtree(self.store.home(self.stage.kind, self.stage.key), ignore_errors=True)

    def attempt(self, signals: Signals | None = None, **environment: str) -> Attempt:
        """One attempt at it."""
        return attempt(self.run, self.index, signals, self.environment | environment)

    def saves(self) -> int:
        """Number of the newest whole checkpoint; 0 if there is none."""
        from suite.learn.checkpoint import Checkpoint

        found = 0
        for folder in (self.store.home(self.stage.kind, self.stage.key) / "checkpoints").glob("*"):
            kept = Checkpoint(folder)
            kept.load()
            found = max(found, kept.saves)
        return found

    def check(self) -> Artifact:
        """What is published has the bytes, and its record the counts and numbers, of the run that was left alone."""
        found = self.store.open(self.stage.kind, self.stage.key)
        assert found.digest == self.wanted.digest
        mine, theirs = found.record(), self.wanted.record()
        assert {n: mine.cost.get(n) for n in COUNTS} == {n: theirs.cost.get(n) for n in COUNTS}
        assert (mine.numbers, mine.storage) == (theirs.numbers, theirs.storage)
        home = self.store.home(self.stage.kind, self.stage.key)
        assert not (home / "checkpoints").exists(), "checkpoints are deleted once the stage is published"
        assert not self.store.attempts(self.stage.kind, self.stage.key)
        return found


def bench(plan: Plan, reference: Store, index: int, folder: Path, minutes: float = 10.0) -> Bench:
    """Copy a finished store without one stage."""
    stage = plan.stages[index]
    if not (folder / "store").exists():
        shutil.copytree(reference.root, folder / "store")
    store = Store(folder / "store")
    made = Bench(write_run(plan, store, minutes), store, stage, index, reference.open(stage.kind, stage.key))
    made.clear()
    return made


def longer(plan: Plan, reference: Store, folder: Path, iterations: int, method: str = "sre2l") -> Bench:
    """A synthesis with more iterations than the plan's, run once; a checkpoint after every step."""
    before = find(plan, "synthesis", method)
    spec: Any = plan.stages[before].spec
    stage = Stage.make(
        "synthesis", replace(spec, params={**spec.params, "iterations": iterations}), plan.stages[before].inputs
    )
    shutil.copytree(reference.root, folder / "store")
    store = Store(folder / "store")
    longer_plan = Plan("longer", [stage])
    run = write_run(longer_plan, store, ALWAYS)
    assert attempt(run, 0).code == 0
    kept = folder / "kept"
    shutil.copytree(store.home(stage.kind, stage.key), Store(kept).home(stage.kind, stage.key))
    made = Bench(run, store, stage, 0, Store(kept).open(stage.kind, stage.key))
    made.clear()
    return made


def find(plan: Plan, kind: str, method: str = "") -> int:
    """Position of the first stage of a kind, and of a method."""
    return next(
        i for i, s in enumerate(plan.stages) if s.kind == kind and method in ("", getattr(s.spec, "method", ""))
    )


def in_shards(plan: Plan) -> Plan:
    """A synthesis of two batches: its two shards, and what merges them."""
    whole: Any = plan.stages[find(plan, "synthesis", "sre2l")]
    spec = replace(whole.spec, params=whole.spec.params | {"batch": 5})
    merge = replace(Stage.make("synthesis", spec, whole.inputs), shards=2)
    return Plan("cut", [*merge.parts(), merge])


def pretend_slurm(folder: Path, state: str = "RUNNING") -> tuple[dict[str, str], Callable[[], list[str]]]:
    """A `scontrol` that counts, and the environment of the one task that it knows.

    Returns:
        The environment, and what gives the requeues that were asked for so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script, log = folder / "scontrol", folder / "asked"
    script.write_text(SCONTROL.format(log=log, state=state))
    script.chmod(0o755)
    log.write_text("")
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    return environment, lambda: [line for line in log.read_text().splitlines() if line.startswith("requeue")]
