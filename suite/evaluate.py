"""Score a distilled set that was made elsewhere: import it, train students on it, put it on the board as external.

    python -m suite.evaluate DIR --dataset D --ipc N --student S --protocol paper|matched [--name NAME] ...
    python -m suite.evaluate DIR --row KEY     # a row of an exported set again: same recipe, seed and labels

DIR holds one folder of images a class, a `train.beton` or a `distilled.safetensors`, and perhaps a label file and the
weights of teachers. Students are trained by the suite's own evaluation stage.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from suite.errors import Parser, UserError, directory, guarded
from suite.spec.archs import check_arch
from suite.spec.datasets import Dataset, dataset
from suite.spec.recipes import Labels
from suite.spec.stages import EvaluationSpec, Loader, Precision, Protocol, Stage
from suite.store import Artifact, Store

if TYPE_CHECKING:
    from suite.exchange.card import CardRow
    from suite.exchange.delivered import Delivered
    from suite.exchange.scoring import Inputs
    from suite.stages.context import Settings

#: What `--row` decides; given beside it, they would contradict it.
_OWN = ("dataset", "ipc", "student", "protocol", "recipe", "labels", "set")


def main(argv: list[str] | None = None) -> int:
    """Parse, import, plan, run, print."""
    arguments = _parse(argv)
    from suite.exchange.scoring import check_name

    name = check_name(arguments.name or _own_name(arguments.dir))
    card = _row(arguments) if arguments.row else None
    row = card.spec if card else None
    facts = dataset(row.dataset if row else arguments.dataset)
    ipc = row.ipc if row else arguments.ipc
    loader = row.loader if row else arguments.loader
    store, settings = Store(arguments.store), _settings(arguments)
    prepare = _prepared(store, facts, loader, settings, arguments.store)
    keys, files = _teachers(arguments.teacher, store)
    delivered = _read(arguments, facts, ipc, prepare, row, keys, files)
    from suite.exchange.delivered import import_set
    from suite.exchange.scoring import Inputs

    imported = import_set(store, delivered, facts.name, ipc, arguments.dir.resolve().name)
    inputs = Inputs(prepare.key, imported.key, tuple(keys))
    stages = _stages(arguments, name, row, delivered, inputs)
    return _run(stages, store, settings, card)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m suite.evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dir", type=directory, metavar="DIR", help="the distilled set")
    parser.add_argument("--dataset", help="the dataset that it stands for, named as in grids")
    parser.add_argument("--ipc", type=_positive, metavar="N", help="images a class")
    parser.add_argument("--student", nargs="+", metavar="S", help="architectures to train")
    parser.add_argument("--protocol", nargs="+", choices=get_args(Protocol), help="how students are trained")
    parser.add_argument("--recipe", metavar="METHOD", help="method whose student recipe protocol paper takes")
    parser.add_argument("--seed", nargs="+", type=_seed, metavar="K", help="seeds of students; default: 0")
    parser.add_argument("--name", help="on leaderboards; default: the name of DIR")
    parser.add_argument("--labels", choices=get_args(Labels), help="default: those that DIR brings")
    parser.add_argument(
        "--label-file", type=Path, metavar="FILE", help="default: labels.safetensors or labels.npy in DIR"
    )
    parser.add_argument(
        "--teacher", nargs="+", default=[], metavar="T", help="label teachers: keys of the store, or ARCH=FILE"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="student.NAME=VALUE or label.NAME=VALUE"
    )
    parser.add_argument("--row", metavar="KEY", help="train as this row of DIR's card was trained")
    parser.add_argument("--store", type=directory, default=Path("results/store"), help="default: %(default)s")
    parser.add_argument("--loader", choices=get_args(Loader), default="ffcv", help="default: %(default)s")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="default: %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument("--threads", type=_positive, default=1, help="CPU threads; default: %(default)s")
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    return arguments


def _check(parser: Parser, arguments: argparse.Namespace) -> None:
    given = [f"--{name}" for name in _OWN if getattr(arguments, name)]
    if arguments.row and given:
        parser.error(f"--row says how the student is trained, so {', '.join(given)} cannot")
    needed = [f"--{name}" for name in ("dataset", "ipc", "student", "protocol") if not getattr(arguments, name)]
    if not arguments.row and needed:
        parser.error(f"{', '.join(needed)} missing, or --row KEY for a row of the set's card")
    for arch in arguments.student or []:
        check_arch(arch, "--student")
    if not arguments.dir.is_dir():
        raise UserError("no such directory", where=str(arguments.dir))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed: 0 to 2147483648 are allowed")
    return int(text)


def _own_name(folder: Path) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._")[:64]


def _settings(arguments: argparse.Namespace) -> Settings:
    from suite.stages.context import Settings
    from suite.work import set_threads

    set_threads(arguments.threads)
    return Settings(store=str(arguments.store), threads=arguments.threads, device=arguments.device)


def _row(arguments: argparse.Namespace) -> CardRow:
    """The row of the set's card that `--row` names."""
    from suite.exchange.card import CARD, read_rows

    rows = read_rows(arguments.dir)
    found = [row for row in rows if row.key.startswith(arguments.row)]
    if len(found) != 1:
        hint = f"rows of this card: {', '.join(row.key for row in rows) or 'none'}"
        raise UserError(f"{len(found)} rows begin with {arguments.row!r}", where=str(arguments.dir / CARD), hint=hint)
    if not found[0].current:
        print(f"notice: row {found[0].key} was made by another version of the suite; its number may differ")
    return found[0]


def _prepared(store: Store, facts: Dataset, loader: str, settings: Settings, root: Path) -> Artifact:
    """The prepared dataset; the embedded digits are prepared here."""
    from suite.data.prepare import prepare_spec
    from suite.work import run_stage

    form = "beton" if loader == "ffcv" else "folder"
    stage = Stage.make("prepare", prepare_spec(facts.name, form))
    if facts.base == "digits" and not run_stage(stage, store, settings):
        raise UserError("the digits could not be prepared", where=str(root))
    try:
        return store.open("prepare", stage.key)
    except FileNotFoundError:
        flags = [] if form == "beton" else ["--format", form]
        command = ["python", "-m", "suite.prepare", facts.name, "--source", "DIR_OR_TAR", *flags, "--store", str(root)]
        raise UserError(f"{facts.name} is not prepared", where=str(root), hint=shlex.join(command)) from None


def _teachers(words: Sequence[str], store: Store) -> tuple[list[tuple[str, str]], list[tuple[str, Path]]]:
    """Label teachers as (architecture, key) of the store, or as (architecture, file): all of one kind."""
    from suite.exchange.subject import find

    files = [(check_arch(a, "--teacher"), Path(f)) for a, equals, f in (w.partition("=") for w in words) if equals]
    if files and len(files) < len(words):
        raise UserError("keys and files of teachers together", where="--teacher", hint="keys only, or ARCH=FILE only")
    for _, file in files:
        if not file.is_file():
            raise UserError("no such weight file", where=str(file), hint="--teacher ARCH=FILE, or the key of a teacher")
    if files:
        return [], files
    found = [store.open(*find(store, word, ("teacher",))) for word in words]
    return [(a.manifest["spec"]["arch"], a.key) for a in found], []


def _read(
    arguments: argparse.Namespace,
    facts: Dataset,
    ipc: int,
    prepare: Artifact,
    row: EvaluationSpec | None,
    keys: list[tuple[str, str]],
    files: list[tuple[str, Path]],
) -> Delivered:
    from suite.data.loader import read_info
    from suite.exchange.delivered import read
    from suite.exchange.publish import verify

    verify(arguments.dir)
    classes = read_info(prepare.path)["classes"]
    return read(
        arguments.dir,
        facts,
        classes,
        ipc,
        labels=row.labels if row else arguments.labels,
        label_file=arguments.label_file,
        teachers=files,
        relabelled=bool(keys or files),
    )


def _stages(
    arguments: argparse.Namespace, name: str, row: EvaluationSpec | None, delivered: Delivered, inputs: Inputs
) -> list[Stage]:
    import dataclasses

    from suite.exchange.scoring import Request, again, plan

    if row is not None:
        seeds = arguments.seed or [row.seed]
        return [s for k in seeds for s in again(dataclasses.replace(row, seed=k), name, delivered, inputs)]
    a = arguments
    return [
        stage
        for student in a.student
        for protocol in a.protocol
        for seed in a.seed or [0]
        for stage in plan(
            Request(name, a.dataset, a.ipc, student, protocol, seed, a.recipe, tuple(a.set), a.loader, a.precision),
            delivered,
            inputs,
        )
    ]


def _run(stages: list[Stage], store: Store, settings: Settings, card: CardRow | None) -> int:
    from suite.work import run_stage

    failed = 0
    for stage in stages:
        if not run_stage(stage, store, settings):
            failed += 1
        elif stage.kind == "evaluation":
            record = store.open("evaluation", stage.key).record()
            accuracy = record.numbers["accuracy_last"]
            print(f"row {stage.key} {stage.label()} (external): {accuracy:.2f} %")
            if card is not None and record.spec["seed"] == card.spec.seed:
                same = "the same" if accuracy == card.accuracy else f"there {card.accuracy:.2f} %"
                print(f"  as row {card.key} of the card: {same}")
    print(f"next: {shlex.join(['python', '-m', 'suite.report', '--store', str(store.root)])}")
    return 1 if failed else 0


if __name__ == "__main__":
    guarded(main)
