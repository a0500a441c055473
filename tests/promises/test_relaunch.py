"""The same command resumes: a finished grid submits nothing, damage makes exactly what depends on it run again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.cluster.reconcile import reconcile
from suite.grid import Plan
from suite.spec.stages import KINDS, Stage, input_kind
from suite.store import Store
from tests.helpers import ROOT
from tests.tiny import write_grid

pytestmark = pytest.mark.ffcv


def launch(folder: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "suite.launch",
        str(folder / "tiny.yaml"),
        "--store",
        str(folder / "store"),
        *flags,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT, env={**os.environ, **env})


def runs(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "store" / "runs" / "tiny").iterdir() if (p / "jobs.json").exists())


@pytest.fixture
def copy(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> Path:
    write_grid(tmp_path)
    shutil.copytree(tiny[1].root, tmp_path / "store")
    return tmp_path


def descendants(plan: Plan, stage: Stage) -> set[str]:
    found = {stage.key}
    for other in plan.stages:  # inputs come before what needs them
        if found & set(other.inputs.values()):
            found.add(other.key)
    return found


def test_relaunch_submits_nothing(copy: Path) -> None:
    before = runs(copy)
    begin = time.monotonic()
    done = launch(copy)
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert runs(copy) == before, "no run directory, no job"
    assert seconds < 12, f"{seconds:.1f} s; 3 s on an idle machine"


def test_finished_grid_starts_no_process_and_imports_nothing_heavy(copy: Path) -> None:
    done = launch(copy, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    heavy = {"torch", "pandas", "numpy", "ffcv", "submitit"}
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "suite.grid" in imported and not heavy & imported


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "shard"])
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_damage_reruns_exactly_what_depends_on_it(
    tiny: tuple[Plan, Store, Path], copy: Path, kind: str, damage: str
) -> None:
    plan, store = tiny[0], Store(copy / "store")
    assert not reconcile(plan, store).todo
    stage = next(s for s in plan.stages if s.kind == kind)
    expected = descendants(plan, stage)
    for path in sorted(store.open(kind, stage.key).path.iterdir()):
        original = path.read_bytes()
        if damage == "flip":
            path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        else:
            path.unlink()
        again = {plan.stages[t.index].key for t in reconcile(plan, store).todo}
        assert again == expected, f"{damage} in {kind} {path.name}"
        path.write_bytes(original)
    assert not reconcile(plan, store).todo


def test_damaged_synthesis_is_made_again_by_the_same_command(tiny: tuple[Plan, Store, Path], copy: Path) -> None:
    plan, store = tiny[0], Store(copy / "store")
    stage = next(s for s in plan.stages if s.kind == "synthesis" and s.spec.method == "sre2l")  # type: ignore[union-attr]
    expected = {s.key: store.open(s.kind, s.key).digest for s in plan.stages}
    attempts = {s.key: store.open(s.kind, s.key).manifest["attempt"] for s in plan.stages}
    path = store.open("synthesis", stage.key).path / "distilled.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    done = launch(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 corrupt" in done.stdout
    fresh = descendants(plan, stage)
    for s in plan.stages:
        artifact = store.open(s.kind, s.key)
        assert artifact.digest == expected[s.key]
        assert (artifact.manifest["attempt"] != attempts[s.key]) == (s.key in fresh), s.label()
    assert input_kind("teacher.0") == "teacher"
    assert list((store.home("synthesis", stage.key) / "quarantine").iterdir()), "the damaged artifact is kept"
    assert "nothing to do" in launch(copy).stdout


def test_worker_killed_under_the_launcher_is_reported_and_resumed(copy: Path, tiny: tuple[Plan, Store, Path]) -> None:
    plan, store = tiny[0], Store(copy / "store")
    stage = next(s for s in plan.stages if s.kind == "evaluation")
    shutil.rmtree(store.home("evaluation", stage.key))
    killed = launch(copy, SUITE_FAULT="evaluation:computed")
    assert killed.returncode == 1
    assert stage.key not in store.published("evaluation")
    again = launch(copy)
    assert again.returncode == 0, again.stdout + again.stderr
    assert store.open("evaluation", stage.key).digest == tiny[1].open("evaluation", stage.key).digest
