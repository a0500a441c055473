"""What checkpoints cost: a whole run of the command, of one small state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from suite.bench import main
from suite.benchmarks import checkpoint


def test_a_run_makes_its_folder_says_what_a_save_costs_and_leaves_nothing_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = checkpoint.Case("teacher", "a matrix", lambda: {"weights": torch.ones(500, 500)})
    monkeypatch.setattr(checkpoint, "cases", lambda ipc: [small])
    folder, out = tmp_path / "not" / "there", tmp_path / "out.json"
    words = ["bench", "checkpoint", "--folder", str(folder), "--saves", "2", "--json", str(out)]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["bytes"] > 500 * 500 * 4 and 0 < row["percent"] < 5 and row["interval_seconds"] >= 600
    assert "a matrix" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
