"""The same grid through a real Slurm: the same keys, and bit-identical artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.grid import Plan
from suite.store import Store
from tests.cluster.conftest import SlurmCluster
from tests.tiny import write_grid

pytestmark = [pytest.mark.slurm, pytest.mark.ffcv]


def test_slurm_gives_the_same_keys_and_bits_as_a_local_run(
    slurm_cluster: SlurmCluster, tiny: tuple[Plan, Store, Path], tmp_path: Path
) -> None:
    plan, local, _ = tiny
    done = slurm_cluster.launch(write_grid(tmp_path), tmp_path / "store", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    remote = Store(tmp_path / "store")
    for kind in {s.kind for s in plan.stages}:
        assert remote.published(kind) == local.published(kind) == {s.key for s in plan.stages if s.kind == kind}
    for stage in plan.stages:
        theirs, ours = remote.open(stage.kind, stage.key), local.open(stage.kind, stage.key)
        assert theirs.digest == ours.digest, stage.label()
        assert theirs.record().provenance["slurm"]["slurm_job_id"], "it really ran under Slurm"
    assert "nothing to do" in slurm_cluster.launch(tmp_path / "tiny.yaml", tmp_path / "store").stdout
