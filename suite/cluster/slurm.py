"""Submitting to Slurm through submitit: arrays in the order of stages, held by what their inputs come from.

Never `afterok` on an array: one failed task would hold up everything behind it. Workers check their own inputs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from suite.cluster.arrays import Draft, all_ancestors, direct_inputs, make_drafts
from suite.cluster.cancelled import remember
from suite.cluster.profile import Profile
from suite.cluster.query import Task, call, max_array_size
from suite.cluster.runs import Array, Run
from suite.cluster.sbatch import REQUEUES, NoNode, NoRoom, Refused, job_environment, sbatch, write_script
from suite.cluster.show import plural, say
from suite.cluster.submitting import Stopped, check_stopped
from suite.cluster.task import write_packs
from suite.cluster.waves import Wave
from suite.cluster.window import PATIENCE, Window
from suite.errors import InfraError, UserError
from suite.spec.stages import Stage

Node = tuple[str, str]
#: A dependency names single tasks of an array up to this many of them.
_NAMED = 8
#: Taken for the time limit of a task where the profile leaves it to Slurm: nothing is then counted as a timeout.
_UNLIMITED_MINUTES = 60 * 24 * 365


class CannotSubmit(InfraError):
    """Nothing could be submitted."""

    exit_code = 3


def submit(
    run: Run,
    waves: Sequence[Wave],
    stages: Sequence[Stage],
    profile: Profile,
    flying: Mapping[Node, Task] | None = None,
    avoid: Mapping[str, Sequence[str]] | None = None,
    patience: float = PATIENCE,
) -> list[Array]:
    """Submit waves as arrays.

    Args:
        run: The run directory; its `jobs.json` names every array before it is submitted.
        waves: In the order of `KINDS`.
        stages: The stages of the run.
        profile: The site.
        flying: Stages that earlier runs have in flight; what needs them waits for their tasks.
        avoid: Nodes that no task may run on, by the partition that it asks for.
        patience: Seconds to wait for room where the site, or the profile, limits tasks in flight.

    Returns:
        The arrays, with job ids.

    Raises:
        CannotSubmit: If the first submission is refused.
        InfraError: If a later one is; what was submitted stays, and the same command submits the rest.
    """
    if shutil.which("sbatch") is None:
        raise CannotSubmit("no sbatch on this machine", hint="run on a login node, or use `--profile local`")
    if "%" in str(run.path):
        raise UserError("Slurm replaces % in the names of logs", where=str(run.path), hint="choose another store")
    limit = min(profile.max_array, max_array_size())
    drafts = make_drafts(waves, stages, limit, profile.max_submissions)
    window = Window(run.id, profile, patience, lambda: check_stopped(run.path))
    submission = _Submission(run, stages, profile, dict(flying or {}), avoid or {}, window)
    for number, draft in enumerate(drafts):
        try:
            submission.submit(number, draft)
        except Stopped as error:
            nodes = submission.left()
            remember(run.path, dict.fromkeys(nodes, f"not submitted: {error.what}"))
            what = f"{error.what}: {plural(len(nodes), 'stage')} not submitted"
            raise Stopped(what, hint="`--retry cancelled` submits them") from error
        except InfraError as error:
            if not any(a.job for a in run.arrays):
                raise CannotSubmit(error.what, where=draft.wave.kind, hint=error.hint) from error
            left = sum(len(p) for d in drafts[number:] for p in d.packs.values()) - submission.partly
            hint = f"{plural(left, 'stage')} not submitted, the others are; the same command submits them"
            raise InfraError(error.what, where=draft.wave.kind, hint=hint) from error
    return run.arrays


class _Submission:
    """What a launch has submitted so far, and where each stage will come from.

    Attributes:
        partly: Stages of the draft at hand that are submitted already.
    """

    def __init__(
        self,
        run: Run,
        stages: Sequence[Stage],
        profile: Profile,
        flying: Mapping[Node, Task],
        avoid: Mapping[str, Sequence[str]],
        window: Window,
    ) -> None:
        self.run, self.stages, self.profile, self.avoid, self.window = run, stages, profile, avoid, window
        self.producers: dict[Node, tuple[str, int]] = {node: (t.job, t.index) for node, t in flying.items()}
        self.sizes: dict[str, int] = {}
        self.jobs: dict[tuple[int, int], str] = {}  # (number of a draft, index): job id
        self.ancestors = all_ancestors(stages)
        self.environment = job_environment(profile)
        self.partly = 0

    def submit(self, number: int, draft: Draft) -> None:
        """Submit an array, in pieces where there is no room for all of it."""
        self.partly = 0
        for followed, indices in self._pieces(draft):
            left = indices
            while left:
                piece = left[: self.window.room(len(left))]
                try:
                    self._array(number, draft, piece, followed)
                except NoRoom as error:
                    self.window.refused(len(piece), error)
                    continue
                self.window.accepted(len(piece))
                left = left[len(piece) :]

    def left(self) -> list[Node]:
        """Stages of the run that are not in Slurm."""
        return [node for s in self.stages if (node := (s.whole().kind, s.whole().key)) not in self.producers]

    def _pieces(self, draft: Draft) -> Iterator[tuple[str | None, list[int]]]:
        """Indices of an array by the job whose tasks they follow; that array may have been submitted in pieces."""
        if draft.follows is None:
            yield None, sorted(draft.packs)
            return
        groups: dict[str, list[int]] = {}
        for index in sorted(draft.packs):
            groups.setdefault(self.jobs[draft.follows, index], []).append(index)
        yield from groups.items()

    def _array(self, number: int, draft: Draft, indices: list[int], followed: str | None) -> None:
        kind = draft.wave.kind
        name = f"suite-{self.run.id}-{len(self.run.arrays):02d}-{kind}"
        packs: list[list[int]] = [[] for _ in range(max(indices) + 1)]
        for i in indices:
            packs[i] = list(draft.packs[i])
        folder = self.run.logs / name
        folder.mkdir(exist_ok=True)
        resources, dependency = draft.wave.resources, self._dependency(packs, followed)
        minutes = resources.time or _UNLIMITED_MINUTES
        write_packs(folder, self.run.path, packs, minutes, REQUEUES, resources.tasks or 1)

        def script(avoid: Sequence[str]) -> Path:
            return write_script(folder, name, indices, resources, self.profile, dependency, avoid)

        check_stopped(self.run.path)
        array = Array(name, kind, packs, follows=followed)
        self.run.arrays.append(array)
        self.run.save()  # the intent: from here on the job is found by its name, whatever happens to this process
        try:
            array.job = self._sbatch(script, name, self.avoid.get(resources.partition or "", ()))
        except (NoRoom, Refused):
            self.run.arrays.remove(array)
            self.run.save()
            raise
        self.run.save()
        try:
            check_stopped(self.run.path)
        except Stopped:
            call(["scancel", array.job])
            raise
        self.sizes[array.job] = len(indices)
        for index in indices:
            self.jobs[number, index] = array.job
            self.partly += len(packs[index])
            for i in packs[index]:
                self.producers[self.stages[i].kind, self.stages[i].key] = array.job, index

    def _sbatch(self, script: Callable[[Sequence[str]], Path], name: str, avoid: Sequence[str]) -> str:
        """Submit a script; where the nodes to avoid are all that a task could run on, on these."""
        try:
            return sbatch(script(avoid), name, self.environment)
        except NoNode:
            if not avoid:
                raise
            say(f"no other node fits: on {' '.join(avoid)}, too")
            return sbatch(script(()), name, self.environment)

    def _dependency(self, packs: Sequence[Sequence[int]], followed: str | None) -> str:
        """What an array waits for: the tasks that its inputs come from, by whatever end, or one task a task."""
        needed: dict[str, set[int]] = {}
        for own, position in ((own, i) for own, pack in enumerate(packs) for i in pack):
            for node in direct_inputs(self.stages[position], self.ancestors):
                if node in self.producers and self.producers[node] != (followed, own):
                    job, index = self.producers[node]
                    needed.setdefault(job, set()).add(index)
        ends = []
        for job, indices in sorted(needed.items(), key=lambda item: int(item[0])):
            single = len(indices) <= _NAMED and len(indices) < self.sizes.get(job, len(indices) + 1)
            ends += [f"{job}_{i}" for i in sorted(indices)] if single else [job]
        parts = [f"afterany:{':'.join(ends)}"] if ends else []
        return ",".join([*parts, *([f"aftercorr:{followed}"] if followed else [])])
