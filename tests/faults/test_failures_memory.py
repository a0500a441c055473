"""Out of memory: trainings go on in halved batches of the same effective size, all else says what would help."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from suite.cluster.reconcile import reconcile
from suite.grid import Plan, load_plan
from suite.store import Store
from tests.cluster.toys import ROOT, TINY
from tests.faults.workers import Bench, bench

pytestmark = pytest.mark.ffcv


@pytest.fixture
def place(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> Bench:
    return bench(tiny, tmp_path)


def hungry(monkeypatch: pytest.MonkeyPatch, log: Path, limit: int) -> None:
    """Networks in training have memory for so many images at once, as a full GPU would say it."""
    from suite.learn import models

    build = models.build

    def forward(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            with log.open("a") as file:
                file.write(f"{len(inputs[0])}\n")
            if len(inputs[0]) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def built(*arguments: object, **more: object) -> torch.nn.Module:
        network = build(*arguments, **more)  # type: ignore[arg-type]
        network.register_forward_pre_hook(forward)
        return network

    monkeypatch.setattr(models, "build", built)


def test_once_halves_the_batch_and_keeps_the_effective_one(
    place: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    position = place.position("evaluation", method="random")
    steps, before = place.record(position).numbers["steps"], place.record(position)
    hungry(monkeypatch, tmp_path / "sizes", limit=5)
    assert place.work(position) == 0
    (failed,) = place.failures(position)
    assert failed.failure_kind == "oom" and failed.number == 1
    record = place.record(position)
    assert record.numbers["micro_batches"] == 2 and record.number == 2
    assert "micro_batches" not in before.numbers
    sizes = [int(line) for line in (tmp_path / "sizes").read_text().split()]
    assert sizes == [10, *[5, 5] * steps], "one try at the whole batch, then every update sees the same ten images"
    assert record.numbers["steps"] == steps and record.key == before.key


def test_always_is_kind_oom_with_the_peak_and_what_would_help(
    place: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    position = place.position("evaluation", method="random")
    hungry(monkeypatch, tmp_path / "sizes", limit=0)
    assert place.work(position) == 1
    first, second = place.failures(position)
    assert first.failure_kind == second.failure_kind == "oom"
    assert second.failure is not None
    for word in ("OutOfMemoryError", "peak", "GB", "in 2 parts", "a GPU with more memory"):
        assert word in second.failure["message"]
    assert second.cost["peak_memory_bytes"] > 50e6
    found = reconcile(place.plan, place.store)
    assert [t.why for t in found.held] == ["failed"] and not found.todo
    assert place.work(position) == 1 and len(place.failures(position)) == 3, "asked again, it is tried once"


def test_a_synthesis_is_not_cut_and_says_why(place: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.learn import synthesis

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(synthesis.BatchRun, "_step", full)
    position = place.position("synthesis", method="sre2l")
    assert place.work(position) == 1
    (record,) = place.failures(position)
    assert record.failure is not None and record.failure["kind"] == "oom"
    assert "a synthesis is not cut into smaller batches" in record.failure["message"]


def test_memory_that_the_host_really_refuses_is_oom(
    place: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each image of a batch in training takes 512 MB of address space, of which 4 GB are left."""
    from suite.learn import models

    build = models.build

    def forward(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            torch.empty(len(inputs[0]) << 29, dtype=torch.uint8)

    def built(*arguments: object, **more: object) -> torch.nn.Module:
        network = build(*arguments, **more)  # type: ignore[arg-type]
        network.register_forward_pre_hook(forward)
        return network

    monkeypatch.setattr(models, "build", built)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    position = place.position("evaluation", method="random")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (4 << 30), before[1]))
    try:
        assert place.work(position) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    (failed,) = place.failures(position)
    assert failed.failure is not None and failed.failure["kind"] == "oom"
    assert "allocate memory" in failed.failure["message"]
    assert place.record(position).numbers["micro_batches"] == 2


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of our own; skips where this account may not make one."""
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    parent = old if old.is_dir() else new
    folder = parent / f"suite-test-{os.getpid()}"
    try:
        folder.mkdir()
        limit = folder / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")
        limit.write_text(str(260 << 20))
    except OSError as error:
        pytest.skip(f"cannot make a memory cgroup: {error}")
    yield folder
    folder.rmdir()


def test_a_worker_that_the_kernel_kills_for_memory_is_oom(cgroup: Path, tmp_path: Path) -> None:
    """The launch fits into the cgroup; a worker with PyTorch in it does not."""
    grid, store = tmp_path / "tiny.yaml", tmp_path / "store"
    grid.write_text(TINY)
    words = [sys.executable, "-m", "suite.launch", str(grid), "--store", str(store), "--slots", "1"]
    done = subprocess.run(
        ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "sh", *words],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    plan, place = load_plan(grid), Store(store)
    (record,) = place.failures("prepare", plan.stages[0].key)
    assert record.failure is not None and record.failure["kind"] == "oom", record.failure
    assert "the kernel killed" in record.failure["message"]
