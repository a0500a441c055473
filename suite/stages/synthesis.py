"""`synthesis`: run a method and publish its distilled set, or merge what its shards have made."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from suite.data.distilled import DistilledSet
from suite.errors import DataError, UserError
from suite.learn.job import Job
from suite.learn.share import Share
from suite.learn.statistics import ClassStatistics
from suite.methods import get
from suite.spec.datasets import Dataset
from suite.stages.context import Context, Outcome, costs, metered, summed
from suite.stages.merge import merged


def run(context: Context) -> Outcome:
    """Write `distilled.safetensors`: uint8 images [C*IPC, 3, S, S] and int64 labels, class-major."""
    spec, facts = context.spec, context.dataset
    device = None
    if context.stage.shards == 1:
        distilled, cost = make(context, Share())
    else:
        distilled, cost, device = merged(context)
    distilled.check(facts.classes, spec.ipc, facts.size).save(context.dir / "distilled.safetensors")
    return Outcome(cost, upstream=upstream(context), device=device)


def make(context: Context, share: Share) -> tuple[DistilledSet, dict[str, Any]]:
    """Run the method of a synthesis, or of a shard of it.

    Returns:
        The set, and what it cost.

    Raises:
        UserError: If the method is of another version than the plan's.
    """
    spec, facts = context.spec, context.dataset
    cls = get(spec.method)
    if cls.version != spec.version:
        raise UserError(f"{spec.method} is version {cls.version} here, planned as {spec.version}", hint="launch again")
    method = TypeAdapter(cls).validate_python(spec.params)
    job = Job(
        dataset=facts,
        ipc=spec.ipc,
        seed=spec.seed,
        device=context.device,
        teachers=context.teachers(),
        statistics=[ClassStatistics.load(a.path / "statistics.safetensors") for a in context.roles("statistics")],
        real=context.real("train") if "prepare" in context.inputs else None,
        precision=spec.precision,
        progress=context.progress,
        compile=spec.compile,
        stack=spec.stack,
        checkpoint=context.checkpoint,
        share=share,
    )
    with metered(context.device, context.checkpoint) as cost:
        distilled = method.synthesize(job)
    cost |= {
        "image_iterations": int(job.counters.image_iterations),
        "forward_images": int(job.counters.forward_images),
        "images": facts.classes * spec.ipc,
    }
    return kept(distilled, spec.method, facts, spec.ipc), cost


def kept(distilled: object, method: str, facts: Dataset, ipc: int) -> DistilledSet:
    """What a method handed back, if it keeps the contract; else the fault is in the method's code."""
    if not isinstance(distilled, DistilledSet):
        raise UserError(f"method {method!r} returned {type(distilled).__name__}", hint="a DistilledSet is the contract")
    try:
        return distilled.check(facts.classes, ipc, facts.size)
    except DataError as error:
        raise UserError(f"method {method!r}: {error.what}", hint=error.hint) from error


def upstream(context: Context) -> dict[str, Any]:
    """Costs of the teachers and their statistics."""
    found: dict[str, Any] = {kind: summed(costs(context.roles(kind))) for kind in ("teacher", "statistics")}
    return {k: v for k, v in found.items() if v}
