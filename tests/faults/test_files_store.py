"""A store that was tampered with, lies on a slow or foreign file system, or is shared with other accounts."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import suite
from suite.cluster.reconcile import clear_published, reconcile
from suite.failures import classified
from suite.grid import Plan
from suite.spec.stages import Stage
from suite.store import Store, files
from suite.store.artifacts import Corrupt, seal
from suite.store.attempts import Blocked, open_inputs
from suite.store.files import dump_json, share_with_group
from tests.cluster.toys import TINY, evaluation, fail, prepare, publish, synthesis
from tests.cluster.toys import run as command
from tests.faults.attempts import bench, find, pretend_slurm
from tests.faults.disks import small_disk
from tests.grid.test_bounds import BIG

HEAD = prepare()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    publish(HEAD, store)
    return store


def forge(store: Store, **changes: object) -> None:
    """Rewrite the manifest of the artifact with a seal that fits."""
    path = store.home(HEAD.kind, HEAD.key) / "out" / "manifest.json"
    body = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "seal"} | changes
    path.write_bytes(dump_json({**body, "seal": seal(body)}))


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "sub/../../../outside", "./data.bin", "sub//more.json"]
)
def test_a_manifest_never_leads_out_of_its_artifact(store: Store, tmp_path: Path, name: str) -> None:
    outside = store.home(HEAD.kind, HEAD.key) / "outside"
    outside.write_text("mine")
    forge(store, files={name: [4, files.sha256(outside)]})
    with pytest.raises(Corrupt, match="outside the artifact") as caught:
        store.open(HEAD.kind, HEAD.key)
    assert "\n" not in caught.value.line()
    assert outside.read_text() == "mine"


def test_a_name_that_stands_twice_in_a_manifest_is_refused(store: Store) -> None:
    path = store.home(HEAD.kind, HEAD.key) / "out" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"files": {', '"files": {\n  "data.bin": [0, ""],', 1))
    with pytest.raises(Corrupt, match="changed after it was written"):
        store.open(HEAD.kind, HEAD.key)


@pytest.mark.parametrize("linked", ["home", "out", "sub"])
def test_links_out_of_the_store_are_refused_and_what_they_lead_to_is_left_alone(
    store: Store, tmp_path: Path, linked: str
) -> None:
    home = store.home(HEAD.kind, HEAD.key)
    inside = {"home": home, "out": home / "out", "sub": home / "out" / "sub"}[linked]
    elsewhere = tmp_path / "elsewhere"
    inside.rename(elsewhere)
    inside.symlink_to(elsewhere)
    before = sorted((p, p.stat().st_mtime_ns) for p in elsewhere.rglob("*"))
    with pytest.raises(Corrupt):
        store.open(HEAD.kind, HEAD.key)
    plan = Plan("one", [HEAD])
    found = reconcile(plan, store)
    assert [t.why for t in found.todo] == ["corrupt"]
    assert clear_published(plan, store, found.todo) == 1
    assert sorted((p, p.stat().st_mtime_ns) for p in elsewhere.rglob("*")) == before
    publish(HEAD, store)
    assert not reconcile(plan, store).todo


# A network file system.


def later(seconds: float, action: Callable[[], object]) -> threading.Thread:
    def wait() -> None:
        time.sleep(seconds)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def child() -> Stage:
    return synthesis("random", {"prepare": HEAD.key}, ())


def test_an_input_that_shows_late_is_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    thread = later(1.0, lambda: publish(HEAD, store))
    assert set(open_inputs(store, child(), patience=30)) == {"prepare"}
    thread.join()


def test_an_input_that_never_shows_blocks_after_a_bounded_wait(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(Blocked, match=f"blocked: prepare {HEAD.key} is missing"):
        open_inputs(Store(tmp_path / "store"), child(), patience=0.5)
    assert 0.5 <= time.monotonic() - begin < 5


def test_an_input_that_failed_is_not_waited_for_and_is_named_with_its_reason(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    fail(HEAD, store, "data", "no such tar")
    begin = time.monotonic()
    with pytest.raises(Blocked, match=rf"prepare {HEAD.key} failed \(data: no such tar\)") as caught:
        open_inputs(store, child(), patience=60)
    assert time.monotonic() - begin < 5
    assert caught.value.stage == f"prepare {HEAD.key}"


@pytest.mark.ffcv
def test_a_task_waits_for_what_another_node_published_though_it_shows_six_seconds_late(
    tiny: tuple[Plan, Store, Path], tmp_path: Path
) -> None:
    made = bench(tiny[0], tiny[1], find(tiny[0], "evaluation"), tmp_path)
    out = made.store.home("synthesis", made.stage.inputs["synthesis"]) / "out"
    hidden, environment = out.rename(tmp_path / "hidden"), pretend_slurm(tmp_path / "slurm")[0]
    begin = time.monotonic()
    thread = later(6.0, lambda: hidden.rename(out))
    code = made.attempt(**environment).code
    seconds = time.monotonic() - begin
    thread.join()
    assert code == 0 and seconds > 6
    made.check()
    assert not made.store.failures("evaluation", made.stage.key)


def stale(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next reads of a file answer ESTALE, as after a rename on another node."""
    read, left = Path.read_bytes, iter(range(times))

    def sometimes(self: Path) -> bytes:
        if next(left, None) is not None:
            raise OSError(errno.ESTALE, "Stale file handle", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", sometimes)
    monkeypatch.setattr(files, "_PAUSES", (0.01, 0.01, 0.01))


class Gone(io.BytesIO):
    """An open file that another node has replaced."""

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", "data.bin")


def stale_sums(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next reads of an artifact's data, of which the SHA-256 is made, answer ESTALE."""
    opened, left = Path.open, iter(range(times))

    def sometimes(self: Path, *how: Any, **more: Any) -> Any:
        if self.name == "data.bin" and next(left, None) is not None:
            return Gone()
        return opened(self, *how, **more)

    monkeypatch.setattr(Path, "open", sometimes)
    monkeypatch.setattr(files, "_PAUSES", (0.01, 0.01, 0.01))


@pytest.mark.parametrize("reads", [stale, stale_sums])
def test_stale_handles_are_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, reads: Callable[[int, pytest.MonkeyPatch], None]
) -> None:
    home = store.home(HEAD.kind, HEAD.key)
    (home / "verified.json").unlink()
    reads(3, monkeypatch)
    assert store.open(HEAD.kind, HEAD.key).key == HEAD.key
    assert (home / "verified.json").is_file()


@pytest.mark.parametrize(("reads", "file"), [(stale, "manifest.json"), (stale_sums, "data.bin")])
def test_a_handle_that_stays_stale_is_infra_and_the_artifact_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, reads: Callable[[int, pytest.MonkeyPatch], None], file: str
) -> None:
    home = store.home(HEAD.kind, HEAD.key)
    (home / "verified.json").unlink()
    reads(1000, monkeypatch)
    with pytest.raises(OSError, match="Stale file handle") as caught:
        store.open(HEAD.kind, HEAD.key)
    error = classified(caught.value)
    assert error.kind == "infra" and file in error.where and "again" in error.hint
    assert (home / "out").is_dir() and not (home / "quarantine").exists()


def test_nothing_takes_a_lock_of_the_file_system() -> None:
    locks = {"flock", "lockf", "fcntl", "filelock", "fasteners", "portalocker"}
    for path in Path(suite.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {a.name for a in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            names |= {node.attr} if isinstance(node, ast.Attribute) else set()
            assert not names & locks, f"{path} would wait where a file server has no locks"


# Other accounts.


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="suite-share-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(call: Callable[[], str], group: int = 65534) -> str:
    """What a function returns when another account calls it."""
    if os.getuid() != 0:
        pytest.skip("only root can be another account")
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(65534)
            answer = call()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def test_a_colleagues_closed_file_is_named_and_never_taken_for_damage(open_folder: Path) -> None:
    store = Store(open_folder / "store")
    publish(HEAD, store)
    home = store.home(HEAD.kind, HEAD.key)
    (home / "verified.json").unlink()
    (home / "out" / "data.bin").chmod(0o600)

    def look() -> str:
        try:
            store.open(HEAD.kind, HEAD.key)
        except OSError as error:
            return f"{classified(error).kind} {classified(error).line()}"
        return "opened"

    said = as_nobody(look)
    assert said.startswith("infra ") and "data.bin: Permission denied - who owns it" in said, said
    assert (home / "out").is_dir() and not (home / "quarantine").exists()


@pytest.mark.parametrize(
    ("umask", "shared", "readable"), [(0o077, False, False), (0o077, True, True), (0o022, True, True)]
)
def test_a_group_reads_the_store_if_the_profile_says_so(
    open_folder: Path, umask: int, shared: bool, readable: bool
) -> None:
    before = os.umask(umask)
    try:
        if shared:
            share_with_group()
        store = Store(open_folder / "store")
        publish(HEAD, store)
    finally:
        os.umask(before)
    if shared:
        modes = {p.stat().st_mode & 0o777 for p in store.root.rglob("*")}
        assert all(mode & 0o040 and not mode & 0o020 for mode in modes), "the group reads and does not write"
    said = as_nobody(lambda: store.open(HEAD.kind, HEAD.key).key, group=0)
    assert (said == HEAD.key) == readable, said


def test_a_read_only_store_opens_and_a_launch_into_it_is_one_line(tmp_path: Path) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(TINY)
    with small_disk(tmp_path, "8m") as disk:
        store = Store(disk / "store")
        publish(HEAD, store)
        (store.home(HEAD.kind, HEAD.key) / "verified.json").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert store.open(HEAD.kind, HEAD.key).key == HEAD.key
        done = command("suite.launch", grid, "--store", store.root)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert "Read-only file system" in done.stderr and str(store.root) in done.stderr


# Names and numbers.


def test_attempts_are_ordered_by_their_counter_whatever_the_clocks_say(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for hour in (12, 11, 13):  # three hosts whose clocks differ
        fail(HEAD, store, "infra", f"{hour} o'clock")
    folder = store.home(HEAD.kind, HEAD.key) / "failed"
    last = sorted(folder.iterdir())[-1]
    last.rename(last.with_name("1000-" + last.name.partition("-")[2]))
    first = sorted(folder.iterdir())[0]
    assert first.name.startswith("000-")
    said = [(r.failure or {})["message"] for r in store.failures(HEAD.kind, HEAD.key)]
    assert said == ["12 o'clock", "11 o'clock", "13 o'clock"]


@pytest.mark.slow
def test_a_store_of_300_000_stages_is_looked_at_in_seconds(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else tmp_path))
    try:
        for i in range(300_000):
            key = f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}"
            (root / "evaluation" / key[:2] / key / "out").mkdir(parents=True)
        store = Store(root)
        publish(HEAD, store)
        images = child()
        publish(images, store)
        row = evaluation("random", {"prepare": HEAD.key, "synthesis": images.key})
        plan = Plan("small", [HEAD, images, row])
        begin = time.process_time()
        found = reconcile(plan, store)
        assert time.process_time() - begin < 0.5, "a small grid costs what it holds, not what the store holds"
        assert [t.index for t in found.todo] == [2]
        begin = time.process_time()
        assert len(store.published("evaluation")) == 300_000
        assert time.process_time() - begin < 5
        grid = tmp_path / "big.yaml"
        grid.write_text(BIG.format(seeds=", ".join(map(str, range(50)))))
        for module, words in (("suite.status", []), ("suite.launch", ["--dry-run"])):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = command(module, grid, "--store", root, *words)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert done.returncode == 0 and "evaluation" in done.stdout, done.stderr
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{module}: 111,010 stages beside 300,000 others in {seconds:.2f} CPU-s")
            assert seconds < 20  # 6 s and 8 s beside other work
    finally:
        shutil.rmtree(root)
