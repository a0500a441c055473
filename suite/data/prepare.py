"""Preparing a dataset: from a source to the files of a `prepare` artifact.

The work runs in one child process, which reports every sample. A child that dies, or reports nothing for `timeout`
seconds (a dead network file system, a spinning decoder), is an `InfraError`, never a hang.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from suite.data.listing import SPLITS, first_three
from suite.data.sources import Selection, open_source, select
from suite.data.writer import Samples, write_beton, write_folder
from suite.errors import DataError, InfraError, OutOfMemory, SuiteError, UserError
from suite.spec.datasets import REGISTRY, Dataset, dataset
from suite.spec.stages import PrepareSpec

Progress = Callable[[int, int], None]


def prepare_spec(name: str, format_: str) -> PrepareSpec:
    """The spec of preparing a dataset by its name in a grid; `format_` is `beton` or `folder`."""
    facts = dataset(name)
    kind: Any = format_
    return PrepareSpec(facts.name, facts.classes, facts.size, facts.stored, facts.per_class, kind)


def write_dataset(
    spec: PrepareSpec, source: Path | None, folder: Path, jobs: int, progress: Progress
) -> dict[str, Any]:
    """Write the files of a prepared dataset, in this process.

    Args:
        spec: What to prepare.
        source: Directory or tar; None for the embedded digits.
        folder: An existing, empty directory.
        jobs: Decoding threads. No value changes a byte.
        progress: Called with (images done, images in all).

    Returns:
        The content of `dataset.json`.

    Raises:
        DataError: If the source does not hold what the registry says, before anything is written; or if an image
            cannot be decoded, after every image was tried.
        InfraError: If the file system fails, or FFCV is missing.
    """
    facts = dataset(spec.dataset)
    with open_source(facts, source, folder) as opened:
        selection = select(facts, opened)
        sums, bad, done = {}, [], 0
        total = len(selection.train) + len(selection.val)
        places = {c: i for i, c in enumerate(selection.classes)}

        def tick() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        progress(0, total)
        for split in SPLITS:
            items = selection.split(split)
            samples = Samples(opened, items, [places[i.label] for i in items], spec.stored, jobs, tick)
            _write_split(spec, folder, split, samples, selection.classes)
            bad += samples.bad
            sums[split] = samples.digest
        if bad:
            raise unreadable(bad, opened.where)
        info = _info(spec, facts, selection, sums)
    text = json.dumps(info, sort_keys=True, indent=1)
    (folder / "dataset.json").write_text(text + "\n")
    return info


def _write_split(spec: PrepareSpec, folder: Path, split: str, samples: Samples, classes: list[str]) -> None:
    try:
        if spec.format == "beton":
            write_beton(folder / f"{split}.beton", samples)
        else:
            write_folder(folder / split, samples, classes)
    except OSError as error:
        need = len(samples) * 3 * spec.stored**2
        what = f"cannot write {split} (up to {need} bytes): {error.strerror or error}"
        raise InfraError(what, where=str(folder)) from error


def _info(spec: PrepareSpec, facts: Dataset, selection: Selection, sums: dict[str, str]) -> dict[str, Any]:
    """The content of dataset.json. It depends on the images and the spec only, not on where they were found."""
    counts = {s: selection.counts(s) for s in SPLITS}
    base = REGISTRY[facts.base]
    complete = sum(counts["val"]) == facts.val and (
        facts.per_class is not None or sum(counts["train"]) == facts.train or base.train == 0
    )
    return {
        "name": spec.dataset,
        "classes": selection.classes,
        **counts,
        "format": spec.format,
        "size": spec.size,
        "stored": spec.stored,
        # Whether the counts are those of the registry; a development pack of a larger dataset is not complete.
        "complete": complete,
        "source": {f"{s}_sha256": sums[s] for s in SPLITS},
    }


def unreadable(bad: list[str], where: str) -> DataError:
    """The error that names the first three images that could not be decoded."""
    return DataError(f"{len(bad)} unreadable images: {first_three(bad)}", where=where)


def prepare_into(
    spec: PrepareSpec,
    source: Path | None,
    folder: Path,
    *,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
    timeout: float = 300.0,
) -> dict[str, Any]:
    """`write_dataset` in a watched child process.

    Raises:
        InfraError: Also if the child dies, or reports no progress for `timeout` seconds.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, spec, source, folder, jobs), daemon=True)
    child.start()
    theirs.close()
    name = f"prepare {spec.dataset}"
    at = 0
    try:
        while True:
            if not ours.poll(timeout):
                raise InfraError(f"no progress for {timeout:g} s after {at} images", where=name)
            try:
                kind, value = ours.recv()
            except EOFError:
                child.join(10)
                raise InfraError(f"the writer died after {at} images ({_ending(child.exitcode)})", where=name) from None
            if kind == "progress":
                at = value[0]
                progress(*value)
            elif kind == "done":
                return dict(value[0])
            else:
                child.join(2)  # killed in mid-exit, it would leave a warning of multiprocessing's behind
                raise _rebuilt(value)
    finally:
        ours.close()
        child.kill()
        child.join(10)


def _child(pipe: Connection, spec: PrepareSpec, source: Path | None, folder: Path, jobs: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _die_with_parent()
    last = 0.0

    def send(kind: str, *value: object) -> None:
        try:
            pipe.send((kind, value))
        except BrokenPipeError:
            os._exit(1)  # the parent is gone

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done in (0, total) or now - last > 0.2:
            last = now
            send("progress", done, total)

    try:
        send("done", write_dataset(spec, source, folder, jobs, progress))
    except SuiteError as error:
        send("failed", error.kind, error.what, error.where, error.hint)
    except MemoryError:
        send("failed", "oom", "the host ran out of memory", f"prepare {spec.dataset}", "lower --jobs")
    except OSError as error:
        send("failed", "infra", error.strerror or str(error), str(error.filename or source or folder), "")


def _die_with_parent() -> None:
    """End this process when its parent has ended, however it ended: nobody would publish what is written here."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _rebuilt(value: tuple[str, str, str, str]) -> SuiteError:
    kind, what, where, hint = value
    kinds: dict[str, type[SuiteError]] = {c.kind: c for c in (UserError, DataError, OutOfMemory, InfraError)}
    return kinds[kind](what, where=where, hint=hint)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
