"""Where a stage is being worked on, and how far the shards of a synthesis are."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from suite.cluster.query import Task
from suite.cluster.runs import Run
from suite.spec.stages import Stage
from suite.store import Store

Node = tuple[str, str]


def running_at(attempts: Iterable[Path], task: Task | None) -> str:
    """Where a stage is being worked on, by its attempts' directories; empty if nowhere.

    An attempt of this host counts while its process lives. One of another host counts while Slurm has its task
    running; a directory alone may be what a killed attempt left.
    """
    for path in attempts:
        host, pid = attempt_host(path)
        if host == socket.gethostname():
            if pid.isdigit() and Path(f"/proc/{pid}").exists():
                return f"{host}, process {pid}"
        elif task is not None and task.live and not task.waiting:
            return f"{host}, job {task.job}_{task.index}"
    return ""


def attempt_host(path: Path) -> tuple[str, str]:
    """Host and process of an attempt: `<count>-<job>-<restart>-<host>-<pid>-<random>`; a host may hold dashes."""
    rest, _, _ = path.name.rpartition("-")
    head, _, pid = rest.rpartition("-")
    return head.split("-", 3)[-1], pid


def running_shards(
    store: Store, stages: Mapping[Node, Stage], runs: Sequence[Run], tasks: Sequence[Task]
) -> dict[Node, str]:
    """Syntheses with shards that are worked on, and how far these are.

    Args:
        store: The store.
        stages: Stages that are not published, by (kind, key).
        runs: Runs that may have cut them, newest first.
        tasks: What Slurm knows.
    """
    running: dict[str, list[Task]] = {}
    for task in tasks:
        if task.word == "running":
            running.setdefault(task.name, []).append(task)
    found: dict[Node, str] = {}
    for run in runs:
        here: dict[Node, list[Task]] = {}
        for array in run.arrays:
            if array.kind == "shard":
                here |= {run.keys[i]: [] for pack in array.packs for i in pack if run.keys[i] not in here}
                for task in running.get(array.name, ()):
                    for i in array.packs[task.index] if task.index < len(array.packs) else ():
                        here[run.keys[i]].append(task)
        cut = _cut(run) if here.keys() & stages.keys() - found.keys() else {}
        for node, count in cut.items():
            if node in stages and node in here and node not in found:
                found[node] = _progress(store, stages[node], count, here[node])
    return {node: said for node, said in found.items() if said}


def _cut(run: Run) -> dict[Node, int]:
    """The syntheses that a run cut, and into how many shards."""
    with (run.path / "stages.jsonl").open(encoding="utf-8") as lines:
        cut = [json.loads(line) for line in lines if '"shards"' in line]
    return {(s["kind"], s["key"]): s["shards"] for s in cut if "shards" in s}


def _progress(store: Store, stage: Stage, count: int, tasks: Sequence[Task]) -> str:
    """How far the shards of a synthesis are; empty if none is worked on."""
    keys = [part.key for part in replace(stage, shards=count).parts()]
    made = store.published("shard", keys)
    attempts = (store.attempts("shard", key) for key in keys if key not in made)
    places = [place for found in attempts if (place := running_at(found, None))]
    places += [f"job {task.job}_{task.index}" for task in tasks]
    return f"{len(made)} of {count} shards are made, {len(places)} run: {places[0]}" if places else ""
