"""NaN and Inf: the attempt stops, becomes a diverged row, stays out of means, and is not tried again by itself."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from suite.cluster.reconcile import reconcile
from suite.errors import NumericError
from suite.grid import Plan, load_plan
from suite.store import Store
from tests.cluster.toys import run
from tests.faults.workers import Bench, bench
from tests.tiny import run_in_fork, write_grid, write_run

pytestmark = pytest.mark.ffcv


@pytest.fixture
def place(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> Bench:
    return bench(tiny, tmp_path)


def assert_diverged(place: Bench, position: int, said: str) -> None:
    (record,) = place.failures(position)
    assert record.status == "diverged" and record.failure is not None
    assert record.failure["kind"] == "numeric" and said in record.failure["message"]
    found = reconcile(place.plan, place.store)
    (held,) = [t for t in found.held if t.index == position]
    assert held.why == "diverged"
    key = place.stage(position).key
    users = {i for i, s in enumerate(place.plan.stages) if key in s.inputs.values()}
    blocked = {t.index: t.detail for t in found.held if t.why == "blocked"}
    assert users <= set(blocked) and all(key in text and said in text for text in blocked.values())
    assert not {t.index for t in found.todo} & (users | {position})
    assert position in {t.index for t in reconcile(place.plan, place.store, ["numeric"]).todo}


@pytest.mark.parametrize(("method", "bad"), [("sre2l", float("nan")), ("sre2l", float("inf")), ("e2d", float("nan"))])
def test_a_synthesis_that_diverges_stops_within_one_interval(
    place: Bench, monkeypatch: pytest.MonkeyPatch, method: str, bad: float
) -> None:
    from suite.learn import synthesis

    step = synthesis.BatchRun._step
    steps: list[int] = []

    def poisoned(self: synthesis.BatchRun, x: torch.Tensor, optimizer: torch.optim.Adam, t: int) -> object:
        loss, n = step(self, x, optimizer, t)
        steps.append(t)
        (place.run / f"step-{t}").touch()
        return (loss * bad if t >= 1 else loss), n

    monkeypatch.setattr(synthesis.BatchRun, "_step", poisoned)
    monkeypatch.setattr(synthesis, "LOG_EVERY", 2)
    position = place.position("synthesis", method=method)
    assert place.work(position) == 1
    assert_diverged(place, position, "not finite by iteration 2")
    assert len(list(place.run.glob("step-*"))) == 2, "nothing is computed after the check"


def test_a_requeued_task_does_not_repeat_what_diverged_in_it(place: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.learn import synthesis

    def diverging(*_: object) -> None:
        raise NumericError("not finite")

    monkeypatch.setattr(synthesis.BatchRun, "_step", diverging)
    for name, value in {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    position = place.position("synthesis", method="sre2l")
    for restart, failures in (("0", 1), ("1", 1), ("0", 2)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        assert place.work(position) == 1
        assert len(place.failures(position)) == failures


def poison(
    monkeypatch: pytest.MonkeyPatch, log: Path, bad: float, at: int, which: Callable[[torch.nn.Module], bool]
) -> None:
    """From their forward pass number `at` on, counted from 1, networks give something bad as the logit of class 0.

    Args:
        monkeypatch: Undoes it.
        log: Gets a line for each pass that counts.
        bad: What is added to it.
        at: The first bad pass.
        which: Of a network, whether this pass counts.
    """
    from suite.learn import models

    build, passes = models.build, 0

    def forward(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor | None:
        nonlocal passes
        if not which(module):
            return None
        passes += 1
        with log.open("a") as file:
            file.write(f"{passes}\n")
        if passes < at:
            return None
        return logits + torch.zeros_like(logits).index_fill_(1, torch.tensor([0]), bad)

    def built(*arguments: object, **more: object) -> torch.nn.Module:
        network = build(*arguments, **more)  # type: ignore[arg-type]
        network.register_forward_hook(forward)
        return network

    monkeypatch.setattr(models, "build", built)


def trained(network: torch.nn.Module) -> bool:
    return network.training


def frozen(network: torch.nn.Module) -> bool:
    return not any(p.requires_grad for p in network.parameters())


#: Two students of 150 steps, three intervals at whose ends the host looks at the losses, on images that are there.
TWO_SEEDS = """\
name: two
seeds: [0, 1]
protocol: [matched]
product: {method: [random], dataset: [digits], ipc: [1], teacher: [convnet2_w8], student: [convnet2_w8]}
override:
  - {set: {student.steps: 150, teacher.epochs: 1, labels: LABELS}}
"""


@pytest.fixture
def two(request: pytest.FixtureRequest, tiny: tuple[Plan, Store, Path], tmp_path: Path) -> tuple[Plan, Store, Path]:
    """The grid, with the first student trained and the second not: plan, store, run."""
    grid = write_grid(tmp_path, TWO_SEEDS.replace("LABELS", request.param))
    plan, store = load_plan(grid), Store(shutil.copytree(tiny[1].root, tmp_path / "store"))
    at = write_run(plan, store)
    assert run_in_fork(at, list(range(len(plan.stages) - 1))) == 0
    return plan, store, at


@pytest.mark.parametrize(
    ("two", "bad", "which"),
    [
        ("hard", float("nan"), trained),
        pytest.param("hard", float("inf"), trained, marks=pytest.mark.slow),
        pytest.param("online", float("nan"), frozen, marks=pytest.mark.slow),
    ],
    indirect=["two"],
    ids=["the student's loss is NaN", "the student's loss is Inf", "online labels are NaN"],
)
def test_a_student_that_diverges_is_a_row_that_counts_in_no_mean_and_in_the_footnote(
    two: tuple[Plan, Store, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: float,
    which: Callable[[torch.nn.Module], bool],
) -> None:
    plan, store, at = two
    first, second = (i for i, s in enumerate(plan.stages) if s.kind == "evaluation")
    poison(monkeypatch, tmp_path / "passes", bad, 60, which)
    assert run_in_fork(at, [second]) == 1
    (record,) = store.failures("evaluation", plan.stages[second].key)
    assert record.status == "diverged" and record.failure is not None
    assert record.failure == {"kind": "numeric", "message": "student diverged at step 100"}
    assert len((tmp_path / "passes").read_text().split()) == 100, "nothing is computed after the check"
    (held,) = reconcile(plan, store).held
    assert (held.index, held.why) == (second, "diverged") and not reconcile(plan, store).todo

    grid, place = tmp_path / "tiny.yaml", ("--store", store.root)
    again = run("suite.launch", grid, *place)
    assert again.returncode == 1 and "held back" in again.stdout, again.stdout + again.stderr
    assert len(store.failures("evaluation", plan.stages[second].key)) == 1, "not tried again by itself"
    done = run("suite.report", grid, *place, "--out", tmp_path / "reports")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "reports" / "two" / "accuracy.csv").open() as file:
        (row,) = csv.DictReader(file)
    alone = store.open("evaluation", plan.stages[first].key).record().numbers["accuracy_last"]
    assert row["n"] == "1" and float(row["mean"]) == pytest.approx(alone, abs=0.01)
    assert "seed 1 missing: diverged: student diverged at step 100" in done.stdout
    assert (
        "seed 1 missing: diverged: student diverged at step 100" in (tmp_path / "reports/two/accuracy.md").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("two", ["hard"], indirect=True)
def test_a_student_that_always_says_the_same_is_a_row_that_is_flagged(
    two: tuple[Plan, Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store, at = two
    poison(monkeypatch, tmp_path / "passes", 1e6, 1, lambda network: True)
    assert run_in_fork(at, [len(plan.stages) - 1]) == 0
    done = run("suite.report", tmp_path / "tiny.yaml", "--store", store.root, "--out", tmp_path / "reports")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "reports" / "two" / "accuracy.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["n"] == "2", "the row is kept"
    assert (
        "seed 1 suspicious: predicts one class for every image" in row["notes"] and "seed 1 suspicious" in done.stdout
    )


def test_a_teacher_that_gives_no_numbers_stops_a_relabel_at_the_batch(
    place: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    poison(monkeypatch, tmp_path / "passes", float("nan"), 3, frozen)
    position = place.position("relabel")
    assert place.work(position) == 1
    assert_diverged(place, position, "teacher logits are not finite in fp16 by batch ")
