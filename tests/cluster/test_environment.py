"""Workers get the same environment wherever a launch was typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite.cluster.environment import as_worker, worker_environment
from suite.cluster.local import local_gpus
from suite.cluster.profile import Profile
from suite.errors import UserError
from tests.cluster.toys import ROOT

LEAKS = {
    "SBATCH_TIMELIMIT": "1", "SBATCH_EXPORT": "NONE", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3",
    "SRUN_DEBUG": "1", "SQUEUE_STATES": "CANCELLED", "SALLOC_ACCOUNT": "x", "PYTHONPATH": "/nonsense",
    "CUDA_VISIBLE_DEVICES": "9", "SUBMITIT_EXECUTOR": "slurm", "OMP_NUM_THREADS": "13", "MKL_NUM_THREADS": "13",
}  # fmt: skip


def test_the_callers_shell_does_not_leak_into_jobs() -> None:
    caller = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", **LEAKS}
    found = worker_environment(Profile(threads=3), caller)
    assert found["PATH"] == "/bin" and found["SLURM_CONF"] == "/etc/slurm.conf"
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"
    assert found["PYTHONPATH"] == str(ROOT)
    assert not (set(LEAKS) - {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONPATH"}) & set(found)


def test_the_launchers_own_environment_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LEAKS.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with pytest.raises(RuntimeError), as_worker(Profile(), MORE="1"):
        child = subprocess.run(
            [sys.executable, "-c", "import os; print(*sorted(os.environ))"], capture_output=True, text=True, check=True
        )
        assert "SBATCH_TIMELIMIT" not in child.stdout.split() and "MORE" in child.stdout.split()
        raise RuntimeError
    assert dict(os.environ) == before


def test_local_slots_use_the_gpus_that_the_caller_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert local_gpus(Profile()) == [2, 3]
    assert local_gpus(Profile(visible_gpus=(0,))) == [0]
    assert local_gpus(Profile(device="cpu")) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_gpus(Profile()) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    with pytest.raises(UserError, match="visible_gpus"):
        local_gpus(Profile())


def test_a_stale_save_of_a_killed_predecessor_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.cluster.pack import remove_stale_saves

    for name, value in {
        "SUBMITIT_FOLDER": str(tmp_path), "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "12",
        "SUBMITIT_LOCAL_GLOBALID": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    stale = [tmp_path / "12_0_result.pkl.save_tmp", tmp_path / "12_submitted.pkl.save_tmp"]
    for path in stale:
        path.write_text("half")
    remove_stale_saves()
    assert not any(p.exists() for p in stale)
