"""Clocks that differ between hosts, or jump: durations and orders do not come from them."""

from __future__ import annotations

import ast
import itertools
import time
from pathlib import Path

import pytest

import suite
from suite.grid import Plan
from suite.store import Store
from tests.faults.workers import bench

#: Where wall clocks and times of files may be read, and for what.
WALL_CLOCK = {
    "store/artifacts.py": "names in quarantine",
    "store/files.py": "a fingerprint that changes when a file does",
    "data/loader.py": "a fingerprint that changes when a file does",
    "cluster/submitting.py": "a sign of life: whether the time of a file changes, or its age by the file system's own",
    "cluster/garbage.py": "an age below which nothing is removed",
    "leaderboard/marks.py": "a fingerprint that changes when a file does",
    "cluster/runs.py": "ids of runs, each later than all before it in the store",
    "cluster/cancel.py": "when it was cancelled, for people",
    "cluster/ended.py": "when a failure was noticed, for people",
    "cluster/local.py": "when a failure was noticed, for people",
    "exchange/delivered.py": "when it started, for people",
    "prepare.py": "when it started, for people",
    "work.py": "when it started, and the time before lines of a log, for people",
    "nights/places.py": "dates of nights, and how old an interrupted one is",
}


@pytest.mark.ffcv
def test_durations_do_not_follow_a_clock_that_jumps(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = bench(tiny, tmp_path)
    jumps = itertools.cycle([0, -3600, 7200, 2**31])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    position = place.position("statistics")
    before = place.digest(position)
    begin = time.monotonic()
    assert place.work(position) == 0
    took, record = time.monotonic() - begin, place.record(position)
    assert 0 <= record.cost["seconds"] <= record.seconds <= took
    assert place.digest(position) == before


def test_nothing_measures_or_orders_by_wall_clock() -> None:
    root = Path(suite.__file__).parent
    names = {"time", "time_ns", "st_mtime", "st_mtime_ns", "st_ctime", "getmtime", "now", "utcnow", "today"}
    clocks = {"time", "datetime", "date"}
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in names:
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                if node.attr.startswith(("st_", "get")) or owner in clocks:
                    found.add(str(path.relative_to(root)))
    assert found <= set(WALL_CLOCK), f"{sorted(found - set(WALL_CLOCK))}: use time.monotonic, or say why not"
