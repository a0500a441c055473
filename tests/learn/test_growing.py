"""Growing files: written once, gone on with in place by one process, and copied where another may still write."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from suite.learn.checkpoint import Checkpoint
from suite.learn.growing import Damaged
from suite.preemption import Notice, Preempted

PLACES = {"a": 0, "b": 8}


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The folder of an attempt that was asked to leave after one checkpoint, with rows behind it that do not count."""
    folder, notice = tmp_path / "state", Notice()
    kept = Checkpoint(folder, notice=notice)
    with pytest.raises(Preempted), kept.growing(tmp_path / "never") as grown:
        grown.begin(PLACES)
        for name in PLACES:
            grown.append(name, name.encode() * 4)
        assert kept.save({"step": 1})
        grown.append("a", b"lost")
        notice.take(12)
        notice.leave()
    assert not (tmp_path / "never").exists()
    return folder


def rows(folder: Path) -> Path:
    (found,) = folder.glob("rows-*")
    return found


def finish(kept: Checkpoint, target: Path) -> bytes:
    """Write the second half of each part."""
    with kept.growing(target) as grown:
        grown.begin(PLACES)
        for name in PLACES:
            assert grown.spans[name].end == PLACES[name] + 4
            grown.append(name, name.upper().encode() * 4)
    return target.read_bytes()


def loaded(folder: Path) -> Checkpoint:
    kept = Checkpoint(folder)
    assert kept.load() == {"step": 1}
    return kept


def test_who_left_hands_the_file_over_and_it_is_gone_on_with_in_place(left: Path, tmp_path: Path) -> None:
    assert rows(left).suffix == ".free"
    inode = rows(left).stat().st_ino
    assert finish(loaded(left), tmp_path / "out") == b"aaaaAAAAbbbbBBBB"
    assert (tmp_path / "out").stat().st_ino == inode, "no second copy"


def test_a_dead_process_of_this_host_hands_its_file_over(left: Path, tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    path = rows(left)
    path = path.rename(path.with_suffix(f".{socket.gethostname()}-{gone.pid}"))
    inode = path.stat().st_ino
    finish(loaded(left), tmp_path / "out")
    assert (tmp_path / "out").stat().st_ino == inode


@pytest.mark.parametrize("owner", ["other.host-17", f"{socket.gethostname()}-{os.getppid()}", "whole"])
def test_a_file_that_may_have_a_writer_is_copied_and_left_alone(left: Path, tmp_path: Path, owner: str) -> None:
    path = rows(left)
    path = path.rename(path.with_name(f"{path.name.partition('.')[0]}.{owner}"))
    before = path.read_bytes()
    assert finish(loaded(left), tmp_path / "out") == b"aaaaAAAAbbbbBBBB"
    assert path.read_bytes() == before and (tmp_path / "out").stat().st_ino != path.stat().st_ino


def test_of_two_that_go_on_at_once_one_takes_the_file_and_the_other_a_copy(left: Path, tmp_path: Path) -> None:
    inode, first, second = rows(left).stat().st_ino, loaded(left), loaded(left)
    with first.growing(tmp_path / "one") as a, second.growing(tmp_path / "two") as b:
        assert os.fstat(a.file.fileno()).st_ino == inode != os.fstat(b.file.fileno()).st_ino
        for grown, byte in ((a, b"x"), (b, b"y"), (a, b"x")):
            grown.append("a", byte)
    assert (tmp_path / "one").read_bytes()[:6] == b"aaaaxx"
    assert (tmp_path / "two").read_bytes()[:5] == b"aaaay"


def test_a_copy_is_named_by_the_checkpoints_behind_it(left: Path, tmp_path: Path) -> None:
    path = rows(left)
    path.rename(path.with_suffix(".whole"))
    kept = loaded(left)
    with pytest.raises(ZeroDivisionError), kept.growing(tmp_path / "out") as grown:
        grown.append("b", b"BB")
        assert kept.save({"step": 2})
        raise ZeroDivisionError
    again = Checkpoint(left)
    assert again.load() == {"step": 2}
    with again.growing(tmp_path / "out") as grown:
        assert {name: span.end for name, span in grown.spans.items()} == {"a": 4, "b": 14}


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_what_is_not_whole_is_not_believed(left: Path, capfd: pytest.CaptureFixture[str], damage: str) -> None:
    path = rows(left)
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:10])
    assert Checkpoint(left).load() is None
    said = capfd.readouterr().err
    assert "not used" in said and path.stem in said


def test_a_file_that_is_damaged_behind_the_look_fails_the_attempt(left: Path, tmp_path: Path) -> None:
    kept = loaded(left)
    path = rows(left)
    path.write_bytes(b"z" + path.read_bytes()[1:])
    with pytest.raises(Damaged), kept.growing(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


def test_files_that_no_checkpoint_names_go_with_their_writer(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "state")
    with pytest.raises(ZeroDivisionError), kept.growing(tmp_path / "out") as grown:
        assert grown.path.suffix == ".part"
        raise ZeroDivisionError
    assert not list((tmp_path / "state").iterdir())
    gone = subprocess.Popen(["true"])
    gone.wait()
    killed = tmp_path / "state" / f"rows-0a.{socket.gethostname()}-{gone.pid}-aa.part"
    living = tmp_path / "state" / f"rows-0b.{socket.gethostname()}-{os.getpid()}-aa.part"
    for path in (killed, living):
        path.write_bytes(b"half")
    assert Checkpoint(tmp_path / "state").load() is None
    assert not killed.exists() and living.exists()


def test_a_file_system_without_links_gets_the_file_moved(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert finish(loaded(left), tmp_path / "out") == b"aaaaAAAAbbbbBBBB"
    assert not list(left.glob("rows-*"))
    assert Checkpoint(left).load() is None, "its checkpoint speaks of a file that is gone, and is not believed"


def test_every_row_is_summed_up_once_and_its_seconds_count_as_saving(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "state")
    with kept.growing(tmp_path / "out") as grown:
        grown.begin({"a": 0})
        for _ in range(3):
            grown.append("a", bytes(8 << 20))
            assert kept.spent > 0
        summed = grown.spent
        assert kept.save({}) and kept.spent > summed == grown.spent, "a save reads nothing again"
