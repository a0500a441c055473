"""A report over a million rows: `python -m suite.bench report`."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.benchmarks.report import make_rows, measure
from suite.leaderboard.gather import from_file


def test_made_up_rows_are_rows(tmp_path: Path) -> None:
    make_rows(tmp_path / "rows.parquet", 300)
    rows = from_file(tmp_path / "rows.parquet")
    assert len(rows.frame) == 300 and not rows.refused and rows.frame["method"].nunique() == 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_rows_take_less_than_a_minute_and_3_gb(tmp_path: Path) -> None:
    make_rows(tmp_path / "rows.parquet", 1_000_000)
    found = measure(tmp_path / "rows.parquet", tmp_path / "out")
    assert found["rows"] == 1_000_000 and found["peak_gb"] < 3
    # Seconds of CPU, where other work shares the machine; nothing here waits.
    assert min(found["seconds"], found["cpu_seconds"]) < 60, found
