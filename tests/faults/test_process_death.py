"""Death without warning: TERM and then KILL, or KILL alone, at any time; and two that live at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from suite.grid import Plan
from suite.learn.checkpoint import NAMES, Checkpoint
from suite.store import Store
from tests.faults.attempts import ALWAYS, Bench, Signals, bench, find, longer
from tests.helpers import ROOT

pytestmark = pytest.mark.ffcv

Tiny = tuple[Plan, Store, Path]
#: Stages with steps: kind, and method.
STAGES = [("teacher", ""), ("synthesis", "e2d"), ("relabel", ""), ("evaluation", "")]


@pytest.mark.parametrize(("kind", "method"), STAGES)
def test_a_kill_costs_the_step_that_was_running(tiny: Tiny, tmp_path: Path, kind: str, method: str) -> None:
    made = bench(tiny[0], tiny[1], find(tiny[0], kind, method), tmp_path, ALWAYS)
    alone = made.attempt()
    assert alone.code == 0
    made.clear()
    step = random.Random(kind).randint(2, alone.steps)
    died = made.attempt(SUITE_FAULT=f"{kind}:step:{step}")
    assert (died.code, died.steps, made.saves()) == (-signal.SIGKILL, step, step - 1)
    again = made.attempt()
    assert again.code == 0 and died.steps + again.steps == alone.steps + 1, "one step was made twice"
    made.check()


@pytest.mark.slow
def test_term_and_then_kill_costs_no_more_than_the_clock(made_long: Bench) -> None:
    """A site that sends no USR2: a checkpoint by clock is there whether or not the signal was in time."""
    for wait in (0.0, 0.02):
        made_long.clear()
        process = worker(made_long)
        while made_long.saves() < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        time.sleep(wait)
        process.kill()
        assert process.wait(20) in (-signal.SIGKILL, 128 + signal.SIGTERM)
        kept = made_long.saves()
        assert kept >= 3
        assert made_long.attempt(SLURM_RESTART_COUNT="1").code == 0
        assert made_long.check().record().resumed


@pytest.mark.slow
def test_kills_at_20_random_times_in_one_life_end_in_the_same_artifact(made_long: Bench) -> None:
    draws, reached = random.Random(3), 0
    for _ in range(20):
        process = worker(made_long)
        before = made_long.saves()
        while made_long.saves() <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.05))
        process.kill()
        process.wait(20)
        assert made_long.stage.key in made_long.store.published("synthesis") or made_long.saves() > reached
        reached = made_long.saves()
    assert made_long.attempt().code == 0
    made_long.check()


@pytest.fixture
def made_long(tiny: Tiny, tmp_path: Path) -> Bench:
    """A synthesis of 200 iterations, with a checkpoint after every one."""
    return longer(tiny[0], tiny[1], tmp_path, iterations=200)


def worker(made: Bench) -> subprocess.Popen[bytes]:
    """A worker in a process of its own, as a node starts it."""
    command = [sys.executable, "-m", "suite.work", str(made.run), str(made.index)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_two_live_attempts_do_not_harm_each_others_checkpoints(made_long: Bench) -> None:
    """Whatever the two write, at any moment the newest file is whole; both end well, with the same artifact."""
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(worker(made_long).wait(200))) for _ in range(2)]
    for thread in threads:
        thread.start()
    looks = 0
    while any(thread.is_alive() for thread in threads):
        for folder in (made_long.store.home("synthesis", made_long.stage.key) / "checkpoints").glob("*"):
            here = [name for name in NAMES if (folder / name).exists()]
            if len(here) == len(NAMES):
                found = Checkpoint(folder)
                # Gone at once: the stage was published between the two looks.
                assert found.load() is not None or not folder.exists()
                looks += 1
        time.sleep(0.005)
    assert results == [0, 0] and looks > 3
    made_long.check()


@pytest.mark.parametrize(
    "damage",
    [pytest.param(d, marks=[] if d == "flip" else [pytest.mark.slow]) for d in ("flip", "half", "empty", "both")],
)
def test_a_damaged_checkpoint_is_never_used(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    """The other one is, and its file is named; with both damaged the stage starts again."""
    made = bench(tiny[0], tiny[1], find(tiny[0], "synthesis", "e2d"), tmp_path, ALWAYS)
    steps = made.attempt().steps
    made.clear()
    left = made.attempt(Signals(4))
    (folder,) = (made.store.home("synthesis", made.stage.key) / "checkpoints").iterdir()
    kept = Checkpoint(folder)
    kept.load()
    assert kept.saves == 4
    for path in [folder / kept._newest] if damage != "both" else [folder / name for name in NAMES]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes({"half": data[: len(data) // 2], "empty": b""}.get(damage, bytes(data)))
    again = made.attempt()
    assert again.code == 0 and left.steps + again.steps == steps + (4 if damage == "both" else 1)
    assert f"{folder / kept._newest}: not used" in capfd.readouterr().err
    made.check()


def test_a_damaged_row_of_a_stream_takes_the_checkpoints_behind_it_with_it(tiny: Tiny, tmp_path: Path) -> None:
    made = bench(tiny[0], tiny[1], find(tiny[0], "relabel"), tmp_path, ALWAYS)
    steps = made.attempt().steps
    made.clear()
    assert made.attempt(Signals(3)).steps == 3
    (folder,) = (made.store.home("relabel", made.stage.key) / "checkpoints").iterdir()
    kept = Checkpoint(folder)
    kept.load()
    (rows,) = folder.glob("rows-*")
    with rows.open("r+b") as file:
        file.seek(kept._said["spans"]["logits"][1] - 1)
        last = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([last ^ 1]))
    assert made.saves() == 2, "the checkpoint before it has no part in it"
    again = made.attempt()
    assert again.code == 0 and again.steps == steps - 2
    made.check()


def test_a_full_disk_costs_the_checkpoint_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The old file is untouched, what is half written goes, and the next one is tried in time."""
    import torch

    kept = Checkpoint(tmp_path / "state", seconds=0.0)
    assert kept.save({"x": torch.zeros(4)})
    fsync = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with kept.growing(tmp_path / "grown") as grown:
        grown.begin({"rows": 0})
        grown.append("rows", b"rows")
        assert not kept.save({"x": torch.ones(4)})
        assert "No space left on device" in capfd.readouterr().err
        again = Checkpoint(tmp_path / "state")
        assert again.load()["x"].sum() == 0 and again.saves == 1
        assert sorted(p.name for p in (tmp_path / "state").iterdir() if p.suffix != ".part") == [NAMES[0]]
        monkeypatch.setattr(os, "fsync", fsync)
        assert kept.save({"x": torch.ones(4)})
    assert Checkpoint(tmp_path / "state").load()["x"].sum() == 4
