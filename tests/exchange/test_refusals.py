"""What is wrong with a set from elsewhere is said in one line, before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from suite.errors import DataError
from suite.exchange.folders import class_numbers
from tests.exchange.conftest import Command, Made

pytestmark = pytest.mark.ffcv
FLAGS = ["--dataset", "digits", "--ipc", "2", "--student", "convnet2_w8", "--protocol", "matched"]


@pytest.fixture
def folder(made: Made, tmp_path: Path, export: Command) -> Path:
    """A good set in class folders, without card and manifest."""
    key = made.rows()["hard"].inputs["synthesis"]["key"]
    export(key, "--to", "imagefolder", "--out", tmp_path / "set", "--store", made.store.root)
    for name in ("manifest.json", "card.json", "README.md"):
        (tmp_path / "set" / name).unlink()
    return tmp_path / "set"


def picture(path: Path, mode: str, size: tuple[int, int] = (16, 16)) -> None:
    Image.new(mode, size).save(path)


def rows(array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "labels.npy", array)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another size": (lambda f: picture(f / "train/3/00000.png", "RGB", (17, 16)), "3/00000.png (17 x 16 pixels)"),
    "transparent": (lambda f: picture(f / "train/3/00000.png", "RGBA"), "3/00000.png (mode RGBA)"),
    "16 bits": (lambda f: picture(f / "train/3/00000.png", "I;16"), "3/00000.png (mode I;16)"),
    "no image": (lambda f: (f / "train/3/00000.png").write_bytes(b"x"), "1 images cannot be used: 3/00000.png"),
    "an image less": (lambda f: (f / "train/3/00000.png").unlink(), "not 2 images in 3 (1)"),
    "a class less": (lambda f: shutil.rmtree(f / "train/3"), "9 class folders where digits has 10"),
    "a class more": (lambda f: (f / "train/x").mkdir(), "11 class folders where digits has 10"),
    "another class": (lambda f: (f / "train/3").rename(f / "train/cat"), "folders that are no classes of digits: cat"),
    "images beside": (lambda f: picture(f / "train/a.png", "RGB"), "images outside class folders: a.png"),
    "nothing": (lambda f: shutil.rmtree(f / "train"), "no distilled images"),
    "two sets": (lambda f: (f / "train.beton").write_bytes(b""), "several sets: train.beton, class folders"),
    "half a beton": (lambda f: (shutil.rmtree(f / "train"), (f / "train.beton").write_bytes(b"")), "beton is empty"),
    "no tensors": (
        lambda f: (shutil.rmtree(f / "train"), (f / "distilled.safetensors").write_bytes(b"x")),
        "distilled.safetensors: unreadable",
    ),
    "float tensors": (
        lambda f: (
            shutil.rmtree(f / "train"),
            save_file({"images": torch.zeros(20, 3, 16, 16), "labels": torch.zeros(20)}, f / "distilled.safetensors"),
        ),
        "distilled images are torch.float32",
    ),
    "labels of another set": (rows(np.full((5, 10), 0.1)), "labels are float64 [5, 10]"),
    "whole numbers": (rows(np.zeros((20, 10), np.int64)), "labels are int64 [20, 10]"),
    "logits": (rows(np.random.default_rng(0).normal(size=(20, 10))), "not probabilities"),
    "no numbers": (rows(np.full((20, 10), np.nan)), "not probabilities"),
    "pickled labels": (rows(np.array([{}])), "unreadable labels (ValueError)"),
    "damaged labels": (lambda f: (f / "labels.safetensors").write_bytes(b"x"), "unreadable labels"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_set_that_is_not_one_is_refused(made: Made, folder: Path, evaluate: Command, damage: str) -> None:
    spoil, says = DAMAGE[damage]
    spoil(folder)
    before = made.store.published("synthesis"), made.store.published("evaluation")
    assert says in evaluate(folder, *FLAGS, "--store", made.store.root)
    assert (made.store.published("synthesis"), made.store.published("evaluation")) == before


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--name", "random"], "'random' is a method of the suite"),
        (["--name", "../x"], "'../x' cannot be the name of a set"),
        (["--name", "x (external)"], "cannot be the name of a set"),
        (["--ipc", "3"], "not 3 images in 0 (2), 1 (2), 2 (2) and 7 more"),
        (["--dataset", "digit"], "unknown dataset 'digit'"),
        (["--dataset", "cifar10"], "cifar10 is not prepared"),
        (["--student", "convnet9"], "unknown architecture 'convnet9'"),
        (["--protocol", "paper"], "protocol paper needs the method whose recipe trains the student"),
        (["--protocol", "paper", "--recipe", "sre"], "unknown method 'sre'"),
        (["--labels", "vector"], "no teacher labels these images"),
        (["--labels", "online"], "no teacher labels these images"),
        (["--set", "student.stepz=3"], "student has no 'stepz'"),
        (["--set", "iterations=3"], "'iterations=3' is not a setting"),
        (["--set", "student.lr=fast"], "--set student.lr: student.lr: 'fast' is not a number"),
        (["--set", "student.loss=kl"], "student.loss kl needs soft labels"),
        (["--teacher", "deadbeef"], "no teacher with a key that begins with deadbeef"),
        (["--teacher", "resnet18=/nowhere"], "no such weight file"),
        (["--row", "abcd"], "--row says how the student is trained"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    made: Made, folder: Path, evaluate: Command, flags: list[str], says: str
) -> None:
    before = made.store.published("evaluation")
    assert says in evaluate(folder, *FLAGS, *flags, "--store", made.store.root)
    assert made.store.published("evaluation") == before


def test_a_changed_export_is_refused(made: Made, tmp_path: Path, export: Command, evaluate: Command) -> None:
    own = made.rows()["stored"]
    export(own.key, "--to", "safetensors", "--out", tmp_path / "set", "--store", made.store.root)
    labels = tmp_path / "set" / "labels.safetensors"
    data = bytearray(labels.read_bytes())
    data[-1] ^= 1
    labels.write_bytes(data)
    line = evaluate(tmp_path / "set", "--row", own.key, "--store", made.store.root)
    assert "labels.safetensors differs from the manifest" in line


def test_a_row_without_its_labels_is_refused(made: Made, tmp_path: Path, export: Command, evaluate: Command) -> None:
    own = made.rows()["stored"]
    export(own.inputs["synthesis"]["key"], "--to", "safetensors", "--out", tmp_path / "set", "--store", made.store.root)
    line = evaluate(tmp_path / "set", "--row", own.key, "--store", made.store.root)
    assert "stored" in line and "suite.export" in line


def test_a_stream_that_does_not_fit_the_recipe_is_refused_before_training(
    made: Made, tmp_path: Path, export: Command, evaluate: Command
) -> None:
    own = made.rows()["stored"]
    export(own.key, "--to", "safetensors", "--out", tmp_path / "set", "--store", made.store.root)
    flags = [*FLAGS[:2], "--ipc", "1", *FLAGS[4:], "--set", "student.steps=60", "--store", made.store.root]
    before = made.store.published("evaluation")
    assert "the label stream has batch 8 where 10 is needed" in evaluate(tmp_path / "set", *flags)
    assert made.store.published("evaluation") == before


@given(st.permutations(range(12)), st.sampled_from(["{}", "{:04d}", "new{:03d}", "class_{}", "{:02d}_a b"]))
def test_numbered_folders_are_classes_in_any_order(order: list[int], form: str) -> None:
    names = [form.format(i) for i in order]
    assert class_numbers(names, [f"n{i:08d}" for i in range(12)], "x", "here") == list(order)


@given(st.lists(st.text(max_size=8), min_size=3, max_size=3, unique=True))
def test_folders_are_classes_or_an_error(names: list[str]) -> None:
    try:
        numbers = class_numbers(names, ["ant", "bee", "cow"], "x", "here")
    except DataError as error:
        assert "\n" not in error.line()
    else:
        assert sorted(numbers) == [0, 1, 2]
