"""A site for tests: a real Slurm or scripts alone, a toy grid, and what was submitted and published."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from suite.grid import Plan, load_plan
from suite.store import Store
from tests.cluster.conftest import SlurmCluster
from tests.cluster.toys import ROOT, command, run, toy_grid, toy_profile
from tests.faults.commands import Commands


class ToySite:
    """A grid of toy stages that is launched through counted commands.

    Args:
        folder: Where grid, profile, store and commands lie.
        cluster: The real Slurm; None for a site that exists in scripts only.
        seeds: Seeds of the grid, which has 1 + 2 x seeds x ipc stages.
        ipc: IPCs of the grid.
        more: As for `make`; fields of the profile.
    """

    def __init__(self, folder: Path, cluster: SlurmCluster | None, seeds: int = 3, ipc: int = 1, **more: Any) -> None:
        self.folder, self.cluster = folder, cluster
        self.store = Store(folder / "store")
        self.commands = Commands(folder / "bin", alone=cluster is None)
        self.make(seeds, ipc, **more)

    def make(self, seeds: int = 3, ipc: int = 1, name: str = "toy", long: bool = False, **profile: object) -> None:
        """Write grid and profile anew."""
        self.grid = toy_grid(self.folder, seeds, ipc, name, long)
        self.profile = toy_profile(self.folder, **profile)
        self.plan: Plan = load_plan(self.grid)

    def environment(self, **more: str) -> dict[str, str]:
        """What a launch gets."""
        own = self.cluster.environment() if self.cluster else dict(os.environ)
        return own | {"PATH": self.commands.path} | more

    def start(self, *words: object, **environment: str) -> subprocess.Popen[str]:
        """Start a launch."""
        line = command("suite.launch", self.grid, "--profile", self.profile, "--store", self.store.root, *words)
        return subprocess.Popen(
            line, cwd=ROOT, env=self.environment(**environment), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def launch(self, *words: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a launch to its end."""
        process = self.start(*words, **environment)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def status(self) -> list[dict[str, Any]]:
        """Every stage, as `suite.status --json` has it."""
        words = (self.grid, "--profile", self.profile, "--store", self.store.root, "--json")
        done = run("suite.status", *words, **self.environment())
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["stages"])

    def arrays(self) -> list[dict]:
        """The arrays of all runs, as their launches wrote them down."""
        found: list[dict] = []
        for path in sorted(self.store.root.glob("runs/*/*/jobs.json")):
            found += json.loads(path.read_text())["arrays"]
        return found

    def jobs_in_slurm(self) -> dict[str, str]:
        """Names of this site's jobs by id, as Slurm knows them."""
        assert self.cluster is not None
        names = {a["name"] for a in self.arrays()}
        lines = self.cluster.call("squeue", "--noheader", "--states=all", "--format=%F|%j").splitlines()
        return {job: name for job, _, name in (line.partition("|") for line in lines) if name in names}

    def submissions(self) -> Counter[int]:
        """How often each stage of the grid was really submitted, by position: in jobs that Slurm has."""
        packs = {}
        for path in self.store.root.glob("runs/*/*/logs/*/packs.json"):
            run, body = path.parents[2], json.loads(path.read_text())
            keys = [json.loads(line)["key"] for line in (run / "stages.jsonl").read_text().splitlines()]
            packs[path.parent.name] = [keys[i] for pack in body["packs"] for i in pack]
        positions = {s.key: i for i, s in enumerate(self.plan.stages)}
        return Counter(positions[key] for name in self.jobs_in_slurm().values() for key in packs[name])

    def assert_published_once(self) -> None:
        """Every stage has one artifact, made by one attempt, with nothing left over, and rows are not duplicate."""
        for stage in self.plan.stages:
            artifact = self.store.open(stage.kind, stage.key)
            assert (artifact.path / "data.bin").read_text() == f"{stage.kind} {stage.key}"
            assert not list(self.store.home(stage.kind, stage.key).glob("quarantine/*")), stage.label()
        rows = [r.key for r in self.store.records("evaluation")]
        assert len(rows) == len(set(rows)) == sum(s.kind == "evaluation" for s in self.plan.stages)

    def fail_node(self, node: str) -> None:
        """Let a node go down; what runs on it is lost."""
        assert self.cluster is not None
        self.cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def repair_node(self, node: str) -> None:
        """Bring it back, unless it has come back by itself."""
        assert self.cluster is not None
        if "down" in self.cluster.call("sinfo", "--noheader", f"--nodes={node}", "--format=%T"):
            self.cluster.call("scontrol", "update", f"nodename={node}", "state=resume")

    def clear(self) -> None:
        """Cancel what is left in Slurm."""
        if self.cluster and (jobs := self.jobs_in_slurm()):
            self.cluster.call("scancel", *jobs)


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def some(names: Iterable[str], quick: str) -> list[object]:
    """Parameters of which all but one are left to the slow run: each waits for real jobs."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
