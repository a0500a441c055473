"""Waves: what runs together. A wave holds the stages of one kind and resource class, cut into packs.

A pack is a list of stages that one process runs one after another, because a fresh process costs seconds of imports and
of loader compilation. Neighbours share a dataset and a teacher, so that decoded images and networks are reused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from suite.cluster.profile import Profile, Resources
from suite.grid import Plan, estimate
from suite.methods import get
from suite.spec.datasets import dataset
from suite.spec.stages import KINDS, Stage

#: Seconds that a stage costs whatever it computes: opening, verifying, compiling a loader, publishing.
OVERHEAD = 5.0
#: Seconds of one update of a network that is too small to fill a GPU.
STEP_SECONDS = 0.01
#: How much slower one CPU core is than the GPU of the plan's estimate.
CPU_SLOWER = 150.0
#: A task of its own each: preparing is bound by the disk, training a teacher is long, shards are to run side by side.
#: So has, of any kind, what several tasks train together.
_ALONE = ("prepare", "teacher", "shard")


@dataclass(frozen=True, slots=True)
class Wave:
    """Stages of one kind and resource class.

    Attributes:
        kind: Their kind.
        resources: What one task asks for.
        packs: Positions of stages, one tuple a process.
        seconds: Estimated duration of each stage, by position.
        longest: Seconds that a pack of several stages may take by estimate.
    """

    kind: str
    resources: Resources
    packs: tuple[tuple[int, ...], ...]
    seconds: Mapping[int, float] = field(default_factory=dict)
    longest: float = 0.0

    @property
    def stages(self) -> list[int]:
        """All positions in this wave."""
        return [i for pack in self.packs for i in pack]


def make_waves(stages: Sequence[Stage], profile: Profile, seconds: Sequence[float] | None = None) -> list[Wave]:
    """Cut the stages of a run into waves, in the order of `KINDS`.

    Args:
        stages: What has to run; positions in the result are positions in this sequence.
        profile: Decides resource classes and the size of packs.
        seconds: Estimated duration of each stage; by default `durations`.

    Returns:
        Waves. On Slurm a pack is about `pack_minutes` long; locally a wave has at most `slots` packs.
    """
    cost = durations(stages, "cpu" if profile.device == "cpu" else "cuda") if seconds is None else seconds
    classes: dict[tuple[int, str], tuple[Resources, list[int]]] = {}
    for index, stage in enumerate(stages):
        wanted = profile.resources(stage)
        group = classes.setdefault((KINDS.index(stage.kind), wanted.model_dump_json()), (wanted, []))
        group[1].append(index)
    waves = []
    for (kind, _), (wanted, members) in sorted(classes.items(), key=lambda item: item[0]):
        members.sort(key=lambda i: (_neighbourhood(stages[i]), i))
        each = {i: cost[i] for i in members}
        # Estimates are coarse: a pack stays well below the time limit of its task.
        longest = min(profile.pack_minutes, wanted.time / 4 if wanted.time else profile.pack_minutes) * 60.0
        longest = 0.0 if KINDS[kind] in _ALONE or (wanted.tasks or 1) > 1 else longest
        packs = even(members, each, profile.slots) if profile.cluster == "local" else filled(members, each, longest)
        waves.append(Wave(KINDS[kind], wanted, tuple(packs), each, longest))
    return waves


def _neighbourhood(stage: Stage) -> tuple[str, ...]:
    """Stages with equal or similar values are run near each other."""
    s: Any = stage.spec
    teachers = "+".join(getattr(s, "teachers", ())) or getattr(s, "teacher", "") or getattr(s, "arch", "")
    return s.dataset, teachers, getattr(s, "method", ""), getattr(s, "student", "")


def even(members: Sequence[int], seconds: Mapping[int, float], parts: int) -> Iterator[tuple[int, ...]]:
    """At most `parts` runs of neighbours of about equal duration."""
    total, pack, spent, given = sum(seconds[i] for i in members), [], 0.0, 0
    for place, member in enumerate(members):
        pack.append(member)
        spent += seconds[member]
        left = len(members) - place - 1
        full = spent >= total * (given + 1) / parts or left <= parts - given - 1
        if full and given < parts - 1 and left:
            yield tuple(pack)
            pack, given = [], given + 1
    if pack:
        yield tuple(pack)


def filled(members: Sequence[int], seconds: Mapping[int, float], limit: float) -> Iterator[tuple[int, ...]]:
    """Runs of neighbours that fill a task up to a limit; a stage that is longer has a task of its own."""
    pack: list[int] = []
    spent = 0.0
    for member in members:
        if pack and spent + seconds[member] > limit:
            yield tuple(pack)
            pack, spent = [], 0.0
        pack.append(member)
        spent += seconds[member]
    if pack:
        yield tuple(pack)


def durations(stages: Sequence[Stage], device: str = "cuda") -> list[float]:
    """Coarse durations, good enough to pack tasks and to refuse a night that cannot end in time.

    The larger of the arithmetic (the plan's own estimate) and of the number of updates, since small networks are bound
    by the latency of a step.

    Args:
        stages: Stages; networks of their inputs are looked up among them where they are there.
        device: `cuda`, or `cpu` for one core.

    Returns:
        Seconds, overhead included.
    """
    by_key = {s.key: s for s in stages}
    slower = CPU_SLOWER if device == "cpu" else 1.0
    result = []
    for stage in stages:
        # A plan of this stage and its inputs, so that looking inputs up stays cheap in a plan of 100,000 stages.
        inputs = [by_key[k] for k in stage.inputs.values() if k in by_key]
        complete = len(inputs) == len(stage.inputs)
        hours = estimate(Plan("", [*inputs, stage]), [stage]).gpu_hours if complete else 0.0
        result.append(OVERHEAD + max(hours * 3600 * slower, _updates(stage) * STEP_SECONDS))
    return result


def _updates(stage: Stage) -> float:
    """Optimiser steps, or batches, one after another."""
    s: Any = stage.spec
    images = getattr(s, "ipc", 0) * dataset(s.dataset).classes
    if stage.shards > 1:  # its shards do the work
        return 0.0
    if stage.kind == "shard":
        return _updates(stage.whole()) / s.count
    if stage.kind == "synthesis":
        return get(s.method)(**s.params).image_iterations(s.ipc) * images / min(images, s.params.get("batch", 100))
    if stage.kind in ("relabel", "evaluation"):
        if getattr(s.recipe, "steps", None):
            return float(s.recipe.steps)
        return s.recipe.epochs * -(-images // min(s.recipe.batch, images))
    return 0.0
