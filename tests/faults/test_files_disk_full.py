"""A disk that is full at any byte of any write: what was good stays, the failure is said, and room makes it whole."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from suite.errors import InfraError
from suite.grid import Plan
from suite.store import Store
from suite.store.files import write_json
from tests.cluster.toys import run as command
from tests.faults.disks import fill, small_disk
from tests.tiny import run_in_fork, write_grid, write_run

pytestmark = pytest.mark.ffcv
#: Bytes that are left on the disk when the stage begins.
ROOM = [0, 8192, 24576]


def digests(plan: Plan, store: Store) -> dict[str, str]:
    return {s.key: store.open(s.kind, s.key).digest for s in plan.stages if s.key in store.published(s.kind)}


@pytest.mark.parametrize("kind", ["teacher"])
def test_a_full_disk_fails_the_stage_as_infra_and_room_completes_it(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, reference, _ = tiny
    index, stage = next((i, s) for i, s in enumerate(plan.stages) if s.kind == kind)
    failures = 0
    with small_disk(tmp_path, "40m") as disk:
        store = Store(shutil.copytree(reference.root, disk / "store"))
        shutil.rmtree(store.home(kind, stage.key))
        run = write_run(plan, store)
        others = digests(plan, store)
        for room in ROOM:
            ballast = fill(disk, room)
            code = run_in_fork(run, [index])
            said = capfd.readouterr().err
            good = {} if code else {stage.key: reference.open(kind, stage.key).digest}
            assert digests(plan, store) == others | good
            assert not store.attempts(kind, stage.key), "nothing half-written is left behind"
            if code:
                failures += 1
                assert code == 1 and "(infra)" in said and "No space left" in said, said
                assert str(store.home(kind, stage.key)) in said
            ballast.unlink()
            if not code:
                break
        assert failures, "the disk was never full"
        assert run_in_fork(run, [index]) == 0
        assert store.open(kind, stage.key).digest == reference.open(kind, stage.key).digest


def test_preparing_on_a_full_disk_is_infra_and_room_completes_it(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, reference, _ = tiny
    stage = plan.stages[0]
    with small_disk(tmp_path, "40m") as disk:
        store = Store(disk / "store")
        run = write_run(plan, store)
        for room in (0, 65536, 3 << 20):
            ballast = fill(disk, room)
            assert run_in_fork(run, [0]) == 1
            said = capfd.readouterr().err
            assert "(infra)" in said and "No space left" in said and "bytes" in said, said
            ballast.unlink()
        assert run_in_fork(run, [0]) == 0
        assert store.open("prepare", stage.key).digest == reference.open("prepare", stage.key).digest


def test_a_launch_on_a_full_disk_is_exit_1_in_one_line_and_resumes(tmp_path: Path) -> None:
    grid = write_grid(tmp_path)
    with small_disk(tmp_path, "4m") as disk:
        ballast = fill(disk, 0)
        done = command("suite.launch", grid, "--store", disk / "store")
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert "No space left" in done.stderr and str(disk / "store") in done.stderr
        ballast.unlink()
        shutil.rmtree(disk / "store", ignore_errors=True)
        (disk / "store").mkdir()
        assert command("suite.launch", grid, "--store", disk / "store", "--dry-run").returncode == 0


def test_no_inode_left_is_infra_and_names_the_place(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, reference, _ = tiny
    index, stage = next((i, s) for i, s in enumerate(plan.stages) if s.kind == "evaluation")
    with small_disk(tmp_path, "40m", inodes=2000) as disk:
        store = Store(shutil.copytree(reference.root, disk / "store"))
        shutil.rmtree(store.home("evaluation", stage.key))
        run = write_run(plan, store)
        (disk / "many").mkdir()
        taken = 0
        try:
            while True:
                (disk / "many" / str(taken)).touch()
                taken += 1
        except OSError:
            assert taken
        assert run_in_fork(run, [index]) == 1
        said = capfd.readouterr().err
        assert "(infra)" in said and "No space left" in said and str(store.home("evaluation", stage.key)) in said
        shutil.rmtree(disk / "many")
        assert run_in_fork(run, [index]) == 0


def test_a_report_that_the_disk_does_not_take_leaves_the_old_one(
    tiny: tuple[Plan, Store, Path], tmp_path: Path
) -> None:
    grid = write_grid(tmp_path)
    with small_disk(tmp_path, "16m") as disk:
        words = ("suite.report", grid, "--store", tiny[1].root, "--out", disk / "reports")
        fill(disk, 8192)
        done = command(*words)
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith("error: ") and "cannot write" in done.stderr and "bytes" in done.stderr
        assert all(p.name in ("accuracy.csv", "accuracy.md") for p in (disk / "reports").rglob("*.*") if p.is_file())
        (disk / "ballast").unlink()
        assert command(*words).returncode == 0


def limited(size: int, call: Callable[[], object]) -> object:
    """Call with a limit on the size of files; what does not fit raises OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_json_is_whole_or_old_at_every_size_that_the_disk_takes(tmp_path: Path) -> None:
    path, old, new = tmp_path / "row.json", {"a": 1}, {"a": list(range(40))}
    write_json(path, old)
    size = len(json.dumps(new, indent=1)) + 1
    for room in range(0, size + 1):
        if room < size:
            with pytest.raises(InfraError, match=rf"row\.json: cannot write {size} bytes"):
                limited(room, lambda: write_json(path, new))
            assert json.loads(path.read_text()) == old
        else:
            limited(room, lambda: write_json(path, new))
    assert json.loads(path.read_text()) == new
    assert [p.name for p in tmp_path.iterdir()] == ["row.json"], "no temporary file is left"
