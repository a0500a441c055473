"""Back into Slurm's queue: a task that was asked to leave and has saved what it had.

submitit's own handler counts every job with a limit of ten minutes or less as timed out, saves from inside the handler,
and requeues once a signal. Here the number of requeues is not limited by clocks but by progress: a task that keeps
being asked to leave goes on as long as it gets further each time.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from suite.cluster.query import QueryFailed, call
from suite.preemption import Preempted
from suite.store.files import read_json, write_json

#: Requeues in a row without a new checkpoint or a further stage, after which a task stays away.
MAX_STALLED = 5
#: How a task left that was not requeued.
IN_ORDER, STALLED = "in order", "stalled"
_WAITS = (1.0, 3.0, 10.0)


def requeue(run: Path, index: int, left: Preempted) -> str:
    """Put this task back into the queue, unless somebody has taken it out of it, or it gets nowhere.

    Only the first process of a task asks Slurm; it is asked what it knows of the task, and then once to requeue it.

    Args:
        run: Run directory; `requeues/` in it remembers how far each task was.
        index: Position of the task's first stage.
        left: How it left.

    Returns:
        What happened, for the log.
    """
    job = task_id()
    if not job:
        return "not a Slurm job: launch again"
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return "the first process of this task requeues it"
    note = _note(run, job, index)
    stalled = _stalled(note, left)
    if stalled > MAX_STALLED:
        write_json(note, {**read_json(note), "left": STALLED})
        return f"no progress in {stalled} attempts: launch again, with a longer time limit"
    try:
        state = _asked(["scontrol", "show", "job", "-o", job])
        if "JobState=RUNNING" not in state:
            # Cancelled, or over its limit, or requeued by Slurm already: all of these look like this.
            return "Slurm has ended this task already"
        _asked(["scontrol", "requeue", job])
    except QueryFailed as error:  # some sites forbid it; some controllers are away just then
        write_json(note, {**read_json(note), "left": IN_ORDER})
        return f"saved, but not requeued ({error.what}): launch again, it goes on from there"
    return f"requeued job {job}"


def how_left(run: Path, job: str, index: int) -> str:
    """How a task ended that saved what it had and was not requeued; empty if it ended otherwise.

    `IN_ORDER`: Slurm did not requeue it, which is no failure. `STALLED`: it got no further, which is no node's doing.

    Args:
        run: Run directory.
        job: The task, as `task_id` names it.
        index: Position of its first stage.
    """
    note = _note(run, job, index)
    return str(read_json(note).get("left", "")) if note.exists() else ""


def _note(run: Path, job: str, index: int) -> Path:
    return run / "requeues" / f"{job}-{index}.json"


def task_id() -> str:
    """This task as `scontrol` names it: `JOB` or `ARRAY_INDEX`; empty outside Slurm."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")


def _stalled(path: Path, left: Preempted) -> int:
    """Requeues in a row after which the task was no further; this one is written down."""
    nothing: dict[str, Any] = {"requeues": 0, "stalled": 0, "reached": [-1, -1]}
    before = read_json(path) if path.exists() else nothing
    reached = [left.stages, left.saves]
    stalled = 0 if reached > before["reached"] else before["stalled"] + 1
    write_json(
        path, {"requeues": before["requeues"] + 1, "stalled": stalled, "reached": reached, "signal": left.signum}
    )
    return int(stalled)


def _asked(command: list[str]) -> str:
    """What Slurm answers, at the latest at the fourth time.

    Raises:
        QueryFailed: If it does not.
    """
    for wait in _WAITS:
        try:
            return call(command)
        except QueryFailed as error:
            print(f"{error.what}; again in {wait:g} s", file=sys.stderr, flush=True)
        time.sleep(wait)
    return call(command)
