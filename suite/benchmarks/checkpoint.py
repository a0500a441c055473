"""What checkpoints cost: seconds of one save of each stage kind at ImageNet-1K's sizes, beside the default interval.

    python -m suite.bench checkpoint --json results/measured/checkpoint.json

States are those that the loops hand over, of random networks; files are written as stages write them, summed up and
synchronised to the disk of `--folder`. A row says how many seconds of work lie between two saves and which share of a
stage's time saving is. A label stream is written at the pace of a GPU for some seconds before each save; the sums of
its rows count as saving, and all of it is multiplied to the interval: no less than it costs, since a longer interval
has more rows to sum up, and not more that wait for the disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.errors import UserError
from suite.provenance import provenance

if TYPE_CHECKING:
    import torch

    from suite.learn.growing import Growing

#: Classes and side of ImageNet-1K; images a second that a GPU labels with a ResNet-18 (an H100 in bf16, rounded up).
CLASSES, SIZE, LABELLED = 1000, 224, 10_000
#: Seconds of a label stream before each save, at most, and labels that a stage writes at once.
_STREAMED, _AT_ONCE = 30.0, 32_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `suite.bench checkpoint`."""
    parser.add_argument("--minutes", type=float, default=10.0, help="between two checkpoints (default 10)")
    parser.add_argument("--saves", type=int, default=3, help="saves of each state; the median counts (default 3)")
    parser.add_argument("--ipc", type=int, default=10, help="images a class of the synthesis (default 10)")
    parser.add_argument("--folder", type=Path, help="where they are written: the file system that counts")
    parser.add_argument("--json", type=Path, help="write the numbers there")


@dataclass(frozen=True)
class Case:
    """A state that is saved.

    Attributes:
        kind: Of the stage.
        what: In words.
        state: What its loop hands over.
        labels: That a stream grows by in a second; 0 for no stream.
    """

    kind: str
    what: str
    state: Callable[[], Any]
    labels: int = 0


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a line a stage kind; 1 if one of them costs more than 5 % of its time."""
    if arguments.minutes <= 0 or arguments.saves < 1 or arguments.ipc < 1:
        raise UserError("--minutes, --saves and --ipc are at least 1", hint="python -m suite.bench checkpoint --help")
    import torch

    from suite.stages.context import device_info
    from suite.store.files import write_json

    load = os.getloadavg()
    rows = []
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for case in cases(arguments.ipc):
            rows.append(measure(case, Path(folder) / case.kind, arguments.saves, 60 * arguments.minutes))
            row = rows[-1]
            print(
                f"{row['kind']:11} {(row['bytes'] + row['bytes_beside']) / 1e6:9.1f} MB {row['save_seconds']:8.3f} s "
                f"every {row['interval_seconds']:5.0f} s: {row['percent']:.2f} %  {row['what']}",
                flush=True,
            )
    if arguments.json:
        machine = {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()}
        body = {
            "benchmark": "checkpoint",
            "device": device_info(torch.device("cpu")) | machine,
            "provenance": provenance(),
            "minutes": arguments.minutes,
            "saves": arguments.saves,
            "rows": rows,
        }
        write_json(arguments.json, body)
    return 0 if all(row["percent"] <= 5 for row in rows) else 1


def measure(case: Case, folder: Path, saves: int, seconds: float) -> dict[str, Any]:
    """Save a state some times.

    Returns:
        Bytes of a save, its median seconds, the interval that a stage keeps then, and the share of saving in percent.
    """
    from suite.learn.checkpoint import Checkpoint

    kept, state, spent = Checkpoint(folder, seconds), case.state(), []
    streamed = min(_STREAMED, seconds) if case.labels else 0.0
    with ExitStack() as stack:
        stream = stack.enter_context(kept.growing(folder / "stream")) if case.labels else None
        if stream is not None:
            stream.begin({"logits": 0})
        for _ in range(saves):
            before = kept.spent
            if stream is not None:
                _stream(stream, case.labels, streamed)
            if not kept.save(state):
                raise UserError("the file system refused a checkpoint", where=str(folder), hint="another --folder")
            spent.append(kept.spent - before)
    size = max(path.stat().st_size for path in folder.glob("*.ckpt"))
    scale = seconds / streamed if streamed else 1.0
    save = statistics.median(spent) * scale
    # What a stream grows by grows with the interval: waiting longer does not make its share smaller.
    interval = seconds if case.labels else kept.interval(save)
    return {
        "kind": case.kind,
        "what": case.what,
        "bytes": size,
        "bytes_beside": int(case.labels * seconds) * CLASSES * 2,
        "save_seconds": save,
        "scaled_by": scale,
        "interval_seconds": interval,
        "percent": 100 * save / (interval + save),
    }


def _stream(stream: Growing, pace: int, seconds: float) -> None:
    """Rows of logits at a pace, as `relabel` writes them."""
    begin, labels = time.monotonic(), 0
    while labels < pace * seconds:
        labels += _AT_ONCE
        time.sleep(max(0.0, begin + labels / pace - time.monotonic()))
        stream.append("logits", os.urandom(_AT_ONCE * CLASSES * 2))


def cases(ipc: int) -> list[Case]:
    """One state of each kind that keeps checkpoints."""
    return [
        Case("teacher", "ResNet-18, SGD with momentum", _teacher),
        Case("statistics", "class-wise sums of a ResNet-18", _statistics),
        Case("synthesis", f"IPC {ipc}: all images, and a batch of 100 with Adam", lambda: _synthesis(ipc)),
        Case("relabel", f"{LABELLED:,} labels a second for an interval", dict, LABELLED),
        Case("evaluation", "ResNet-50, AdamW, EMA", _student),
    ]


def _stepped(optimizer: torch.optim.Optimizer) -> None:
    """One update, so that the optimiser has its state."""
    import torch

    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()


def _teacher() -> Any:
    import torch

    from suite.learn import teachers
    from suite.learn.models import build
    from suite.spec.recipes import teacher_recipe

    model = build("resnet18", CLASSES, SIZE)
    at = teachers._Position(
        model, teachers.build_optimizer(teacher_recipe("imagenet1k"), model), torch.device("cpu"), 0
    )
    _stepped(at.optimizer)
    return at.state()


def _student() -> Any:
    import torch

    from suite.learn import students
    from suite.learn.models import build
    from suite.spec.recipes import StudentRecipe

    at = students._Position(StudentRecipe(ema=0.99), build("resnet50", CLASSES, SIZE), torch.device("cpu"))
    _stepped(at.optimizer)
    return at.state()


def _statistics() -> Any:
    import torch

    from suite.learn.models import build
    from suite.learn.statistics import compute_statistics

    labels = torch.arange(4)
    return _first(
        lambda kept: compute_statistics(
            build("resnet18", CLASSES, SIZE).eval(), [(torch.rand(4, 3, SIZE, SIZE), labels)], CLASSES, 16,
            checkpoint=kept,
        )
    )  # fmt: skip


def _synthesis(ipc: int) -> Any:
    """A synthesis at its first iteration, with the images of the whole set, as at its end."""
    import torch

    from suite.benchmarks.synthesis import Setting, make_job
    from suite.methods import get

    cls: Any = get("sre2l")
    method = cls(iterations=1, batch=100)
    job = make_job(Setting(size=SIZE, batch=100, arch="convnet3_w8_bn"), method, "fp32")

    def work(kept: Any) -> None:
        job.checkpoint = kept
        method.synthesize(job)

    state: dict[str, Any] = _first(work)
    return state | {"images": torch.zeros(CLASSES * ipc, 3, SIZE, SIZE, dtype=torch.uint8)}


def _first(work: Callable[[Any], object]) -> Any:
    """The first state that a loop hands over."""
    from suite.learn.checkpoint import Never

    class Taken(Exception):
        """Ends the loop."""

    class Taking(Never):
        def due(self) -> bool:
            return True

        def save(self, state: Any) -> bool:
            found.append(state)
            raise Taken

    found: list[Any] = []
    with suppress(Taken):
        work(Taking())
    return found[0]
