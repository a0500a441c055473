"""Preemption: a signal at any time costs at most the step that was running, and one requeue."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.grid import Plan
from suite.store import Store
from tests.faults.attempts import ALWAYS, Bench, Signals, bench, find, longer, pretend_slurm
from tests.helpers import ROOT

pytestmark = pytest.mark.ffcv

USR2, TERM = signal.SIGUSR2, signal.SIGTERM
Tiny = tuple[Plan, Store, Path]


@pytest.fixture
def made(tiny: Tiny, tmp_path: Path) -> Bench:
    """The synthesis of the tiny grid that keeps most state, with a checkpoint after every step."""
    return bench(tiny[0], tiny[1], find(tiny[0], "synthesis", "e2d"), tmp_path, ALWAYS)


def storm(made: Bench, folder: Path, signals: list[Signals]) -> int:
    """For each of some groups of signals: one requeue, the newest checkpoint whole, the same artifact.

    Returns:
        How many found the stage still at work.
    """
    environment, requeues = pretend_slurm(folder)
    interrupted = 0
    for given in signals:
        made.clear()
        shutil.rmtree(made.run / "requeues", ignore_errors=True)  # else it looks like one task that gets nowhere
        asked = len(requeues())
        left = made.attempt(given, **environment)
        # A stage whose last step was the one of the signal may have been published before it came.
        assert left.code in (0, 128 + USR2, 128 + TERM), f"{given}: exit code {left.code}"
        if left.code:
            interrupted += 1
            assert requeues()[asked:] == ["requeue 7"], f"{given}: once"
            assert made.saves() == left.steps, f"{given}: the newest checkpoint is whole and of the last step"
            assert made.attempt(**environment).code == 0
        made.check()
        assert len(requeues()) == asked + bool(left.code)
    return interrupted


def seeded(count: int) -> list[Signals]:
    """TERM and USR2 within 10 ms, either twice, and either of them while a checkpoint is being written."""
    draws, found = random.Random(2), []
    for seed in range(count):
        numbers = [(TERM, USR2), (USR2, USR2), (USR2, TERM), (TERM, TERM)][seed % 4]
        gaps = draws.uniform(0, 0.003), draws.uniform(0, 0.01)
        found.append(Signals(draws.randint(1, 4), numbers, gaps, during_save=seed % 8 >= 4))
    return found


@pytest.mark.parametrize(
    ("count", "least"), [(8, 7), pytest.param(100, 95, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_signals_close_together_or_during_a_save_are_one_requeue(
    made: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str], count: int, least: int
) -> None:
    interrupted = storm(made, tmp_path / "slurm", seeded(count))
    said = capfd.readouterr()
    print(f"{interrupted} of {count} were interrupted")
    assert interrupted >= least, "else nothing was asked of them"
    assert "Traceback" not in said.err + said.out


def test_a_task_that_slurm_has_ended_is_not_put_back(made: Bench, tmp_path: Path) -> None:
    """Cancelled tasks get TERM too: who cancels does not want them back."""
    environment, requeues = pretend_slurm(tmp_path / "slurm", state="COMPLETING")
    assert made.attempt(Signals(2, (TERM,)), **environment).code == 128 + TERM
    assert not requeues() and made.saves() == 2, "what it had is kept all the same"


def test_only_the_first_process_of_a_task_requeues_it(made: Bench, tmp_path: Path) -> None:
    environment, requeues = pretend_slurm(tmp_path / "slurm")
    assert made.attempt(Signals(2), **environment | {"SLURM_PROCID": "1"}).code == 128 + USR2
    assert not requeues()


def preempted(made: Bench, folder: Path, times: int) -> None:
    """Preempt a stage again and again, each time after one more step."""
    environment, requeues = pretend_slurm(folder)
    reached = [0]
    for number in range(times):
        left = made.attempt(Signals(1, ((USR2, TERM)[number % 2],)), **environment)
        assert left.code > 128 and left.steps == 1
        reached.append(made.saves())
        assert len(requeues()) == number + 1
    assert reached == list(range(times + 1)), "it gets further every time"
    (counter,) = (made.run / "requeues").iterdir()
    assert json.loads(counter.read_text()) | {"signal": 0} == {
        "requeues": times, "stalled": 0, "reached": [0, times], "signal": 0,
    }  # fmt: skip
    assert made.attempt(**environment).code == 0
    attempts = made.check().record().resumed
    assert len(attempts) == times and len({a["attempt"] for a in attempts}) == times


def test_preempted_three_times_it_finishes(tiny: Tiny, tmp_path: Path) -> None:
    preempted(bench(tiny[0], tiny[1], find(tiny[0], "teacher"), tmp_path), tmp_path / "slurm", 3)


@pytest.mark.slow
def test_preempted_20_times_it_finishes_and_every_attempt_is_recorded(tiny: Tiny, tmp_path: Path) -> None:
    preempted(longer(tiny[0], tiny[1], tmp_path, iterations=25), tmp_path / "slurm", 20)


def test_a_task_that_gets_nowhere_stays_away(made: Bench, tmp_path: Path) -> None:
    """Asked to leave before its first step, again and again: then the time limit is too short, and that is said."""
    from suite.cluster.requeue import MAX_STALLED, requeue
    from suite.preemption import Preempted

    environment, requeues = pretend_slurm(tmp_path / "slurm")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        told = [requeue(made.run, made.index, Preempted(USR2)) for _ in range(MAX_STALLED + 3)]
        assert len(requeues()) == MAX_STALLED + 1 and "no progress" in told[-1]
        further = Preempted(USR2, saves=1)
        assert "requeued" in requeue(made.run, made.index, further), "a step forward starts the count again"


def test_where_the_site_does_not_requeue_a_saved_task_is_no_failure(made: Bench, tmp_path: Path) -> None:
    from suite.cluster import requeue as module
    from suite.cluster.requeue import IN_ORDER, how_left, requeue
    from suite.preemption import Preempted

    environment, _ = pretend_slurm(tmp_path / "slurm")
    job = environment["SLURM_JOB_ID"]
    forbids = "case $* in *requeue*) echo 'Requested operation is presently disabled' >&2; exit 1;; esac"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(module, "_WAITS", (0.0,))
        assert "requeued job" in requeue(made.run, made.index, Preempted(USR2, saves=1))
        assert not how_left(made.run, job, made.index)
        scontrol = Path(environment["PATH"].split(":")[0]) / "scontrol"
        shell, *rest = scontrol.read_text().splitlines()
        scontrol.write_text("\n".join([shell, forbids, *rest, ""]))
        told = requeue(made.run, made.index, Preempted(USR2, saves=2))
        assert "saved, but not requeued (scontrol: Requested operation is presently disabled): launch again" in told
        assert how_left(made.run, job, made.index) == IN_ORDER


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("minutes", [5, 10])
def test_short_time_limits_are_not_counted_as_timeouts(tiny: Tiny, tmp_path: Path, minutes: int) -> None:
    """submitit counts every job of ten minutes or less as timed out from its first second, and gives up after some."""
    from submitit.core.utils import DelayedSubmission

    from suite.cluster.pack import Pack

    made = bench(tiny[0], tiny[1], find(tiny[0], "teacher"), tmp_path)
    folder = tmp_path / "submitit"
    folder.mkdir()
    delayed = DelayedSubmission(Pack(str(made.run), (made.index,)))
    delayed.set_timeout(minutes, 0)  # no timeout is left
    delayed.dump(folder / "7_submitted.pkl")
    environment, requeues = pretend_slurm(tmp_path / "slurm")
    environment |= {
        "SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0",
        "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "here", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = task(folder, environment, made, interrupt=True)
    assert done.returncode == 128 + USR2 and requeues() == ["requeue 7"], done.stderr
    assert "timed" not in done.stdout + done.stderr
    assert not (folder / "7_0_result.pkl").exists(), "a task that comes back has no result yet"
    done = task(folder, environment, made, interrupt=False)
    assert done.returncode == 0 and len(requeues()) == 1
    assert len(made.check().record().resumed) == 1


def task(folder: Path, environment: dict[str, str], made: Bench, interrupt: bool) -> subprocess.CompletedProcess[str]:
    """What srun starts, and USR2 once the stage's attempt exists."""
    import os

    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    if interrupt:
        deadline = time.monotonic() + 60
        while not made.store.attempts(made.stage.kind, made.stage.key) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(USR2)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
