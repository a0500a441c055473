"""External rows stand beside a grid's own, and are marked wherever they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.grid import load_plan
from suite.leaderboard.external import beside
from suite.leaderboard.gather import from_plan
from suite.leaderboard.statistics import plain_records
from tests.exchange.conftest import GRID, Command, Made

pytestmark = pytest.mark.ffcv


def test_external_rows_stand_marked_beside_a_grids_own(
    made: Made, tmp_path: Path, export: Command, evaluate: Command
) -> None:
    own = made.rows()["hard"]
    export(own.key, "--to", "safetensors", "--out", tmp_path / "guest", "--store", made.store.root)
    evaluate(tmp_path / "guest", "--row", own.key, "--store", made.store.root)
    keys = beside(made.store, made.plan.stages, made.plan.cells)
    assert keys and not set(keys) & set(made.plan.cell_keys)
    plan = made.plan
    rows = from_plan(made.store, plan.stages, plan.cells, plan.cell_keys, plan.excluded, keys)
    lines = {line["key"]: line for line in plain_records(rows.frame)}
    guests = [line for line in lines.values() if line["method"] == "guest (external)"]
    assert len(guests) == 1 and guests[0]["external"] and guests[0]["synthesis_seconds"] is None
    assert not any(lines[key]["external"] for key in plan.cell_keys)
    assert guests[0]["setting"] != lines[own.key]["setting"], "never averaged with rows of the suite"
    # A grid whose cells it does not compete with goes without it.
    (tmp_path / "other.yaml").write_text(GRID.replace("convnet2_w8", "convnet3_w8"))
    other = load_plan(tmp_path / "other.yaml")
    assert beside(made.store, other.stages, other.cells) == []
