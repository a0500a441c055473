"""Two tasks train one stage: signals, deaths and failures of either are the same story for both."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from suite.errors import OutOfMemory
from suite.grid import Plan
from suite.learn import checkpoint, students
from suite.stages.tasks import _abandon
from suite.store import Store
from tests.faults.attempts import Signals, bench, find
from tests.faults.ranks import Ended, Job, Prepared

pytestmark = pytest.mark.ffcv
Tiny = tuple[Plan, Store, Path]
USR2, TERM = signal.SIGUSR2, signal.SIGTERM
#: Within this time after a signal a site kills what is left.
GRACE = 30.0


def of_teacher(tiny: Tiny, folder: Path) -> Job:
    """A teacher of 23 steps."""
    return Job(bench(tiny[0], tiny[1], find(tiny[0], "teacher"), folder), folder / "job")


def of_evaluation(tiny: Tiny, folder: Path, limit: float = 60.0) -> Job:
    """A student of six steps."""
    return Job(bench(tiny[0], tiny[1], find(tiny[0], "evaluation", "rded"), folder), folder / "job", limit)


def slow(folder: Path, step: int, seconds: float) -> Prepared:
    """The first task sleeps in a step, and says so by a file."""

    def prepare(rank: int) -> None:
        due, count = checkpoint.Checkpoint.due, 0

        def late(self: checkpoint.Checkpoint) -> bool:
            nonlocal count
            count += 1
            if count == step and rank == 0:
                (folder / "asleep").touch()
                time.sleep(seconds)
            return due(self)

        checkpoint.Checkpoint.due = late  # type: ignore[method-assign]

    return prepare


def until(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def clean(job: Job) -> bool:
    """Whether nothing of a job is left."""
    meetings = job.made.run / "ranks"
    return not any(meetings.iterdir()) and not job.made.store.attempts(job.made.stage.kind, job.made.stage.key)


def test_two_tasks_publish_what_one_task_does(tiny: Tiny, tmp_path: Path) -> None:
    job = of_teacher(tiny, tmp_path)
    ended = job.run()
    assert ended.codes == [0, 0], ended.output
    found = job.made.store.open("teacher", job.made.stage.key)
    mine, alone = (load_file(a.path / "weights.safetensors") for a in (found, job.made.wanted))
    far = {n: float((mine[n] - w).norm() / w.norm()) for n, w in alone.items() if n.endswith("weight")}
    assert max(far.values()) < 0.05, "what 23 updates in float32 make of rounding"
    record, before = found.record(), job.made.wanted.record()
    assert record.provenance["tasks"] == record.cost["tasks"] == 2
    assert record.cost["seconds"] == pytest.approx(2 * record.cost["wall_seconds"]), "the seconds of both devices"
    assert record.cost["images"] == before.cost["images"] and record.numbers["steps"] == before.numbers["steps"]
    assert "tasks" not in before.provenance and "wall_seconds" not in before.cost
    assert not job.failures() and clean(job)


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(0.5, id="the first task a little later"),
        pytest.param(None, id="no signal for the first task", marks=pytest.mark.slow),
    ],
)
def test_the_second_task_is_asked_first_while_the_first_is_slow_and_both_leave(
    tiny: Tiny, tmp_path: Path, late: float | None
) -> None:
    job = of_evaluation(tiny, tmp_path)
    assert job.run().codes == [0, 0]
    wanted = job.made.store.open("evaluation", job.made.stage.key)
    job.made.clear()
    tasks = job.start(prepare=slow(tmp_path, 3, 3.0))
    until(tmp_path / "asleep")
    os.kill(tasks[1], USR2)
    if late is not None:
        time.sleep(late)
        os.kill(tasks[0], TERM)
    left = job.end(tasks)
    assert left.codes == [128 + (USR2 if late is None else TERM), 128 + USR2], left.output
    assert max(left.seconds) < GRACE
    assert job.requeues() == ["requeue 7"] and "the first process of this task requeues it" in left.output[1]
    assert job.made.saves() == 1 and not job.failures() and clean(job), "a whole checkpoint, of the step of both"
    again = job.run()
    assert again.codes == [0, 0], again.output
    found = job.made.store.open("evaluation", job.made.stage.key)
    assert found.digest == wanted.digest and len(found.record().resumed) == 1
    assert found.record().numbers == wanted.record().numbers


def test_what_two_tasks_saved_one_task_starts_again(tiny: Tiny, tmp_path: Path) -> None:
    job = of_teacher(tiny, tmp_path)
    alone = job.made.attempt()
    job.made.clear()
    tasks = job.start(prepare=slow(tmp_path, 3, 1.0))
    until(tmp_path / "asleep")
    for task in tasks:
        os.kill(task, USR2)
    left = job.end(tasks)
    assert left.codes == [128 + USR2] * 2 and job.made.saves() == 1, left.output
    again = job.made.attempt()
    assert again == alone and again.code == 0, "every step"
    record = job.made.check().record()
    assert record.resumed == [] and "tasks" not in record.provenance and not job.failures()


def test_what_one_task_saved_two_tasks_start_again(tiny: Tiny, tmp_path: Path) -> None:
    job = of_teacher(tiny, tmp_path)
    assert job.run().codes == [0, 0]
    wanted = job.made.store.open("teacher", job.made.stage.key)
    assert wanted.digest != job.made.wanted.digest, "up to rounding it is the network of one task, and not by its bytes"
    job.made.clear()
    assert job.made.attempt(Signals(3)).code == 128 + USR2 and job.made.saves() == 1
    again = job.run()
    assert again.codes == [0, 0], again.output
    found = job.made.store.open("teacher", job.made.stage.key)
    assert found.digest == wanted.digest and found.record().resumed == [] and found.record().provenance["tasks"] == 2
    assert found.record().numbers == wanted.record().numbers and not job.failures() and clean(job)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_task_that_dies_ends_the_other_one(tiny: Tiny, tmp_path: Path, victim: int) -> None:
    job = of_evaluation(tiny, tmp_path)
    left = job.run(fault={victim: "evaluation:step:3"})
    assert left.codes[victim] == -signal.SIGKILL and left.codes[1 - victim] == 1, left.output
    assert left.seconds[1 - victim] - left.seconds[victim] < GRACE and not job.published()
    if victim == 1:
        (record,) = job.failures()
        assert record.failure_kind == "infra" and "another task of this job died" in record.failure["message"]
    else:
        assert "the first task of this job is gone" in left.output[1]
    assert job.run().codes == [0, 0], "the same launch goes on"


@pytest.mark.slow
def test_a_task_that_falls_silent_ends_the_other_one(tiny: Tiny, tmp_path: Path) -> None:
    job = of_evaluation(tiny, tmp_path, limit=4.0)
    tasks = job.start(prepare=slow(tmp_path, 3, 0.5))
    until(tmp_path / "asleep")
    os.kill(tasks[1], signal.SIGSTOP)
    try:
        begin = time.monotonic()
        _, status = os.waitpid(tasks[0], 0)
    finally:
        os.kill(tasks[1], signal.SIGKILL)
        os.waitpid(tasks[1], 0)
    assert os.waitstatus_to_exitcode(status) == 1 and time.monotonic() - begin < GRACE
    (record,) = job.failures()
    assert record.failure_kind == "infra" and "fell silent" in record.failure["message"]


@pytest.mark.slow
def test_a_task_whose_partner_does_not_come_ends_in_time_or_by_a_signal(tiny: Tiny, tmp_path: Path) -> None:
    job = of_evaluation(tiny, tmp_path, limit=3.0)
    for rank in (0, 1):
        alone = job.end(job.start(rank))
        assert alone.codes == [1] and alone.seconds[0] < GRACE, alone.output
    (record,) = job.failures()
    assert record.failure_kind == "infra" and "task 0 has waited 3 s for the other tasks" in record.failure["message"]
    job.limit = 60.0
    job.__post_init__()
    (task,) = job.start(0)
    until(job.made.run / "ranks" / f"7-{job.starts}.json")
    os.kill(task, USR2)
    left = job.end([task])
    assert left.codes == [128 + USR2] and left.seconds[0] < GRACE and job.requeues() == ["requeue 7"]


def broken(rank: int, error: Exception, times: int = 1) -> Prepared:
    """Training fails in one task, some times."""
    build, left = students.build_optimizer, [times]

    def prepare(own: int) -> None:
        def fail(*arguments: Any) -> torch.optim.Optimizer:
            if own == rank and left[0]:
                left[0] -= 1
                raise error
            return build(*arguments)

        students.build_optimizer = fail

    return prepare


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_memory_that_runs_out_in_either_task_cuts_the_batches_of_both(tiny: Tiny, tmp_path: Path, rank: int) -> None:
    job = of_evaluation(tiny, tmp_path)
    ended: Ended = job.run(prepare=broken(rank, OutOfMemory("CUDA out of memory")))
    assert ended.codes == [0, 0], ended.output
    (record,) = job.failures()
    assert record.failure_kind == "oom" and ("task 1" in record.failure["message"]) == (rank == 1)
    found = job.made.store.open("evaluation", job.made.stage.key).record()
    assert found.numbers["micro_batches"] == 2 and found.provenance["tasks"] == 2


@pytest.mark.slow
def test_an_error_of_the_second_task_is_the_record_of_the_stage(tiny: Tiny, tmp_path: Path) -> None:
    job = of_evaluation(tiny, tmp_path)
    ended = job.run(prepare=broken(1, ValueError("no such thing"), times=9))
    assert ended.codes == [1, 1], ended.output
    (record,) = job.failures()
    assert record.failure == {"kind": "user", "message": "task 1: ValueError: no such thing"}
    assert clean(job)


@pytest.mark.slow
def test_a_stage_that_is_there_is_left_alone_by_both(tiny: Tiny, tmp_path: Path) -> None:
    job = of_evaluation(tiny, tmp_path)
    assert job.run().codes == [0, 0]
    before = job.made.store.open("evaluation", job.made.stage.key).record().attempt
    assert job.run().codes == [0, 0]
    assert job.made.store.open("evaluation", job.made.stage.key).record().attempt == before


def test_a_group_whose_tasks_no_longer_meet_is_abandoned_and_another_one_can_begin(tmp_path: Path) -> None:
    """NCCL's would otherwise wait for kernels that wait for the lost task; gloo stands in for it here."""
    for n in range(2):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet{n}", rank=0, world_size=1)
        _abandon(torch.device("cuda"))
        assert not dist.is_initialized()
