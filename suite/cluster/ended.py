"""What became of tasks that left neither an artifact nor a record: Slurm's word for it, if Slurm remembers it.

squeue remembers a task that began for some minutes, accounting (if the site has it) for ever. A task that is cancelled
while it waits in an array leaves no trace in either: one that is gone from the queue and never began, since there is no
log of it, was cancelled, unless it waited for a stage that did not come. Where nothing tells, nothing is assumed: the
stage counts as not submitted and runs again with the next launch. What somebody stopped by `scancel` is written down
beside its run; what died with its node, or was killed for its memory, gets the record of a failed attempt that it could
not write itself, so that retries are counted and the node is avoided.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from suite.cluster.cancelled import remember
from suite.cluster.query import QueryFailed, Task, call
from suite.cluster.requeue import IN_ORDER, STALLED, how_left
from suite.cluster.runs import Array, Run
from suite.cluster.words import word
from suite.spec.keys import plain
from suite.spec.stages import Stage, input_kind
from suite.store import Attempt, Record, Store

Node = tuple[str, str]
_ID = re.compile(r"(\d+)(?:_(?:(\d+)|\[([\d,:-]+)(?:%\d+)?\]))?")
#: What slurmstepd and srun write into the log of a task that the kernel killed for its memory, and where: at the end.
_OUT_OF_MEMORY = re.compile(rb"oom[_-]kill|: Out Of Memory")
_TAIL = 16_384
#: Marks a record that the task could not write itself.
_BLAMED = "slurm_state"
#: Arrays that accounting is asked about in one launch, newest first.
_MOST_ARRAYS = 200
#: States after which another node may do better.
_OF_THE_NODE = ("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "FAILED")


def note_ended(
    runs: Sequence[Run], stages: Mapping[Node, Stage], tasks: Sequence[Task], store: Store, cancelled: bool = True
) -> tuple[bool, str]:
    """Find out how tasks of unfinished stages ended, and write down what they did not.

    Args:
        runs: Runs of this grid, newest first.
        stages: Stages that are neither published nor in flight.
        tasks: What squeue knows, ended tasks included.
        store: Stages with an attempt that ended by itself are left alone: its record says more.
        cancelled: Whether to note what was stopped by `scancel`.

    Returns:
        Whether anything was written down, and why accounting could not be asked, where it was needed and did not
        answer.
    """
    newest = _newest(runs, stages)
    ends, note = _ends(newest, tasks)
    by_run: dict[str, dict[Node, str]] = {}
    died: dict[tuple[str, int], tuple[Run, Array]] = {}
    for node, (run, array, index) in newest.items():
        job = str(array.job)
        state, _ = ends.get((job, index), ("", ""))
        if word(state) == "failed":
            died[job, index] = run, array
        elif not cancelled or _recorded(store, node, f"{job}_{index}"):
            continue
        elif word(state) == "cancelled":
            by_run.setdefault(str(run.path), {})[node] = f"job {job}_{index} is {state}"
        elif (job, index) not in ends and not_begun(run, array, index, stages):
            by_run.setdefault(str(run.path), {})[node] = never_began(f"{job}_{index}")
    for run in runs:
        remember(run.path, by_run.get(str(run.path), {}))
    _drop([t for t in tasks if t.state == "LAUNCH_FAILED" and (t.job, t.index) in died])
    wrote = [_blame(store, stages, run, array, place, *ends[place]) for place, (run, array) in died.items()]
    return bool(by_run) or any(wrote), note


def not_begun(run: Run, array: Array, index: int, lost: Mapping[Node, Stage]) -> bool:
    """Whether a task that is gone from the queue was cancelled while it waited: it has no log, and no reason to go.

    One that followed another array has one: when the task that it follows is forgotten before Slurm looks at it
    (`correspond_after_task_cnt`), Slurm judges by the whole array, and removes it if any task of that failed.

    Args:
        run: The run that submitted it.
        array: Its array.
        index: Its index.
        lost: Stages that are neither published nor in flight. Slurm removes a task that waits for one of them.
    """
    pack = [run.keys[i] for i in array.packs[index]]
    needs = {(input_kind(role), key) for n in pack if n in lost for role, key in lost[n].inputs.items()}
    if array.job is None or needs & (lost.keys() - set(pack)):
        return False
    followed = [a for a in run.arrays if a.job == array.follows] if array.follows else []
    if any(run.keys[i] in lost for a in followed for pack in a.packs for i in pack):
        return False
    return next((run.logs / array.name).glob(f"{array.job}_{index}_*_log.*"), None) is None


def never_began(job: str) -> str:
    """The reason that is shown for a task that was cancelled while it waited."""
    return f"job {job} left the queue without having begun"


def _ends(
    newest: Mapping[Node, tuple[Run, Array, int]], tasks: Sequence[Task]
) -> tuple[dict[tuple[str, int], tuple[str, str]], str]:
    """State and node of each ended task by (job, index): squeue's word, else accounting's."""
    # What Slurm removed since its input failed was not cancelled by anybody; accounting does not know it at all.
    ends = {(t.job, t.index): ("" if t.reason == "DependencyNeverSatisfied" else t.state, t.node) for t in tasks}
    arrays = {a.job: a for _, a, _ in newest.values() if a.job}
    unknown = sorted({str(a.job) for _, a, i in newest.values() if a.job and (a.job, i) not in ends}, key=int)
    if unknown:
        try:
            accounts = accounted(unknown[-_MOST_ARRAYS:], arrays)
            return {(job, i): (state, node) for job, i, state, node in accounts} | ends, ""
        except QueryFailed as error:
            return ends, f"accounting was not asked: {error.what}"
    return ends, ""


def _drop(held: Sequence[Task]) -> None:
    """Cancel tasks that wait for somebody to release them: their stages are submitted again."""
    if held:
        call(["scancel", *(f"{t.job}_{t.index}" for t in held)])


def _blame(
    store: Store, stages: Mapping[Node, Stage], run: Run, array: Array, place: tuple[str, int], state: str, node: str
) -> bool:
    """Record the failure of the stage at which a task died: the first that it left without artifact and record."""
    job, index = f"{place[0]}_{place[1]}", place[1]
    left = how_left(run.path, job, array.packs[index][0])
    if left == IN_ORDER:
        return False
    for key in (run.keys[i] for i in array.packs[index]):
        if (store.home(*key) / "out").is_dir():
            continue
        failures = [r.failure or {} for r in store.failures(*key) if r.job == job]
        stage = stages.get(key)
        if any(_BLAMED in f for f in failures) or (stage is None and not failures):
            return False
        if stage is None or (failures and not store.attempts(*key)):  # it failed by itself, and the task went on
            continue
        first = "OUT_OF_MEMORY" if _killed_for_memory(run, array, job) else state.split()[0].rstrip("+")
        record = Record(stage.kind, stage.key, "", "failed", plain(stage.spec))
        record.started = datetime.now(UTC).isoformat(timespec="seconds")
        where = f" on {node}" if node else ""
        message = f"job {job}{where} ended as {first} and left no record; logs in {run.logs / array.name}"
        record.failure = {"kind": "oom" if first == "OUT_OF_MEMORY" else "infra", "message": message, _BLAMED: first}
        of_node = first in _OF_THE_NODE and left != STALLED
        Attempt(store, stage, {}).fail(record, place=(node if of_node else "", job))
        return True
    return False


def _killed_for_memory(run: Run, array: Array, job: str) -> bool:
    """Whether a log ends with Slurm's word for it. Since 22.05 the job's own state is FAILED: its step ran out."""
    for path in (run.logs / array.name).glob(f"{job}_*_log.err"):
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL))
            if _OUT_OF_MEMORY.search(log.read()):
                return True
    return False


def _newest(runs: Sequence[Run], nodes: Collection[Node] | Mapping[Node, Stage]) -> dict[Node, tuple[Run, Array, int]]:
    """The newest task of each stage."""
    found: dict[Node, tuple[Run, Array, int]] = {}
    for run in runs:
        for array in reversed(run.arrays):
            for index, pack in enumerate(array.packs):
                for i in pack:
                    if run.keys[i] in nodes:
                        found.setdefault(run.keys[i], (run, array, index))
    return found


def _recorded(store: Store, node: Node, job: str) -> bool:
    """Whether an attempt of this task left a record of its own failure."""
    return any(record.job == job for record in store.failures(*node))


def accounted(jobs: Sequence[str], arrays: Mapping[str, Array]) -> Iterator[tuple[str, int, str, str]]:
    """(array job, index, state, node) of tasks that accounting knows, by one query.

    Raises:
        QueryFailed: If there is no accounting, or it does not answer.
    """
    text = call(["sacct", "-X", "-n", "-P", "--format=JobID,State,NodeList", "-j", ",".join(jobs)])
    for line in text.splitlines():
        name, _, rest = line.strip().partition("|")
        state, bar, node = rest.partition("|")
        match = _ID.fullmatch(name)
        if not bar or match is None or match[1] not in arrays:
            continue  # half a line, a banner, somebody else's job
        most = len(arrays[match[1]].packs)
        for index in _indices(match[2] or match[3] or "0"):
            if index < most:
                yield match[1], index, state, "" if node == "None assigned" else node


def _indices(text: str) -> Iterable[int]:
    """Indices of `3`, `1,4-9` and `0-8:2`."""
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?", part)
        if match:
            yield from range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1))
