"""A dataset that changes after it was prepared: nothing mixes, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from suite.grid import Plan, load_plan
from suite.leaderboard.gather import from_store
from suite.store import Store
from suite.store.attempts import is_current, open_inputs
from tests.data.conftest import make_source

GRID = """\
name: changed
seeds: [0]
protocol: [matched]
product: {method: [random], dataset: [cifar10], ipc: [1], teacher: [convnet2_w8], student: [convnet2_w8]}
override:
  - {when: {dataset: cifar10}, set: {student.steps: 2, teacher.epochs: 1, labels: hard}}
"""


@pytest.mark.slow  # a minute: seven commands
@pytest.mark.ffcv
def test_a_source_that_changes_gives_new_rows_once_it_is_prepared_again(tmp_path: Path) -> None:
    source, grid = make_source(tmp_path / "source", train=8), tmp_path / "changed.yaml"
    grid.write_text(GRID)
    profile = tmp_path / "site.yaml"
    profile.write_text(f"store: {tmp_path / 'store'}\nsources: {{cifar10: {source}}}\n")
    plan, store = load_plan(grid), Store(tmp_path / "store")
    words, where = ("suite.launch", grid, "--profile", profile), ("--source", source, "--store", store.root)

    assert run(*words).returncode == 0
    before = digests(plan, store)
    images = sorted((source / "train" / "class000").iterdir())
    images[0].touch()
    assert "same images" in run("suite.prepare", "cifar10", *where, "--again").stdout
    images[0].write_bytes(images[2].read_bytes())
    assert "nothing to do" in run(*words).stdout, "what is prepared is a copy"
    assert "already prepared" in run("suite.prepare", "cifar10", *where).stdout
    assert digests(plan, store) == before

    again = run("suite.prepare", "cifar10", *where, "--again")
    assert again.returncode == 0 and "other images" in again.stdout
    planned = run(*words, "--dry-run").stdout
    assert f"{len(plan.stages) - 1} stale" in planned and "changed" in planned, planned
    assert run(*words).returncode == 0
    prepare = plan.stages[0]
    assert digests(plan, store)["prepare", prepare.key] != before["prepare", prepare.key]
    for stage in plan.stages:
        made = store.open(stage.kind, stage.key)
        assert is_current(made, open_inputs(store, stage)), "everything was made again"
    (key,) = from_store(store).frame["key"]
    (old,) = (store.home("evaluation", key) / "quarantine").iterdir()
    assert (old / "record.json").is_file(), "the old row is kept, and on no leaderboard"


def run(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def digests(plan: Plan, store: Store) -> dict[tuple[str, str], str]:
    return {(s.kind, s.key): store.open(s.kind, s.key).digest for s in plan.stages}
