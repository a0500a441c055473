"""What a compute node runs: stages of a run directory, one after another in one process.

    python -m suite.work RUN_DIR INDEX[,INDEX...]

Short stages share a process, since a fresh one costs seconds of imports and of loader compilation; each still has its
own attempt, artifact and record. A stage that is already published is left alone; one that fails does not stop the
next. On SIGUSR2 or SIGTERM the running stage saves a checkpoint after its present step, and the process leaves; the
next attempt goes on from there.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from suite.errors import InfraError, NumericError, OutOfMemory, Parser, SuiteError, UserError, debug, guarded
from suite.failures import classified
from suite.faults import fault_point
from suite.preemption import Notice, Preempted, noticing
from suite.provenance import code, provenance
from suite.spec.keys import plain
from suite.spec.stages import Stage, stage_from_json
from suite.store import Artifact, Attempt, Record, Store
from suite.store.artifacts import Corrupt
from suite.store.attempts import Blocked, is_current, job, open_inputs, patience
from suite.store.checkpoints import checkpoint_folder, discard_checkpoints
from suite.store.files import read_json, share_with_group
from suite.store.retries import CUTTABLE, decide

if TYPE_CHECKING:
    from suite.learn.checkpoint import Checkpoint
    from suite.stages.context import Settings
    from suite.stages.tasks import Tasks


def main() -> int:
    """Parse, run, and leave with 0 if every stage is published, else 1."""
    parser = Parser(prog="python -m suite.work", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory, as written by suite.launch")
    parser.add_argument("indices", help="stage indices, separated by commas")
    arguments = parser.parse_args()
    try:
        indices = [int(i) for i in arguments.indices.split(",")]
    except ValueError as error:
        raise UserError(f"{arguments.indices!r} is not a list of indices", hint="e.g. 0,1,2") from error
    try:
        return run_pack(str(arguments.run), indices)
    except Preempted as error:
        _say(f"{error}; the next attempt goes on")
        return 128 + error.signum


def run_pack(run_dir: str, indices: list[int], notice: Notice | None = None, tasks: int = 1) -> int:
    """Run some stages of a run directory. Returns 0 if all are published, 1 if any failed.

    Args:
        run_dir: The run directory.
        indices: Positions of the stages in it.
        notice: Whether the process was asked to leave; by default signals are taken note of here.
        tasks: Of this Slurm job, of which this process is one: they train each stage together.

    Raises:
        InfraError: If several tasks do not find each other.
        UserError: If the run directory or an index does not exist.
        Preempted: If a signal asked the process to leave.
    """
    run = Path(run_dir)
    settings = _settings(run)
    stages = _stages(run, indices)
    set_threads(settings.threads)
    if settings.group_readable:
        share_with_group()
    from suite.stages.tasks import met

    store = Store(settings.store)
    results: list[bool] = []
    with noticing() if notice is None else nullcontext(notice) as notice:
        try:
            with met(run, tasks, settings.loader_timeout, notice) as team:
                for stage in stages:
                    results.append(run_stage(stage, store, settings, notice, team))
        except Preempted as left:
            left.stages = len(results)
            raise
    return 0 if all(results) else 1


def run_stage(
    stage: Stage, store: Store, settings: Settings, notice: Notice | None = None, tasks: Tasks | None = None
) -> bool:
    """Bring one stage to its published state, in batches of half the size if its memory runs out.

    Args:
        stage: The stage.
        store: Where it is published.
        settings: The place.
        notice: Whether the process was asked to leave.
        tasks: Those of this job; one by default. All but the first follow it.

    Returns:
        Whether it is published now.

    Raises:
        Preempted: If a signal asked the process to leave.
    """
    from suite.stages.following import follow
    from suite.stages.tasks import Order, Tasks

    notice, tasks = notice or Notice(), tasks or Tasks()
    notice.leave()
    _say(f"{stage.kind} {stage.key} {stage.label()}")
    fault_point(stage.kind, "start")
    if not tasks.leads:
        return follow(stage, store, settings, tasks)
    published = _bring(stage, store, settings, notice, tasks)
    tasks.order(Order(0, published))
    return published


def _bring(stage: Stage, store: Store, settings: Settings, notice: Notice, tasks: Tasks) -> bool:
    from suite.stages.devices import free_memory

    if _failed_here(stage, store):
        _say("  failed in this task before it was requeued: launch again with --retry")
        return False
    parts = _micro_batches(stage, store)
    if _attempt(stage, store, settings, parts, notice, tasks):
        return True
    again = _micro_batches(stage, store)
    if parts > 1 or again == 1:
        return False
    _say(f"  out of memory: again, with batches in {again} parts")
    free_memory()
    return _attempt(stage, store, settings, again, notice, tasks)


def _failed_here(stage: Stage, store: Store) -> bool:
    """Whether this task, before it was requeued, has failed at this stage in a way that would come again."""
    if not int(os.environ.get("SLURM_RESTART_COUNT") or 0) or (store.home(stage.kind, stage.key) / "out").exists():
        return False
    try:
        history = store.failures(stage.kind, stage.key)
    except (OSError, ValueError, TypeError):
        return False  # an older failure that cannot be read changes nothing about this attempt
    return any(record.job == job() for record in history) and not decide(history).retry


def _micro_batches(stage: Stage, store: Store) -> int:
    try:
        return decide(store.failures(stage.kind, stage.key)).micro_batches
    except (OSError, ValueError, TypeError):
        return 1  # an older failure that cannot be read changes nothing about this attempt


def _attempt(stage: Stage, store: Store, settings: Settings, micro_batches: int, notice: Notice, tasks: Tasks) -> bool:
    """One try at a stage. Returns whether it is published now; if not, a record says why."""
    inputs: dict[str, Artifact] = {}
    begin = time.monotonic()
    try:
        from suite.stages.context import Context, compute, device_info
        from suite.stages.devices import usable_device
        from suite.stages.tasks import Order, trains

        device = usable_device(settings.device if _computes(stage) else "cpu", tasks.gpu)
        inputs = open_inputs(store, stage, patience())
        if _finished(stage, store, inputs):
            _say("  already published")
            discard_checkpoints(store, stage)
            return True
        begin = time.monotonic()
        with Attempt(store, stage, inputs) as attempt:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            place = f"{device.type} {micro_batches}" + (f" {tasks.size}" if tasks.size > 1 else "")
            checkpoint = _checkpoint(stage, inputs, attempt, settings, place, notice)
            progress = _Progress(stage, checkpoint)
            context = Context(stage, inputs, attempt.dir, settings, device, progress, micro_batches, checkpoint, tasks)
            if trains(stage):
                tasks.order(Order(micro_batches))
            outcome = compute(context)
            fault_point(stage.kind, "computed")
            record = _record(stage, "done", begin, started)
            found = outcome.device or device_info(device)
            record.device = found | {"precision": getattr(stage.spec, "precision", "fp32")}
            record.cost, record.numbers = outcome.cost, outcome.numbers
            record.storage, record.upstream = outcome.storage, outcome.upstream
            record.resumed = checkpoint.attempts
            record.provenance |= outcome.provenance | ({"tasks": tasks.size} if tasks.size > 1 else {})
            attempt.publish(record)
    except Exception as error:
        notice.leave()  # children have got the signal too: what fails behind it may be its doing
        tasks.failed(error)
        if inputs and _finished(stage, store, inputs):  # another attempt was faster; parts or checkpoints went with it
            _say(f"  published by another attempt; this one ended with: {classified(error).line()}")
            return True
        # The one place where any failure becomes a record: siblings go on, and the report shows the hole.
        if debug() or not isinstance(error, SuiteError | OSError | MemoryError):
            traceback.print_exception(error)
        _record_failure(stage, store, inputs, _advised(classified(error), stage, micro_batches), begin)
        if isinstance(error, NumericError):
            discard_checkpoints(store, stage)  # a later attempt would go on behind the NaN
        return False
    if stage.shards > 1:
        _finished(stage, store, inputs)
    _say(f"  published after {time.monotonic() - begin:.1f} s")
    return True


def _finished(stage: Stage, store: Store, inputs: dict[str, Artifact]) -> bool:
    """Whether nothing is left to do: the stage, or the synthesis of a shard, is published. Merged parts are removed."""
    whole = stage.whole()
    if whole is not stage and _already(whole, store, inputs):
        return True
    if not _already(stage, store, inputs):
        return False
    for part in stage.parts():
        store.discard(part.kind, part.key)
    return True


def _already(stage: Stage, store: Store, inputs: dict[str, Artifact]) -> bool:
    """Whether a valid artifact, made from the present inputs, is published; others are moved away."""
    try:
        if is_current(store.open(stage.kind, stage.key), inputs):
            return True
        why = "stale"
    except FileNotFoundError:
        return False
    except Corrupt:
        why = "corrupt"
    store.quarantine(stage.kind, stage.key, why)
    return False


def _computes(stage: Stage) -> bool:
    """Whether a stage uses a device: preparing and merging need no GPU, and run where there is none."""
    return stage.kind != "prepare" and stage.shards <= 1


def _checkpoint(
    stage: Stage, inputs: dict[str, Artifact], attempt: Attempt, settings: Settings, place: str, notice: Notice
) -> Checkpoint:
    """Where the stage goes on, if an earlier attempt from the same inputs left something there."""
    from suite.learn.checkpoint import Checkpoint

    about = {
        "attempt": attempt.name,
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **code(),
    }
    folder = checkpoint_folder(attempt.store, stage, inputs, place)
    seconds = 60 * settings.checkpoint_minutes
    return Checkpoint(folder, seconds, kind=stage.kind, notice=notice, attempt=about)


def _advised(error: SuiteError, stage: Stage, micro_batches: int) -> SuiteError:
    """A lack of memory with the peak, and what helps in this kind of stage."""
    if not isinstance(error, OutOfMemory):
        return error
    from suite.stages.devices import peak_memory

    peak = peak_memory()
    what = f"{error.what}; peak {peak['peak_memory_bytes'] / 1e9:.2f} GB {peak['peak_memory_kind']}"
    if stage.kind not in CUTTABLE:
        what += f"; a {stage.kind} is not cut into smaller batches, its batch is part of what it computes"
    elif micro_batches > 1:
        what += f", with batches in {micro_batches} parts"
    return OutOfMemory(what, where=error.where, hint=error.hint)


def _record(stage: Stage, status: str, begin: float, started: str) -> Record:
    spec = plain(stage.spec)
    record = Record(stage.kind, stage.key, "", status, spec)  # type: ignore[arg-type]
    record.started = started
    record.seconds = time.monotonic() - begin
    record.provenance = provenance(loader=_loader_used(stage), seed=spec.get("seed"))
    return record


def _loader_used(stage: Stage) -> str | None:
    """The loader that read real images in this stage; None where the stage reads none."""
    return getattr(stage.spec, "loader", None) if "prepare" in stage.inputs else None


def _record_failure(stage: Stage, store: Store, inputs: dict[str, Artifact], error: SuiteError, begin: float) -> None:
    from suite.stages.devices import peak_memory

    status = "diverged" if isinstance(error, NumericError) else "blocked" if isinstance(error, Blocked) else "failed"
    record = _record(stage, status, begin, datetime.now(UTC).isoformat(timespec="seconds"))
    record.failure = {"kind": error.kind, "message": error.line()[:2000]}
    if not error.of_node:
        record.failure["place"] = "everywhere"
    if isinstance(error, Blocked):
        record.failure["stage"] = error.stage
    record.cost = peak_memory()
    try:
        Attempt(store, stage, inputs).fail(record, error.place if any(error.place) else None)
    except InfraError as lost:  # the disk that failed the stage takes no record either; the log has both
        _complain(f"no record: {lost.line()}")
    _complain(f"{status} ({error.kind}): {error.line()}")


def _no_run(file: Path, error: Exception) -> UserError:
    what = f"{error.strerror}" if isinstance(error, OSError) else str(error)
    return UserError(f"not a run directory: {what}", where=str(file), hint="suite.launch writes one")


def _settings(run: Path) -> Settings:
    from pydantic import TypeAdapter

    from suite.stages.context import Settings

    try:
        known = {f.name for f in fields(Settings)}
        data = {k: v for k, v in read_json(run / "settings.json").items() if k in known}
        return TypeAdapter(Settings).validate_python(data)
    except (OSError, ValueError, AttributeError) as error:
        raise _no_run(run / "settings.json", error) from error


def _stages(run: Path, indices: list[int]) -> list[Stage]:
    import json

    wanted = set(indices)
    found: dict[int, Stage] = {}
    path, number = run / "stages.jsonl", -1
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if number in wanted:
                    found[number] = stage_from_json(json.loads(line))
    except OSError as error:
        raise _no_run(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"not a stage: {what}", where=f"{path}:{number + 1}", hint="launch the grid again") from error
    if missing := wanted - set(found):
        raise UserError(f"no stage {min(missing)} in this run", where=str(run))
    return [found[i] for i in indices]


def set_threads(threads: int) -> None:
    """Fix the CPU threads of this process, before torch is imported for the first time where that is possible."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk that takes no line of the log stops nothing else
        print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", flush=True)


def _complain(text: str) -> None:
    with suppress(OSError):
        print(f"  {text}", file=sys.stderr, flush=True)


class _Progress:
    """Prints a line of progress at most every ten seconds; where stages without checkpoints leave when asked to."""

    def __init__(self, stage: Stage, checkpoint: Checkpoint) -> None:
        self.stage, self.checkpoint, self.last = stage, checkpoint, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if not self.checkpoint.used:
            fault_point(self.stage.kind, "step")
            self.checkpoint.notice.leave()
        if time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            _say(f"  {self.stage.kind} {done}/{total}")


if __name__ == "__main__":
    guarded(main)
