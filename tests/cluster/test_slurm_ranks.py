"""Several tasks a job on a real Slurm: a teacher and a student are trained by two tasks each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suite.grid import load_plan
from suite.store import Store
from tests.cluster.conftest import SlurmCluster
from tests.cluster.toys import ROOT, run

pytestmark = [pytest.mark.slurm, pytest.mark.ffcv]

GRID = """\
name: ranks
seeds: [0]
protocol: [matched]
product: {method: [sre2l], dataset: [digits], ipc: [1], teacher: [convnet2_w8], student: [convnet2_w8]}
override:
  - {set: {iterations: 4, student.steps: 6, teacher.epochs: 1}}
"""


@pytest.mark.slow
def test_two_tasks_train_a_teacher_and_a_student_in_the_jobs_of_one(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    grid, profile, store = tmp_path / "ranks.yaml", tmp_path / "site.yaml", tmp_path / "store"
    grid.write_text(GRID)
    text = (ROOT / "slurm" / "testcluster.yaml").read_text()
    kinds = "  prepare: {gpus: 0}\n"
    assert kinds in text
    profile.write_text(text.replace(kinds, f"{kinds}  teacher: {{tasks: 2}}\n  evaluation: {{tasks: 2}}\n"))
    place = ("--profile", profile, "--store", store)
    done = run("suite.launch", grid, *place, "--wait", timeout=500, **slurm_cluster.environment())
    logs = {p.name: p.read_text() for p in store.glob("runs/*/*/logs/*/*_log.*")}
    assert done.returncode == 0, (done.stdout + done.stderr, logs)

    (launched,) = (store / "runs" / "ranks").iterdir()
    arrays = json.loads((launched / "jobs.json").read_text())["arrays"]
    assert [a["kind"] for a in arrays] == ["prepare", "teacher", "synthesis", "evaluation"], "a call of sbatch each"
    for stage in load_plan(grid).stages:
        record = Store(store).open(stage.kind, stage.key).record()
        several = stage.kind in ("teacher", "evaluation")
        assert record.provenance.get("tasks", 1) == record.cost.get("tasks", 1) == (2 if several else 1)
    teacher = next(a["job"] for a in arrays if a["kind"] == "teacher")
    own = [(launched / "logs").glob(f"*/{teacher}_0_{rank}_log.out") for rank in (0, 1)]
    first, second = ("".join(p.read_text() for p in found) for found in own)
    assert "published after" in first and "published" not in second and "teacher" in second
    tasks = slurm_cluster.call("sacct", "-n", "-P", "-o", "NTasks", "-j", f"{teacher}_0").split()
    assert "2" in tasks, "one step of two tasks"
    assert not any((launched / "ranks").iterdir())
