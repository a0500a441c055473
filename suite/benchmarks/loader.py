"""Images per second: FFCV beside torchvision's ImageFolder and DataLoader, with the same augmentation.

Both give normalised fp32 batches of random resized crops (area 0.08 to 1) of the same side, flipped with probability
one half, in a random order, with the same number of workers (threads for FFCV, processes for the DataLoader). FFCV
reads the pixels from betons, as JPEG (quality 90) and raw; torchvision reads the source's own files, extracted. Each
reader runs in a process of its own; the first epoch is warm-up, and FFCV's compilation is printed apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.errors import InfraError, UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA = (0.08, 1.0)


@dataclass(frozen=True)
class Setting:
    """What one reader is asked to do.

    Attributes:
        path: Beton or folder.
        size: Side of the crops in pixels.
        workers: Threads or processes.
        batch: Images a batch.
        epochs: Measured epochs, after one that is not.
    """

    path: Path
    size: int
    workers: int
    batch: int
    epochs: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `suite.bench loader`."""
    parser.add_argument("--source", type=Path, required=True, help="directory or tar with train/CLASS/file")
    parser.add_argument("--size", type=int, default=160, help="side of stored images and crops (default 160)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3, help="measured epochs, after a first that is left out")
    parser.add_argument("--timeout", type=float, default=600, help="seconds allowed to each reader")
    parser.add_argument("--json", type=Path, help="write the numbers there, e.g. results/measured/loader.json")


def run(arguments: argparse.Namespace) -> int:
    """Prepare the three forms of the training split, measure each, print the comparison."""
    for name in ("size", "workers", "batch", "epochs"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1")
    with tempfile.TemporaryDirectory(prefix="suite-bench-") as scratch:
        images = _write_forms(arguments.source, arguments.size, Path(scratch), arguments.workers)
        results = {}
        for name, reader, path in (
            ("torchvision", torchvision_epochs, Path(scratch) / "folder"),
            ("ffcv_jpeg", ffcv_epochs, Path(scratch) / "jpg.beton"),
            ("ffcv_raw", ffcv_epochs, Path(scratch) / "raw.beton"),
        ):
            setting = Setting(path, arguments.size, arguments.workers, arguments.batch, arguments.epochs)
            results[name] = _measured(_apart(reader, setting, arguments.timeout), images)
            _print_row(name, results[name])
    base = results["torchvision"]["images_per_second"]
    ratios = {n: results[n]["images_per_second"] / base for n in ("ffcv_jpeg", "ffcv_raw")}
    for name, ratio in ratios.items():
        print(f"{name} / torchvision = {ratio:.2f}")
    if arguments.json:
        _write_json(arguments, images, results, ratios)
    return 0


def _measured(seconds: list[float], images: int) -> dict[str, Any]:
    """The first epoch apart; the median of the others as images per second."""
    median = statistics.median(seconds[1:])
    return {
        "first_epoch_seconds": seconds[0],
        "epoch_seconds": seconds[1:],
        "images_per_second": images / median,
        "start_up_seconds": max(0.0, seconds[0] - median),
    }


def _print_row(name: str, result: dict[str, Any]) -> None:
    start = f"start-up and compilation {result['start_up_seconds']:.1f} s"
    print(f"{name:<12} {result['images_per_second']:>9.0f} images/s  ({start})", flush=True)


def _write_json(arguments: argparse.Namespace, images: int, results: dict[str, Any], ratios: dict[str, float]) -> None:
    import torch

    from suite.provenance import provenance
    from suite.stages.context import device_info
    from suite.store.files import write_json

    names = ("size", "workers", "batch", "epochs")
    value = {
        "benchmark": "loader",
        "source": arguments.source.name,
        "images": images,
        "settings": {n: getattr(arguments, n) for n in names},
        "device": device_info(torch.device("cpu")) | {"cores": len(os.sched_getaffinity(0))},
        "results": results,
        "ratios": ratios,
        "provenance": provenance(),
    }
    json.dumps(value)  # refuse before the file is touched
    write_json(arguments.json, value)
    print(f"written to {arguments.json}")


def _write_forms(source: Path, size: int, scratch: Path, jobs: int) -> int:
    """Write the training split as extracted files, a JPEG beton and a raw beton; returns the number of images."""
    from suite.data.sources import by_class, open_path
    from suite.data.writer import Samples, write_beton

    with open_path(source, scratch) as opened:
        classes = by_class(opened, ("train",))["train"]
        items = [i for name in sorted(classes) for i in sorted(classes[name], key=lambda i: i.name)]
        labels = [k for k, name in enumerate(sorted(classes)) for _ in classes[name]]
        for item in items:
            path = scratch / "folder" / item.label / item.name.replace("/", "_")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(opened.read(item))
        for mode in ("jpg", "raw"):
            samples = Samples(opened, items, labels, size, jobs, lambda: None)
            write_beton(scratch / f"{mode}.beton", samples, mode)
    return len(items)


def _apart(reader: Callable[[Setting], list[float]], setting: Setting, timeout: float) -> list[float]:
    """Run a reader in a fresh process, so that no reader inherits another's threads or caches."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, reader, setting))
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise InfraError(f"{reader.__name__} gave nothing for {timeout:g} s")
        result: list[float] = ours.recv()
        return result
    except EOFError as error:
        raise InfraError(f"{reader.__name__} died") from error
    finally:
        process.kill()
        process.join()


def _send(pipe: Any, reader: Callable[[Setting], list[float]], setting: Setting) -> None:
    pipe.send(reader(setting))


def _time_epochs(batches: Iterable[Any], setting: Setting) -> list[float]:
    """Seconds of each epoch; every image must have come, normalised and in fp32."""
    import torch

    seconds, shape = [], (3, setting.size, setting.size)
    for _ in range(setting.epochs + 1):
        begin = time.perf_counter()
        count = 0
        for images, _labels in batches:
            if images.shape[1:] != shape or images.dtype != torch.float32:
                raise InfraError(f"a batch is {images.dtype} {tuple(images.shape)}")
            count += len(images)
        seconds.append(time.perf_counter() - begin)
    if count != len(batches.dataset if hasattr(batches, "dataset") else batches.indices):  # type: ignore[attr-defined]
        raise InfraError(f"an epoch gave {count} images")
    return seconds


def torchvision_epochs(setting: Setting) -> list[float]:
    """Seconds of each epoch of ImageFolder and DataLoader."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    steps = [
        transforms.RandomResizedCrop(setting.size, scale=AREA),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    images = ImageFolder(str(setting.path), transforms.Compose(steps))
    loader = DataLoader(
        images, setting.batch, shuffle=True, num_workers=setting.workers, persistent_workers=True, pin_memory=False
    )
    return _time_epochs(loader, setting)


def ffcv_pipeline(size: int) -> list[Any]:
    """FFCV's operations for images, every compiled one before ToTensor.

    The other way round, FFCV never finishes grouping them (see `suite.data.ffcv_stream`).
    """
    import numpy as np
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    return [
        RandomResizedCropRGBImageDecoder((size, size), scale=AREA),
        RandomHorizontalFlip(),
        NormalizeImage(np.array(MEAN) * 255, np.array(STD) * 255, np.float32),
        ToTensor(),
        ToTorchImage(),
    ]


def ffcv_epochs(setting: Setting) -> list[float]:
    """Seconds of each epoch of FFCV, the first with its construction and compilation."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor

    begin = time.perf_counter()
    loader = Loader(
        str(setting.path),
        batch_size=setting.batch,
        num_workers=setting.workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        pipelines={"image": ffcv_pipeline(setting.size), "label": [IntDecoder(), ToTensor(), Squeeze()]},
        drop_last=False,
        seed=0,
    )
    built = time.perf_counter() - begin
    seconds = _time_epochs(loader, setting)
    return [seconds[0] + built, *seconds[1:]]
