"""What a night's store holds, as the record of that night."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from suite.cluster.profile import Profile
from suite.cluster.reconcile import reconcile
from suite.grid import Plan
from suite.nights.history import Failure, Row, Timing
from suite.nights.identity import identities, label
from suite.spec.stages import Stage, input_kind
from suite.store import Record, Store

Node = tuple[str, str]
_FAILED = ("failed", "diverged", "corrupt")


@dataclass
class Measured:
    """What a night's store holds.

    Attributes:
        published: Number of stages of the plan that are published.
        rows: Evaluations.
        timings: Stages that were computed this night.
        failures: Stages that failed though their inputs were there, with the number of stages behind each.
        unreached: Other stages that are not published.
        commits: Code that computed them.
    """

    published: int = 0
    rows: list[Row] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unreached: int = 0
    commits: list[str] = field(default_factory=list)


def measure(plan: Plan, store: Store, profile: Profile, reused: Collection[str]) -> Measured:
    """Read what a night published and what failed.

    Args:
        plan: The grid's plan.
        store: The night's store.
        profile: Says how many GPUs each stage had.
        reused: Kinds that were taken from elsewhere; they are not measured.
    """
    state = reconcile(plan, store)
    names = identities(plan.stages)
    found = Measured(published=len(state.done))
    commits: Counter[str] = Counter()
    for index in sorted(state.done):
        stage = plan.stages[index]
        if stage.kind in reused:
            continue
        record = store.open(stage.kind, stage.key).record()
        commits[_commit(record)] += 1
        found.timings.append(_timing(stage, record, names[stage.key], profile))
        if stage.kind == "evaluation":
            found.rows.append(_row(stage, record, names[stage.key]))
    found.commits = [commit for commit, _ in commits.most_common()]
    reasons = {t.index: (t.why, t.reason) for t in (*state.todo, *state.held)}
    behind = _behind(plan, {i: why for i, (why, _) in reasons.items()})
    for index, count in behind.items():
        stage = plan.stages[index]
        reason = reasons[index][1]
        found.failures.append(Failure(kind=stage.kind, key=stage.key, label=stage.label(), reason=reason, behind=count))
    found.unreached = len(reasons) - len(behind) - sum(behind.values())
    return found


def _behind(plan: Plan, why: Mapping[int, str]) -> dict[int, int]:
    """Stages that failed by themselves, and how many others are not there because of the first of them."""
    root: dict[Node, int] = {}
    counts: dict[int, int] = {}
    for index, stage in enumerate(plan.stages):
        if index not in why:
            continue
        inputs = [(input_kind(role), key) for role, key in stage.inputs.items()]
        cause = next((root[n] for n in inputs if n in root), None)
        if cause is not None:
            counts[cause] += 1
        elif why[index] in _FAILED:
            cause = index
            counts[index] = 0
        if cause is not None:
            root[stage.kind, stage.key] = cause
    return counts


def _row(stage: Stage, record: Record, identity: str) -> Row:
    shipped: Counter[str] = Counter()
    for entry in record.storage:
        if entry["shipped"]:
            shipped[str(entry["kind"])] += int(entry["bytes"])
    spec: Any = stage.spec
    return Row(
        identity=identity,
        label=label(stage),
        seed=spec.seed,
        key=stage.key,
        accuracy=record.numbers["accuracy_last"],
        bytes=dict(shipped),
    )


def _timing(stage: Stage, record: Record, identity: str, profile: Profile) -> Timing:
    wanted = profile.resources(stage)
    gpus = (profile.device != "cpu") if wanted.gpus is None else wanted.gpus
    return Timing(
        identity=identity,
        label=f"{stage.kind} {label(stage)}",
        device=str(record.device.get("name", "")),
        seconds=float(record.cost.get("seconds", record.seconds)),
        attempt_seconds=record.seconds,
        gpus=gpus * int(record.provenance.get("tasks", 1)),
    )


def _commit(record: Record) -> str:
    commit, dirty = str(record.provenance.get("commit", "")), record.provenance.get("dirty")
    return commit[:12] + (f"+{str(dirty)[:8]}" if dirty else "")
