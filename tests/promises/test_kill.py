"""kill -9 of a worker at any moment, then the same stages again: everything completes, nothing partial is ever seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from suite.grid import Plan
from suite.spec.stages import KINDS
from suite.store import Store
from tests.tiny import run_in_fork, write_run

POINTS = ["start", "computed", "recorded", "sealed", "published"]


@pytest.mark.ffcv
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_stage_completes_at_the_next_launch(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, kind: str, point: str
) -> None:
    plan, reference, _ = tiny
    index, stage = next((i, s) for i, s in enumerate(plan.stages) if s.kind == kind)
    shutil.copytree(reference.root, tmp_path / "store")
    store = Store(tmp_path / "store")
    expected = store.open(kind, stage.key).digest
    shutil.rmtree(store.home(kind, stage.key))
    run = write_run(plan, store)

    assert run_in_fork(run, [index], fault=f"{kind}:{point}") == -9
    if point == "published":
        assert store.open(kind, stage.key).digest == expected
    else:
        assert stage.key not in store.published(kind), "nothing is visible before the rename"

    assert run_in_fork(run, [index]) == 0
    assert store.open(kind, stage.key).digest == expected, "interrupted and repeated equals uninterrupted"
    assert not store.attempts(kind, stage.key), "the killed attempt's directory was swept"
