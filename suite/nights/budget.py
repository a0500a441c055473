"""What a night may cost, checked before anything is made: GPU-hours, tasks in flight, wall clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from suite.cluster.profile import Profile
from suite.cluster.shards import cut
from suite.cluster.waves import durations, make_waves
from suite.errors import UserError
from suite.grid import Plan, estimate
from suite.nights.history import Night
from suite.nights.identity import identities
from suite.spec.stages import Stage
from suite.store import Store


@dataclass(frozen=True)
class Figures:
    """What a night is expected to need.

    Attributes:
        stages: Stages to compute.
        arrays: Arrays (on Slurm) that they are submitted in.
        gpu_hours: GPU-hours.
        hours: The least hours on the wall clock: all tasks side by side as far as is allowed, or the longest chain.
        at_once: Tasks that run at once at most.
        basis: `measured`, where an earlier night computed every stage, else `estimated`.
    """

    stages: int
    arrays: int
    gpu_hours: float
    hours: float
    at_once: int
    basis: str

    def text(self, profile: Profile) -> str:
        """One line with every figure beside what is allowed."""
        b = profile.nightly
        return (
            f"budget: {self.gpu_hours:.2f} GPU-hours {self.basis} ({_allowed(b.gpu_hours)}),"
            f" at least {self.hours:.2f} h ({_allowed(b.wall_clock and b.wall_clock / 60)}),"
            f" at most {self.at_once} tasks at once ({_allowed(b.in_flight)})"
        )

    @property
    def each(self) -> int:
        """Tasks of one array that may run at once, so that all arrays together stay within the budget."""
        return max(1, self.at_once // max(1, self.arrays))


def _allowed(limit: float | None) -> str:
    return "no limit" if limit is None else f"{limit:g} allowed"


def expected(plan: Plan, profile: Profile, store: Store, earlier: Sequence[Night]) -> Figures:
    """What a night of a plan is expected to need.

    Args:
        plan: The plan.
        profile: The site.
        store: Where nights take artifacts of the kinds from that they reuse.
        earlier: Nights whose durations stand in for estimates.
    """
    reused: dict[str, set[str]] = {kind: store.published(kind) for kind in profile.nightly.reuse}
    stages = [s for s in plan.stages if s.key not in reused.get(s.kind, set())]
    seconds, gpu_hours, basis = _seconds(plan, stages, profile, earlier)
    if profile.cluster == "local":
        arrays, at_once = 0, profile.slots
    else:
        waves = make_waves(cut(stages, profile, store).stages, profile)  # as the launch will cut them
        arrays = sum(-(-len(w.packs) // profile.max_array) for w in waves)
        at_once = profile.nightly.in_flight or profile.max_in_flight * max(1, arrays)
    tasks_at_once = max(1, min(at_once, len(stages)))
    hours = max(sum(seconds) / tasks_at_once, _longest_chain(stages, seconds)) / 3600
    return Figures(len(stages), arrays, gpu_hours, hours, at_once, basis)


def _seconds(
    plan: Plan, stages: Sequence[Stage], profile: Profile, earlier: Sequence[Night]
) -> tuple[list[float], float, str]:
    """Seconds of each stage, GPU-hours of all of them, and what both rest on."""
    known: dict[str, list[tuple[float, int]]] = {}
    for night in earlier:
        for t in night.timings:
            known.setdefault(t.identity, []).append((t.attempt_seconds, t.gpus))
    names = identities(plan.stages)
    if stages and all(names[s.key] in known for s in stages):
        measured = [known[names[s.key]] for s in stages]
        seconds = [fmean(t for t, _ in m) for m in measured]
        gpus = sum(s * m[-1][1] for s, m in zip(seconds, measured, strict=True)) / 3600
        return seconds, gpus, "measured"
    device = "cpu" if profile.device == "cpu" else "cuda"
    cost = dict(zip((s.key for s in plan.stages), durations(plan.stages, device), strict=True))
    return [cost[s.key] for s in stages], estimate(plan, stages).gpu_hours, "estimated"


def _longest_chain(stages: Sequence[Stage], seconds: Sequence[float]) -> float:
    """Seconds of the longest path through stages that wait for each other."""
    ends: dict[str, float] = {}
    for stage, own in zip(stages, seconds, strict=True):
        ends[stage.key] = own + max((ends.get(key, 0.0) for key in stage.inputs.values()), default=0.0)
    return max(ends.values(), default=0.0)


def check(figures: Figures, profile: Profile, where: Path) -> None:
    """Refuse a night that would not stay within its budget.

    Raises:
        UserError: With the figures and what is allowed.
    """
    b = profile.nightly
    hint = "a smaller grid, or a larger `nightly:` budget in the profile"
    if b.gpu_hours is not None and figures.gpu_hours > b.gpu_hours:
        raise UserError(
            f"the night needs {figures.gpu_hours:.2f} GPU-hours ({figures.basis}), {b.gpu_hours:g} are allowed",
            where=str(where), hint=hint,
        )  # fmt: skip
    if b.wall_clock is not None and figures.hours > b.wall_clock / 60:
        raise UserError(
            f"the night needs {figures.hours:.2f} h or more ({figures.basis}) with {figures.at_once} tasks at once,"
            f" {b.wall_clock / 60:g} h are allowed",
            where=str(where), hint=hint,
        )  # fmt: skip
    if b.in_flight is not None and figures.arrays > b.in_flight:
        raise UserError(
            f"the night has {figures.arrays} arrays with a task each, {b.in_flight} tasks in flight are allowed",
            where=str(where), hint=hint,
        )  # fmt: skip
