"""A wrong, missing or broken GPU is said in seconds, before a stage opens its inputs, as the kind that it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from suite.errors import InfraError, UserError
from suite.failures import classified
from suite.grid import Plan, load_plan
from suite.stages import devices
from suite.stages.devices import usable_device
from suite.store import Store
from suite.store.retries import Decision, decide
from suite.work import run_pack
from tests.faults.attempts import find
from tests.faults.workers import bench
from tests.tiny import write_grid, write_run

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@no_gpu
def test_a_machine_without_gpu_computes_on_the_cpu_unless_cuda_is_asked_for() -> None:
    assert usable_device("cpu").type == usable_device("auto").type == "cpu"
    with pytest.raises(UserError, match="no CUDA device is visible - set `device: auto`"):
        usable_device("cuda")


@no_gpu
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_that_slurm_gave_and_cuda_cannot_use_is_infra(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    begin = time.monotonic()
    with pytest.raises(InfraError, match="SLURM_JOB_GPUS=0,1: CUDA cannot use the GPU that is here"):
        usable_device(wanted)
    assert time.monotonic() - begin < 10


@no_gpu
@pytest.mark.ffcv
def test_it_is_said_before_any_input_is_opened(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = bench(tiny, tmp_path)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    settings = (place.run / "settings.json").read_text()
    (place.run / "settings.json").write_text(settings.replace('"cpu"', '"auto"'))
    monkeypatch.setattr("suite.work.open_inputs", lambda *_: pytest.fail("inputs were opened"))
    position = place.position("evaluation")
    assert place.work(position) == 1
    (record,) = place.failures(position)
    assert record.failure is not None and record.failure["kind"] == "infra"
    assert "CUDA cannot use the GPU" in record.failure["message"]


@no_gpu
@pytest.mark.ffcv
def test_preparing_needs_no_gpu_where_all_else_does(tmp_path: Path) -> None:
    """As `slurm/example.yaml` asks for it: `device: cuda`, and `prepare` on nodes without a GPU."""
    plan, store = load_plan(write_grid(tmp_path)), Store(tmp_path / "store")
    run = write_run(plan, store)
    (run / "settings.json").write_text((run / "settings.json").read_text().replace('"cpu"', '"cuda"'))
    prepare, teacher = (find(plan, kind) for kind in ("prepare", "teacher"))
    assert run_pack(str(run), [prepare]) == 0
    assert run_pack(str(run), [teacher]) == 1
    (record,) = store.failures("teacher", plan.stages[teacher].key)
    assert record.failure is not None and "no CUDA device is visible" in record.failure["message"]


@pytest.mark.parametrize(("number", "visible", "expected"), [(2, 4, 2), (2, 1, 0), (None, 4, None)])
def test_a_task_computes_on_its_own_gpu_whether_or_not_it_sees_those_of_others(
    monkeypatch: pytest.MonkeyPatch, number: int | None, visible: int, expected: int | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch, "ones", lambda n, device: torch.zeros(n))
    assert usable_device("cuda", number).index == expected
    if number is not None:
        with pytest.raises(InfraError, match="task 4 of this job has no GPU of its own: 3 visible"):
            monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
            usable_device("cuda", 4)


def test_a_driver_that_hangs_is_infra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "TRIAL_SECONDS", 0.2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: time.sleep(3))
    begin = time.monotonic()
    with pytest.raises(InfraError, match=r"CUDA's initialization did not come back within 0.2 s"):
        usable_device("auto")
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: uncorrectable ECC error encountered", "infra"),
        ("NVRM: Xid (PCI:0000:c1:00): 79, GPU has fallen off the bus, CUDA is gone", "infra"),
        ("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized", "infra"),
        ("CUDA initialization error (3)", "infra"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", "infra"),
        ("CUDA error: unspecified launch failure", "infra"),
        ("The NVIDIA driver on your system is too old", "infra"),
        ("NCCL error: remote process exited or there was a network error", "infra"),
        ("CUDA error: no kernel image is available for execution on the device", "user"),
        ("CUDA error: device-side assert triggered", "user"),
        ("CUDA out of memory. Tried to allocate 20.00 GiB", "oom"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom"),
        ("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory", "oom"),
        ("mat1 and mat2 shapes cannot be multiplied", "user"),
    ],
)
def test_what_cuda_says_has_a_kind(text: str, kind: str) -> None:
    assert classified(RuntimeError(text)).kind == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "oom"),
        (OSError(12, "Cannot allocate memory"), "oom"),
        (OSError(28, "No space left on device", "/s/x"), "infra"),
        (PermissionError(13, "Permission denied", "/s/x"), "infra"),
        (ConnectionResetError(104, "Connection reset by peer"), "infra"),
        (ZeroDivisionError("division by zero"), "user"),
        (AssertionError(), "user"),
    ],
)
def test_what_python_raises_has_a_kind(error: Exception, kind: str) -> None:
    found = classified(error)
    assert found.kind == kind
    if getattr(error, "filename", None):
        assert found.where == "/s/x" and found.hint


@pytest.mark.parametrize(
    ("error", "of_node"),
    [
        (OSError(28, "No space left on device"), False),
        (OSError(122, "Disk quota exceeded"), False),
        (OSError(116, "Stale file handle"), False),
        (OSError(5, "Input/output error"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
    ],
)
def test_storage_that_all_nodes_share_is_no_nodes_doing(error: Exception, of_node: bool) -> None:
    assert classified(error).of_node is of_node
    try:
        raise InfraError("cannot write 10 bytes") from error
    except InfraError as wrapped:
        assert classified(wrapped).of_node is of_node


def test_a_cause_deep_inside_decides() -> None:
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except RuntimeError as error:
            raise ValueError("could not compute") from error
    except ValueError as outer:
        assert classified(outer).kind == "oom"


@pytest.mark.ffcv
def test_a_full_quota_is_recorded_with_its_node_and_does_not_blame_it(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(context: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    place = bench(tiny, tmp_path)
    monkeypatch.setattr("suite.stages.context.compute", compute)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    position = place.position("evaluation")
    assert place.work(position) == 1
    (record,) = place.failures(position)
    assert record.failure is not None and "Disk quota exceeded" in record.failure["message"]
    assert record.node and record.job and decide([record]) == Decision(True, "attempt 2 of 3")
