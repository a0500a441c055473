"""A site for tests: a real Slurm or scripts alone, a toy grid, and what was submitted and published."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

from suite.grid import Plan, load_plan
from suite.leaderboard.gather import from_plan, from_store
from suite.leaderboard.rows import CELL, Rows
from suite.store import Store
from tests.cluster.conftest import SlurmCluster
from tests.cluster.toys import ROOT, command, run, toy_grid, toy_profile
from tests.faults.commands import Commands

#: States of jobs that go on; what is COMPLETING has been ended, perhaps by somebody.
LIVE = "PENDING,CONFIGURING,RUNNING"


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
        return own | {"PATH": self.commands.path, "SUITE_TOY_HOLD": str(self.folder / "hold")} | more

    def hold(self, what: str) -> None:
        """Let no attempt at stages of this kind, or of this key, get anywhere, until `release`."""
        (self.folder / "hold").mkdir(exist_ok=True)
        (self.folder / "hold" / what).touch()

    def release(self, what: str) -> None:
        """Let them go on."""
        (self.folder / "hold" / what).unlink()

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

    def jobs_in_slurm(self, states: str = "all") -> dict[str, str]:
        """Names of this site's jobs by id, as squeue knows them; it forgets jobs some minutes after their end."""
        assert self.cluster is not None
        lines = self.cluster.call("squeue", "--noheader", f"--states={states}", "--format=%F|%j").splitlines()
        return self._own(lines)

    def jobs_ever(self) -> dict[str, str]:
        """Names of this site's jobs by id: what accounting knows, which forgets nothing, and what is too new for it."""
        assert self.cluster is not None
        words = ("-X", "-n", "-P", "--starttime=now-1days", "--format=JobID,JobName")
        return self._own(self.cluster.call("sacct", *words).splitlines()) | self.jobs_in_slurm()

    def _own(self, lines: Iterable[str]) -> dict[str, str]:
        names = {a["name"] for a in self.arrays()}
        jobs = (line.partition("|") for line in lines)
        return {job.partition("_")[0]: name for job, _, name in jobs if name in names}

    def ends(self) -> dict[str, set[str]]:
        """States in which accounting has each task of this site, by `job_index`; those before a requeue, too."""
        assert self.cluster is not None
        words = ("-D", "-X", "-n", "-P", "--format=JobID,State", "-j", ",".join(self.jobs_ever()))
        seen: dict[str, set[str]] = {}
        for line in self.cluster.call("sacct", *words).splitlines():
            task, _, state = line.partition("|")
            seen.setdefault(task, set()).update(state.split()[:1])
        return seen

    def packs(self) -> dict[str, list[list[str]]]:
        """Keys of the stages of each task, by the name of the array."""
        found = {}
        for path in self.store.root.glob("runs/*/*/logs/*/packs.json"):
            run, body = path.parents[2], json.loads(path.read_text())
            keys = [json.loads(line)["key"] for line in (run / "stages.jsonl").read_text().splitlines()]
            found[path.parent.name] = [[keys[i] for i in pack] for pack in body["packs"]]
        return found

    def submissions(self) -> Counter[int]:
        """How often each stage of the grid was really submitted, by position: in jobs that Slurm has, or had."""
        packs, positions = self.packs(), {s.key: i for i, s in enumerate(self.plan.stages)}
        return Counter(positions[key] for name in self.jobs_ever().values() for pack in packs[name] for key in pack)

    def publications(self) -> Counter[str]:
        """How often an attempt at each stage said that it published, by key."""
        found: Counter[str] = Counter()
        for path in self.store.root.glob("runs/*/*/logs/*/*_log.out"):
            found.update(re.findall(r"^published \w+ (\w+)$", path.read_text(), re.MULTILINE))
        return found

    def rows(self) -> Rows:
        """What the report makes its leaderboards of."""
        plan = self.plan
        return from_plan(self.store, plan.stages, plan.cells, plan.cell_keys, plan.excluded)

    def assert_published_once(self, failed: Collection[str] = (), killed: Collection[str] = ()) -> None:
        """Every stage has one artifact, made by one attempt, with nothing left over, and the report has each row once.

        Args:
            failed: Keys of stages that left records of failed attempts.
            killed: Keys of stages whose processes were killed: what they left behind may stay for `suite.clean`.
        """
        if self.cluster:  # the slower of two attempts at a stage leaves nothing behind either, once it is through
            wait_for(lambda: not self.jobs_in_slurm("RUNNING,CONFIGURING,COMPLETING"))
        for stage in self.plan.stages:
            artifact, home = self.store.open(stage.kind, stage.key), self.store.home(stage.kind, stage.key)
            assert (artifact.path / "data.bin").read_text() == f"{stage.kind} {stage.key}"
            left = {p.name for p in home.iterdir()} - {"out", "verified.json", "attempts", "failed"}
            left |= set() if stage.key in killed else {p.name for p in home.glob("attempts/*")}
            assert not left, f"{stage.label()}: {left}"
            assert stage.key in failed or not list(home.glob("failed/*")), stage.label()
        keys, published = [s.key for s in self.plan.stages], self.publications()
        assert {key: published[key] for key in keys} == dict.fromkeys(keys, 1), "one attempt published each"
        self.assert_rows_once()

    def assert_rows_once(self) -> None:
        """The report has one row for each cell of the grid, and no cell twice, whoever asked for it."""
        rows, whole = self.rows(), from_store(self.store)
        assert not (gaps := [*rows.holes, *rows.refused, *whole.refused]), gaps[:3]
        assert sorted(rows.frame["key"]) == sorted(s.key for s in self.plan.stages if s.kind == "evaluation")
        assert not whole.frame.duplicated([*CELL, "seed"]).any() and whole.frame["key"].is_unique
        assert set(rows.frame["key"]) <= set(whole.frame["key"])

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
        if self.cluster and (jobs := self.jobs_in_slurm(LIVE)):
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
