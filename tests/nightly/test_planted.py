"""A nightly on a real Slurm, twice: the second time the code is worse in three ways, and the summary names these."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from suite.grid import load_plan
from suite.nights.history import read_nights
from suite.store import Store
from tests.cluster.conftest import SlurmCluster
from tests.cluster.toys import ROOT, run
from tests.nightly.planted_worker import SEED

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]

GRID = """\
name: watched
seeds: [0, 1, 2]
protocol: [matched]
product:
  method: [random, random_soft, rded]
  dataset: [digits]
  ipc: [1]
  teacher: [convnet2_w8]
  student: [convnet2_w8]
override:
  - set: {student.steps: 40, teacher.epochs: 1}
  - {when: {method: rded}, set: {candidates: 20}}
"""


def profile(folder: Path) -> Path:
    """The test cluster, with workers that can be made worse and limits that fit a shared machine."""
    interpreter = folder / "planted-python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/nightly/planted_worker.py "$@"\n')
    interpreter.chmod(0o755)
    body = yaml.safe_load((ROOT / "slurm" / "testcluster.yaml").read_text())
    body |= {"python": str(interpreter), "pack_minutes": 2}
    body["nightly"] = {
        "gpu_hours": 5, "in_flight": 20, "wall_clock": "1h", "speed_percent": 300, "speed_seconds": 8,
    }  # fmt: skip
    path = folder / "planted.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def test_a_nightly_names_exactly_a_drop_a_slow_down_and_a_failed_stage(
    slurm_cluster: SlurmCluster,
    tmp_path: Path,
) -> None:
    grid, store = tmp_path / "watched.yaml", Store(tmp_path / "store")
    grid.write_text(GRID)
    words = (grid, "--profile", profile(tmp_path), "--store", store.root)

    first = run("suite.nightly", *words, timeout=900, **slurm_cluster.environment())
    print(first.stdout, first.stderr)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "the first night" in first.stdout and "failed: 0\ndrifted: 0\nnew: 3" in first.stdout

    second = run("suite.nightly", *words, timeout=900, **slurm_cluster.environment(SUITE_PLANT="1"))
    print(second.stdout, second.stderr)
    assert second.returncode == 1, second.stdout + second.stderr
    broken = next(
        s.key
        for s in load_plan(grid).stages
        if s.kind == "evaluation" and (s.spec.method, s.spec.seed) == ("random_soft", SEED)  # type: ignore[union-attr]
    )
    lines = second.stdout.partition("\nfailed: ")[2].splitlines()
    assert lines[0] == "1"
    assert lines[1].startswith(
        f"  evaluation {broken} random_soft digits ipc1 -> convnet2_w8 matched seed{SEED}: failed"
    )
    assert "ValueError: planted" in lines[1]
    assert lines[2] == "drifted: 2"
    assert lines[3].startswith("  accuracy: random digits ipc1 -> convnet2_w8 matched: ")
    assert lines[4].startswith("  speed: synthesis rded digits ipc1: ")
    assert lines[5] == "new: 0"
    assert len(second.stdout.splitlines()) <= 24, "one screen"

    nights = read_nights(store.root / "nights" / "watched")
    assert [len(n.rows) for n in nights] == [9, 8]
    assert nights[1].night > nights[0].night and nights[1].findings and not nights[0].findings
    assert not store.published("evaluation"), "rows of nights stand in stores of their own"
    assert (store.root / "nights" / "watched" / nights[1].night / "report" / "watched" / "index.html").exists()
