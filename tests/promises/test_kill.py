"""kill -9 of a worker at any moment, then the same stages again: everything completes, nothing partial is ever seen."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from suite.cluster.garbage import Surveyor, delete
from suite.grid import Plan
from suite.spec.stages import KINDS
from suite.store import Store
from tests.faults.attempts import Signals, bench, find, in_shards
from tests.tiny import run_in_fork, write_run

#: The moments that matter, in the order in which a stage passes them.
POINTS = ["start", "step", "saving", "computed", "recorded", "sealed", "published"]
#: A checkpoint after every step.
ALWAYS = 0.0
#: Preparing writes betons through FFCV, which cannot go on with half of one: it starts again. Merging has no steps.
WITHOUT_CHECKPOINTS = ("prepare", "merge")
#: What is killed: every kind of stage, and a synthesis that merges what its shards have made.
WHAT = (*KINDS, "merge")


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
            except Exception as error:  # Corrupt, and whatever else would end this thread unseen
                self.wrong.append(f"{type(error).__name__}: {error}")
                continue
            if found != self.digest:
                self.wrong.append(f"digest {found}")


def kill_and_repeat(plan: Plan, reference: Store, store: Store, index: int, point: str) -> None:
    """Kill a stage at a point, look at what is left, run it again, and compare with the run that was left alone."""
    stage, kind = plan.stages[index], plan.stages[index].kind
    expected = reference.open(kind, stage.key).digest
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
    what = "merge" if stage.shards > 1 else kind
    if what not in WITHOUT_CHECKPOINTS and point in ("computed", "recorded", "sealed"):
        assert len(found.record().resumed) >= 1, "it went on from the last checkpoint"


@pytest.fixture(scope="module")
def cut(tiny: tuple[Plan, Store, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store, Store]:
    """A synthesis of two batches in two shards, run once: shards and merge, a store of the parts, one of the whole."""
    folder, shards = tmp_path_factory.mktemp("cut"), in_shards(tiny[0])
    parts = Store(shutil.copytree(tiny[1].root, folder / "parts"))
    assert run_in_fork(write_run(shards, parts), [0, 1]) == 0
    merged = Store(shutil.copytree(parts.root, folder / "merged"))
    assert run_in_fork(write_run(shards, merged), [2]) == 0
    return shards, parts, merged


def cases() -> list[Any]:
    """Everything at every point; by default a synthesis at all of them, and every other one at one of its own."""
    found = []
    for number, what in enumerate(WHAT):
        never = {"prepare": ("saving",), "merge": ("step", "saving")}.get(what, ())
        points = [p for p in POINTS if p not in never]
        for point in points:
            usual = what == "synthesis" or point == points[number % len(points)]
            found.append(pytest.param(what, point, marks=[] if usual else [pytest.mark.slow]))
    return found


@pytest.mark.ffcv
@pytest.mark.parametrize(("what", "point"), cases())
def test_killed_stage_completes_at_the_next_launch(
    tiny: tuple[Plan, Store, Path], cut: tuple[Plan, Store, Store], tmp_path: Path, what: str, point: str
) -> None:
    (plan, reference, _), before = tiny, tiny[1]
    if what == "shard":
        (plan, reference, _), before, index = cut, cut[1], 0
    elif what == "merge":
        (plan, before, reference), index = cut, 2
    else:
        index = find(plan, what, "sre2l" if what == "synthesis" else "")
    stage = plan.stages[index]
    store = Store(shutil.copytree(before.root, tmp_path / "store"))
    shutil.rmtree(store.home(stage.kind, stage.key), ignore_errors=True)
    kill_and_repeat(plan, reference, store, index, point)


@pytest.mark.ffcv
@pytest.mark.parametrize("kind", ["teacher", "relabel", pytest.param("evaluation", marks=pytest.mark.slow)])
def test_killed_while_it_overwrites_one_of_two_checkpoints_it_goes_on_from_the_other(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, kind: str
) -> None:
    made = bench(tiny[0], tiny[1], find(tiny[0], kind), tmp_path, ALWAYS)
    alone = made.attempt()
    made.check()
    made.clear()
    left = made.attempt(Signals(2))
    assert left.code == 128 + signal.SIGUSR2 and made.saves() == left.steps == 2
    (folder,) = (made.store.home(kind, made.stage.key) / "checkpoints").iterdir()
    both = {p.name: p.read_bytes() for p in folder.glob("*.ckpt")}
    killed = made.attempt(SUITE_FAULT=f"{kind}:saving")
    assert (killed.code, killed.steps) == (-signal.SIGKILL, 1), "it died in its first save, of the third checkpoint"
    assert len(both) == 2 and {p.name: p.read_bytes() for p in folder.glob("*.ckpt")} == both
    assert list(folder.glob("*.ckpt.*.part")), "the third was being written"
    last = made.attempt()
    assert last.code == 0 and last.steps == alone.steps - left.steps, "on from the second, not from the first step"
    assert len(made.check().record().resumed) == 1, "what was killed in its first save left nothing"


@pytest.mark.ffcv
@pytest.mark.parametrize("kind", ["synthesis", "relabel"])
def test_checkpoints_that_outlive_a_publication_are_counted_listed_and_removed(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, kind: str
) -> None:
    """The process dies between the rename and their deletion; of a label stream they hold another link of the file."""
    plan, reference, _ = tiny
    index = find(plan, kind, "sre2l" if kind == "synthesis" else "")
    stage = plan.stages[index]
    store = Store(shutil.copytree(reference.root, tmp_path / "store"))
    shutil.rmtree(store.home(kind, stage.key))
    assert run_in_fork(write_run(plan, store, ALWAYS), [index], fault=f"{kind}:published") == -9
    found = Surveyor(store, None, [], 0.0, False).look()
    (item,) = [i for i in found.items if i.what == "checkpoint"]
    assert found.usage[kind, "checkpoint"] == item.size > 0 and item.why == "its stage is published"
    assert delete(item)
    assert not (store.home(kind, stage.key) / "checkpoints").exists()
    assert store.open(kind, stage.key).digest == reference.open(kind, stage.key).digest
