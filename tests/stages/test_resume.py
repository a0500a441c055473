"""Interrupted and resumed equals uninterrupted, bit for bit on a CPU: teacher, synthesis, relabel and evaluation.

Every stage goes through its real runner, with the real signal, in a process that is forked for the attempt.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from suite.grid import Plan, load_plan
from suite.preemption import Preempted
from suite.spec.stages import Stage
from suite.store import Artifact, Store
from tests.tiny import write_grid, write_run

#: Steps at which stages are interrupted; the same in every run of the tests.
DRAWS = random.Random(20)
#: What a record says of a stage that does not depend on time, place or the number of attempts.
COUNTS = ("image_iterations", "forward_images", "images")

#: Everything that keeps a state of its own, one way or the other.
STATEFUL = """\
name: stateful
seeds: [0]
protocol: [paper]
product:
  method: [delt, forgetting, e2d_adaptive, edc, gvbsm, rded, wmdd]
  dataset: [digits]
  ipc: [2]
  teacher: [convnet2_w8_bn]
  student: [resnet10_cifar_w4]
override:
  - {when: {dataset: digits}, set: {teacher.epochs: 1, statistics.per_class: 20}}
  - {set: {student.epochs: 4, student.batch: 5}}
  - {when: {method: delt}, set: {iterations: 8, rounds: 2, batch: 3}}
  - {when: {method: [e2d_adaptive, edc, gvbsm, wmdd]}, set: {iterations: 6, teachers: grid}}
  - {when: {method: [e2d_adaptive, edc, gvbsm]}, set: {batch: 3}}
  - {when: {method: e2d_adaptive}, set: {explore: 2}}
  - {when: {method: edc}, set: {candidates: 20}}
  - {when: {method: rded}, set: {candidates: 20}}
  - {when: {method: forgetting}, set: {epochs: 2}}
"""


def attempt(run: Path, index: int, *, leave_at: int = 0, number: int = signal.SIGUSR2) -> tuple[int, int]:
    """One attempt at a stage in a forked process, which gets a signal after some of its steps.

    Returns:
        Its exit code (128 and the signal if it left), and the steps that it made.
    """
    from suite.learn.checkpoint import Checkpoint
    from suite.work import run_pack

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, steps, due = 70, 0, Checkpoint.due

        def counted(self: Checkpoint) -> bool:
            nonlocal steps
            steps += 1
            if steps == leave_at:
                os.kill(os.getpid(), number)
            return due(self)

        Checkpoint.due = counted  # type: ignore[method-assign]
        try:
            code = run_pack(str(run), [index])
        except Preempted as error:
            code = 128 + error.signum
        finally:
            os.write(writing, steps.to_bytes(8, "little"))
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    steps = int.from_bytes(os.read(reading, 8), "little")
    os.close(reading)
    return os.waitstatus_to_exitcode(status), steps


def same(found: Artifact, wanted: Artifact) -> None:
    """Two artifacts with equal bytes, and records with equal counts and numbers."""
    assert found.digest == wanted.digest
    mine, theirs = found.record(), wanted.record()
    assert {n: mine.cost.get(n) for n in COUNTS} == {n: theirs.cost.get(n) for n in COUNTS}
    assert (mine.numbers, mine.storage) == (theirs.numbers, theirs.storage)


@pytest.fixture
def emptied(tmp_path: Path) -> Callable[[Plan, Store, Stage], tuple[Path, Store]]:
    """Copies a store without one stage; returns a run directory, and the store."""

    def make(plan: Plan, reference: Store, stage: Stage) -> tuple[Path, Store]:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.copytree(reference.root, tmp_path / "store")
        store = Store(tmp_path / "store")
        shutil.rmtree(store.home(stage.kind, stage.key))
        return write_run(plan, store), store

    return make


def interrupt_anywhere(plan: Plan, reference: Store, index: int, times: int, emptied: Callable) -> None:  # type: ignore[type-arg]
    """Interrupt a stage at random steps, each time in a life of its own, and compare."""
    stage = plan.stages[index]
    wanted = reference.open(stage.kind, stage.key)
    run, _ = emptied(plan, reference, stage)
    code, steps = attempt(run, index)
    assert code == 0 and steps > 1, f"{stage.label()} has {steps} steps"
    for at in [DRAWS.randint(1, steps) for _ in range(times)]:
        run, store = emptied(plan, reference, stage)
        code, made = attempt(run, index, leave_at=at, number=DRAWS.choice((signal.SIGUSR2, signal.SIGTERM)))
        assert code in (128 + signal.SIGUSR2, 128 + signal.SIGTERM) and made == at, "it left after this step"
        assert stage.key not in store.published(stage.kind)
        code, rest = attempt(run, index)
        assert (code, made + rest) == (0, steps), "no step is made twice"
        same(store.open(stage.kind, stage.key), wanted)
        assert len(store.open(stage.kind, stage.key).record().resumed) == 1
        assert not (store.home(stage.kind, stage.key) / "checkpoints").exists(), "deleted once it is published"


def kinds_of(plan: Plan) -> list[int]:
    """One stage of each kind that has steps; two methods."""
    found: dict[str, int] = {}
    for index, stage in enumerate(plan.stages):
        name = stage.kind if stage.kind != "synthesis" else stage.spec.method  # type: ignore[union-attr]
        found.setdefault(name, index)
    return [found[name] for name in ("teacher", "sre2l", "e2d", "relabel", "evaluation")]


@pytest.mark.ffcv
@pytest.mark.parametrize("place", range(5), ids=["teacher", "sre2l", "e2d", "relabel", "evaluation"])
def test_interrupted_equals_uninterrupted(tiny: tuple[Plan, Store, Path], emptied: Callable, place: int) -> None:  # type: ignore[type-arg]
    interrupt_anywhere(tiny[0], tiny[1], kinds_of(tiny[0])[place], 2, emptied)


@pytest.mark.slow
@pytest.mark.ffcv
@pytest.mark.parametrize("place", range(5), ids=["teacher", "sre2l", "e2d", "relabel", "evaluation"])
def test_interrupted_at_20_random_steps_equals_uninterrupted(
    tiny: tuple[Plan, Store, Path],
    emptied: Callable,
    place: int,  # type: ignore[type-arg]
) -> None:
    interrupt_anywhere(tiny[0], tiny[1], kinds_of(tiny[0])[place], 20, emptied)


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
@pytest.mark.ffcv
@pytest.mark.parametrize("kind", ["synthesis", "relabel", "evaluation"])
def test_whatever_has_a_state_goes_on_with_it(stateful: tuple[Plan, Store], emptied: Callable, kind: str) -> None:  # type: ignore[type-arg]
    plan, reference = stateful
    for index, stage in enumerate(plan.stages):
        if stage.kind == kind:
            interrupt_anywhere(plan, reference, index, 3, emptied)
