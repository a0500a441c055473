"""A few real images of a prepared dataset, without FFCV: the same pixels that FFCV would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from suite.data.examples import examples
from suite.data.prepare import prepare_into, prepare_spec
from suite.errors import DataError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    prepare_into(prepare_spec("digits", "folder"), None, folder)
    return folder


def test_examples_of_folders_are_the_first_images_of_each_class(folders: Path) -> None:
    images = examples(folders, [3, 0], 4)
    assert images.shape == (2, 4, 16, 16, 3) and images.dtype == np.uint8
    assert (images[..., 0] == images[..., 1]).all(), "digits are grey"
    assert (examples(folders, [0], 2)[0] == images[1, :2]).all()


@pytest.mark.ffcv
def test_a_beton_gives_the_same_examples_as_folders(folders: Path, tmp_path: Path) -> None:
    prepare_into(prepare_spec("digits", "beton"), None, tmp_path)
    classes = list(range(10))
    assert (examples(tmp_path, classes, 10) == examples(folders, classes, 10)).all()


def test_a_damaged_beton_is_refused(tmp_path: Path, folders: Path) -> None:
    text = (folders / "dataset.json").read_text().replace('"folder"', '"beton"')
    (tmp_path / "dataset.json").write_text(text)
    (tmp_path / "train.beton").write_bytes(b"\0" * 64)
    with pytest.raises(DataError, match="beton"):
        examples(tmp_path, [0], 1)
