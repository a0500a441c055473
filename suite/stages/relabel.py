"""`relabel`: views of a distilled set and the teachers' logits on them, stored as one stream (FKD)."""

from __future__ import annotations

from suite.data.distilled import DistilledSet
from suite.learn.label_stream import write_stream
from suite.stages.context import Context, Outcome, costs, metered, summed


def run(context: Context) -> Outcome:
    """Write `labels.safetensors`."""
    spec = context.spec
    distilled = DistilledSet.load(context.inputs["synthesis"].path / "distilled.safetensors")
    teachers = context.teachers()
    with metered(context.device) as cost:
        write_stream(
            context.dir / "labels.safetensors",
            distilled,
            teachers,
            spec.recipe,
            dataset=context.dataset,
            seed=spec.seed,
            device=context.device,
            precision=spec.precision,
            progress=context.progress,
        )
    cost["forward_images"] = len(distilled.labels) * spec.recipe.epochs * len(teachers)
    cost["images"] = len(distilled.labels)
    return Outcome(cost, upstream={"teacher": summed(costs(context.roles("teacher")))})
