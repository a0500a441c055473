"""N7, C2: cancelling on a real Slurm, by `scancel` and by `--cancel`, alone and beside another grid."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from suite.cluster.runs import load_run
from suite.grid import load_plan
from suite.store import Store
from tests.cluster.conftest import SlurmCluster, slurm_cluster  # noqa: F401 - a fixture
from tests.cluster.toys import run, toy_grid, toy_profile

pytestmark = pytest.mark.slurm


class Site:
    """A test cluster whose workers compute nothing, and a store."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.store = cluster, Store(folder / "store")
        self.profile = toy_profile(folder)

    def launch(self, grid: Path, *words: str, code: int = 0, seconds: float = 0.0) -> str:
        environment = self.cluster.environment(SUITE_TOY_SECONDS=str(seconds))
        done = run(
            "suite.launch",
            grid,
            "--profile",
            self.profile,
            "--store",
            self.store.root,
            *words,
            timeout=900,
            **environment,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def states(self, grid: Path) -> dict[str, str]:
        """The state of each stage by its key."""
        words = (grid, "--profile", self.profile, "--store", self.store.root, "--json")
        done = run("suite.status", *words, **self.cluster.environment())
        assert done.returncode == 0, done.stderr
        return {s["key"]: s["state"] for s in json.loads(done.stdout)["stages"]}

    def runs(self, grid: str) -> list[Path]:
        return [p for p in sorted((self.store.root / "runs" / grid).glob("*")) if load_run(p) is not None]

    def job(self, grid: str, kind: str) -> str:
        """The array job of a kind in the newest run."""
        newest = load_run(self.runs(grid)[-1])
        assert newest is not None
        return next(str(a.job) for a in newest.arrays if a.kind == kind)

    def stages_of_task(self, grid: str, kind: str, index: int) -> list[str]:
        """Keys of the stages in one task of the newest run."""
        newest = load_run(self.runs(grid)[-1])
        assert newest is not None
        array = next(a for a in newest.arrays if a.kind == kind)
        return [newest.keys[i][1] for i in array.packs[index]]

    def settle(self) -> None:
        """Wait until Slurm has carried out what it was told."""
        deadline = time.monotonic() + 60
        while "COMPLETING" in self.cluster.call("squeue", "--noheader", "--format=%T"):
            assert time.monotonic() < deadline
            time.sleep(0.5)


@pytest.fixture
def place(slurm_cluster: SlurmCluster, tmp_path: Path) -> Site:  # noqa: F811
    return Site(slurm_cluster, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_was_cancelled_says_so_and_runs_again_only_with_retry_cancelled(place: Site, tmp_path: Path) -> None:
    """One task, then an array, then everything; `scancel` for the first two, `--cancel` for the third."""
    grid = toy_grid(tmp_path, seeds=30)  # short stages share tasks: three of them an array
    plan = load_plan(grid)
    keys = {kind: [s.key for s in plan.stages if s.kind == kind] for kind in ("prepare", "synthesis", "evaluation")}
    place.launch(grid, seconds=3000)

    place.cluster.call("scancel", f"{place.job('toy', 'evaluation')}_1")
    found = place.states(grid)
    one = place.stages_of_task("toy", "evaluation", 1)
    assert {found[key] for key in one} == {"cancelled"} and 0 < len(one) < 30
    text = place.launch(grid)
    assert f"{len(one)} cancelled" in text and "--retry cancelled" in text and "in flight" in text
    assert len(place.runs("toy")) == 1, "nothing was submitted"

    place.cluster.call("scancel", place.job("toy", "synthesis"))
    assert {place.states(grid)[key] for key in keys["synthesis"]} == {"cancelled"}
    place.launch(grid)
    assert len(place.runs("toy")) == 1, "nothing was submitted"

    text = place.launch(grid, "--cancel", code=2)
    assert "would be cancelled; nothing was - add --yes" in text
    assert "cancelled" in place.launch(grid, "--cancel", "--yes")
    place.settle()
    assert "nothing to cancel" in place.launch(grid, "--cancel", "--yes")
    found = place.states(grid)
    assert {found[key] for key in keys["prepare"]} == {"cancelled"}
    assert set(found.values()) <= {"cancelled", "blocked"}
    assert "held back" in place.launch(grid, code=1)
    assert len(place.runs("toy")) == 1, "nothing was submitted"

    text = place.launch(grid, "--retry", "cancelled", "--wait")
    assert "done: 61 stages published" in text
    assert set(place.states(grid).values()) == {"done"}
    assert "nothing to do" in place.launch(grid)


def test_cancelling_one_grid_leaves_the_other_its_stages(place: Site, tmp_path: Path) -> None:
    """Both share prepare and syntheses, which the first submitted; the second only waits for them."""
    first = toy_grid(tmp_path, seeds=2, name="first")
    second = toy_grid(tmp_path, seeds=2, name="second")
    second.write_text(second.read_text().replace("student: [convnet3_w16]", "student: [convnet2_w8]"))
    place.launch(first, seconds=4)
    assert "in flight" in place.launch(second)
    text = place.launch(first, "--cancel", "--yes")
    assert "grid second needs it" in text
    done = place.launch(second, "--wait")
    assert "published" in done
    assert set(place.states(second).values()) == {"done"}
    mine = place.states(first)
    evaluations = {s.key for s in load_plan(first).stages if s.kind == "evaluation"}
    assert {mine[key] for key in evaluations} == {"cancelled"}
    assert {state for key, state in mine.items() if key not in evaluations} == {"done"}


def test_a_grid_that_only_waits_for_another_keeps_everything(place: Site, tmp_path: Path) -> None:
    """The second launch submits nothing, since the first has all of it in flight: that counts as needing it."""
    first, second = toy_grid(tmp_path, seeds=1, name="first"), toy_grid(tmp_path, seeds=1, name="second")
    place.launch(first, seconds=3)
    assert "nothing to submit: 3 stages in flight" in place.launch(second)
    assert "nothing to cancel" in place.launch(first, "--cancel", "--yes")
    assert "done: 3 stages published" in place.launch(second, "--wait")
