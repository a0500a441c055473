"""Prepare a dataset: check its source, write betons or folders, publish them in the store.

python -m suite.prepare cifar10 --source cifar10.tar.xz
python -m suite.prepare digits

What is prepared is a copy: a source that changes later changes no number until it is prepared `--again`.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from suite.errors import Parser, UserError, directory, guarded
from suite.spec.datasets import REGISTRY, Dataset, dataset
from suite.spec.keys import plain
from suite.spec.stages import Stage

if TYPE_CHECKING:
    from suite.store import Artifact, Store


def variant(name: str, classes: int | None, subset: int | None, size: int | None) -> Dataset:
    """The dataset that a name and the flags ask for.

    Raises:
        UserError: If the name is unknown, or a flag contradicts a suffix of the name.
    """
    facts = dataset(name)
    base = REGISTRY[facts.base]
    tail = ""
    for letter, flag, suffix, default in (
        ("c", classes, facts.classes if f"-c{facts.classes}" in name else None, base.classes),
        ("n", subset, facts.per_class, None),
        ("s", size, facts.size if f"-s{facts.size}" in name else None, base.size),
    ):
        if flag is not None and suffix is not None and flag != suffix:
            raise UserError(f"{name!r} says -{letter}{suffix} and a flag says {flag}")
        if flag is not None and suffix is None and flag == default:
            continue  # the dataset as it is has no suffix
        if (value := suffix if flag is None else flag) is not None:
            tail += f"-{letter}{value}"
    return dataset(facts.base + tail)


def main() -> int:
    """Parse, prepare, publish, print."""
    arguments = _parser().parse_args()
    from suite.data.prepare import prepare_spec
    from suite.store import Store

    facts = variant(arguments.name, arguments.classes, arguments.subset, arguments.size)
    stage = Stage.make("prepare", prepare_spec(facts.name, arguments.format))
    store = Store(arguments.store)
    artifact = _existing(store, stage)
    if artifact is not None and not arguments.again:
        print(f"already prepared: {facts.name}")
    else:
        if arguments.source is None and facts.base != "digits":
            raise UserError(f"{facts.name} needs a source", hint="add --source DIR_OR_TAR")
        if arguments.source is not None and not arguments.source.exists():
            raise UserError("no such directory or tar", where=str(arguments.source))
        artifact = _prepare(store, stage, facts, arguments, artifact)
    _show(artifact)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m suite.prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help=f"a dataset ({', '.join(REGISTRY)}), optionally with suffixes: tinyimagenet-c20")
    parser.add_argument("--source", type=Path, help="directory or tar with train/CLASS/file and val/CLASS/file")
    parser.add_argument("--subset", type=int, metavar="N", help="the first N training images of each class (-nN)")
    parser.add_argument("--size", type=int, metavar="S", help="side in pixels of what networks see (-sS)")
    parser.add_argument("--classes", type=int, metavar="K", help="the first K classes (-cK)")
    parser.add_argument("--format", choices=("beton", "folder"), default="beton", help="folder: loader torchvision")
    parser.add_argument("--again", action="store_true", help="from a source that may have changed, in place of the old")
    parser.add_argument("--store", type=directory, default=Path("results/store"), help="default: %(default)s")
    parser.add_argument("--jobs", type=_positive, metavar="N", help="decoding threads; no value changes the result")
    parser.add_argument("--timeout", type=_positive, default=300, help="seconds without progress that count as a stall")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _existing(store: Store, stage: Stage) -> Artifact | None:
    """The published artifact if it verifies; a corrupt one is moved away."""
    from suite.store.artifacts import Corrupt

    try:
        return store.open(stage.kind, stage.key)
    except FileNotFoundError:
        return None
    except Corrupt as error:
        moved = store.quarantine(stage.kind, stage.key, "corrupt")
        print(f"corrupt, moved to {moved}: {error.what}")
        return None


def _prepare(
    store: Store, stage: Stage, facts: Dataset, arguments: argparse.Namespace, old: Artifact | None
) -> Artifact:
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from suite.data.loader import read_info
    from suite.provenance import provenance
    from suite.stages.context import Context, Settings, device_info
    from suite.stages.prepare import run
    from suite.store import Attempt, Record

    settings = Settings(store=str(arguments.store), loader_timeout=arguments.timeout)
    if arguments.source is not None:
        settings.sources[facts.base] = str(arguments.source)
    cpu = torch.device("cpu")
    begin, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    console = Console(stderr=True)
    progress_bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with Attempt(store, stage, {}) as attempt, progress_bar as bar:
        task = bar.add_task(facts.name, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        outcome = run(Context(stage, {}, attempt.dir, settings, cpu, progress), arguments.jobs)
        record = Record("prepare", stage.key, "", "done", plain(stage.spec), started=started, cost=outcome.cost)
        record.seconds = time.monotonic() - begin
        record.device = device_info(cpu)
        record.provenance = provenance() | {"source": str(arguments.source or "embedded")}
        if old is None:
            return attempt.publish(record)
        if read_info(old.path) == read_info(attempt.dir):
            print("the source holds the same images: nothing was replaced")
            return old
        artifact = attempt.publish(record, supersede=True)
        print("the source holds other images: the old ones are in quarantine/, and what used them is stale")
        return artifact


def _show(artifact: Artifact) -> None:
    from suite.data.loader import read_info

    info = read_info(artifact.path)
    files = artifact.manifest["files"].values()
    print(f"key      {artifact.key}")
    print(f"path     {artifact.path}")
    print(f"classes  {len(info['classes'])}")
    print(f"images   {sum(info['train'])} train, {sum(info['val'])} val, {info['stored']} px, {info['format']}")
    print(f"bytes    {sum(size for size, _ in files)}")
    if not info["complete"]:
        print(f"notice   not the whole of {info['name']}: the registry counts other images; compare with care")


if __name__ == "__main__":
    guarded(main)
