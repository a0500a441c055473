"""What became of tasks that left neither an artifact nor a record: stopped by `scancel`, if Slurm remembers it.

squeue remembers for some minutes, accounting (if the site has it) for ever. Where neither knows, nothing is assumed:
the stage counts as not submitted and runs again with the next launch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from suite.cluster.cancelled import remember
from suite.cluster.query import QueryFailed, Task, call
from suite.cluster.runs import Array, Run
from suite.cluster.words import word
from suite.store import Store

Node = tuple[str, str]
_ID = re.compile(r"(\d+)(?:_(?:(\d+)|\[([\d,:-]+)(?:%\d+)?\]))?")
#: Arrays that accounting is asked about in one launch, newest first.
_MOST_ARRAYS = 200


def note_scancelled(
    runs: Sequence[Run], nodes: Collection[Node], tasks: Sequence[Task], store: Store
) -> tuple[set[Node], str]:
    """Find out which stages somebody stopped by `scancel`, and write it down beside their runs.

    Args:
        runs: Runs of this grid, newest first.
        nodes: Stages that are neither published nor in flight.
        tasks: What squeue knows, ended tasks included.
        store: Stages with an attempt that ended by itself are left out: its record says more.

    Returns:
        The stages, and why accounting could not be asked, where it was needed and did not answer.
    """
    newest = _newest(runs, nodes)
    words = {(t.job, t.index): t.state for t in tasks}
    arrays = {a.job: a for _, a, _ in newest.values() if a.job}
    unknown = sorted({str(a.job) for _, a, i in newest.values() if a.job and (a.job, i) not in words}, key=int)
    note = ""
    if unknown:
        try:
            words |= {(job, i): state for job, i, state in accounted(unknown[-_MOST_ARRAYS:], arrays)}
        except QueryFailed as error:
            note = f"accounting was not asked: {error.what}"
    found: set[Node] = set()
    by_run: dict[str, dict[Node, str]] = {}
    for node, (run, array, index) in newest.items():
        state = words.get((str(array.job), index), "")
        if word(state) == "cancelled" and not _recorded(store, node, f"{array.job}_{index}"):
            by_run.setdefault(str(run.path), {})[node] = f"job {array.job}_{index} is {state}"
            found.add(node)
    for run in runs:
        remember(run.path, by_run.get(str(run.path), {}))
    return found, note


def _newest(runs: Sequence[Run], nodes: Collection[Node]) -> dict[Node, tuple[Run, Array, int]]:
    """The newest task of each stage."""
    found: dict[Node, tuple[Run, Array, int]] = {}
    for run in runs:
        for array in run.arrays:
            for index, pack in enumerate(array.packs):
                for i in pack:
                    if run.keys[i] in nodes:
                        found.setdefault(run.keys[i], (run, array, index))
    return found


def _recorded(store: Store, node: Node, job: str) -> bool:
    """Whether an attempt of this task left a record of its own failure."""
    return any(record.job == job for record in store.failures(*node))


def accounted(jobs: Sequence[str], arrays: dict[str, Array]) -> Iterator[tuple[str, int, str]]:
    """(array job, index, state) of tasks that accounting knows, by one query.

    Raises:
        QueryFailed: If there is no accounting, or it does not answer.
    """
    text = call(["sacct", "-X", "-n", "-P", "--format=JobID,State", "-j", ",".join(jobs)])
    for line in text.splitlines():
        name, bar, state = line.strip().partition("|")
        match = _ID.fullmatch(name)
        if not bar or match is None or match[1] not in arrays:
            continue  # half a line, a banner, somebody else's job
        most = len(arrays[match[1]].packs)
        for index in _indices(match[2] or match[3] or "0"):
            if index < most:
                yield match[1], index, state


def _indices(text: str) -> Iterable[int]:
    """Indices of `3`, `1,4-9` and `0-8:2`."""
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?", part)
        if match:
            yield from range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1))
