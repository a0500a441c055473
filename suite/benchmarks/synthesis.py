"""One step of a synthesis and one image: how fast, how many operations, beside the references' manner in the same run.

Every method runs its own composition through the engine, on a random teacher and random images of the asked size, with
its defaults but for the batch. Between two of its iterations the plain eager baseline of the same objective
(`suite.benchmarks.eager`: fp32, NCHW) makes one step for as many images, so that a busy machine is busy for both; the
ratio is the median over the pairs. The first pair is warm-up and left out. E2D is measured while it explores.

Operations and host synchronisations are those of one step between log points: see `suite.benchmarks.operations`.

python -m suite.bench synthesis --method e2d sre2l --precision bf16 fp32 --json results/measured/synthesis.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.benchmarks.operations import count, profiled
from suite.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

    from suite.benchmarks.eager import Objective
    from suite.learn.job import Job

#: Methods that are measured unless others are asked for, where they exist, and what their matching term is.
KINDS = {
    "sre2l": "bn",
    "cda": "bn",
    "delt": "bn",
    "wmdd": "classes",
    "gvbsm": "features",
    "edc": "features",
    "e2d": "features",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `suite.bench synthesis`."""
    parser.add_argument("--method", nargs="+", help="by default all of " + " ".join(KINDS))
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels (default 224)")
    parser.add_argument("--batch", type=int, help="images a batch (default 20; 100 up to 64 px)")
    parser.add_argument("--arch", help="the teacher (default resnet18; resnet18_cifar up to 64 px)")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--steps", type=int, default=7, help="measured steps, after a first that is left out")
    parser.add_argument("--stack", type=int, default=1, help="images of several batches side by side (default: none)")
    parser.add_argument("--compile", action="store_true", help="run the engine's teacher through torch.compile")
    parser.add_argument("--no-baseline", action="store_true", help="the engine alone")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the numbers there, e.g. results/measured/synthesis.json")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print one line a method and precision."""
    import torch

    from suite.methods import discover
    from suite.stages.devices import keep_memory

    for name in ("size", "batch", "steps", "stack", "threads"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} must be at least 1")
    names = arguments.method or [n for n in KINDS if n in discover()]
    for name in names:
        if name not in KINDS or name not in discover():
            raise UserError(f"{name} cannot be measured here", hint=did_you_mean(name, KINDS))
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is visible", hint="--device cpu")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    if kind == "cpu":
        keep_memory()
    small = arguments.size <= 64
    setting = Setting(
        size=arguments.size,
        batch=arguments.batch or (100 if small else 20),
        arch=arguments.arch or ("resnet18_cifar" if small else "resnet18"),
        device=kind,
        steps=arguments.steps,
        compile=arguments.compile,
        stack=arguments.stack,
        baseline=not arguments.no_baseline,
    )
    print(f"{setting.arch}, {setting.size} px, batch {setting.batch}, {kind}, {arguments.threads} threads")
    results = []
    for name in names:
        for precision in arguments.precision:
            results.append(measure(name, precision, setting))
            _print_row(results[-1])
    if arguments.json:
        _write_json(arguments, setting, results)
    return 0


@dataclass(frozen=True)
class Setting:
    """What is common to the measurements of one run; see the command line."""

    size: int
    batch: int
    arch: str
    device: str = "cpu"
    steps: int = 7
    compile: bool = False
    stack: int = 1
    baseline: bool = True


class _EnoughError(Exception):
    """Ends a synthesis that has been measured."""


@dataclass
class Stopwatch:
    """Sits where the engine asks for checkpoints: after every iteration. Times the engine's step, then the baseline's.

    Attributes:
        job: The synthesis that is measured.
        objective: Of the baseline; None to leave it out.
        method: Whose batch the baseline copies.
        steps: Measured pairs.
        seconds: Of the engine's steps, the first included.
        baseline: Of the baseline's.
        operations: Of one step of the engine and of the baseline.
        syncs: Likewise.
    """

    job: Job
    objective: Objective | None
    method: Any
    steps: int
    seconds: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    images: int = 0
    operations: dict[str, int] = field(default_factory=dict)
    syncs: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    _profiler: Any = None

    def load(self) -> None:
        """There is nothing to go on from."""
        from suite.stages.devices import reset_peak_memory

        reset_peak_memory(self.job.device)
        self._eager: Any = None
        self._forwards = self.job.counters.forward_images
        self._begin = self._now()

    def due(self) -> bool:
        """One iteration of the engine is over. Never asks for a checkpoint.

        Raises:
            _EnoughError: When everything is measured.
        """
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            self.operations["engine"], self.syncs["engine"] = count(self._profiler)
            if self.objective is not None:
                with profiled(self.job.device) as profiler:
                    self._eager.step()
                self.operations["baseline"], self.syncs["baseline"] = count(profiler)
                self._eager.close()
            raise _EnoughError
        from suite.stages.devices import peak_memory

        self.seconds.append(self._now() - self._begin)
        self.images = self.job.counters.forward_images - self._forwards
        if len(self.seconds) == 1:
            self.peak = peak_memory(self.job.device)["peak_memory_bytes"]
        if self.objective is not None:
            self._eager = self._eager or eager(self.job, self.objective, self.images, self.method.lr)
            begin = self._now()
            self._eager.step()
            self.baseline.append(self._now() - begin)
        self._forwards = self.job.counters.forward_images
        self._begin = self._now()
        if len(self.seconds) > self.steps:  # after the clock, which waits for the device
            self._profiler = profiled(self.job.device)
            self._profiler.__enter__()
        return False

    def save(self, state: Any) -> None:
        """Never called, as none is due."""
        raise AssertionError("a stopwatch keeps no checkpoints")

    def _now(self) -> float:
        if self.job.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.job.device)
        return time.perf_counter()


def measure(name: str, precision: str, setting: Setting) -> dict[str, Any]:
    """Run some iterations of a method and of the baseline, in turns.

    Returns:
        The numbers of one row: seconds a step (median), image-iterations a second, operations and host
        synchronisations a step, peak memory in bytes, the same of the baseline, and the ratio.
    """
    from suite.methods import get

    cls: Any = get(name)
    changes: dict[str, Any] = {"batch": setting.batch}
    if name == "edc":
        changes["start"] = "real"  # mosaics are scored before the first step, which is not measured
    method = cls(**changes)
    job = make_job(setting, method, precision)
    watch = Stopwatch(job, objective_of(name, method) if setting.baseline else None, method, setting.steps)
    job.checkpoint = watch  # type: ignore[assignment]
    try:
        method.synthesize(job)
    except _EnoughError:
        pass
    else:
        raise UserError(f"{name} ended after {len(watch.seconds)} iterations", hint="fewer --steps")
    step = statistics.median(watch.seconds[1:])
    row: dict[str, Any] = {
        "method": name,
        "precision": precision,
        "images": watch.images,
        "step_seconds": step,
        "image_iterations_per_second": watch.images / step,
        "image_seconds": step / watch.images * method.image_iterations(job.ipc),
        "first_step_seconds": watch.seconds[0],
        "operations": watch.operations["engine"],
        "host_synchronisations": watch.syncs["engine"],
        "peak_bytes": watch.peak,
    }
    if setting.baseline:
        row["baseline"] = {
            "step_seconds": statistics.median(watch.baseline[1:]),
            "operations": watch.operations["baseline"],
            "host_synchronisations": watch.syncs["baseline"],
        }
        pairs = zip(watch.baseline[1:], watch.seconds[1:], strict=True)
        row["ratio"] = statistics.median(slow / fast for slow, fast in pairs)
    return row


class RandomImages:
    """Random smooth images behind the interface of `suite.data.loader.RealImages`: two of every class."""

    def __init__(self, classes: int, size: int) -> None:
        import torch
        import torch.nn.functional as F

        draws = torch.Generator().manual_seed(0)
        coarse = torch.rand(2 * classes, 3, 8, 8, generator=draws) * 255
        self.images = F.interpolate(coarse, (size, size), mode="bilinear").to(torch.uint8)
        self.labels, self.classes, self.stored, self.fits = torch.arange(classes).repeat(2), classes, size, True

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Images of these indices, uint8."""
        return self.images[indices]

    def tensor(self) -> torch.Tensor:
        """All images, uint8."""
        return self.images


def make_job(setting: Setting, method: Any, precision: str) -> Job:
    """A job with a random teacher: two images of each of as many classes as a batch has images."""
    import torch

    from suite.learn.job import Job
    from suite.learn.models import build
    from suite.learn.statistics import compute_statistics
    from suite.learn.teachers import Teacher
    from suite.spec.datasets import dataset

    facts = replace(dataset("imagenet1k"), classes=max(2, setting.batch), size=setting.size)
    device = torch.device(setting.device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(setting.arch, facts.classes, setting.size).to(device)
    job = Job(facts, 2, 0, device, precision=precision, compile=setting.compile, stack=setting.stack)
    job.teachers = [Teacher(setting.arch, model, facts.mean, facts.std)]
    real = RandomImages(facts.classes, setting.size)
    job.real = real  # type: ignore[assignment]
    if "statistics" in type(method).needs:
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (facts.mean, facts.std))
        chunks = torch.arange(len(real)).split(20)
        batches = (((real.images[i].to(device) / 255 - mean) / std, real.labels[i].to(device)) for i in chunks)
        patch = 16 if setting.size > 64 else 4
        job.statistics = [compute_statistics(job.teachers[0].model, batches, facts.classes, patch)]
    return job


def objective_of(name: str, method: Any) -> Objective:
    """What the baseline computes, from the fields of a method."""
    from suite.benchmarks.eager import Objective

    kind = KINDS[name]
    features = kind == "features"
    return Objective(
        kind=kind,
        weight=method.weight if hasattr(method, "weight") else method.bn_weight,
        first=getattr(method, "first", 10.0),
        ema=getattr(method, "ema", 0.0) if features else 0.0,
        class_weight=getattr(method, "class_weight", 0.5 if name == "e2d" else 0.0) if features else 0.0,
        shared=name != "e2d" and getattr(method, "shared", True),
        crop=getattr(method, "crop", (1.0, 1.0)),
        flip=getattr(method, "flip", False),
        roll=getattr(method, "roll", (0, 0)),
        memory=method.threshold if name == "e2d" else None,
        priors=name == "sre2l",
    )


def eager(job: Job, objective: Objective, images: int, lr: float) -> Any:
    """The baseline for the first `images` images of a job, on its own copy of the teacher."""
    import copy

    import torch

    from suite.benchmarks.eager import EagerStep
    from suite.learn.models import pixel_range

    low, high = (t.flatten().tolist() for t in pixel_range(job.dataset.mean, job.dataset.std))
    labels = torch.arange(images, device=job.device) // job.ipc % job.dataset.classes
    statistics = job.statistics[0] if job.statistics else None
    model = copy.deepcopy(job.teachers[0].model)
    x = torch.randn(images, 3, job.dataset.size, job.dataset.size, generator=job.generator("eager")).to(job.device)
    return EagerStep(model, statistics, objective, x, labels, low, high, lr)


def _print_row(row: dict[str, Any]) -> None:
    text = (
        f"{row['method']:<8} {row['precision']:<5} {row['image_iterations_per_second']:>9.1f} image-iterations/s  "
        f"{row['step_seconds'] * 1e3:>8.1f} ms/step  {row['image_seconds']:>8.1f} s/image  "
        f"{row['operations']:>4} operations  {row['host_synchronisations']} syncs  "
        f"{row['peak_bytes'] / 2**20:>6.0f} MiB"
    )
    if "ratio" in row:
        base = row["baseline"]
        text += f"  eager {base['step_seconds'] * 1e3:.1f} ms, {base['operations']} operations, "
        text += f"{base['host_synchronisations']} syncs: {row['ratio']:.2f} times as fast"
    print(text, flush=True)


def _write_json(arguments: argparse.Namespace, setting: Setting, results: list[dict[str, Any]]) -> None:
    import os

    import torch

    from suite.provenance import provenance
    from suite.stages.context import device_info
    from suite.store.files import write_json

    value = {
        "benchmark": "synthesis",
        "settings": vars(setting) | {"threads": arguments.threads},
        "device": device_info(torch.device(setting.device)) | {"cores": len(os.sched_getaffinity(0))},
        "torch": torch.__version__,
        "results": results,
        "provenance": provenance(),
    }
    write_json(arguments.json, value)
    print(f"written to {arguments.json}")
