from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.data.prepare import prepare_spec, write_dataset
from suite.data.sources import DigitsSource, Item, open_source, select
from suite.data.writer import square
from suite.errors import DataError, UserError
from suite.spec.datasets import REGISTRY, dataset
from tests.data.conftest import encode, make_source, make_tar


def selected(name: str, path: Path | None, scratch: Path):
    with open_source(dataset(name), path, scratch) as source:
        return select(dataset(name), source)


def paths(items: list[Item]) -> list[str]:
    return [i.path for i in items]


def test_digits_are_what_the_registry_says():
    source, facts = DigitsSource(), REGISTRY["digits"]
    selection = select(facts, source)
    assert (len(selection.train), len(selection.val)) == (facts.train, facts.val) == (1442, 355)
    assert selection.classes == [str(d) for d in range(10)]
    images = np.stack([square(source.read(i), facts.size) for i in selection.train]) / 255
    assert images.mean() == pytest.approx(facts.mean[0], abs=5e-5)
    assert images.std() == pytest.approx(facts.std[0], abs=5e-5)


def test_digits_validate_with_every_fifth_image_of_a_class():
    from sklearn.datasets import load_digits

    threes = np.flatnonzero(load_digits().target == 3)
    val = [i.place for i in select(REGISTRY["digits"], DigitsSource()).val if i.label == "3"]
    assert val == threes[4::5].tolist()


def test_digits_take_no_source(tmp_path: Path):
    with pytest.raises(UserError, match="takes no source"), open_source(dataset("digits"), tmp_path, tmp_path):
        pass


@pytest.mark.parametrize(
    ("mode", "name"), [("w", "a.tar"), ("w:gz", "a.tar.gz"), ("w:xz", "a.tar.xz"), ("w:bz2", "a.tar.bz2")]
)
@pytest.mark.parametrize("prefix", ["", "./", "inner/"])
def test_tars_and_directories_hold_the_same_images(source: Path, tmp_path: Path, mode: str, name: str, prefix: str):
    tar = make_tar(source, tmp_path / name, mode, prefix, backwards=True)
    (tmp_path / "scratch").mkdir()
    facts = dataset("cifar10")
    with open_source(facts, source, tmp_path) as a, open_source(facts, tar, tmp_path / "scratch") as b:
        left, right = select(facts, a), select(facts, b)
        assert paths(left.train) == paths(right.train) == sorted(paths(right.train))
        assert [a.read(i) for i in left.val] == [b.read(i) for i in right.val]
    assert not list((tmp_path / "scratch").iterdir())


def test_a_tar_of_the_directory_itself_is_read(source: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(source, arcname=".")  # what `tar -cf whole.tar -C source .` writes: a member named `.`
    in_tar = selected("cifar10", tmp_path / "whole.tar", tmp_path)
    assert paths(in_tar.train) == paths(selected("cifar10", source, tmp_path).train)


def test_links_that_lead_in_circles_are_refused(source: Path, tmp_path: Path):
    (source / "train/class003/again").symlink_to("..")
    with pytest.raises(DataError, match="the same directory"):
        selected("cifar10", source, tmp_path)


def test_a_linked_class_directory_is_read(source: Path, tmp_path: Path):
    (source / "train/class003").rename(tmp_path / "elsewhere")
    (source / "train/class003").symlink_to(tmp_path / "elsewhere")
    assert len(selected("cifar10", source, tmp_path).train) == 30


def test_a_directory_that_cannot_be_listed_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.scandir

    def scandir(path: str):
        if str(path).endswith("class003/more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (source / "train/class003/more").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"cannot list .*class003/more: Permission denied"):
        selected("cifar10", source, tmp_path)


def test_a_pipe_among_the_images_is_refused_and_not_waited_for(source: Path, tmp_path: Path):
    os.mkfifo(source / "train/class003/pipe.png")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"not a file: train/class003/pipe\.png"):
        write_dataset(prepare_spec("cifar10", "folder"), source, tmp_path / "out", 1, lambda done, total: None)


def test_a_directory_may_hold_one_more_directory(source: Path, tmp_path: Path):
    outer = tmp_path / "outer"
    outer.mkdir()
    source.rename(outer / "inner")
    assert len(selected("cifar10", outer, tmp_path).train) == 30


def test_variants_take_first_classes_and_first_images(source: Path, tmp_path: Path):
    selection = selected("cifar10-c3-n2", source, tmp_path)
    assert selection.classes == ["class000", "class001", "class002"]
    assert [i.name for i in selection.train] == ["image000.png", "image001.png"] * 3
    assert selection.counts("train") == [2, 2, 2]
    assert selection.counts("val") == [2, 2, 2]


def test_exactly_k_classes_are_those_of_the_source(source: Path, tmp_path: Path):
    assert len(selected("tinyimagenet-c10", source, tmp_path).classes) == 10


def test_missing_path_names_it(tmp_path: Path):
    with pytest.raises(DataError, match="no such directory or tar") as error:
        selected("cifar10", tmp_path / "nowhere", tmp_path)
    assert str(tmp_path / "nowhere") in error.value.line()


def test_no_source_names_the_prepare_command_and_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(DataError, match=r"python -m suite.prepare cifar10-n5 --source"):
        selected("cifar10-n5", None, tmp_path)


def test_one_class_less_is_refused_with_the_variant_that_fits(source: Path, tmp_path: Path):
    for split in ("train", "val"):
        for file in (source / split / "class004").iterdir():
            file.unlink()
        (source / split / "class004").rmdir()
    with pytest.raises(DataError, match=r"9 classes where cifar10 has 10: class000.* - cifar10-c9"):
        selected("cifar10", source, tmp_path)


def test_one_class_more_is_refused(tmp_path: Path):
    root = make_source(tmp_path / "eleven", classes=11)
    with pytest.raises(DataError, match="11 classes where cifar10 has 10"):
        selected("cifar10", root, tmp_path)


def test_empty_classes_are_named(source: Path, tmp_path: Path):
    for c in (1, 3, 5, 7):
        for file in (source / "val" / f"class{c:03d}").iterdir():
            file.unlink()
    with pytest.raises(DataError, match="no images in val/class001, val/class003, val/class005 and 1 more"):
        selected("cifar10", source, tmp_path)


def test_flat_validation_images_are_named(source: Path, tmp_path: Path):
    for i, file in enumerate(sorted((source / "val").rglob("*.png"))):
        file.rename(source / "val" / f"flat{i:02d}.png")
    with pytest.raises(DataError, match=r"outside class directories: val/flat00.png, val/flat01.png, val/flat02.png"):
        selected("cifar10", source, tmp_path)


def test_other_classes_in_val_are_refused(source: Path, tmp_path: Path):
    (source / "val" / "class002").rename(source / "val" / "zebra")
    with pytest.raises(DataError, match="no val/class002, train/zebra"):
        selected("cifar10", source, tmp_path)


def test_missing_val_is_refused(source: Path, tmp_path: Path):
    (source / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no class directories in val/"):
        selected("cifar10", source, tmp_path)


def test_too_few_images_for_a_variant_are_refused(source: Path, tmp_path: Path):
    (source / "train" / "class006" / "image000.png").unlink()
    with pytest.raises(DataError, match=r"fewer than 3 training images in train/class006 \(2\)"):
        selected("cifar10-n3", source, tmp_path)


@pytest.mark.parametrize("form", ["directory", "tar"])
def test_unreadable_images_are_all_found_and_three_named(source: Path, tmp_path: Path, form: str):
    files = sorted((source / "train").rglob("*.png"))
    for file in files[3:24:5]:
        file.write_bytes(file.read_bytes()[:60])
    (source / "val" / "class001" / "image001.png").write_bytes(b"")
    given = make_tar(source, tmp_path / "a.tar") if form == "tar" else source
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=r"6 unreadable images: train/class001/image000.png \(.*and 3 more"):
        write_dataset(prepare_spec("cifar10", "folder"), given, out, 2, lambda done, total: None)
    assert not (out / "dataset.json").exists()


def tar_with(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 0 if link else 4
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../train/a/x.png"),
        member("/etc/x.png"),
        member("train/../../x.png"),
        member("train/a/x.png", tarfile.SYMTYPE, "/etc/passwd"),
        member("train/a/x.png", tarfile.LNKTYPE, "train/b/y.png"),
        member("train/a/x.png", tarfile.FIFOTYPE, "-"),
    ],
    ids=["up", "absolute", "inside", "symlink", "hardlink", "fifo"],
)
def test_members_that_could_leave_the_archive_are_refused(tmp_path: Path, bad: tarfile.TarInfo):
    tar = tar_with(tmp_path / "bad.tar", member("train/a/1.png"), bad)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="refused members"):
        selected("cifar10", tar, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_truncated_archives_are_refused(source: Path, tmp_path: Path, mode: str, keep: float):
    tar = make_tar(source, tmp_path / "a.tar", mode)
    whole = tar.read_bytes().rstrip(b"\0") if mode == "w" else tar.read_bytes()
    tar.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError) as error:
        selected("cifar10", tar, tmp_path)
    assert str(tar) in error.value.line()


def test_a_tar_cut_between_two_members_is_refused(source: Path, tmp_path: Path):
    tar = make_tar(source, tmp_path / "a.tar")
    with tarfile.open(tar) as opened:
        last = opened.getmembers()[-1]
    tar.write_bytes(tar.read_bytes()[: last.offset])
    with pytest.raises(DataError, match="truncated or damaged"):
        selected("cifar10", tar, tmp_path)


def test_not_a_tar_is_refused(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(DataError, match="not a readable tar"):
        selected("cifar10", tmp_path / "x.tar", tmp_path)


def test_an_image_listed_twice_is_refused(source: Path, tmp_path: Path):
    tar = make_tar(source, tmp_path / "a.tar")
    with tarfile.open(tar, "a") as opened:
        opened.add(source / "train/class000/image000.png", "train/class000/image000.png")
    with pytest.raises(DataError, match=r"listed twice: train/class000/image000.png"):
        selected("cifar10", tar, tmp_path)


@pytest.mark.parametrize(("width", "height"), [(64, 40), (40, 64), (33, 33), (20, 31), (32, 32), (7, 300)])
def test_squares_are_torchvisions_resize_and_centre_crop(width: int, height: int):
    from torchvision.transforms import CenterCrop, Compose, Resize

    data = encode(np.random.default_rng(width), width, height)
    expected = Compose([Resize(32), CenterCrop(32)])(Image.open(io.BytesIO(data)))
    assert np.array_equal(square(data, 32), np.asarray(expected))


def test_images_of_the_right_size_are_left_alone():
    data = encode(np.random.default_rng(1), 32, 32)
    assert np.array_equal(square(data, 32), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_images_of_other_modes_become_rgb(mode: str):
    assert square(encode(np.random.default_rng(2), 32, 32, mode), 32).shape == (32, 32, 3)
