"""kill -9 of a worker at any moment, then the same stages again: everything completes, nothing partial is ever seen."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from suite.grid import Plan
from suite.spec.stages import KINDS
from suite.store import Store
from suite.store.artifacts import Corrupt
from tests.tiny import run_in_fork, write_run

#: The moments that matter, in the order in which a stage passes them.
POINTS = ["start", "step", "saving", "computed", "recorded", "sealed", "published"]
#: A checkpoint after every step.
ALWAYS = 0.0
#: Preparing writes betons through FFCV, which cannot go on with half of one: it starts again.
WITHOUT_CHECKPOINTS = ("prepare",)


class Reader:
    """Opens an artifact every 5 ms, as a report would, and takes note of everything but absence and wholeness."""

    def __init__(self, store: Store, kind: str, key: str, digest: str) -> None:
        self.store, self.kind, self.key, self.digest = store, kind, key, digest
        self.wrong: list[str] = []
        self.looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._over.wait(0.005):
            self.looks += 1
            try:
                found = self.store.open(self.kind, self.key).digest
            except FileNotFoundError:
                continue
            except Corrupt as error:
                self.wrong.append(error.line())
                continue
            if found != self.digest:
                self.wrong.append(f"digest {found}")


def kill_and_repeat(tiny: tuple[Plan, Store, Path], folder: Path, kind: str, point: str, method: str = "") -> None:
    """Kill a stage at a point, look at what is left, run it again, and compare with the run that was left alone."""
    plan, reference, _ = tiny
    index, stage = next(
        (i, s) for i, s in enumerate(plan.stages) if s.kind == kind and method in ("", getattr(s.spec, "method", ""))
    )
    shutil.copytree(reference.root, folder / "store")
    store = Store(folder / "store")
    expected = store.open(kind, stage.key).digest
    shutil.rmtree(store.home(kind, stage.key))
    run = write_run(plan, store, ALWAYS)

    with Reader(store, kind, stage.key, expected) as reader:
        assert run_in_fork(run, [index], fault=f"{kind}:{point}") == -9
        if point == "published":
            assert store.open(kind, stage.key).digest == expected
        else:
            assert stage.key not in store.published(kind), "nothing is visible before the rename"
        assert run_in_fork(run, [index]) == 0
        time.sleep(0.02)
    assert not reader.wrong and reader.looks > 2
    found = store.open(kind, stage.key)
    assert found.digest == expected, "interrupted and repeated equals uninterrupted"
    assert not store.attempts(kind, stage.key), "the killed attempt's directory was swept"
    assert not list(store.home(kind, stage.key).glob("checkpoints")), "and so were its checkpoints"
    if kind not in WITHOUT_CHECKPOINTS and point in ("computed", "recorded", "sealed"):
        assert len(found.record().resumed) >= 1, "it went on from the last checkpoint"


def cases() -> list[Any]:
    """Every kind at every point; by default a synthesis at all of them, and every other kind at one of its own."""
    found = []
    for number, kind in enumerate(k for k in KINDS if k != "shard"):
        for point in POINTS:
            if kind in WITHOUT_CHECKPOINTS and point == "saving":
                continue
            usual = kind == "synthesis" or point == POINTS[number + 1]
            found.append(pytest.param(kind, point, marks=[] if usual else [pytest.mark.slow]))
    return found


@pytest.mark.ffcv
@pytest.mark.parametrize(("kind", "point"), cases())
def test_killed_stage_completes_at_the_next_launch(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, kind: str, point: str
) -> None:
    kill_and_repeat(tiny, tmp_path, kind, point, method="sre2l" if kind == "synthesis" else "")
