from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from suite.data.beton import check_beton
from suite.data.ffcv_stream import FfcvStream
from suite.data.loader import RealImages, open_split, permutation
from suite.data.sources import DigitsSource, select
from suite.data.writer import square
from suite.errors import DataError, InfraError
from suite.spec.datasets import REGISTRY

pytestmark = pytest.mark.ffcv


def stream(folder: Path, *, timeout: float = 60, workers: int | None = None, compiled: bool = False) -> FfcvStream:
    return FfcvStream(check_beton(folder / "val.beton", classes=10), "digits val", timeout, workers, compiled)


def whole(reader: FfcvStream, count: int, batch: int = 64) -> torch.Tensor:
    return torch.cat(list(reader.read(np.arange(count), batch)))


@pytest.fixture(scope="module")
def streaming(digits: Path) -> RealImages:
    """Training digits that are not kept in memory: read through a compiled FFCV pipeline."""
    return RealImages(digits, "train", "ffcv", timeout=300, memory_limit=1)


def test_validation_is_complete_and_exact(digits: Path):
    source = DigitsSource()
    items = select(REGISTRY["digits"], source).val
    expected = np.stack([square(source.read(i), 16) for i in items]).transpose(0, 3, 1, 2)
    images, labels = RealImages(digits, "val", "ffcv").tensor()
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert images.is_contiguous()
    assert torch.equal(images, torch.from_numpy(expected))
    assert labels.tolist() == [int(i.label) for i in items]
    assert len(labels) == 355


@pytest.mark.parametrize("batch", [1, 64, 355, 1000])
def test_the_last_batch_is_not_lost(digits: Path, batch: int):
    split = RealImages(digits, "val", "ffcv")
    sizes = [len(x) for x, _ in split.batches(batch)]
    assert sum(sizes) == 355
    assert sum(len(x) for x, _ in split.batches(batch, drop_last=True)) == 355 // batch * batch


@pytest.mark.parametrize("kept", [True, False])
def test_a_shuffled_pass_gives_each_image_once_with_its_label(digits: Path, streaming: RealImages, kept: bool):
    split = open_split(digits, "train", "ffcv") if kept else streaming
    images, labels = open_split(digits, "train", "ffcv").tensor()
    order = permutation(1442, 3, 1)
    at = 0
    for x, y in split.batches(100, seed=3, epoch=1):
        assert torch.equal(x, images[order[at : at + 100]])
        assert torch.equal(y, labels[order[at : at + 100]])
        at += len(x)
    assert at == 1442
    assert sorted(order.tolist()) == list(range(1442))


def test_seed_and_epoch_decide_the_order():
    orders = {(s, e): tuple(permutation(1000, s, e).tolist()) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert orders[1, 2] == tuple(permutation(1000, 1, 2).tolist())


@pytest.mark.parametrize("kept", [True, False])
def test_take_keeps_order_and_repetitions(digits: Path, streaming: RealImages, kept: bool):
    split = open_split(digits, "train", "ffcv") if kept else streaming
    images, _ = open_split(digits, "train", "ffcv").tensor()
    wanted = [5, 3, 3, 1441, 0]
    assert torch.equal(split.take(wanted), images[wanted])
    assert split.take([]).shape == (0, 3, 16, 16)
    for wrong in ([1442], [-1]):
        with pytest.raises(IndexError):
            split.take(wrong)


def test_a_split_above_the_memory_limit_is_not_decoded_whole(streaming: RealImages):
    with pytest.raises(DataError, match="read it in batches"):
        streaming.tensor()


def test_batches_are_the_callers_own(digits: Path):
    reader = stream(digits)
    kept = list(reader.read(np.arange(355), 10))
    copies = [x.clone() for x in reader.read(np.arange(355), 10)]
    assert len(kept) == 36
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_an_abandoned_pass_leaves_no_thread(digits: Path):
    reader = stream(digits)
    before = threading.active_count()
    batches = reader.read(np.arange(355), 5)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert threading.active_count() == before
    assert len(whole(reader, 355)) == 355


def test_compiled_and_interpreted_pipelines_and_any_workers_agree(digits: Path):
    expected = whole(stream(digits), 355)
    assert torch.equal(whole(stream(digits, workers=2, compiled=True), 355), expected)
    assert torch.equal(whole(stream(digits, workers=1, compiled=True), 355, batch=7), expected)


def test_ffcv_does_not_change_torchs_threads(digits: Path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        whole(stream(digits, workers=1), 355)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_photos_agree_between_loaders_up_to_jpeg_decoding(photos: tuple[Path, Path]):
    betons, folders = photos
    a = RealImages(betons, "val", "ffcv")
    b = RealImages(folders, "val", "torchvision", workers=1)
    assert (a.stored, a.loader, b.loader) == (104, "ffcv", "torchvision")
    x, y = a.tensor()
    u, v = b.tensor()
    assert x.shape == (20, 3, 104, 104) and torch.equal(y, v)
    assert (x.float() - u.float()).abs().mean() < 3  # FFCV decodes with libjpeg-turbo's fast DCT and upsampling


def test_both_loaders_give_the_same_digits(digits: Path, digits_folder: Path):
    a, b = RealImages(digits, "val", "ffcv"), RealImages(digits_folder, "val", "torchvision", workers=2)
    for left, right in zip(a.tensor(), b.tensor(), strict=True):
        assert torch.equal(left, right)


def test_one_loader_never_stands_in_for_the_other(digits: Path, digits_folder: Path):
    with pytest.raises(DataError, match=r"prepared as folder; loader ffcv .* --format beton"):
        RealImages(digits_folder, "val", "ffcv")
    with pytest.raises(DataError, match=r"prepared as beton; loader torchvision .* --format folder"):
        RealImages(digits, "val", "torchvision")


def test_missing_ffcv_says_what_to_install(digits: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    with pytest.raises(InfraError) as error:
        RealImages(digits, "val", "ffcv")
    for word in ("libopencv-dev", "libturbojpeg0-dev", "pkg-config", "conda-forge", "loader: torchvision"):
        assert word in error.value.line()


def test_a_damaged_beton_is_refused_before_ffcv_sees_it(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ffcv.loader

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("FFCV was asked")

    monkeypatch.setattr(ffcv.loader, "Loader", refuse)
    shutil.copytree(digits, tmp_path / "d")
    data = (digits / "val.beton").read_bytes()
    (tmp_path / "d" / "val.beton").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError):
        open_split(tmp_path / "d", "val", "ffcv")


def test_an_open_split_is_shared_and_decoded_once(digits: Path):
    first, second = open_split(digits, "val", "ffcv"), open_split(str(digits), "val", "ffcv")  # type: ignore[arg-type]
    assert first is second
    assert first.tensor()[0] is second.tensor()[0]


def test_not_a_prepared_dataset_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="not a prepared dataset"):
        open_split(tmp_path, "val", "ffcv")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="not a prepared dataset"):
        open_split(tmp_path, "val", "ffcv")


# FFCV's ways of hanging. Each is brought about inside the real FFCV.


def within_seconds(begin: float, limit: float) -> None:
    assert time.monotonic() - begin < limit


def test_an_exception_in_ffcvs_thread_is_an_infra_error(digits: Path, monkeypatch: pytest.MonkeyPatch):
    from ffcv.loader.epoch_iterator import EpochIterator

    run_pipeline = EpochIterator.run_pipeline

    def failing(self: EpochIterator, index: int, *rest: object) -> object:
        if index == 2:
            raise ValueError("bad page")
        return run_pipeline(self, index, *rest)

    monkeypatch.setattr(EpochIterator, "run_pipeline", failing)
    reader = stream(digits, timeout=300)
    begin = time.monotonic()
    with pytest.raises(InfraError, match=r"digits val: FFCV failed at samples 128 to 191: ValueError: bad page"):
        whole(reader, 355)
    within_seconds(begin, 100)


def test_a_stalled_loader_is_an_infra_error(digits: Path, monkeypatch: pytest.MonkeyPatch):
    from ffcv.loader.epoch_iterator import EpochIterator

    release = threading.Event()
    monkeypatch.setattr(EpochIterator, "run_pipeline", lambda *args: release.wait(120))
    reader = stream(digits)
    reader._loader = reader._build()
    reader.timeout = 1.5
    try:
        with pytest.raises(InfraError, match=r"digits val: FFCV gave nothing for 1.5 s at samples 0 to 63"):
            whole(reader, 355)
    finally:
        release.set()


def test_a_dead_loader_thread_is_an_infra_error(digits: Path, monkeypatch: pytest.MonkeyPatch):
    from ffcv.loader.epoch_iterator import EpochIterator

    monkeypatch.setattr(EpochIterator, "run", lambda self: None)
    begin = time.monotonic()
    with pytest.raises(InfraError, match=r"digits val: FFCV's thread died at samples 0 to 63"):
        whole(stream(digits, timeout=300), 355)
    within_seconds(begin, 100)


def test_an_epoch_that_ends_early_is_an_infra_error(digits: Path, monkeypatch: pytest.MonkeyPatch):
    from ffcv.loader import epoch_iterator

    monkeypatch.setattr(epoch_iterator, "chunks", lambda order, size: [order[:size]])
    with pytest.raises(InfraError, match=r"FFCV ended before samples 64 to 127"):
        whole(stream(digits), 355)


def test_a_constructor_that_never_returns_is_an_infra_error(digits: Path, monkeypatch: pytest.MonkeyPatch):
    import ffcv.loader

    release = threading.Event()
    monkeypatch.setattr(ffcv.loader, "Loader", lambda *args, **kwargs: release.wait(120))
    try:
        with pytest.raises(InfraError, match=r"digits val: FFCV's constructor did not come back within 1 s"):
            whole(stream(digits, timeout=1), 355)
    finally:
        release.set()


@pytest.mark.parametrize("how", ["killed", "stalled"])
def test_a_lost_torchvision_worker_is_an_infra_error(digits_folder: Path, how: str):
    split = RealImages(digits_folder, "val", "torchvision", timeout=1, workers=1)

    def broken(image: object) -> object:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(120)
        return image

    split._stream._images.transform = broken  # type: ignore[attr-defined]
    with pytest.raises(InfraError, match=r"digits val .*torchvision's loader failed at samples 0 to 354"):
        split.tensor()


def test_images_of_another_size_in_a_folder_are_refused(digits_folder: Path, tmp_path: Path):
    from PIL import Image

    shutil.copytree(digits_folder, tmp_path / "d")
    first = sorted((tmp_path / "d" / "val").rglob("*.png"))[0]
    Image.new("RGB", (17, 17)).save(first)
    with pytest.raises(DataError, match="images of several sizes"):
        RealImages(tmp_path / "d", "val", "torchvision", workers=1).tensor()


def test_every_image_of_a_batch_order_is_read_once_by_ffcv(digits: Path):
    order = np.random.default_rng(0).permutation(355)
    images = torch.cat(list(stream(digits).read(order, 32)))
    expected = RealImages(digits, "val", "ffcv").tensor()[0][order]
    assert torch.equal(images, expected)
    assert max(Counter(order.tolist()).values()) == 1
