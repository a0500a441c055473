"""A dataset that cannot be prepared is said before anything is submitted, with the first three paths to blame."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from suite.data.listing import check_listing
from suite.errors import DataError
from suite.spec.datasets import REGISTRY, dataset
from tests.cluster.toys import TINY
from tests.cluster.toys import run as command
from tests.data.conftest import make_source, make_tar

TEN = dataset("cifar10")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("good") / "source")


@pytest.fixture
def source(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "source")


def empty(root: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(root / name)
        (root / name).mkdir()


def flatten(root: Path) -> None:
    for folder in sorted((root / "val").iterdir()):
        for image in folder.iterdir():
            image.rename(root / "val" / f"{folder.name}-{image.name}")
        folder.rmdir()


def damage(root: Path, data: bytes) -> None:
    for folder in sorted((root / "train").iterdir())[:4]:
        for image in folder.iterdir():
            image.write_bytes(data)


def pipe(root: Path) -> None:
    shutil.rmtree(root / "train/class000")
    (root / "train/class000").mkdir()
    os.mkfifo(root / "train/class000/image.png")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "one class empty": (lambda r: empty(r, "train/class003"), "no images in train/class003"),
    "four classes empty": (
        lambda r: empty(r, *(f"val/class00{i}" for i in range(4))),
        "no images in val/class000, val/class001, val/class002 and 1 more",
    ),
    "flat val": (flatten, "images outside class directories: val/class000-image000.png, val/class000-image001.png, "),
    "a class less in val": (lambda r: shutil.rmtree(r / "val/class009"), "different classes: no val/class009"),
    "other names in val": (
        lambda r: (r / "val/class000").rename(r / "val/zebra"),
        "different classes: no val/class000, train/zebra",
    ),
    "no val": (lambda r: shutil.rmtree(r / "val"), "no class directories in val/"),
    "nothing": (lambda r: (shutil.rmtree(r), r.mkdir()), "no class directories in train/ and val/"),
    "empty images": (
        lambda r: damage(r, b""),
        "(empty), train/class001/",
    ),
    "no images": (lambda r: damage(r, b"<html>not found"), "(not an image)"),
    "a pipe": (pipe, "train/class000/image.png (not a file)"),
}


def test_a_good_source_passes(source: Path, tmp_path: Path) -> None:
    check_listing(TEN, source)
    check_listing(TEN, tmp_path)  # the only directory in a directory
    for mode in ("w", "w:gz", "w:xz"):
        check_listing(TEN, make_tar(source, tmp_path / f"source.{mode[2:]}", mode))


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_names_its_first_paths(source: Path, name: str) -> None:
    fault, said = FAULTS[name]
    fault(source)
    with pytest.raises(DataError) as caught:
        check_listing(TEN, source)
    assert said in caught.value.line() and "\n" not in caught.value.line()


def test_imagenet_in_another_order_than_its_weights_is_refused(good: Path, tmp_path: Path) -> None:
    image = next((good / "train/class000").iterdir())
    for split in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / "source" / split / str(number)
            folder.mkdir(parents=True)
            (folder / "a.png").symlink_to(image)
    with pytest.raises(DataError, match=r"numbers in the order of text: 0, 1, 10, 100, \.\.\. - .*WordNet"):
        check_listing(REGISTRY["imagenet1k"], tmp_path / "source")


def test_999_of_1000_classes_are_refused_with_the_variant_that_fits(good: Path, tmp_path: Path) -> None:
    image = next((good / "train/class000").iterdir())
    for split in ("train", "val"):
        for number in range(999):
            folder = tmp_path / "source" / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            (folder / "a.png").symlink_to(image)
    with pytest.raises(DataError, match=r"999 classes where imagenet1k has 1000: n00000000, .*imagenet1k-c999"):
        check_listing(REGISTRY["imagenet1k"], tmp_path / "source")
    check_listing(dataset("imagenet1k-c999"), tmp_path / "source")


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(DataError, match="neither a directory nor a tar"):
        check_listing(TEN, tmp_path / "file")


def test_a_launch_says_it_before_it_makes_anything(source: Path, tmp_path: Path) -> None:
    flatten(source)
    grid, profile, store = tmp_path / "grid.yaml", tmp_path / "site.yaml", tmp_path / "store"
    grid.write_text(TINY.replace("[digits]", "[cifar10]"))
    profile.write_text(f"cluster: local\nsources: {{cifar10: {source}}}\n")
    done = command("suite.launch", grid, "--profile", profile, "--store", store)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "val/class000-image000.png" in done.stderr and done.stderr.count("\n") == 1
    assert not store.exists()
