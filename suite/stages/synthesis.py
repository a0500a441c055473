"""`synthesis`: run a method and publish its distilled set."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from suite.errors import UserError
from suite.learn.job import Job
from suite.learn.statistics import ClassStatistics
from suite.methods import get
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
    )
    with metered(context.device) as cost:
        distilled = method.synthesize(job)
    distilled.check(facts.classes, spec.ipc, facts.size).save(context.dir / "distilled.safetensors")
    cost |= {
        "image_iterations": int(job.counters.image_iterations),
        "forward_images": int(job.counters.forward_images),
        "images": facts.classes * spec.ipc,
    }
    upstream: dict[str, Any] = {kind: summed(costs(context.roles(kind))) for kind in ("teacher", "statistics")}
    return Outcome(cost, upstream={k: v for k, v in upstream.items() if v})
