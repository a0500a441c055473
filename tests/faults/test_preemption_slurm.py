"""Preemption on a real Slurm: signals, a requeue by the site, a cancellation; time limits of five minutes."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from suite.grid import Plan, load_plan
from suite.spec.stages import Stage
from suite.store import Store
from tests.cluster.conftest import SlurmCluster, slurm_cluster  # noqa: F401 - a fixture
from tests.cluster.toys import ROOT, run
from tests.tiny import write_grid, write_run

pytestmark = [pytest.mark.slurm, pytest.mark.ffcv]

#: A synthesis of some hundred steps; its first life in Slurm waits for its signal.
GRID = """\
name: preempted
seeds: [0]
protocol: [matched]
product: {method: [sre2l], dataset: [digits], ipc: [1], teacher: [convnet2_w8], student: [convnet2_w8]}
override:
  - {set: {iterations: 1000, student.steps: 6, teacher.epochs: 1}}
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store, Path]:
    """The grid, run here without interruption: plan, store, and the grid's file."""
    from suite.work import run_pack

    folder = tmp_path_factory.mktemp("alone")
    grid = write_grid(folder, GRID)
    plan, store = load_plan(grid), Store(folder / "store")
    assert run_pack(str(write_run(plan, store)), list(range(len(plan.stages)))) == 0
    return plan, store, grid


def held_python(folder: Path) -> Path:
    """An interpreter under which a task's first life lasts until it is signalled."""
    script = folder / "held-python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "faults" / "held_worker.py"} "$@"\n')
    script.chmod(0o755)
    return script


class Launched:
    """The synthesis of the grid, submitted to a cluster from a store that has everything before it."""

    def __init__(self, cluster: SlurmCluster, alone: tuple[Plan, Store, Path], folder: Path) -> None:
        plan, self.reference, self.grid = alone
        self.cluster, self.folder = cluster, folder
        shutil.copytree(self.reference.root, folder / "store")
        self.store = Store(folder / "store")
        for kind in ("synthesis", "evaluation"):
            shutil.rmtree(self.store.root / kind)
        shutil.rmtree(self.store.root / "runs")
        self.stage: Stage = next(s for s in plan.stages if s.kind == "synthesis")
        self.profile = folder / "short.yaml"
        text = (ROOT / "slurm" / "testcluster.yaml").read_text().splitlines()
        kept = [line for line in text if not line.startswith(("time:", "checkpoint_minutes:", "python:"))]
        own = ["time: 5m", "checkpoint_minutes: 0.005", f"python: {held_python(folder)}"]
        self.profile.write_text("\n".join([*kept, *own, ""]))
        done = self.launch()
        assert done.returncode == 0, done.stdout + done.stderr
        (jobs,) = self.store.root.glob("runs/*/*/jobs.json")  # squeue may still show those of the test before
        self.job = next(str(a["job"]) for a in json.loads(jobs.read_text())["arrays"] if a["kind"] == "synthesis")

    def launch(self, *words: str):  # type: ignore[no-untyped-def]
        """`python -m suite.launch` on the grid."""
        place = ("--profile", self.profile, "--store", self.store.root)
        return run("suite.launch", self.grid, *place, *words, **self.cluster.environment())

    def until(self, what: Callable[[], object], seconds: float = 150) -> None:
        """Wait for something."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.say()
            time.sleep(0.2)

    def saved(self) -> bool:
        """Whether a checkpoint is there."""
        home = self.store.home("synthesis", self.stage.key)
        return len(list(home.glob("checkpoints/*/*.ckpt"))) == 2

    def say(self) -> str:
        """What the task printed, and what Slurm knows of it."""
        logs = [p.read_text() for p in self.store.root.glob("runs/*/*/logs/*synthesis*/*_log.*")]
        return "\n".join([*logs, self.show()])

    def show(self) -> str:
        """Slurm's record of the job."""
        return self.cluster.call("scontrol", "show", "job", self.job)

    def finish(self) -> None:
        """Wait for the synthesis, and compare it."""
        self.until(lambda: self.stage.key in self.store.published("synthesis"))
        found = self.store.open("synthesis", self.stage.key)
        wanted = self.reference.open("synthesis", self.stage.key)
        assert found.digest == wanted.digest
        mine, theirs = found.record(), wanted.record()
        assert mine.cost["image_iterations"] == theirs.cost["image_iterations"]
        assert [a["host"] for a in mine.resumed], "it went on from a checkpoint"
        assert "timed out" not in self.say() and "timed-out" not in self.say()
        assert "Restarts=1" in self.show(), "one requeue"


@pytest.fixture
def launched(slurm_cluster: SlurmCluster, alone: tuple[Plan, Store, Path], tmp_path: Path) -> Launched:  # noqa: F811
    return Launched(slurm_cluster, alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [("USR2",), ("TERM", "USR2", "USR2")], ids=" ".join)
def test_a_signalled_task_requeues_itself_once_and_goes_on(launched: Launched, signals: tuple[str, ...]) -> None:
    launched.until(launched.saved)
    for name in signals:
        launched.cluster.call("scancel", f"--signal={name}", launched.job)
    launched.until(lambda: "requeued job" in launched.say())
    launched.finish()


def test_a_task_that_the_site_requeues_goes_on_and_asks_for_nothing(launched: Launched) -> None:
    """As preemption does where no USR2 is sent: TERM, soon KILL, and back into the queue."""
    launched.until(launched.saved)
    launched.cluster.call("scontrol", "requeue", launched.job)
    launched.finish()
    assert "requeued job" not in launched.say()


def test_a_cancelled_task_keeps_what_it_had_and_does_not_come_back(launched: Launched) -> None:
    launched.until(launched.saved)
    launched.cluster.call("scancel", launched.job)
    launched.until(lambda: "JobState=CANCELLED" in launched.show())
    time.sleep(2)
    assert "Restarts=0" in launched.show() and launched.saved()
    assert launched.stage.key not in launched.store.published("synthesis")
