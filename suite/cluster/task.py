"""What a task of an array starts with: it makes its own submitit pickle, and hands over to submitit.

    python -u -m suite.cluster.task FOLDER

submitit pickles every task, calls sbatch, and only then renames the pickles to the job's id; tasks of a launcher that
is killed in between wait 60 s for a pickle that never comes. Here the work of an array lies in its final place before
sbatch (`packs.json`, which never changes), and a task needs nothing but its own index to find its part of it.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from pathlib import Path

from suite.cluster.pack import Pack
from suite.errors import InfraError
from suite.store.files import read_json, write_json

PACKS = "packs.json"
#: How long a file of the launcher may take to become visible on a node.
VISIBLE_SECONDS = 60.0


def write_packs(folder: Path, run: Path, packs: list[list[int]], minutes: int, requeues: int, tasks: int) -> None:
    """Put down what the tasks of an array do, durably.

    Args:
        folder: Folder of the array.
        run: Run directory.
        packs: Positions of the stages of each task, by index.
        minutes: Time limit of a task.
        requeues: How many times a task may run into it.
        tasks: Processes that Slurm starts for each, which train together.
    """
    body = {"run": str(run), "packs": packs, "minutes": minutes, "requeues": requeues, "tasks": tasks}
    write_json(folder / PACKS, {"schema": 1, **body})


def place_pickle(folder: Path) -> None:
    """Make the pickle that submitit runs, unless a predecessor of this requeued task left one.

    Raises:
        InfraError: If the array's folder does not become visible on this node.
    """
    from submitit.core.job_environment import JobEnvironment
    from submitit.core.utils import DelayedSubmission

    environment = JobEnvironment()
    pickle = environment.paths.submitted_pickle
    if pickle.exists():
        return
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (folder / PACKS).exists():
        if time.monotonic() > deadline:
            raise InfraError(f"the work of this array is not visible on {environment.hostname}", where=str(folder))
        time.sleep(1.0)
    body = read_json(folder / PACKS)
    pack = tuple(body["packs"][int(environment.array_task_id or 0)])
    submission = DelayedSubmission(Pack(body["run"], pack, body.get("tasks", 1)))
    submission.set_timeout(body["minutes"], body["requeues"])
    temporary = pickle.with_name(f".{pickle.name}.{uuid.uuid4().hex}")
    submission.dump(temporary)
    try:
        os.link(temporary, pickle)
    except FileExistsError:  # another rank of this task was faster
        pass
    except OSError:  # a file system without links; the ranks' files have the same content
        temporary.replace(pickle)
    temporary.unlink(missing_ok=True)


def main() -> None:
    """Place the pickle and run it as submitit does."""
    folder = Path(sys.argv[1])
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    place_pickle(folder)
    from submitit.core.submission import process_job

    process_job(folder)


if __name__ == "__main__":
    main()
