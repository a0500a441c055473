"""What a stage runner is given and what it gives back, and how it opens its inputs."""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from suite.data.external import External, teacher_file
from suite.learn.checkpoint import Checkpoint, Never
from suite.learn.distributed import Ranks
from suite.spec.datasets import Dataset, dataset
from suite.spec.stages import Stage
from suite.stages.devices import peak_memory, reset_peak_memory
from suite.stages.tasks import Tasks
from suite.store import Artifact

if TYPE_CHECKING:
    from suite.data.loader import RealImages
    from suite.learn.teachers import Teacher


@dataclass
class Settings:
    """What a run says about the place where its stages run. Nothing here changes a number.

    Attributes:
        store: Root of the store.
        sources: Where raw datasets lie, by dataset base; used by `prepare`.
        weights: Root of teacher weights for `teacher.weights: file`.
        threads: CPU threads a process; the same everywhere, since sums depend on it in the last bit.
        device: `auto`, `cpu` or `cuda`.
        loader_timeout: Seconds without a batch after which a loader counts as stalled.
        group_readable: Whether the account's group may read what is written.
        checkpoint_minutes: Between two checkpoints of a stage.
    """

    store: str
    sources: dict[str, str] = field(default_factory=dict)
    weights: str | None = None
    threads: int = 1
    device: str = "auto"
    loader_timeout: float = 300.0
    group_readable: bool = False
    checkpoint_minutes: float = 10.0


@dataclass
class Outcome:
    """What a stage did: its cost, and for evaluations the numbers, the storage ledger and the origin of a row.

    `device` describes what computed it, where that is not the device of this process.
    """

    cost: dict[str, Any]
    numbers: dict[str, Any] = field(default_factory=dict)
    storage: list[dict[str, Any]] = field(default_factory=list)
    upstream: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass
class Context:
    """The inputs of a stage runner.

    Attributes:
        stage: What to run.
        inputs: Verified artifacts by role.
        dir: The attempt's directory; files written here are published.
        settings: The place.
        device: Where to compute.
        progress: Called with (done, total) now and then.
        micro_batches: Parts that a training cuts each batch into, after its memory ran out.
        checkpoint: Where an interrupted attempt goes on.
        tasks: Those of this job, which train together; only the first one writes.
    """

    stage: Stage
    inputs: dict[str, Artifact]
    dir: Path
    settings: Settings
    device: torch.device
    progress: Callable[[int, int], None]
    micro_batches: int = 1
    checkpoint: Checkpoint = field(default_factory=Never)
    tasks: Tasks = field(default_factory=Tasks)

    @property
    def spec(self) -> Any:
        """The stage's spec."""
        return self.stage.spec

    @property
    def dataset(self) -> Dataset:
        """Facts about the stage's dataset."""
        return dataset(self.spec.dataset)

    def roles(self, kind: str) -> list[Artifact]:
        """Inputs of one kind, in the order of their numbers."""
        roles = sorted(
            (r for r in self.inputs if r.partition(".")[0] == kind), key=lambda r: int(r.partition(".")[2] or 0)
        )
        return [self.inputs[r] for r in roles]

    def real(self, split: str) -> RealImages:
        """A split of the prepared dataset, decoded already if it fits in memory.

        Decoding and the loader's compilation are paid here, before a stage's own work is timed.
        """
        from suite.data.loader import open_split

        real = open_split(self.inputs["prepare"].path, split, self.spec.loader, self.settings.loader_timeout)
        if real.fits:
            real.tensor()
        return real

    def external(self) -> External | None:
        """What the distilled set among the inputs was delivered as; None if the suite made it."""
        return External.load(self.inputs["synthesis"].path) if "synthesis" in self.inputs else None

    def teachers(self) -> list[Teacher]:
        """The teachers among the inputs, else those that a set from elsewhere brought; frozen, on the device."""
        from suite.learn.teachers import load_teacher

        found = [(a.manifest["spec"]["arch"], a.path / "weights.safetensors") for a in self.roles("teacher")]
        if not found and (external := self.external()) is not None:
            folder = self.inputs["synthesis"].path
            found = [(arch, folder / teacher_file(i)) for i, arch in enumerate(external.teachers)]
        return [load_teacher(arch, self.dataset, path=path, device=self.device) for arch, path in found]

    @contextmanager
    def training(self) -> Iterator[tuple[Ranks, dict[str, Any]]]:
        """The processes that train together inside the block, and what it costs: filled in when the block ends.

        Raises:
            SuiteError: As another task failed, if it was that one.
            Preempted: If a task was asked to leave before they met.
        """
        with (
            self.tasks.training(self.device) as ranks,
            metered(self.device, self.checkpoint, ranks.size) as cost,
        ):
            yield ranks, cost


def compute(context: Context) -> Outcome:
    """Run a stage."""
    runner = importlib.import_module(f"suite.stages.{context.stage.kind}")
    with torch.random.fork_rng(devices=[context.device] if context.device.type == "cuda" else []):
        # Nothing draws from the global generator; a forgotten draw is at least the same every time.
        torch.manual_seed(0)
        outcome: Outcome = runner.run(context)
    return outcome


@contextmanager
def metered(device: torch.device, checkpoint: Checkpoint | None = None, tasks: int = 1) -> Iterator[dict[str, Any]]:
    """Measure a computation: device-synchronised seconds and peak memory, filled in when the block ends.

    Args:
        device: Where it runs.
        checkpoint: Where it goes on, if it does. Seconds of earlier attempts, up to the checkpoint that was taken, are
            added; the largest peak counts. Seconds in which checkpoints were written stand beside, as
            `checkpoint_seconds`: how often that happens is a property of the place.
        tasks: Devices that compute together. Seconds are those of all of them; how long it took stands beside, as
            `wall_seconds`. Peak memory is that of one.
    """
    cost: dict[str, Any] = {}
    checkpoint = checkpoint or Never()
    gc.collect()
    synchronise(device)
    reset = reset_peak_memory(device)
    begin, name = time.monotonic(), device_info(device)["name"]

    def measure() -> dict[str, Any]:
        synchronise(device)
        before = checkpoint.before
        seconds = time.monotonic() - begin - checkpoint.spent
        found = {"seconds": seconds * tasks + before.get("seconds", 0.0), **peak_memory(device)}
        if tasks > 1:
            found |= {"wall_seconds": seconds + before.get("wall_seconds", 0.0), "tasks": tasks}
        found["device"] = ", ".join(sorted({*filter(None, before.get("device", "").split(", ")), name}))
        found["peak_memory_bytes"] = max(found["peak_memory_bytes"], before.get("peak_memory_bytes", 0))
        if spent := checkpoint.spent + before.get("checkpoint_seconds", 0.0):
            found["checkpoint_seconds"] = spent
        return found

    checkpoint.measure = measure
    yield cost
    cost |= measure()
    if not reset:
        cost["peak_memory_kind"] += " of the whole process"


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_info(device: torch.device) -> dict[str, Any]:
    """Type, name and thread count of a device, and whether its convolutions may use TF32, for records."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        name = next((ln.partition(":")[2].strip() for ln in lines if ln.startswith("model name")), "cpu")
    found = {"type": device.type, "name": name, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["tf32"] = torch.backends.cudnn.allow_tf32
    return found


def costs(artifacts: Iterable[Artifact]) -> dict[str, dict[str, Any]]:
    """Costs of stages by their keys."""
    return {a.key: a.record().cost for a in artifacts}


def summed(each: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One cost for several stages: seconds and counts added, the largest peak memory, the devices' names.

    Args:
        each: Costs by key. They are kept under `each`, so that a stage that serves twice is counted once.
    """
    if not each:
        return {}
    parts = list(each.values())
    total: dict[str, Any] = {"seconds": sum(c["seconds"] for c in parts)}
    for name in ("image_iterations", "forward_images", "images"):
        total[name] = sum(c.get(name, 0) for c in parts)
    largest = max(parts, key=lambda c: c.get("peak_memory_bytes", 0))
    total |= {k: largest[k] for k in ("peak_memory_bytes", "peak_memory_kind") if k in largest}
    total["device"] = ", ".join(sorted({str(c.get("device", "")) for c in parts}))
    return total | {"each": dict(each)}
