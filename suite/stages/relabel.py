"""`relabel`: soft labels of a distilled set: a stream of views and logits on them (FKD), or one vector an image."""

from __future__ import annotations

from suite.data.distilled import DistilledSet
from suite.learn.label_stream import write_stream
from suite.learn.label_vectors import write_vectors
from suite.stages.context import Context, Outcome, costs, metered, summed


def run(context: Context) -> Outcome:
    """Write `labels.safetensors`."""
    spec = context.spec
    distilled = DistilledSet.load(context.inputs["synthesis"].path / "distilled.safetensors")
    teachers = context.teachers()
    arguments = (context.dir / "labels.safetensors", distilled, teachers, spec.recipe)
    place = (context.dataset, context.device, spec.precision, context.progress)
    with metered(context.device, context.checkpoint) as cost:
        if spec.labels == "vector":
            seen = write_vectors(*arguments, *place)
        else:
            seen = write_stream(*arguments, spec.seed, *place, context.checkpoint)
    cost["forward_images"] = seen
    cost["images"] = len(distilled.labels)
    return Outcome(cost, upstream={"teacher": summed(costs(context.roles("teacher")))})
