"""`evaluation`: train a student on a distilled set, score it on the whole validation split, and write a row."""

from __future__ import annotations

from typing import Any

from suite.data.distilled import DistilledSet
from suite.learn.label_stream import LabelStream
from suite.learn.soft_labels import HardLabels, LabelSource, OnlineLabels, StoredLabels, entry
from suite.learn.students import train_student
from suite.stages.context import Context, Outcome, metered, summed
from suite.store.files import write_json


def run(context: Context) -> Outcome:
    """Write `metrics.json`; the numbers, costs and storage ledger go into the attempt's record, which is a row."""
    spec, facts = context.spec, context.dataset
    image_file = context.inputs["synthesis"].path / "distilled.safetensors"
    distilled = DistilledSet.load(image_file).check(facts.classes, spec.ipc, facts.size)
    labels = _labels(context, len(distilled.labels))
    val = context.real("val")
    with metered(context.device) as cost:
        numbers = train_student(
            spec.recipe,
            spec.student,
            facts,
            distilled,
            labels,
            val,
            seed=spec.seed,
            device=context.device,
            precision=spec.precision,
            progress=context.progress,
        )
    write_json(context.dir / "metrics.json", numbers)
    storage = [entry("distilled images", "image", image_file.stat().st_size), *labels.ledger()]
    return Outcome(cost, numbers, storage, _upstream(context))


def _labels(context: Context, images: int) -> LabelSource:
    policy = context.spec.labels
    if policy == "stored":
        return StoredLabels(LabelStream(context.inputs["relabel"].path / "labels.safetensors"))
    if policy == "online":
        return OnlineLabels(context.teachers(), context.spec.precision)
    return HardLabels(context.dataset.classes, images)


def _upstream(context: Context) -> dict[str, Any]:
    """Costs of everything that this row stands on: its synthesis, what that stood on, its labels."""
    synthesis = context.inputs["synthesis"].record()
    found: dict[str, Any] = {**synthesis.upstream, "synthesis": synthesis.cost}
    for kind in ("relabel", "teacher"):
        if (costs := [a.record().cost for a in context.roles(kind)]) and kind not in found:
            found[kind] = summed(costs)
    return found
