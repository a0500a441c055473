"""The artifact decides: published, verified, quarantined, never half-written."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from suite.errors import InfraError
from suite.spec.stages import PrepareSpec, Stage, TeacherSpec
from suite.store import Attempt, Record, Store
from suite.store.artifacts import Corrupt
from suite.store.attempts import is_current, open_inputs


def toy(name: str = "digits") -> Stage:
    return Stage.make("prepare", PrepareSpec(name, 10, 16, 16, None, "beton"))


def publish(store: Store, stage: Stage, payload: bytes = b"pixels") -> None:
    inputs = open_inputs(store, stage)
    with Attempt(store, stage, inputs) as attempt:
        (attempt.dir / "sub").mkdir()
        (attempt.dir / "a.bin").write_bytes(payload)
        (attempt.dir / "sub" / "b.bin").write_bytes(payload * 2)
        attempt.publish(Record(stage.kind, stage.key, "", "done", {}))


def test_published_artifact_opens_with_its_record(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    publish(store, stage)
    artifact = store.open("prepare", stage.key)
    assert (artifact.path / "a.bin").read_bytes() == b"pixels"
    assert artifact.record().status == "done"
    assert store.published("prepare") == {stage.key}
    assert not store.attempts("prepare", stage.key), "the attempt's directory is gone"


@pytest.mark.parametrize("name", ["a.bin", "sub/b.bin", "record.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_any_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    store, stage = Store(tmp_path), toy()
    publish(store, stage)
    store.open("prepare", stage.key)  # a first check must not hide a later change
    path = store.home("prepare", stage.key) / "out" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(Corrupt):
        Store(tmp_path).open("prepare", stage.key)


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    publish(store, stage)
    path = store.home("prepare", stage.key) / "out" / "manifest.json"
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        data = bytearray(original)
        data[position] ^= 2
        path.write_bytes(data)
        with pytest.raises(Corrupt):
            store.open("prepare", stage.key)


def test_a_number_that_became_infinite_is_noticed(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    publish(store, stage)
    path = store.home("prepare", stage.key) / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 1,\n "extra": 1e99999'))
    with pytest.raises(Corrupt):
        store.open("prepare", stage.key)


def test_unexpected_files_and_symlinks_are_refused(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    publish(store, stage)
    out = store.home("prepare", stage.key) / "out"
    (out / "extra").write_text("x")
    with pytest.raises(Corrupt, match="unexpected file 'extra'"):
        store.open("prepare", stage.key)
    (out / "extra").unlink()
    (out / "a.bin").rename(tmp_path / "elsewhere")
    (out / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Corrupt):
        store.open("prepare", stage.key)


def test_manifest_of_another_key_or_newer_schema_is_refused(tmp_path: Path) -> None:
    store, one, two = Store(tmp_path), toy(), toy("digits-s32")
    publish(store, one)
    target = store.home("prepare", two.key)
    target.mkdir(parents=True)
    (store.home("prepare", one.key) / "out").rename(target / "out")
    with pytest.raises(Corrupt, match=f"manifest of prepare {one.key}"):
        store.open("prepare", two.key)
    manifest = json.loads((target / "out" / "manifest.json").read_text())
    (target / "out" / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(Corrupt, match="schema 99"):
        store.open("prepare", two.key)


def test_attempt_that_does_not_publish_leaves_nothing(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    with pytest.raises(RuntimeError), Attempt(store, stage, {}) as attempt:
        (attempt.dir / "half").write_bytes(b"x")
        raise RuntimeError
    assert store.published("prepare") == set()
    assert not store.attempts("prepare", stage.key)


def test_failed_attempts_are_kept_as_records_in_order(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    for number in range(3):
        record = Record(stage.kind, stage.key, "", "failed", {}, failure={"kind": "data", "message": str(number)})
        Attempt(store, stage, {}).fail(record)
    assert [f.failure["message"] for f in store.failures("prepare", stage.key) if f.failure] == ["0", "1", "2"]


def test_loser_of_a_race_verifies_the_winner_and_succeeds(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    with Attempt(store, stage, {}) as slow:
        (slow.dir / "a.bin").write_bytes(b"slow")
        publish(store, stage, b"fast")
        artifact = slow.publish(Record(stage.kind, stage.key, "", "done", {}))
        assert not slow.published
    assert (artifact.path / "a.bin").read_bytes() == b"fast"


def test_loser_replaces_a_corrupt_winner(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    with Attempt(store, stage, {}) as slow:
        (slow.dir / "a.bin").write_bytes(b"good")
        publish(store, stage, b"evil")
        (store.home("prepare", stage.key) / "out" / "a.bin").write_bytes(b"live")
        slow.publish(Record(stage.kind, stage.key, "", "done", {}))
    assert (store.open("prepare", stage.key).path / "a.bin").read_bytes() == b"good"
    assert len(list((store.home("prepare", stage.key) / "quarantine").iterdir())) == 1, "nothing is lost"


def _race(root: Path, barrier: object, number: int) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    publish(Store(root), toy(), b"same")


def test_many_publishers_publish_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    workers = [context.Process(target=_race, args=(tmp_path, barrier, n)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0] * 8
    stage = toy()
    assert Store(tmp_path).open("prepare", stage.key)
    assert not Store(tmp_path).attempts("prepare", stage.key)


def test_child_is_current_only_for_the_bytes_it_was_made_from(tmp_path: Path) -> None:
    store, parent = Store(tmp_path), toy()
    publish(store, parent, b"one")
    spec = TeacherSpec("digits", "convnet3", "scratch", None, 0, "ffcv", "fp32")
    child = Stage.make("teacher", spec, {"prepare": parent.key})
    publish(store, child)
    assert is_current(store.open("teacher", child.key), open_inputs(store, child))
    store.quarantine("prepare", parent.key, "test")
    publish(store, parent, b"two")
    assert not is_current(store.open("teacher", child.key), open_inputs(store, child))
    store.quarantine("prepare", parent.key, "test")
    publish(store, parent, b"one")
    assert is_current(store.open("teacher", child.key), open_inputs(store, child)), "same bytes, still current"


def test_unchanged_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, stage = Store(tmp_path), toy()
    publish(store, stage)
    calls: list[Path] = []
    monkeypatch.setattr("suite.store.artifacts.sha256", lambda path: calls.append(path) or "")
    store.open("prepare", stage.key)
    assert calls == [], "publishing has hashed them already"


def test_full_disk_keeps_the_old_file_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.store import files

    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfraError, match=r"x\.json: cannot write \d+ bytes: No space left"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_killed_attempts_of_this_host_are_swept(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    dead = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    dead.start()
    dead.join()
    host = os.uname().nodename
    folder = store.home("prepare", stage.key) / "attempts"
    (folder / f"000-local-0-{host}-{dead.pid}-abcdef").mkdir(parents=True)
    (folder / f"000-local-0-otherhost-{dead.pid}-abcdef").mkdir()
    publish(store, stage)
    assert [p.name for p in folder.iterdir()] == [f"000-local-0-otherhost-{dead.pid}-abcdef"]


def test_read_only_reader_can_still_verify(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), toy()
    publish(store, stage)
    home = store.home("prepare", stage.key)
    (home / "verified.json").unlink()
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert store.open("prepare", stage.key)
    finally:
        home.chmod(0o755)
