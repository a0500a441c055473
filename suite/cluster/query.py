"""Asking Slurm: what is in flight, and how large an array may be. Every call is bounded in time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from suite.cluster.runs import Run, runs_of_jobs
from suite.cluster.words import LIVE, MOVING, word
from suite.errors import InfraError
from suite.store import Store

TIMEOUT = 30.0
#: How long Slurm may be silent before a launch that follows or fills its queue gives up (jobs go on).
SILENCE = 1800.0
#: Slurm's own default, assumed where `scontrol` does not say.
DEFAULT_MAX_ARRAY = 1001
#: Pauses while the epilog of a task runs that may be requeued.
_EPILOG = (2.0, 4.0, 8.0, 16.0, 30.0)
#: Variables that change what Slurm's own commands do and print.
SLURM_VARIABLES = ("SLURM_", "SQUEUE_", "SACCT_", "SCONTROL_", "SCANCEL_", "SINFO_", "SBATCH_", "SRUN_", "SALLOC_")
_FORMAT = "%F|%K|%T|%r|%N|%j"
#: Reasons of tasks that do not go on by themselves.
_STUCK = ("DependencyNeverSatisfied", "JobHeldAdmin", "JobHeldUser")
#: States of nodes that start no task for now.
_DOWN = re.compile(r"down|drain|drng|fail|maint|reboot|unknown|power(ed|ing)_down|future", re.IGNORECASE)
#: Reason of a task that its node could not start: it is requeued, and held until somebody releases it.
_LAUNCH_FAILED = ("launch failed requeued held", "launch_failed_requeued_held")


class QueryFailed(InfraError):
    """Slurm is absent or does not answer."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Task:
    """One task that Slurm knows.

    Attributes:
        job: Job id (of the array, for array tasks).
        index: Index in its array; 0 for a single job.
        state: Slurm's word, e.g. `PENDING`.
        reason: Why it waits.
        name: Job name.
        node: Where it runs, or ran; empty while it waits.
    """

    job: str
    index: int
    state: str
    reason: str
    name: str
    node: str = ""

    @property
    def waiting(self) -> bool:
        """Whether it has not started yet, or waits to start again."""
        return self.word not in ("running", "suspended")

    @property
    def word(self) -> str:
        """The suite's word for its state."""
        return word(self.state)

    @property
    def moving(self) -> bool:
        """Whether it goes on by itself."""
        return self.word in MOVING and self.reason not in _STUCK

    @property
    def live(self) -> bool:
        """Whether it may still bring something about."""
        return self.word in LIVE


def call(command: Sequence[str], timeout: float = TIMEOUT) -> str:
    """Run a Slurm command and return what it prints.

    Raises:
        QueryFailed: If it is missing, fails, or does not come back in time.
    """
    if shutil.which(command[0]) is None:
        raise QueryFailed(f"no {command[0]} on this machine", hint="run on a login node, or use `--profile local`")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise QueryFailed(f"{command[0]} did not answer within {timeout:g} s") from error
    if done.returncode:
        text = done.stderr.strip() or f"exit status {done.returncode}"
        raise QueryFailed(f"{command[0]}: {text.splitlines()[0]}")
    return done.stdout


def _environment() -> dict[str, str]:
    """This process's environment without what narrows or reformats answers (`SQUEUE_STATES`, `SLURM_CLUSTERS`)."""
    return {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(SLURM_VARIABLES)}


def jobs_named(name: str) -> list[str]:
    """Ids of this user's jobs of one name, those that ended a moment ago included.

    Raises:
        QueryFailed: If Slurm does not answer.
    """
    words = ["squeue", "--all", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--states=all", "--format=%F"]
    return sorted({line.strip() for line in call(words).splitlines() if line.strip().isdigit()}, key=int)


def parse_squeue(text: str) -> list[Task]:
    """Tasks from the lines of squeue; lines of another shape (banners, truncated answers) are left out."""
    tasks = []
    for line in text.splitlines():
        parts = line.strip().split("|", 5)
        if len(parts) == 6 and parts[0].isdigit():
            job, index, words, reason, node, name = parts
            state = "LAUNCH_FAILED" if reason in _LAUNCH_FAILED else " ".join(words.split()[:1]).upper()
            tasks.append(Task(job, int(index) if index.isdigit() else 0, state, reason, name, node))
    return tasks


def user_tasks() -> list[Task]:
    """This user's tasks that Slurm knows, those that ended some minutes ago included, in one query.

    Raises:
        QueryFailed: If Slurm does not answer.
    """
    text = call(
        # Without `--all` tasks in hidden partitions are left out, one's own, too.
        ["squeue", "--all", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--format={_FORMAT}"]
    )
    if text and not text.endswith("\n"):  # tasks that are left out would count as gone
        raise QueryFailed("squeue answered half a line")
    return parse_squeue(text)


def tasks_after_epilogs(store: Store, nodes: Collection[tuple[str, str]]) -> list[Task]:
    """`user_tasks`, when none that holds one of these stages is just ending: what is requeued waits again then.

    An epilog is waited for, a minute at most; each look is one more query.

    Raises:
        QueryFailed: If Slurm does not answer.
    """
    tasks = user_tasks()
    for pause in _EPILOG:
        ending = [t for t in tasks if t.word == "ending"]
        if in_flight(runs_of_jobs(store, {t.name for t in ending}), ending).keys().isdisjoint(nodes):
            break
        time.sleep(pause)
        tasks = user_tasks()
    return tasks


def live_tasks() -> list[Task]:
    """This user's tasks that wait or run, in one query.

    Raises:
        QueryFailed: If Slurm does not answer.
    """
    return [t for t in user_tasks() if t.live]


def partition_nodes() -> dict[str, set[str]]:
    """Names of the nodes of each partition that are up, hidden ones included; `""` is the default partition.

    Raises:
        QueryFailed: If Slurm does not answer.
    """
    found: dict[str, set[str]] = {}
    for line in call(["sinfo", "--all", "--noheader", "--Node", "--format=%N|%P|%T"]).splitlines():
        node, partition, state = [*line.strip().split("|"), "", ""][:3]
        if partition and not _DOWN.match(state):
            for name in [partition.rstrip("*"), *([""] if partition.endswith("*") else [])]:
                found.setdefault(name, set()).add(node)
    return found


def in_flight(runs: Iterable[Run], tasks: Sequence[Task]) -> dict[tuple[str, str], Task]:
    """Stages that tasks of these runs will bring about, by (kind, key).

    Jobs are recognised by their names, which a launch writes down before it submits: a launcher that was killed
    before it learnt the job id is found again.
    """
    by_name: dict[str, list[Task]] = {}
    for task in tasks:
        by_name.setdefault(task.name, []).append(task)
    found: dict[tuple[str, str], Task] = {}
    for run in runs:
        for array in reversed(run.arrays):  # a synthesis is there when its merge is through, not its shards
            for task in by_name.get(array.name, ()):
                if task.index < len(array.packs):
                    for i in array.packs[task.index]:
                        found.setdefault(run.keys[i], task)
    return found


def max_array_size() -> int:
    """How many tasks an array may have on this site: Slurm's MaxArraySize bounds the index."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"]), re.MULTILINE)
    return max(1, int(match[1]) if match else DEFAULT_MAX_ARRAY)
