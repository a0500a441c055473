from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite import prepare
from suite.data.loader import RealImages
from suite.data.prepare import prepare_into, prepare_spec, write_dataset
from suite.errors import DataError, InfraError, UserError
from suite.spec.stages import Stage
from suite.store import Store
from suite.store.files import sha256
from tests.data.conftest import make_tar
from tests.helpers import data_pack


def sums(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def write(name: str, kind: str, source: Path | None, folder: Path, jobs: int = 1) -> dict[str, str]:
    folder.mkdir()
    write_dataset(prepare_spec(name, kind), source, folder, jobs, lambda done, total: None)
    return sums(folder)


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["suite.prepare", *map(str, words)])
    return prepare.main()


def only_children() -> list[multiprocessing.process.BaseProcess]:
    return multiprocessing.active_children()


@pytest.mark.ffcv
@pytest.mark.parametrize(("name", "kind"), [("cifar10", "beton"), ("imagenette-s96", "beton"), ("cifar10", "folder")])
def test_two_prepares_give_identical_bytes(source: Path, tmp_path: Path, name: str, kind: str):
    """Whatever the number of decoding threads, and whether the images come from a directory or an archive."""
    tar = make_tar(source, tmp_path / "a.tar.xz", "w:xz", backwards=True)
    first = write(name, kind, source, tmp_path / "one", jobs=1)
    assert first == write(name, kind, tar, tmp_path / "two", jobs=3)
    assert len(first) == (3 if kind == "beton" else 51)


@pytest.mark.ffcv
def test_other_images_give_other_bytes(source: Path, tmp_path: Path):
    first = write("cifar10", "beton", source, tmp_path / "one")
    a, b = (source / "val" / "class000" / f"image00{i}.png" for i in (0, 1))
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    second = write("cifar10", "beton", source, tmp_path / "two")
    assert first["train.beton"] == second["train.beton"]
    assert first["val.beton"] != second["val.beton"]
    assert first["dataset.json"] != second["dataset.json"]


def test_dataset_json_counts_classes(source: Path, tmp_path: Path):
    write("cifar10-c4-n2", "folder", source, tmp_path / "out")
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["classes"] == ["class000", "class001", "class002", "class003"]
    assert (info["train"], info["val"]) == ([2] * 4, [2] * 4)
    assert info["complete"] is False  # two validation images a class where the registry counts a thousand
    assert str(tmp_path) not in json.dumps(info)
    split = RealImages(tmp_path / "out", "train", "torchvision", workers=1)
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert split.tensor()[0].shape == (8, 3, 32, 32)


def test_digits_are_complete(digits: Path):
    info = json.loads((digits / "dataset.json").read_text())
    assert info["complete"] is True
    assert (sum(info["train"]), sum(info["val"])) == (1442, 355)


def test_a_killed_writer_is_an_infra_error_at_once(tmp_path: Path):
    def kill(done: int, total: int) -> None:
        for child in only_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(InfraError, match=r"prepare digits: the writer died after 0 images \(SIGKILL\)"):
        prepare_into(prepare_spec("digits", "beton"), None, tmp_path, progress=kill, timeout=300)


def test_a_stalled_writer_is_an_infra_error_and_is_ended(source: Path, tmp_path: Path):
    stopped = []

    def stop(done: int, total: int) -> None:
        for child in only_children():
            os.kill(child.pid or 0, signal.SIGSTOP)
            stopped.append(child)

    with pytest.raises(InfraError, match=r"prepare cifar10: no progress for 6 s after \d+ images"):
        prepare_into(prepare_spec("cifar10", "folder"), source, tmp_path, progress=stop, timeout=6)
    assert stopped and not any(c.is_alive() for c in stopped)


def test_a_writer_does_not_outlive_a_killed_parent(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text("""
import multiprocessing, os, signal, time
from suite.data import prepare

def stuck(*_):  # as in decompressing, which reports no progress
    print(os.getpid(), flush=True)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(100)

prepare.write_dataset = stuck
if __name__ == "__main__":
    from pathlib import Path
    prepare.prepare_into(prepare.prepare_spec("digits", "beton"), None, Path("."))
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip().isdecimal()


def test_errors_of_the_child_arrive_as_they_are(source: Path, tmp_path: Path):
    (source / "train" / "class002" / "image000.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 unreadable images: train/class002/image000.png") as error:
        prepare_into(prepare_spec("cifar10", "folder"), source, tmp_path)
    assert error.value.where == str(source)


def test_a_refusing_file_system_is_one_line(source: Path, tmp_path: Path):
    spec, folder = prepare_spec("cifar10", "beton"), tmp_path / "no-such-folder"
    with pytest.raises(InfraError, match="No such file"):
        prepare_into(spec, make_tar(source, tmp_path / "a.tar.gz", "w:gz"), folder)


def test_the_command_publishes_then_says_already_prepared(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store = tmp_path / "store"
    words = ("cifar10", "--source", source, "--format", "folder", "--store", store)
    assert run_main(monkeypatch, *words) == 0
    text = capsys.readouterr().out
    stage = Stage.make("prepare", prepare_spec("cifar10", "folder"))
    artifact = Store(store).open("prepare", stage.key)
    assert stage.key in text and str(artifact.path) in text and "30 train, 20 val" in text
    assert "not the whole of cifar10" in text
    record = artifact.record()
    assert record.status == "done" and record.provenance["commit"] and record.cost["images"] == 50
    assert record.provenance["source"] == str(source)
    assert not Store(store).attempts("prepare", stage.key)
    digest = artifact.digest

    assert run_main(monkeypatch, *words) == 0
    assert "already prepared" in capsys.readouterr().out

    damaged = next((artifact.path / "val").rglob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert run_main(monkeypatch, *words) == 0
    assert "corrupt" in capsys.readouterr().out
    assert Store(store).open("prepare", stage.key).digest == digest


def test_a_failed_prepare_publishes_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (source / "val" / "class002" / "image000.png").write_bytes(b"x")
    with pytest.raises(DataError, match="unreadable"):
        run_main(monkeypatch, "cifar10", "--source", source, "--format", "folder", "--store", tmp_path / "store")
    assert not [p for p in (tmp_path / "store").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("cifar10", {}, "cifar10"),
        ("cifar10", {"subset": 500}, "cifar10-n500"),
        ("cifar10", {"size": 32, "classes": 10}, "cifar10"),
        ("tinyimagenet-c20", {"subset": 100, "size": 32}, "tinyimagenet-c20-n100-s32"),
        ("tinyimagenet-n100", {"classes": 20, "subset": 100}, "tinyimagenet-c20-n100"),
        ("cifar10-s32", {}, "cifar10-s32"),
    ],
)
def test_flags_name_variants(name: str, flags: dict[str, int], expected: str):
    asked = {"classes": None, "subset": None, "size": None} | flags
    assert prepare.variant(name, **asked).name == expected


def test_flags_that_contradict_the_name_are_refused():
    with pytest.raises(UserError, match="says -n100 and a flag says 50"):
        prepare.variant("cifar10-n100", None, 50, None)


def test_the_command_needs_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"cifar10-n5 needs a source - add --source DIR_OR_TAR"):
        run_main(monkeypatch, "cifar10", "--subset", 5, "--store", tmp_path)


@pytest.mark.parametrize("words", [["--subset", "0"], ["--jobs", "0"], ["--size", "x"], ["--format", "zip"]])
def test_bad_flags_leave_with_2(monkeypatch: pytest.MonkeyPatch, words: list[str]):
    with pytest.raises((SystemExit, UserError)) as error:
        run_main(monkeypatch, "digits", *words)
    assert getattr(error.value, "code", None) == 2 or error.value.exit_code == 2  # type: ignore[union-attr]


@pytest.mark.ffcv
def test_real_cifar10_subset(tmp_path: Path):
    source = data_pack("cifar10_full.tar.xz")
    (tmp_path / "out").mkdir()
    info = write_dataset(prepare_spec("cifar10-n20", "beton"), source, tmp_path / "out", 2, lambda done, total: None)
    assert info["complete"] and info["classes"][0] == "airplane"
    train, val = (RealImages(tmp_path / "out", s, "ffcv") for s in ("train", "val"))
    assert (len(train), len(val)) == (200, 10_000)
    assert val.tensor()[0].float().mean() / 255 == pytest.approx(0.4766, abs=0.002)


@pytest.mark.slow
@pytest.mark.ffcv
def test_the_whole_of_cifar10_is_prepared_within_three_minutes(tmp_path: Path):
    begin = time.monotonic()
    info = prepare_into(prepare_spec("cifar10", "beton"), data_pack("cifar10_full.tar.xz"), tmp_path, jobs=2)
    assert time.monotonic() - begin < 180
    assert info["complete"] and (sum(info["train"]), sum(info["val"])) == (50_000, 10_000)


@pytest.mark.ffcv
@pytest.mark.slow
def test_one_channel_photos_of_tiny_imagenet_become_rgb(tmp_path: Path):
    source = data_pack("tinyimagenet20_dev.tar")
    write("tinyimagenet-c20-n50", "beton", source, tmp_path / "out", jobs=2)
    images, _ = RealImages(tmp_path / "out", "val", "ffcv").tensor()
    grey = (images[:, 0] == images[:, 1]).flatten(1).all(1) & (images[:, 1] == images[:, 2]).flatten(1).all(1)
    assert images.shape == (1000, 3, 64, 64) and int(grey.sum()) > 0
