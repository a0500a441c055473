"""`synthesis`: run a method and publish its distilled set."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from suite.data.distilled import DistilledSet
from suite.errors import DataError, UserError
from suite.learn.job import Job
from suite.learn.statistics import ClassStatistics
from suite.methods import get
from suite.spec.datasets import Dataset
from suite.stages.context import Context, Outcome, costs, metered, summed


def run(context: Context) -> Outcome:
    """Write `distilled.safetensors`: uint8 images [C*IPC, 3, S, S] and int64 labels, class-major."""
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
    )
    with metered(context.device, context.checkpoint) as cost:
        distilled = method.synthesize(job)
    kept(distilled, spec.method, facts, spec.ipc).save(context.dir / "distilled.safetensors")
    cost |= {
        "image_iterations": int(job.counters.image_iterations),
        "forward_images": int(job.counters.forward_images),
        "images": facts.classes * spec.ipc,
    }
    upstream: dict[str, Any] = {kind: summed(costs(context.roles(kind))) for kind in ("teacher", "statistics")}
    return Outcome(cost, upstream={k: v for k, v in upstream.items() if v})


def kept(distilled: object, method: str, facts: Dataset, ipc: int) -> DistilledSet:
    """What a method handed back, if it keeps the contract; else the fault is in the method's code."""
    if not isinstance(distilled, DistilledSet):
        raise UserError(f"method {method!r} returned {type(distilled).__name__}", hint="a DistilledSet is the contract")
    try:
        return distilled.check(facts.classes, ipc, facts.size)
    except DataError as error:
        raise UserError(f"method {method!r}: {error.what}", hint=error.hint) from error
