"""How alike the images of a class are: mean intra-class cosine similarity of a network's features, as DELT reports.

Reads the distilled sets of a grid that are in the store, and the grid's teacher of the given architecture on the same
dataset; runs nothing. One table a dataset and IPC, with a line for every way in which a set was made; its similarity
is the mean over seeds. Lower is more diverse. IPC 1 has no pairs and is left out.

python -m suite.bench diversity grids/decoupled.yaml --network resnet18 --json results/measured/diversity.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.errors import InfraError, UserError, directory

if TYPE_CHECKING:
    import torch

    from suite.grid import Plan
    from suite.spec.stages import Stage
    from suite.store import Store


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        method: Its name.
        teachers: Those of the synthesis, joined by +; empty for methods without.
        changed: Parameters in which it differs from another line of the same method and teachers.
        similarity: Mean over the sets, in [-1, 1].
        spread: Sample standard deviation over the sets; 0 for one.
        n: Distilled sets.
        images: Images of each.
    """

    method: str
    teachers: str
    changed: str
    similarity: float
    spread: float
    n: int
    images: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `suite.bench diversity`."""
    parser.add_argument("grid", type=Path, metavar="GRID")
    parser.add_argument("--variant", help="of the grid")
    parser.add_argument("--network", required=True, metavar="ARCH", help="a teacher of the grid, whose features count")
    parser.add_argument("--store", type=directory, default=Path("results/store"), help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the numbers there, e.g. results/measured/diversity.json")


def run(arguments: argparse.Namespace) -> int:
    """Measure every published set of the grid and print the tables."""
    import torch

    from suite.grid import load_plan
    from suite.store import Store

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InfraError("no CUDA device", hint="--device cpu")
    plan, store = load_plan(arguments.grid, variant=arguments.variant), Store(arguments.store)
    tables, sets, missing = measure(plan, store, arguments.network, torch.device(arguments.device))
    if not tables:
        raise UserError(
            f"the store has no distilled set of {plan.name} with two images a class ({missing} are not made)",
            where=str(arguments.store),
            hint=f"python -m suite.launch {arguments.grid}",
        )
    for (dataset, ipc), rows in tables.items():
        _print_table(dataset, ipc, arguments.network, rows)
    if missing:
        print(f"\n{missing} distilled sets of the grid are not in the store")
    if arguments.json:
        _write_json(arguments, tables, sets, missing)
    return 0


def measure(
    plan: Plan, store: Store, network: str, device: torch.device
) -> tuple[dict[tuple[str, int], list[Row]], dict[str, float], int]:
    """Similarities of the grid's published sets.

    Args:
        plan: The grid.
        store: Where its artifacts are.
        network: Architecture of the teacher whose features count.
        device: Where to compute.

    Returns:
        Rows by (dataset, IPC), the most diverse first; the similarity of each set by the key of its synthesis; and the
        number of sets that are not published.

    Raises:
        UserError: If the grid has no such teacher on a dataset, or it is not made yet.
        Corrupt: If an artifact does not verify.
    """
    from suite.data.distilled import DistilledSet
    from suite.learn.diversity import similarity

    stages = [s for s in plan.stages if s.kind == "synthesis" and s.spec.ipc > 1]  # type: ignore[union-attr]
    published = store.published("synthesis")
    teachers: dict[str, Any] = {}
    each: dict[str, float] = {}
    found: dict[tuple[str, int], dict[tuple[str, str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for stage in (s for s in stages if s.key in published):
        spec: Any = stage.spec
        if spec.dataset not in teachers:
            teachers[spec.dataset] = _teacher(plan, store, network, spec.dataset, device)
        distilled = DistilledSet.load(store.open("synthesis", stage.key).path / "distilled.safetensors")
        values = json.dumps(spec.params, sort_keys=True, default=str)
        name = (spec.method, "+".join(spec.teachers), values)
        each[stage.key] = similarity(teachers[spec.dataset], distilled)
        found[spec.dataset, spec.ipc][name].append(each[stage.key])
    missing = sum(s.key not in published for s in stages)
    return {place: _rows(sets, place) for place, sets in found.items()}, each, missing


def _teacher(plan: Plan, store: Store, network: str, name: str, device: torch.device) -> Any:
    """The grid's teacher of an architecture on a dataset, trained to its end."""
    from suite.learn.teachers import load_teacher
    from suite.spec.datasets import dataset

    def whole(stage: Stage) -> bool:
        spec: Any = stage.spec
        return spec.dataset == name and (spec.recipe is None or spec.recipe.stop is None)

    here = {s.spec.arch: s for s in plan.stages if s.kind == "teacher" and whole(s)}  # type: ignore[union-attr]
    if network not in here:
        raise UserError(
            f"{plan.name} has no teacher {network} on {name}", hint=f"--network: {', '.join(sorted(here)) or 'none'}"
        )
    try:
        artifact = store.open("teacher", here[network].key)
    except FileNotFoundError as error:
        raise UserError(
            f"the teacher {network} on {name} is not made yet", where=str(store.root), hint="launch the grid first"
        ) from error
    return load_teacher(network, dataset(name), path=artifact.path / "weights.safetensors", device=device)


def _rows(sets: dict[tuple[str, str, str], list[float]], place: tuple[str, int]) -> list[Row]:
    from suite.spec.datasets import dataset

    images = dataset(place[0]).classes * place[1]
    rows = []
    for (method, teachers, values), numbers in sets.items():
        alike = [json.loads(v) for m, t, v in sets if (m, t) == (method, teachers)]
        mine = json.loads(values)
        changed = [k for k in mine if any(other.get(k) != mine[k] for other in alike)]
        spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        text = ", ".join(f"{k}={mine[k]}" for k in changed)
        rows.append(Row(method, teachers, text, statistics.fmean(numbers), spread, len(numbers), images))
    return sorted(rows, key=lambda row: row.similarity)


def _print_table(dataset: str, ipc: int, network: str, rows: list[Row]) -> None:
    print(f"\n{dataset}, IPC {ipc}: cosine similarity within classes, features of {network}")
    print(f"{'method':<16}{'similarity':>11}{'':>9}{'n':>4}  teachers")
    for row in rows:
        spread = f"± {row.spread:.4f}" if row.n > 1 else ""
        note = f"  ({row.changed})" if row.changed else ""
        print(f"{row.method:<16}{row.similarity:>11.4f} {spread:>8}{row.n:>4}  {row.teachers or '-'}{note}")


def _write_json(
    arguments: argparse.Namespace, tables: dict[tuple[str, int], list[Row]], sets: dict[str, float], missing: int
) -> None:
    import torch

    from suite.provenance import provenance
    from suite.stages.context import device_info
    from suite.store.files import write_json

    value = {
        "benchmark": "diversity",
        "settings": {"grid": arguments.grid.name, "variant": arguments.variant, "network": arguments.network},
        "device": device_info(torch.device(arguments.device)),
        "results": [
            {"dataset": dataset, "ipc": ipc, "rows": [asdict(row) for row in rows]}
            for (dataset, ipc), rows in tables.items()
        ],
        "sets": sets,
        "missing": missing,
        "provenance": provenance(),
    }
    json.dumps(value)  # refuse before the file is touched
    write_json(arguments.json, value)
    print(f"written to {arguments.json}")
