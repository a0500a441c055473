"""Images per second: FFCV beside torchvision's ImageFolder and DataLoader, with the same augmentation.

Both give normalised fp32 batches of random resized crops (area 0.08 to 1) of the same side, flipped with probability
one half, in a random order, with the same number of workers (threads for FFCV, processes for the DataLoader). FFCV
reads the pixels from betons, as JPEG (quality 90) and raw; torchvision reads the source's own files, extracted. Each
reader runs in a process of its own, and they take turns, an epoch each, so that a busy machine is busy for all of them;
the first epoch is warm-up, and FFCV's compilation is printed apart. The ratio is the median over the rounds.
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
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from suite.errors import InfraError, UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA = (0.08, 1.0)


@dataclass(frozen=True)
class Setting:
    """What one reader is asked to do.

    Attributes:
        path: Where `folder`, `jpg.beton` and `raw.beton` lie.
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
        setting = Setting(Path(scratch), arguments.size, arguments.workers, arguments.batch, arguments.epochs)
        seconds = _in_turns(setting, images, arguments.timeout)
    results = {name: _measured(times, images) for name, times in seconds.items()}
    for name, result in results.items():
        _print_row(name, result)
    base = seconds["torchvision"][1:]
    ratios = {
        name: statistics.median(b / s for b, s in zip(base, times[1:], strict=True))
        for name, times in seconds.items()
        if name != "torchvision"
    }
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


def _in_turns(setting: Setting, images: int, timeout: float) -> dict[str, list[float]]:
    """Seconds of each epoch of each reader; every reader has a fresh process, and one of them works at a time."""
    context = multiprocessing.get_context("spawn")
    readers: dict[str, tuple[Any, Any]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in READERS}
    try:
        for name in READERS:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, name, setting))
            process.start()
            theirs.close()
            readers[name] = (process, ours)
        for _ in range(setting.epochs + 1):
            for name, (_process, pipe) in readers.items():
                pipe.send("epoch")
                if not pipe.poll(timeout):
                    raise InfraError(f"{name} gave nothing for {timeout:g} s")
                taken, count = pipe.recv()
                if count != images:
                    raise InfraError(f"{name} gave {count} of {images} images in an epoch")
                seconds[name].append(taken)
    except (EOFError, BrokenPipeError) as error:
        raise InfraError(f"{name} died") from error
    finally:
        for process, pipe in readers.values():
            pipe.close()  # tells the reader to leave, and its workers with it
            process.join(10)
            process.kill()
            process.join()
    return seconds


def _serve(pipe: Any, name: str, setting: Setting) -> None:
    """Run an epoch whenever asked; the first one also builds the reader."""
    import torch

    batches: Iterable[Any] | None = None
    with suppress(EOFError):
        while pipe.recv():
            begin, count = time.perf_counter(), 0
            if batches is None:
                batches = READERS[name](setting)
            for images, _labels in batches:
                if images.shape[1:] != (3, setting.size, setting.size) or images.dtype != torch.float32:
                    raise InfraError(f"a batch is {images.dtype} {tuple(images.shape)}")
                count += len(images)
            pipe.send((time.perf_counter() - begin, count))


def torchvision_reader(setting: Setting) -> Iterable[Any]:
    """ImageFolder and DataLoader."""
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
    images = ImageFolder(str(setting.path / "folder"), transforms.Compose(steps))
    return DataLoader(images, setting.batch, shuffle=True, num_workers=setting.workers, persistent_workers=True)


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


def ffcv_reader(setting: Setting, mode: str) -> Iterable[Any]:
    """FFCV over the beton of one mode, `jpg` or `raw`."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor

    loader: Iterable[Any] = Loader(
        str(setting.path / f"{mode}.beton"),
        batch_size=setting.batch,
        num_workers=setting.workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        pipelines={"image": ffcv_pipeline(setting.size), "label": [IntDecoder(), ToTensor(), Squeeze()]},
        drop_last=False,
        seed=0,
    )
    return loader


READERS: dict[str, Callable[[Setting], Iterable[Any]]] = {
    "torchvision": torchvision_reader,
    "ffcv_jpeg": partial(ffcv_reader, mode="jpg"),
    "ffcv_raw": partial(ffcv_reader, mode="raw"),
}
