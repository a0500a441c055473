"""Small sources, and the digits prepared once for all tests of this folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.data.prepare import prepare_spec, write_dataset


def encode(rng: np.random.Generator, width: int, height: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A smooth random picture."""
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def make_source(
    root: Path, classes: int = 10, train: int = 3, val: int = 2, side: tuple[int, int] = (40, 32), kind: str = "PNG"
) -> Path:
    """A directory with `train/CLASS/file` and `val/CLASS/file`, one greyscale image in each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for c in range(classes):
            folder = root / split / f"class{c:03d}"
            folder.mkdir(parents=True)
            for i in range(count):
                data = encode(rng, *side, mode="L" if i == 1 else "RGB", kind=kind)
                (folder / f"image{i:03d}.{kind.lower()}").write_bytes(data)
    return root


def make_tar(source: Path, path: Path, mode: str = "w", prefix: str = "", backwards: bool = False) -> Path:
    """The source as a tar, its members in either order."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for file in sorted((p for p in source.rglob("*") if p.is_file()), reverse=backwards):
            tar.add(file, prefix + str(file.relative_to(source)), recursive=False)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as betons."""
    folder = tmp_path_factory.mktemp("digits")
    write_dataset(prepare_spec("digits", "beton"), None, folder, 2, lambda done, total: None)
    return folder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a folder of PNG files."""
    folder = tmp_path_factory.mktemp("digits_folder")
    write_dataset(prepare_spec("digits", "folder"), None, folder, 2, lambda done, total: None)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Ten classes of 96-pixel pictures, as JPEG betons and as a JPEG folder."""
    root = tmp_path_factory.mktemp("photos")
    source = make_source(root / "source", side=(120, 100), kind="JPEG")
    made = []
    for kind in ("beton", "folder"):
        (root / kind).mkdir()
        spec = prepare_spec("imagenette-s96", kind)
        write_dataset(spec, source, root / kind, 1, lambda done, total: None)
        made.append(root / kind)
    return made[0], made[1]
