"""What was cancelled, and which tasks of other grids a grid counts on: small files beside the runs.

Slurm forgets a job minutes after it ended, and a site may have no accounting. What `--cancel` stops, and what a later
launch finds to have been stopped by `scancel`, is therefore written down: `cancelled.json` of a run lists stages, which
are held back, for this grid alone, until `--retry cancelled` submits them again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from suite.cluster.runs import new_run_id
from suite.errors import InfraError
from suite.store import Store
from suite.store.files import read_json, write_json

Node = tuple[str, str]
FILE, AWAITS = "cancelled.json", "awaits.json"


def remember(run: Path, nodes: Mapping[Node, str]) -> None:
    """Write down that stages of a run were cancelled, and how."""
    if nodes:
        _write(run / FILE, _read(run / FILE) | dict(nodes))


def forget(runs: Iterable[Path], nodes: Collection[Node]) -> None:
    """Strike stages, e.g. those that are submitted again, from the lists of what was cancelled."""
    for run in runs:
        known = _read(run / FILE)
        if known.keys() & set(nodes):
            _write(run / FILE, {n: why for n, why in known.items() if n not in nodes})


def _write(path: Path, nodes: Mapping[Node, str]) -> None:
    stages = [[kind, key, why] for (kind, key), why in sorted(nodes.items())]
    write_json(path, {"schema": 1, "stages": stages})


def cancelled_stages(store: Store, grid: str, run: str = "*") -> dict[Node, str]:
    """Stages of a grid, or of one of its runs, that were cancelled and not submitted again, and how."""
    found: dict[Node, str] = {}
    for path in sorted((store.root / "runs" / grid).glob(f"{run}/{FILE}")):
        found |= _read(path)
    return found


def grid_runs(store: Store, grid: str) -> list[Path]:
    """Directories of a grid's runs, oldest first."""
    return sorted((store.root / "runs" / grid).glob("*"))


def _read(path: Path) -> dict[Node, str]:
    try:
        return {(kind, key): str(why) for kind, key, why in read_json(path)["stages"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise InfraError(
            f"cannot read what was cancelled: {error}", where=str(path), hint="remove the file to forget it"
        ) from error


def note_awaited(store: Store, grid: str, tasks: Collection[tuple[str, int]]) -> None:
    """Write down that this grid counts on other grids' tasks, so that they are not cancelled with their grid.

    Args:
        store: The store.
        grid: Name of the plan.
        tasks: (job, index) of tasks that other grids submitted.
    """
    if tasks:
        write_json(store.root / "runs" / grid / new_run_id(store) / AWAITS, {"schema": 1, "tasks": sorted(tasks)})


def awaited_by_others(store: Store, grid: str) -> dict[tuple[str, int], str]:
    """Tasks by (job, index) that launches of other grids count on, and the grid that does."""
    found: dict[tuple[str, int], str] = {}
    for path in (store.root / "runs").glob(f"*/*/{AWAITS}"):
        if (other := path.parts[-3]) != grid:
            with suppress(FileNotFoundError):  # its grid was cancelled a moment ago
                found |= {(str(job), int(index)): other for job, index in read_json(path)["tasks"]}
    return found


def stop_awaiting(store: Store, grid: str) -> None:
    """A cancelled grid counts on nothing any more."""
    for path in (store.root / "runs" / grid).glob(f"*/{AWAITS}"):
        path.unlink(missing_ok=True)
