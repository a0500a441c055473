from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from suite import bench
from suite.errors import UserError
from tests.data.conftest import make_source


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["suite.bench", *map(str, words)])
    return bench.main()


@pytest.mark.ffcv
def test_no_compiled_operation_follows_to_tensor():
    """FFCV groups operations by alternating kinds and loops for ever when a compiled one comes back."""
    import numpy as np
    import torch
    from ffcv.pipeline.state import State

    from suite.benchmarks.loader import ffcv_pipeline

    images = np.zeros(1, [("width", "<u2"), ("height", "<u2")])
    images["width"] = images["height"] = 32
    state = State(jit_mode=True, device=torch.device("cpu"), shape=(32, 32, 3), dtype=np.dtype("u1"))
    compiled = []
    for operation in ffcv_pipeline(32):
        operation.accept_globals(images, None)
        state, _ = operation.declare_state_and_memory(state)
        compiled.append(state.jit_mode)
    assert compiled == [True, True, True, False, False]
    assert state.dtype == torch.float32  # not half precision


def test_unknown_benchmarks_are_bad_input(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="invalid choice: 'nothing'"):
        run_main(monkeypatch, "nothing")


def test_impossible_settings_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(UserError, match="--batch must be at least 1"):
        run_main(monkeypatch, "loader", "--source", tmp_path, "--batch", 0)


@pytest.mark.slow
@pytest.mark.ffcv
def test_the_loader_benchmark_measures_three_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = make_source(tmp_path / "source", classes=4, train=20, side=(64, 64), kind="JPEG")
    out = tmp_path / "measured" / "loader.json"
    words = ("loader", "--source", source, "--size", 64, "--batch", 16, "--epochs", 2, "--json", out)
    assert run_main(monkeypatch, *words) == 0
    value = json.loads(out.read_text())
    assert value["images"] == 80
    assert set(value["results"]) == {"torchvision", "ffcv_jpeg", "ffcv_raw"}
    assert all(r["images_per_second"] > 0 and len(r["epoch_seconds"]) == 2 for r in value["results"].values())
    assert value["provenance"]["commit"] and value["device"]["cores"] >= 1
    text = capsys.readouterr().out
    assert "ffcv_jpeg / torchvision" in text and "compilation" in text
