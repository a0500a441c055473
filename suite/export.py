"""Give a distilled set away: images, labels and a card, in a form that others train on.

    python -m suite.export KEY --to imagefolder|beton|safetensors [--out DIR]
    python -m suite.export --list

KEY, or a unique beginning of one, is that of a synthesis (images and classes), of a relabelling (with its labels), or
of a row (with everything that its student learnt from; the teachers' weights, if they label views online).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from suite.errors import Parser, directory, guarded, one_line
from suite.store import Store

if TYPE_CHECKING:
    from suite.exchange.subject import Subject

TO = ("imagefolder", "beton", "safetensors")


def main(argv: list[str] | None = None) -> int:
    """Parse, open, write, publish, print."""
    arguments = _parse(argv)
    store = Store(arguments.store)
    if arguments.list:
        return _list(store)
    from suite.exchange.bundle import export
    from suite.exchange.subject import open_subject

    subject = open_subject(store, arguments.key)
    target = arguments.out or Path("exports") / _name(subject, arguments.to)
    new, files = export(store, subject, arguments.to, target)
    print(f"{'exported' if new else 'already exported'} {subject.kind} {subject.key}: {target}")
    print(f"  {len(files)} files, {sum(size for size, _ in files.values())} bytes; start with {target / 'README.md'}")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m suite.export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("key", nargs="?", metavar="KEY", help="of a synthesis, relabelling or row, or its beginning")
    parser.add_argument("--to", choices=TO, help="form of the images; none of them changes a pixel")
    parser.add_argument("--out", type=directory, metavar="DIR", help="a new directory; default: exports/NAME")
    parser.add_argument("--list", action="store_true", help="print the keys that can be exported")
    parser.add_argument("--store", type=directory, default=Path("results/store"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if not arguments.list and not (arguments.key and arguments.to):
        parser.error("KEY and --to are needed, or --list")
    return arguments


def _name(subject: Subject, form: str) -> str:
    spec = subject.spec
    return f"{spec['method']}-{spec['dataset']}-ipc{spec['ipc']}-{subject.labels}-{subject.key[:8]}-{form}"


def _list(store: Store) -> int:
    """Print kind, key and name of everything that can be exported."""
    kinds = {kind: sorted(store.published(kind)) for kind in ("synthesis", "relabel", "evaluation")}
    if not any(kinds.values()):
        print(f"nothing to export in {store.root} - --store DIR names another store")
    for kind, keys in kinds.items():
        for key in keys:
            spec = store.manifest(kind, key)["spec"]  # perhaps of an older version
            words = [spec.get(name) for name in ("method", "dataset", "labels", "teacher", "student", "protocol")]
            words += [f"{name} {spec[name]}" for name in ("ipc", "seed") if name in spec]
            print(f"{kind:<10}  {key}  {' '.join(one_line(w) for w in words if w)}")
    return 0


if __name__ == "__main__":
    guarded(main)
