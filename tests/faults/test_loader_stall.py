"""A loader that stalls or dies under a worker ends the stage as infra within its time, naming dataset and samples."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from suite.grid import Plan
from suite.store import Store
from tests.faults.workers import bench

pytestmark = pytest.mark.ffcv


@pytest.mark.parametrize("how", ["stalls", "dies"])
def test_a_stage_ends_within_loader_timeout(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from ffcv.loader.epoch_iterator import EpochIterator

    place = bench(tiny, tmp_path)
    settings = json.loads((place.run / "settings.json").read_text())
    # Long enough to build FFCV's loader on a busy machine.
    (place.run / "settings.json").write_text(json.dumps(settings | {"loader_timeout": 20}))
    if how == "stalls":
        monkeypatch.setattr(EpochIterator, "run_pipeline", lambda *_: threading.Event().wait(600))
    else:
        monkeypatch.setattr(EpochIterator, "run", lambda self: None)
    position = place.position("evaluation", method="random")
    begin = time.monotonic()
    assert place.work(position) == 1
    assert time.monotonic() - begin < 120
    (record,) = place.failures(position)
    assert record.failure is not None and record.failure["kind"] == "infra"
    said = record.failure["message"]
    assert "digits val" in said and "samples 0 to 354" in said
    assert ("gave nothing for 20 s" if how == "stalls" else "thread died") in said
