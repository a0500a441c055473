"""One call of sbatch: a script that submitit writes, an answer that is parsed or refused, a job that is never lost.

A job's name is unique and written down before the call. Whatever goes wrong with the answer (a timeout, a banner, a
launcher that dies), the job is found again by its name instead of being submitted a second time.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.cluster.environment import worker_environment
from suite.cluster.profile import Profile, Resources
from suite.cluster.query import QueryFailed, jobs_named
from suite.errors import InfraError

if TYPE_CHECKING:
    from submitit import SlurmExecutor

#: Longest wait for an answer; sbatch itself asks a busy controller again for about two minutes.
TIMEOUT = 300.0
#: Pauses before looking for a job whose submission had no clear answer, and then trying again.
WAITS = (2.0, 5.0, 15.0, 30.0, 60.0)
#: How often a task may run into its time limit.
REQUEUES = 20
#: Seconds that an interrupted launch gives sbatch to answer; a job that it made later is found by its name.
_LAST_WORD = 0.5
_ID = re.compile(r"(\d+)(?:;[\w.-]+)?|Submitted batch job (\d+)(?: on cluster [\w.-]+)?")
#: The site takes no more jobs of this user, account or QOS for now.
_NO_ROOM = re.compile(
    r"\w*MaxSubmitJob\w*|\w*GrpSubmitJob\w*|\w*MaxJobCount\w*|maximum (?:job count|number of jobs)"
    # what sbatch says when the whole cluster has MaxJobCount jobs
    r"|unable to accept job|submission failed: Resource temporarily unavailable",
    re.IGNORECASE,
)
#: No node that is left has what a task asks for.
_NO_NODE = re.compile(r"node configuration|nodes? .*not available|invalid node", re.IGNORECASE)
#: Answers after which it is worth asking again.
_TRANSIENT = re.compile(
    r"timed? ?out|unable to contact|try again|temporar|communication|connection|zero bytes|rate.?limit"
    r"|too many requests|slurm_receive_msg|slurm_send_msg",
    re.IGNORECASE,
)


class Refused(InfraError):
    """sbatch says no, and would say so again."""

    exit_code = 3


class NoNode(Refused):
    """No node may run the job: none is large enough, or those that are were excluded."""


class NoRoom(InfraError):
    """A limit on submitted jobs is reached; there is room again when some of them end."""

    exit_code = 3


class Unclear(InfraError):
    """Whether the job was made is not known."""

    exit_code = 3


def sbatch(script: Path, name: str, environment: Mapping[str, str]) -> str:
    """Submit a script and return the job's id; a lost answer is found again by the job's name.

    Args:
        script: The batch script.
        name: The job's name, unique.
        environment: What sbatch gets, and passes on to the job.

    Raises:
        NoRoom: If a limit on submitted jobs is reached.
        Refused: If the site does not take the job.
        Unclear: If Slurm gives no clear answer and cannot be asked for the name either, for two minutes.
    """
    last = Unclear("sbatch gave no answer")
    for wait in (*WAITS, None):
        try:
            return _call(script, environment)
        except Unclear as error:
            last = error
        if wait is not None:
            time.sleep(wait)
        try:
            found = jobs_named(name)
        except QueryFailed as error:
            last = Unclear(f"{last.what}; {error.what}")
            continue
        if len(found) == 1:
            return found[0]
        if found:
            raise Refused(f"several jobs have one name: {' '.join(found)}", hint=f"scancel --name={name}")
    raise last


def _call(script: Path, environment: Mapping[str, str]) -> str:
    process = subprocess.Popen(
        ["sbatch", "--parsable", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=dict(environment),
        start_new_session=True,  # Ctrl-C stops the launch, not a submission half-way
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Unclear(f"sbatch did not answer within {TIMEOUT:g} s") from None
    except BaseException:
        deadline = time.monotonic() + _LAST_WORD
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        raise
    if process.returncode:
        complaint = first_complaint(err or out)
        if room := _NO_ROOM.search(err):
            raise NoRoom(f"sbatch: {room[0]}: {complaint}" if room[0] not in complaint else f"sbatch: {complaint}")
        if _TRANSIENT.search(err):
            raise Unclear(f"sbatch: {complaint}")
        raise (NoNode if _NO_NODE.search(err) else Refused)(f"sbatch: {complaint}")
    return parse_id(out)


def parse_id(text: str) -> str:
    """The job id in what `sbatch --parsable` printed: `123`, `123;cluster`, perhaps among lines of a banner.

    Raises:
        Unclear: If no line, or more than one, is an id: a number in a banner is not guessed to be one.
    """
    found = {m[1] or m[2] for line in text.splitlines() if (m := _ID.fullmatch(line.strip()))}
    if len(found) != 1:
        raise Unclear(f"sbatch answered {text.strip()[:200]!r}, which is not a job id")
    return found.pop()


def first_complaint(text: str) -> str:
    """The line of an answer that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line.lower()]
    return (told or lines or ["no answer"])[0]


def write_script(
    folder: Path,
    name: str,
    indices: Sequence[int],
    resources: Resources,
    profile: Profile,
    dependency: str = "",
    avoid: Sequence[str] = (),
) -> Path:
    """Write the batch script of an array, as submitit makes it, with `suite.cluster.task` in place of its pickles.

    Args:
        folder: Folder of the array; exists.
        name: Name of the job.
        indices: Indices of its tasks.
        resources: What one task asks for.
        profile: The site.
        dependency: What it waits for, as sbatch wants it.
        avoid: Nodes that it must not run on.
    """
    from submitit import SlurmExecutor

    executor = SlurmExecutor(folder, max_num_timeout=REQUEUES)
    r = resources
    more: dict[str, Any] = {"export": "ALL", "requeue": True, "chdir": str(folder), **(r.sbatch or {})}
    more["array"] = f"{ranges(indices)}%{min(len(indices), profile.max_in_flight)}"
    if dependency:
        more |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    if avoid:
        more["exclude"] = ",".join(filter(None, [more.get("exclude"), *avoid]))
    _set_parameters(executor, name, r, profile, more)
    executor.parameters["map_count"] = max(indices) + 1  # logs are then named by array and index
    python = shlex.quote(str(Path(profile.python).absolute()) if "/" in profile.python else profile.python)
    command = f"{python} -u -m suite.cluster.task {shlex.quote(str(folder))}"
    script = folder / "submission.sh"
    script.write_text(executor._make_submission_file_text(command, name))
    return script


def _set_parameters(
    executor: SlurmExecutor, name: str, r: Resources, profile: Profile, more: Mapping[str, Any]
) -> None:
    tasks = r.tasks or 1
    cpus = {"cpus_per_task": r.cpus_per_task} if r.cpus_per_task else {}
    # All tasks are on one node, and Slurm counts memory and `gres` by the node.
    gpus = ":".join(["gpu", *([r.gpu_type] if r.gpu_type else []), str(r.gpus * tasks)]) if r.gpus else None
    others = dict(more)
    wanted = ",".join(filter(None, [gpus, others.pop("gres", None)]))  # a site's `gres` may be local disk or licences
    gres = {"gres": wanted} if wanted else {}
    mem = f"{int(r.mem[:-1]) * tasks}{r.mem[-1]}" if r.mem and r.mem != "0" else r.mem
    named = {"partition": r.partition, "account": r.account, "qos": r.qos, "mem": mem}
    several = {"ntasks_per_node": tasks} if tasks > 1 else {}
    # srun does not inherit this from sbatch since Slurm 22.05.
    words = [f"--cpus-per-task={r.cpus_per_task}"] if r.cpus_per_task else []
    if tasks > 1:  # the first task outlives the others: it writes the checkpoint or the record, and requeues
        words += ["--kill-on-bad-exit=0", "--wait=0"]
    executor.update_parameters(
        job_name=name,
        wckey=None,  # submitit's default key is refused by sites that track keys
        time=r.time,  # without one it would ask for five minutes, where Slurm's default is meant
        setup=list(profile.setup) or None,
        srun_args=words or None,
        additional_parameters=others,
        **{k: v for k, v in named.items() if v is not None},
        **cpus,
        **gres,
        **several,
    )


def ranges(indices: Sequence[int]) -> str:
    """Indices as sbatch takes them: `0-4,7,9-10`."""
    parts: list[list[int]] = []
    for i in sorted(indices):
        if parts and parts[-1][1] == i - 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def job_environment(profile: Profile) -> dict[str, str]:
    """The environment of sbatch and of jobs: nothing of the caller's shell that changes jobs silently."""
    return worker_environment(profile, dict(os.environ))
