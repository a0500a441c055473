"""A real Slurm with four nodes and accounting runs the digits; nothing is simulated but the GPUs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from suite.cluster.reconcile import reconcile
from suite.grid import load_plan
from suite.store import Store
from tests.cluster.conftest import SlurmCluster, cluster_folder, skip_unless_possible, start, stop
from tests.cluster.toys import ROOT, TINY, run

pytestmark = pytest.mark.slurm


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def jobs(store: Path) -> list[dict]:
    """The arrays of all runs."""
    found = []
    for path in sorted((store / "runs" / "tiny").glob("*/jobs.json")):
        found += json.loads(path.read_text())["arrays"]
    return found


def test_a_grid_runs_and_relaunch_submits_nothing(slurm_cluster: SlurmCluster, grid: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    leaks = {"SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "nowhere", "SLURM_JOB_ID": "77", "PYTHONPATH": "/nonsense"}
    done = slurm_cluster.launch(grid, store, **leaks)
    assert done.returncode == 0, done.stdout + done.stderr
    arrays = jobs(store)
    assert [a["kind"] for a in arrays] == ["prepare", "synthesis", "evaluation"]
    run_id = next((store / "runs" / "tiny").iterdir()).name
    assert all(run_id in a["name"] for a in arrays)

    second = slurm_cluster.launch(grid, store)
    assert second.returncode == 0 and "3 stages in flight" in second.stdout
    assert len(jobs(store)) == 3, "what is in flight is not submitted twice"

    third = slurm_cluster.launch(grid, store, "--wait")
    assert third.returncode == 0, third.stdout + third.stderr
    assert not reconcile(load_plan(grid), Store(store)).todo
    assert "nothing to do" in slurm_cluster.launch(grid, store).stdout
    assert len(jobs(store)) == 3

    text = slurm_cluster.call("sacct", "-X", "-n", "-P", "-o", "TimelimitRaw,Partition", "-j", arrays[0]["job"])
    assert text.splitlines() == ["120|test"], "the caller's SBATCH_* did not reach the job"


def test_a_failed_task_lets_its_siblings_run_and_relaunch_repairs(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    grid, store = tmp_path / "two.yaml", tmp_path / "store"
    # A fault in the evaluation only: both tasks before it finish.
    grid.write_text(TINY)
    done = slurm_cluster.launch(grid, store, "--wait", SUITE_FAULT="evaluation:start")
    assert done.returncode == 1, done.stdout + done.stderr
    plan = load_plan(grid)
    left = reconcile(plan, Store(store)).todo
    assert [plan.stages[t.index].kind for t in left] == ["evaluation"]
    again = slurm_cluster.launch(grid, store, "--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    assert [a["kind"] for a in jobs(store)][3:] == ["evaluation"], "exactly the missing stage was submitted"


@pytest.mark.slow  # Slurm lets a requeued job wait for two minutes
def test_a_preempted_task_is_requeued_and_finishes(slurm_cluster: SlurmCluster, grid: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert slurm_cluster.launch(grid, store).returncode == 0
    job = jobs(store)[0]["job"]
    deadline = time.monotonic() + 60
    log = next((store / "runs" / "tiny").iterdir()) / "logs"
    while not any("prepare" in p.read_text() for p in log.glob(f"*/{job}_0_0_log.out")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    slurm_cluster.call("scancel", "--signal=USR2", job)
    done = slurm_cluster.launch(grid, store, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    text = "".join(p.read_text() for p in log.glob(f"*/{job}_0_0_log.*"))
    assert "requeued job" in text.lower(), "by the suite, or by submitit if the signal came before"
    restarts = slurm_cluster.call("sacct", "-X", "-n", "-P", "--duplicates", "-o", "State", "-j", job).split()
    assert "COMPLETED" in restarts and len(restarts) >= 2


def test_status_shows_what_waits_and_survives_without_slurm(
    slurm_cluster: SlurmCluster, grid: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert slurm_cluster.launch(grid, store).returncode == 0
    words = (grid, "--store", store, "--json")
    found = json.loads(run("suite.status", *words, **slurm_cluster.environment()).stdout)
    assert found["counts"].get("pending", 0) + found["counts"].get("running", 0) + found["counts"].get("done", 0) == 3
    blind = json.loads(run("suite.status", *words, PATH="/nonexistent").stdout)
    assert "Slurm was not asked" in blind["note"]
    slurm_cluster.call("scancel", *[a["job"] for a in jobs(store)])


def test_a_refused_submission_is_exit_3(slurm_cluster: SlurmCluster, grid: Path, tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text((ROOT / "slurm" / "testcluster.yaml").read_text().replace("partition: test", "partition: nope"))
    words = (grid, "--profile", profile, "--store", tmp_path / "store")
    done = run("suite.launch", *words, **slurm_cluster.environment())
    assert done.returncode == 3
    assert "invalid partition" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_cluster_starts_twice_and_stops_completely() -> None:
    skip_unless_possible()
    with cluster_folder() as folder:
        for _ in range(2):
            done = start(folder, nodes=1)
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
            assert stop(folder).returncode == 0
            assert not alive(folder)
        assert stop(folder).returncode == 0, "stopping twice is fine"


def test_a_folder_that_daemons_cannot_enter_is_refused_in_one_line(tmp_path: Path) -> None:
    skip_unless_possible()
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    done = start(closed / "cluster", nodes=1)
    assert done.returncode == 2
    assert "may not enter" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (closed / "cluster").exists()


def alive(folder: Path) -> list[str]:
    """Processes that a folder's marks name and that still live, by those of its daemons."""
    names = []
    for path in (folder / "pids").glob("*.mark"):
        stat = Path(f"/proc/{path.read_text().partition(':')[0]}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            names.append(path.name)
    return names
