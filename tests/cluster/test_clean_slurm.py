"""C4: `suite.clean` beside real Slurm jobs deletes what nothing needs, and nothing that a job works on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from suite.spec.stages import Stage
from tests.cluster.conftest import SlurmCluster
from tests.cluster.toys import run
from tests.faults.toy_site import LIVE, ToySite, wait_for

pytestmark = pytest.mark.slurm


def plant(site: ToySite, stage: Stage) -> Path:
    """What an attempt of another host has left behind at a stage."""
    left = site.store.home(stage.kind, stage.key) / "attempts" / "000-1-0-elsewhere-55-aaaaaa"
    left.mkdir(parents=True)
    (left / "half.bin").write_bytes(b"x" * 100)
    return left


def tasks(site: ToySite) -> int:
    """How many tasks the site has in the queue."""
    assert site.cluster is not None
    names = ",".join(a["name"] for a in site.arrays())
    return len(site.cluster.call("squeue", "--noheader", "--array", f"--name={names}").splitlines())


def clean(site: ToySite) -> str:
    """What `suite.clean` deletes now, whatever its age, and what it says."""
    empty = site.folder / "no grids"
    empty.mkdir()
    words = (site.grid, "--store", site.store.root, "--folder", empty, "--older-than", "0m", "--yes")
    done = run("suite.clean", *words, **site.environment())  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_cleaning_beside_real_jobs_spares_their_stages_their_run_and_all_that_is_published(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Of three branches the first is through, the second is at its evaluation, the third at its synthesis."""
    site = ToySite(tmp_path, slurm_cluster, seeds=3, long=True)
    evaluations = [s for s in site.plan.stages if s.kind == "evaluation"]
    syntheses = [next(s for s in site.plan.stages if s.key == e.inputs["synthesis"]) for e in evaluations]
    held = [evaluations[1], syntheses[2]]
    for stage in held:
        site.hold(stage.key)
    assert site.launch().returncode == 0
    wait_for(lambda: tasks(site) == 3 and all(site.store.attempts(s.kind, s.key) for s in held))
    working = [path for s in held for path in site.store.attempts(s.kind, s.key)]
    needed = [plant(site, stage) for stage in (*held, evaluations[2])]
    useless = [plant(site, stage) for stage in (syntheses[0], evaluations[0])]
    outs = set(site.store.root.glob("*/*/*/out"))
    (live,) = site.store.root.glob("runs/toy/*")
    files = {p for p in live.rglob("*") if p.is_file()}
    jobs = site.jobs_in_slurm(LIVE)

    said = clean(site)
    assert all(path.exists() for path in (*working, *needed)), said
    assert files <= {p for p in live.rglob("*") if p.is_file()}, "the live run is whole"
    assert len(outs) == 5 and set(site.store.root.glob("*/*/*/out")) == outs
    assert site.jobs_in_slurm(LIVE) == jobs
    assert not [path for path in useless if path.exists()] and "deleted 2 items" in said

    for path in needed:
        shutil.rmtree(path)
    for stage in held:
        site.release(stage.key)
    done = site.launch("--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(site.submissions().values()) == {1}
    site.assert_published_once()
