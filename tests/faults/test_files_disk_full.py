"""A disk that is full at any byte of any write: what was good stays, the failure is said, and room makes it whole."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from suite.errors import InfraError
from suite.grid import Plan
from suite.store import Store
from suite.store.files import write_json
from tests.cluster.toys import ROOT
from tests.cluster.toys import TINY as SMALL
from tests.cluster.toys import run as command
from tests.faults.attempts import ALWAYS, Signals, bench, find, in_shards
from tests.faults.disks import fill, small_disk
from tests.tiny import run_in_fork, write_grid, write_run

pytestmark = pytest.mark.ffcv
PAGE = 4096
#: Every kind that has steps, its file, and how much room is left when it begins: by default some, else page after page
#: until it is enough, so that each of its files in turn is the one that does not fit.
KINDS = {"statistics": "statistics", "shard": "part", "synthesis": "distilled", "relabel": "labels",
         "evaluation": "metrics.json"}  # fmt: skip
SOME, PAGES = [0, 2 * PAGE, 6 * PAGE], range(0, 256 * PAGE, PAGE)


def digests(plan: Plan, store: Store) -> dict[str, str]:
    return {s.key: store.open(s.kind, s.key).digest for s in plan.stages if s.key in store.published(s.kind)}


@pytest.mark.parametrize(
    ("kind", "file", "rooms"),
    [
        ("teacher", "weights", SOME),
        pytest.param("teacher", "weights", PAGES, marks=pytest.mark.slow),
        *(pytest.param(kind, file, PAGES, marks=pytest.mark.slow) for kind, file in KINDS.items()),
    ],
)
def test_a_full_disk_fails_the_stage_as_infra_and_room_completes_it(
    tiny: tuple[Plan, Store, Path],
    tmp_path: Path,
    kind: str,
    file: str,
    rooms: Iterable[int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    plan, reference = (in_shards(tiny[0]) if kind == "shard" else tiny[0]), tiny[1]
    index = find(plan, kind)
    stage, named = plan.stages[index], set()
    with small_disk(tmp_path, "40m") as disk:
        store = Store(shutil.copytree(reference.root, disk / "store"))
        shutil.rmtree(store.home(kind, stage.key), ignore_errors=True)
        run = write_run(plan, store)
        others = digests(tiny[0], store)
        for room in rooms:
            ballast = fill(disk, room)
            code = run_in_fork(run, [index])
            said = capfd.readouterr().err
            ballast.unlink()
            if not code:
                break
            assert digests(tiny[0], store) == others and stage.key not in store.published(kind)
            assert not store.attempts(kind, stage.key), "nothing half-written is left behind"
            assert code == 1 and "(infra)" in said and "No space left" in said, said
            (found,) = set(re.findall(r"\(infra\): (\S+): cannot write \d+ bytes", said))
            assert str(store.home(kind, stage.key)) in found
            named.add(Path(found).name.removesuffix(".safetensors"))
        wanted = {file, "record.json", "manifest.json"} if rooms is PAGES else {file}
        assert wanted <= named, "the disk was full at each of them"
        assert run_in_fork(run, [index]) == 0
        alone = write_run(plan, Store(shutil.copytree(reference.root, tmp_path / "alone")))
        assert run_in_fork(alone, [index]) == 0
        assert store.open(kind, stage.key).digest == Store(tmp_path / "alone").open(kind, stage.key).digest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["teacher", "statistics", "synthesis", "relabel", "evaluation"])
def test_checkpoints_that_the_disk_does_not_take_leave_the_old_one(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A preempted stage comes back on a full disk, is preempted again, and comes back once more when there is room."""
    with small_disk(tmp_path, "40m") as disk:
        made = bench(tiny[0], tiny[1], find(tiny[0], kind, "e2d" if kind == "synthesis" else ""), disk, ALWAYS)
        assert made.attempt(Signals(2)).code == 128 + signal.SIGUSR2
        (folder,) = (made.store.home(kind, made.stage.key) / "checkpoints").iterdir()
        old = {p.name: p.read_bytes() for p in folder.glob("*.ckpt")}
        ballast = fill(disk, 0)
        capfd.readouterr()
        assert made.attempt(Signals(1)).code == 128 + signal.SIGUSR2
        assert f"{folder}: no checkpoint: No space left on device" in capfd.readouterr().err
        assert {p.name: p.read_bytes() for p in folder.glob("*.ckpt")} == old and made.saves() == 2
        ballast.unlink()
        assert made.attempt().code == 0
        assert len(made.check().record().resumed) == 1, "what had no checkpoint left nothing"


@pytest.mark.slow
def test_a_log_that_the_disk_does_not_take_stops_nothing(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> None:
    made = bench(tiny[0], tiny[1], find(tiny[0], "evaluation"), tmp_path)
    with small_disk(tmp_path, "64k") as disk:
        fill(disk, 0)
        with (disk / "log").open("w") as log:
            words = [sys.executable, "-m", "suite.work", str(made.run), str(made.index)]
            done = subprocess.run(words, cwd=ROOT, stdout=log, stderr=log, timeout=120, check=False)
        assert not (disk / "log").read_text(), "the disk was full"
    assert done.returncode in (0, 1), "how a process ends that cannot say so does not matter: the artifact decides"
    made.check()


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("rooms", "last"), [([0], ["--dry-run"]), pytest.param(PAGES, [], marks=pytest.mark.slow)], ids=["some", "pages"]
)
def test_a_launch_on_a_full_disk_is_exit_1_in_one_line_and_the_same_one_completes_when_there_is_room(
    tmp_path: Path, rooms: Iterable[int], last: list[str]
) -> None:
    """Page after page, until the plan is written and a worker has started."""
    grid, named = tmp_path / "tiny.yaml", set()
    grid.write_text(SMALL)
    with small_disk(tmp_path, "64m") as disk:
        store = disk / "store"
        for room in rooms:
            ballast = fill(disk, room)
            done = command("suite.launch", grid, "--store", store)
            ballast.unlink()
            assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
            found = re.match(
                r"error: (\S+): (cannot write \d+ bytes|cannot start workers): .*No space left", done.stderr
            )
            assert found and found[1].startswith(f"{store}/runs/"), done.stderr
            named.add(Path(found[1]).name)
            if "jobs.json" in named:
                break
        assert {"settings.json", "stages.jsonl", "jobs.json"} <= named or rooms is not PAGES
        done = command("suite.launch", grid, "--store", store, *last)
        assert done.returncode == 0, done.stdout + done.stderr
        assert last or "done: 3 stages published" in done.stdout


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


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "rooms",
    [[2 * PAGE], pytest.param([0, PAGE, 4 * PAGE, 16 * PAGE, 64 * PAGE], marks=pytest.mark.slow)],
    ids=["some", "more"],
)
def test_a_report_that_the_disk_does_not_take_leaves_every_old_file_or_a_whole_new_one(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, rooms: list[int]
) -> None:
    """A report is there; then its grid has another row."""
    grid, row = write_grid(tmp_path), tiny[0].stages[find(tiny[0], "evaluation")]
    store = Store(shutil.copytree(tiny[1].root, tmp_path / "store"))
    row_is_there, elsewhere = store.home("evaluation", row.key), tmp_path / "elsewhere"

    def report(out: Path) -> subprocess.CompletedProcess[str]:
        return command("suite.report", grid, "--store", store.root, "--out", out)

    with small_disk(tmp_path, "64m") as disk:
        row_is_there.rename(elsewhere)
        assert report(disk / "reports").returncode == 0
        old = content(disk / "reports")
        elsewhere.rename(row_is_there)
        assert report(tmp_path / "wanted").returncode == 0
        new = content(tmp_path / "wanted")
        assert "tiny/accuracy.csv" in old and old["tiny/accuracy.csv"] != new["tiny/accuracy.csv"]
        for room in rooms:
            ballast = fill(disk, room)
            done = report(disk / "reports")
            ballast.unlink()
            assert done.returncode == 1 and done.stderr.count("\n") == 1
            assert re.match(rf"error: {disk}/reports/tiny/\S+: cannot write \d+ bytes: No space left", done.stderr)
            left = content(disk / "reports")
            assert old.keys() <= left.keys() <= old.keys() | new.keys(), "none is gone, none is of another name"
            assert not [n for n, data in left.items() if data not in (old.get(n), new.get(n))]
        assert report(disk / "reports").returncode == 0
        assert content(disk / "reports") == new


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
