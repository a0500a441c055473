"""How long a report over very many rows takes, and how much memory: from compacted rows to every file.

Makes rows of a grid of 50 methods, 10 datasets, 5 IPCs, 2 teachers, 10 students and 2 protocols (100,000 cells; seeds
fill up the rest), then runs `python -m suite.report --rows` on them in a process of its own. `--keep` keeps both.

python -m suite.bench report --rows 1000000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from suite.errors import InfraError, UserError

_DATASETS = ("cifar10", "cifar100", "tinyimagenet", "imagenette", "imagewoof", "imagenet100", "imagenet1k", "digits",
             "imagenette-s160", "tinyimagenet-c20")  # fmt: skip
_STUDENTS = ("resnet18", "resnet50", "resnet101", "mobilenet_v2", "efficientnet_b0", "convnet3", "convnet4", "vgg11",
             "swin_t", "vit_b_16")  # fmt: skip
#: Number of values of each axis, in the order in which a row's number is taken apart.
_AXES = {"method": 50, "dataset": 10, "ipc": 5, "teacher": 2, "student": 10, "protocol": 2}
CELLS = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `suite.bench report`."""
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the rows and the report there")
    parser.add_argument("--json", type=Path, help="write the numbers there")


def run(arguments: argparse.Namespace) -> int:
    """Make the rows, report on them, and say what it took."""
    if not 1 <= arguments.rows <= 100_000_000:
        raise UserError("--rows is not between 1 and 100000000")
    with tempfile.TemporaryDirectory(prefix="suite-report-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "rows.parquet"
        make_rows(file, arguments.rows)
        found = measure(file, folder / "reports")
    print(
        f"{found['rows']:,} rows: {found['seconds']} s, {found['cpu_seconds']} s of CPU, {found['peak_gb']} GB at most"
    )
    if arguments.json:
        from suite.provenance import provenance
        from suite.store.files import write_json

        write_json(arguments.json, {"benchmark": "report", "results": found, "provenance": provenance()})
    return 0


def make_rows(path: Path, count: int) -> None:
    """Write a file of made-up rows with realistic spread: methods differ, IPC helps, some rows are at chance.

    Args:
        path: Parquet file to write.
        count: Of rows.
    """
    import numpy as np
    import pandas as pd

    from suite.leaderboard.files import to_parquet
    from suite.leaderboard.rows import COLUMNS

    rng = np.random.default_rng(0)
    number = np.arange(count)
    axes: dict[str, Any] = {}
    rest = number % CELLS
    for name, values in _AXES.items():
        axes[name], rest = rest % values, rest // values
    ipc = np.array([1, 10, 50, 100, 200])[axes["ipc"]]
    classes = np.array([10, 100, 200, 10, 10, 100, 1000, 10, 10, 20])[axes["dataset"]]
    level = 10 + axes["method"] * 0.9 + 6 * np.log10(ipc) - axes["student"] + rng.normal(0, 0.6, count)
    seconds = (1 + axes["method"]) * 0.05 * classes * ipc
    images = (classes * ipc).astype(np.int64)

    def text(values: tuple[str, ...], at: Any) -> Any:
        return pd.array(np.array(values, dtype=object)[at], dtype="string")

    def hexes(at: Any) -> Any:
        return pd.array([f"{int(v):016x}" for v in at], dtype="string")

    given: dict[str, Any] = {
        "method": text(tuple(f"method{i:02d}" for i in range(50)), axes["method"]),
        "dataset": text(_DATASETS, axes["dataset"]), "ipc": ipc,
        "teacher": text(("resnet18", "convnet3"), axes["teacher"]),
        "student": text(_STUDENTS, axes["student"]), "protocol": text(("paper", "matched"), axes["protocol"]),
        "setting": text(("a1b2c3",), number * 0), "seed": number // CELLS, "labels": text(("stored",), number * 0),
        "accuracy_last": np.clip(level, 0, 100), "accuracy_best": np.clip(level + 0.2, 0, 100), "best_epoch": 290.0,
        "epochs": 300.0, "steps": images * 3, "classes": classes, "val_images": 10_000, "constant_prediction": False,
        "synthesis_key": hexes(number // 20), "synthesis_setting": text(("d4e5f6",), number * 0),
        "synthesis_seconds": seconds, "image_iterations": images * 1000, "forward_images": images * 1000,
        "images": images, "seconds_per_image": seconds / images, "iterations_per_image": 1000.0,
        "peak_memory_bytes": 9_000_000_000, "peak_memory_kind": text(("cuda allocated",), number * 0),
        "device": text(("NVIDIA H100",), number * 0), "teacher_seconds": 64_000.0, "relabel_seconds": 0.09 * images,
        "evaluation_seconds": 1100.0, "relabel_key": hexes(number // 20), "image_bytes": 15_000 * images,
        "label_bytes": 2027 * 300 * images, "auxiliary_bytes": 0, "total_bytes": (15_000 + 2027 * 300) * images,
        "unshipped_bytes": 0, "key": hexes(number), "commit": text(("4f0c2d9be1a7" * 3,), number * 0),
        "dirty": text(("",), number * 0), "loader": text(("ffcv",), number * 0),
        "precision": text(("fp32",), number * 0),
        "evaluation_device": text(("NVIDIA H100",), number * 0), "status": text(("done",), number * 0),
        "versions": text(("suite 0.1.0, python 3.11.9, torch 2.8.0, ffcv 1.0.2",), number * 0),
        "started": text(("2026-01-01T00:00:00+00:00",), number * 0), "attempt": hexes(number), "label_prune": 0.0,
        "statistics_seconds": 800.0, "overridden": False, "external": False,
        "micro_batches": pd.NA,
    }  # fmt: skip
    index = pd.RangeIndex(count)
    data = {c: pd.Series(given[c], index=index).astype(t) for c, t in COLUMNS.items()}  # type: ignore[call-overload]
    path.write_bytes(to_parquet(pd.DataFrame(data)))


def measure(file: Path, out: Path) -> dict[str, Any]:
    """Report on a file of rows in a process of its own.

    Returns:
        Rows, seconds, seconds of CPU, and the process's peak memory in GB.

    Raises:
        InfraError: If the report fails.
    """
    import pyarrow.parquet as pq

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "suite.report", "--rows", str(file), "--out", str(out)], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise InfraError(done.stderr.strip().splitlines()[-1] if done.stderr else "the report failed")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rows": pq.read_metadata(file).num_rows,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used, 1),
        "peak_gb": round(after.ru_maxrss * 1024 / 1e9, 2),
    }
