"""Shards through a real Slurm: array tasks of their own, and behind them a merge, into the artifact of one task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suite.grid import Plan, load_plan
from suite.store import Store
from suite.work import run_pack
from tests.cluster.conftest import SlurmCluster
from tests.stages.test_shards import GRID
from tests.tiny import write_grid, write_run

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.ffcv]


def test_shards_run_as_array_tasks_and_merge_into_the_artifact_of_one_task(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    plan, local = load_plan(write_grid(tmp_path, GRID)), Store(tmp_path / "local")
    stages = [s for s in plan.stages if s.kind != "evaluation"]
    assert run_pack(str(write_run(Plan(plan.name, stages), local)), list(range(len(stages)))) == 0

    done = slurm_cluster.launch(tmp_path / "tiny.yaml", tmp_path / "store", "--wait", "--shards", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cut: 3 syntheses into 15 shards" in done.stdout
    remote = Store(tmp_path / "store")
    for stage in stages:
        theirs, ours = remote.open(stage.kind, stage.key), local.open(stage.kind, stage.key)
        assert theirs.digest == ours.digest, stage.label()
    for stage in (s for s in stages if s.kind == "synthesis"):
        shards = remote.open(stage.kind, stage.key).record().cost["shards"]
        tasks = {c["attempt"].split("-")[1] for c in shards.values()}
        assert len(shards) == len(tasks) == 5, "every shard was a task of its own"
    (run,) = (tmp_path / "store" / "runs" / plan.name).iterdir()
    arrays = json.loads((run / "jobs.json").read_text())["arrays"]
    assert [len(a["packs"]) for a in arrays if a["kind"] == "shard"] == [15]
    assert "nothing to do" in slurm_cluster.launch(tmp_path / "tiny.yaml", tmp_path / "store").stdout
