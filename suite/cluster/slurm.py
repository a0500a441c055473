"""Submitting to Slurm through submitit: one array for each wave, held by `afterany` on what its inputs come from.

Never `afterok` on an array: one failed task would hold up everything behind it. Workers check their own inputs.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any

from suite.cluster.environment import as_worker
from suite.cluster.pack import Pack
from suite.cluster.profile import Profile
from suite.cluster.query import Task, call, max_array_size
from suite.cluster.runs import Array, Run
from suite.cluster.waves import Wave
from suite.errors import InfraError
from suite.spec.stages import Stage, input_kind

if TYPE_CHECKING:
    from submitit import SlurmExecutor

#: Answers of sbatch after which it is worth asking again, and how long to wait before each try.
_TRANSIENT = ("timed out", "unable to contact", "try again", "temporarily", "communication")
_WAITS = (2.0, 5.0, 15.0)
_MAX_REQUEUES = 20


class CannotSubmit(InfraError):
    """Nothing could be submitted."""

    exit_code = 3


def submit(
    run: Run,
    waves: Sequence[Wave],
    stages: Sequence[Stage],
    profile: Profile,
    flying: Mapping[tuple[str, str], Task] | None = None,
) -> list[Array]:
    """Submit waves as arrays.

    Args:
        run: The run directory; its `jobs.json` names every array before the first is submitted.
        waves: In the order of `KINDS`.
        stages: The stages of the run.
        profile: The site.
        flying: Stages that earlier runs have in flight; what needs them waits for their jobs.

    Returns:
        The arrays, with job ids.

    Raises:
        CannotSubmit: If the first submission is refused.
        InfraError: If a later one is; what was submitted stays, and the same command submits the rest.
    """
    if shutil.which("sbatch") is None:
        raise CannotSubmit("no sbatch on this machine", hint="run on a login node, or use `--profile local`")
    limit = min(profile.max_array, max_array_size())
    chunks = [(wave, wave.packs[start : start + limit]) for wave in waves for start in range(0, len(wave.packs), limit)]
    run.arrays = [
        Array(f"suite-{run.id}-{number:02d}-{wave.kind}", wave.kind, [list(p) for p in packs])
        for number, (wave, packs) in enumerate(chunks)
    ]
    run.save()
    producers = {node: task.job for node, task in (flying or {}).items()}
    for done, (array, (wave, packs)) in enumerate(zip(run.arrays, chunks, strict=True)):
        members = [stages[i] for pack in packs for i in pack]
        needed = {(input_kind(role), key) for stage in members for role, key in stage.inputs.items()}
        jobs = sorted({producers[n] for n in needed if n in producers}, key=int)
        try:
            array.job = _submit_array(run, array, wave, packs, profile, jobs)
        except InfraError as error:
            kind = InfraError if done else CannotSubmit
            hint = f"{done} of {len(chunks)} arrays are submitted; the same command submits the rest" if done else ""
            raise kind(error.what, where=array.name, hint=hint) from error
        run.save()
        producers |= {(s.kind, s.key): array.job for s in members}
    return run.arrays


def _submit_array(
    run: Run, array: Array, wave: Wave, packs: Sequence[tuple[int, ...]], profile: Profile, after: Sequence[str]
) -> str:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = run.logs / array.name
    work = [Pack(str(run.path), tuple(p)) for p in packs]
    for wait in (*_WAITS, None):
        try:
            with as_worker(profile), redirect_stderr(io.StringIO()):  # submitit repeats sbatch's complaint there
                executor = SlurmExecutor(folder, max_num_timeout=_MAX_REQUEUES, python=shlex.quote(profile.python))
                _set_parameters(executor, array, wave, profile, after)
                return str(executor.submit_array(work)[0].job_id).partition("_")[0]
        except (FailedJobError, FailedSubmissionError) as error:
            text = _first_complaint(str(error))
            if wait is None or not any(word in text.lower() for word in _TRANSIENT):
                raise InfraError(f"sbatch: {text}") from error
        time.sleep(wait)
        _cancel_orphan(array)
    raise AssertionError("unreachable")  # pragma: no cover


def _cancel_orphan(array: Array) -> None:
    """After a lost answer the job may exist all the same; its pickles have no place, so it could only fail."""
    call(["scancel", f"--user={os.getuid()}", f"--name={array.name}"])


def _set_parameters(executor: SlurmExecutor, array: Array, wave: Wave, profile: Profile, after: Sequence[str]) -> None:
    r = wave.resources
    more: dict[str, Any] = {"export": "ALL", "requeue": True, **(r.sbatch or {})}
    if after:
        more["dependency"] = "afterany:" + ":".join(after)
    cpus = {"cpus_per_task": r.cpus_per_task} if r.cpus_per_task else {}
    gres = {"gres": ":".join(["gpu", *([r.gpu_type] if r.gpu_type else []), str(r.gpus)])} if r.gpus else {}
    named = {"partition": r.partition, "account": r.account, "qos": r.qos, "mem": r.mem, "time": r.time}
    executor.update_parameters(
        job_name=array.name,
        wckey=None,  # submitit's default key is refused by sites that track keys
        array_parallelism=profile.max_in_flight,
        setup=list(profile.setup) or None,
        # srun does not inherit this from sbatch since Slurm 22.05.
        srun_args=[f"--cpus-per-task={r.cpus_per_task}"] if r.cpus_per_task else None,
        additional_parameters=more,
        **{k: v for k, v in named.items() if v is not None},
        **cpus,
        **gres,
    )


def _first_complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line.lower() and "subprocess" not in line.lower()]
    return (told or lines or ["no answer"])[0]
