"""Measure parts of the suite on this machine.

python -m suite.bench loader --source imagenette.tar --json results/measured/loader.json
"""

from __future__ import annotations

import importlib

from suite.errors import Parser, UserError, guarded

#: Subcommands: modules of suite.benchmarks with `add_arguments(parser)` and `run(arguments) -> int`.
BENCHMARKS = {
    "checkpoint": "what saving a stage's state costs at the default interval",
    "loader": "FFCV beside torchvision's ImageFolder and DataLoader",
    "diversity": "how alike the images of a class are, of every distilled set of a grid",
    "economy": "what E2D and its parts save: updates, forward passes and seconds an image",
    "report": "a report over very many rows: seconds and memory",
    "synthesis": "one synthesis step of each method beside the references' manner",
}


def main() -> int:
    """Parse and hand over to one benchmark."""
    parser = Parser(prog="python -m suite.bench", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    modules = {}
    for name, text in BENCHMARKS.items():
        modules[name] = importlib.import_module(f"suite.benchmarks.{name}")
        modules[name].add_arguments(commands.add_parser(name, help=text, description=modules[name].__doc__))
    arguments = parser.parse_args()
    if arguments.json is not None:  # whether it can be written is known before anything is measured
        try:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {arguments.json.parent}: {error.strerror}", where="--json") from error
    code: int = modules[arguments.benchmark].run(arguments)
    return code


if __name__ == "__main__":
    guarded(main)
