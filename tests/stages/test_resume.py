"""Interrupted and resumed equals uninterrupted, bit for bit on a CPU: teacher, synthesis, relabel and evaluation.

Every stage goes through its real runner, with the real signal, in a process that is forked for the attempt.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from suite.grid import Plan, load_plan
from suite.store import Store
from tests.faults.attempts import ALWAYS, Bench, Signals, bench, find
from tests.tiny import write_grid, write_run

pytestmark = pytest.mark.ffcv

#: Stages that are interrupted: kind, and method.
STAGES = [("teacher", ""), ("statistics", ""), ("synthesis", "sre2l"), ("synthesis", "e2d"), ("synthesis", "rded"),
          ("relabel", ""), ("evaluation", "sre2l"), ("evaluation", "e2d")]  # fmt: skip
WAYS = (signal.SIGUSR2, signal.SIGTERM)

#: Everything that keeps a state of its own, one way or the other.
STATEFUL = """\
name: stateful
seeds: [0]
protocol: [paper]
product:
  method: [delt, forgetting, e2d_adaptive, edc, gvbsm, wmdd]
  dataset: [digits]
  ipc: [2]
  teacher: [convnet2_w8_bn]
  student: [resnet10_cifar_w4]
override:
  - {when: {dataset: digits}, set: {teacher.epochs: 1, statistics.per_class: 20}}
  - {set: {teachers: grid}}
  - {set: {student.epochs: 4, student.batch: 5}}
  - {when: {method: delt}, set: {iterations: 8, rounds: 2, batch: 3}}
  - {when: {method: [e2d_adaptive, edc, gvbsm, wmdd]}, set: {iterations: 6}}
  - {when: {method: [e2d_adaptive, edc, gvbsm]}, set: {batch: 3}}
  - {when: {method: e2d_adaptive}, set: {explore: 2}}
  - {when: {method: edc}, set: {candidates: 20}}
  - {when: {method: forgetting}, set: {epochs: 2}}
"""


def interrupt_anywhere(made: Bench, times: int) -> None:
    """Interrupt a stage at random steps, each time in a life of its own, and compare."""
    draws = random.Random(made.stage.key)
    alone = made.attempt()
    assert alone.code == 0 and alone.steps > 1
    made.check()
    for step in [draws.randint(1, alone.steps) for _ in range(times)]:
        made.clear()
        way = draws.choice(WAYS)
        left = made.attempt(Signals(step, (way,)))
        assert left == type(left)(128 + way, step), "it left right after this step"
        assert made.stage.key not in made.store.published(made.stage.kind)
        rest = made.attempt()
        assert rest.code == 0 and left.steps + rest.steps == alone.steps, "no step is made twice"
        assert len(made.check().record().resumed) == 1


@pytest.mark.parametrize(
    ("kind", "method"), [("teacher", ""), ("synthesis", "e2d"), ("relabel", ""), ("evaluation", "e2d")]
)
def test_interrupted_equals_uninterrupted(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, kind: str, method: str
) -> None:
    interrupt_anywhere(bench(tiny[0], tiny[1], find(tiny[0], kind, method), tmp_path), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), STAGES)
def test_interrupted_at_20_random_steps_equals_uninterrupted(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, kind: str, method: str
) -> None:
    interrupt_anywhere(bench(tiny[0], tiny[1], find(tiny[0], kind, method), tmp_path), 20)


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    """The grid of methods with states of their own, run once."""
    from suite.work import run_pack

    folder = tmp_path_factory.mktemp("stateful")
    plan = load_plan(write_grid(folder, STATEFUL))
    store = Store(folder / "store")
    assert run_pack(str(write_run(plan, store)), list(range(len(plan.stages)))) == 0
    return plan, store


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["synthesis", "relabel", "evaluation"])
def test_whatever_has_a_state_goes_on_with_it(stateful: tuple[Plan, Store], tmp_path: Path, kind: str) -> None:
    """Ranks and parts, events, clocks of images, mosaics, dropped layers, barycentres; pruned and plain streams."""
    plan, reference = stateful
    for index, stage in enumerate(plan.stages):
        if stage.kind == kind:
            interrupt_anywhere(bench(plan, reference, index, tmp_path), 4)


def test_seconds_of_earlier_attempts_are_a_cost_and_saving_is_not(
    tiny: tuple[Plan, Store, Path], tmp_path: Path
) -> None:
    from suite.learn.checkpoint import Checkpoint

    made = bench(tiny[0], tiny[1], find(tiny[0], "teacher"), tmp_path, ALWAYS)
    assert made.attempt(Signals(5)).code == 128 + signal.SIGUSR2
    (folder,) = (made.store.home("teacher", made.stage.key) / "checkpoints").iterdir()
    kept = Checkpoint(folder)
    kept.load()
    assert made.attempt().code == 0
    cost = made.check().record().cost
    assert cost["seconds"] > kept.before["seconds"] > 0 and cost["checkpoint_seconds"] > 0
    assert cost["peak_memory_bytes"] >= kept.before["peak_memory_bytes"] and cost["device"] == kept.before["device"]


def test_another_kind_of_device_or_other_inputs_start_again(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> None:
    """What a CPU has begun is not gone on with by a GPU, by batches in parts, or from inputs of other bytes."""
    from dataclasses import replace

    from suite.learn.checkpoint import Checkpoint
    from suite.store.attempts import open_inputs
    from suite.store.checkpoints import checkpoint_folder

    made = bench(tiny[0], tiny[1], find(tiny[0], "evaluation"), tmp_path)
    assert made.attempt(Signals(3)).code == 128 + signal.SIGUSR2
    inputs = open_inputs(made.store, made.stage)
    assert Checkpoint(checkpoint_folder(made.store, made.stage, inputs, "cpu 1")).load() is not None
    for place in ("cuda 1", "cpu 2"):
        assert Checkpoint(checkpoint_folder(made.store, made.stage, inputs, place)).load() is None
    role, artifact = next(iter(inputs.items()))
    others = inputs | {role: replace(artifact, manifest={**artifact.manifest, "digest": "0" * 64})}
    assert Checkpoint(checkpoint_folder(made.store, made.stage, others, "cpu 1")).load() is None
