"""Run directories: what a launch wrote down about the stages that it started.

<store>/runs/<grid>/<run id>/
    settings.json   what workers need to know about the place
    stages.jsonl    line i is stage i of this run
    keys.txt        its kind and key: what a look at a run needs, a thirtieth of the bytes
    jobs.json       the arrays: names, packs, and job ids once Slurm has given them
    submitting.json which process submits it, as long as one does
    adopted.json    job ids that a later launch found by the names, if this one died before it wrote them down
    logs/           what workers printed, and submitit's own files
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from suite.cluster.profile import Profile
from suite.cluster.show import plural
from suite.spec.stages import Stage
from suite.store import Store
from suite.store.files import patiently, read_json, write_bytes, write_json

#: Older runs are not looked at when asking Slurm what is still in flight.
RECENT = 50
_TIME = "%Y%m%dT%H%M%SZ"
_RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
_JOB_NAME = re.compile(rf"suite-({_RUN_ID.pattern})-")


@dataclass
class Array:
    """One submission: an array, or a single job if it has one pack.

    Attributes:
        name: Name of the job in Slurm; unique, and written down before submission, so that it is found again even if
            the launcher dies between the submission and the answer.
        kind: Kind of its stages.
        packs: Stages of each task, as positions in the run.
        job: Job id; None until Slurm has answered.
        follows: Job id of the array that its tasks follow one by one, by `aftercorr`.
    """

    name: str
    kind: str
    packs: list[list[int]]
    job: str | None = None
    follows: str | None = None


@dataclass
class Run:
    """One launch.

    Attributes:
        path: Its directory.
        cluster: `local` or `slurm`.
        arrays: What was submitted, in order.
        keys: (kind, key) of its stages, by position; of a shard, those of its synthesis.
    """

    path: Path
    cluster: str
    arrays: list[Array] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The run id: `new_run_id`."""
        return self.path.name

    @property
    def logs(self) -> Path:
        """Where workers' output goes."""
        return self.path / "logs"

    @property
    def grid(self) -> str:
        """Name of the plan that was launched."""
        return self.path.parent.name

    @cached_property
    def inputs(self) -> dict[tuple[str, str], dict[str, str]]:
        """Roles and keys of what each stage reads, by (kind, key)."""
        with (self.path / "stages.jsonl").open(encoding="utf-8") as lines:
            return {_node(s): s["inputs"] for s in map(json.loads, lines)}

    def save(self) -> None:
        """Write `jobs.json`, durably: before every submission and after it."""
        body = {"schema": 1, "run": self.id, "cluster": self.cluster, "arrays": [vars(a) for a in self.arrays]}
        write_bytes(self.path / "jobs.json", (json.dumps(body, sort_keys=True) + "\n").encode())

    def adopt(self, jobs: Mapping[str, str]) -> int:
        """Take over job ids of arrays whose launch died before it wrote them down.

        They go into a file of their own: a launch that lives after all may be writing `jobs.json`.

        Args:
            jobs: Job ids by name, as Slurm knows them.

        Returns:
            How many arrays were adopted.
        """
        found = {a.name: jobs[a.name] for a in self.arrays if a.job is None and a.name in jobs}
        if found:
            write_json(self.path / "adopted.json", found | _adopted(self.path))
            for array in self.arrays:
                array.job = array.job or found.get(array.name)
        return len(found)


def new_run_id(store: Store) -> str:
    """UTC time and random hex: later than every run of this store, whatever the clocks of login nodes say.

    Which task of a stage is its newest is decided by this order. Where an earlier run is ahead of this host's clock,
    the new one is a second later than that.
    """
    now = f"{datetime.now(UTC):{_TIME}}"
    last = max((p.name[: len(now)] for p in _run_folders(store)), default="")
    if last >= now:
        now = f"{datetime.strptime(last, _TIME) + timedelta(seconds=1):{_TIME}}"
    return f"{now}-{secrets.token_hex(3)}"


def _run_folders(store: Store, name: str = "*") -> Iterator[Path]:
    return (p for p in (store.root / "runs").glob(f"{name}/*") if _RUN_ID.fullmatch(p.name))


def create_run(store: Store, name: str, stages: list[Stage], profile: Profile) -> Run:
    """Make the directory of a new run.

    Args:
        store: The store.
        name: The plan's name.
        stages: What this run is to bring to its published state.
        profile: The place.
    """
    run = Run((store.root / "runs" / name / new_run_id(store)).absolute(), profile.cluster)
    run.keys = [(whole.kind, whole.key) for whole in (s.whole() for s in stages)]
    run.logs.mkdir(parents=True)
    write_json(run.path / "settings.json", profile.settings(store.root.absolute()))
    lines = "".join(json.dumps(s.to_json(), sort_keys=True, allow_nan=False) + "\n" for s in stages)
    write_bytes(run.path / "stages.jsonl", lines.encode())
    write_bytes(run.path / "keys.txt", "".join(f"{kind} {key}\n" for kind, key in run.keys).encode())
    return run


def _adopted(path: Path) -> dict[str, str]:
    try:
        return dict(read_json(path / "adopted.json"))
    except FileNotFoundError:
        return {}


def run_keys(path: Path) -> list[tuple[str, str]]:
    """(kind, key) of a run's stages; from the stages themselves in runs that were begun before there was `keys.txt`."""
    try:
        words = [line.partition(" ") for line in (path / "keys.txt").read_text().splitlines()]
        return [(kind, key) for kind, _, key in words]
    except FileNotFoundError:
        with (path / "stages.jsonl").open(encoding="utf-8") as lines:
            return [_node(s) for s in map(json.loads, lines)]


def _node(stage: dict[str, Any]) -> tuple[str, str]:
    """What a line of `stages.jsonl` brings about: a shard, its synthesis."""
    return ("synthesis", stage["of"]) if "of" in stage else (stage["kind"], stage["key"])


def load_run(path: Path) -> Run | None:
    """Read a run's directory; None if its launch did not get as far as naming its jobs."""
    try:
        body: Any = read_json(path / "jobs.json")
        run = Run(path, body["cluster"], [Array(**a) for a in body["arrays"]])
        adopted = _adopted(path)
        for array in run.arrays:
            array.job = array.job or adopted.get(array.name)
        run.keys = run_keys(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run


def recent_runs(store: Store, name: str | None = None) -> list[Run]:
    """The newest runs, newest first.

    Args:
        store: The store.
        name: Of one plan only; all plans by default, since they share stages.
    """
    newest = sorted(_run_folders(store, name or "*"), key=lambda p: p.name, reverse=True)
    return list(islice((run for p in newest if (run := load_run(p)) is not None), RECENT))


def any_in_slurm(store: Store) -> bool:
    """Whether any launch ever submitted to Slurm: if not, there is nothing to ask it, nor perhaps anybody to ask."""
    names = sorted((store.root / "runs").glob("*/*/jobs.json"), key=lambda p: p.parent.name, reverse=True)
    return any(map(_in_slurm, names))


def _in_slurm(jobs: Path) -> bool:
    try:
        return b'"cluster": "slurm"' in patiently(jobs.read_bytes)
    except FileNotFoundError:
        return False
    except OSError:  # of another account, perhaps
        return True


def of_other_accounts(folders: Iterable[Path]) -> str:
    """A note if some of these runs were launched by others, whose jobs Slurm is not asked about; empty if none was."""
    others = {folder.stat().st_uid for folder in folders} - {os.getuid()}
    return f"jobs of {plural(len(others), 'other account')} were not asked about" if others else ""


def runs_of_jobs(store: Store, names: Iterable[str]) -> list[Run]:
    """The runs that submitted jobs of these names, however long ago; other programs' names find nothing."""
    ids = {m[1] for name in names if (m := _JOB_NAME.match(name))}
    folders = (p for run_id in sorted(ids) for p in (store.root / "runs").glob(f"*/{run_id}"))
    return [run for p in folders if (run := load_run(p)) is not None]
