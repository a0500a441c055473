"""`evaluation`: train a student on a distilled set, score it on the whole validation split, and write a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from suite.data.distilled import DistilledSet
from suite.data.external import IMAGES, LABELS, External
from suite.learn.checkpoint import Checkpoint, Within
from suite.learn.label_stream import LabelStream
from suite.learn.label_vectors import LabelVectors
from suite.learn.soft_labels import HardLabels, LabelSource, OnlineLabels, StoredLabels, VectorLabels, entry
from suite.learn.students import train_student
from suite.spec.recipes import StudentRecipe
from suite.stages.context import Context, Outcome, costs, summed
from suite.store.files import write_json


def run(context: Context) -> Outcome:
    """Write `metrics.json`; the numbers, costs and storage ledger go into the attempt's record, which is a row."""
    spec, facts = context.spec, context.dataset
    image_file = context.inputs["synthesis"].path / IMAGES
    distilled = DistilledSet.load(image_file).check(facts.classes, spec.ipc, facts.size)
    labels = _labels(context, len(distilled.labels))
    val = context.real("val")
    with context.training() as (ranks, cost):
        numbers = train_student(
            cut(spec.recipe, context.micro_batches),
            spec.student,
            facts,
            distilled,
            labels,
            val,
            seed=spec.seed,
            device=context.device,
            precision=spec.precision,
            progress=context.progress,
            checkpoint=_with_labels(context.checkpoint, labels),
            ranks=ranks,
        )
    if not ranks.leads:
        return Outcome(cost)
    if context.micro_batches > 1:
        numbers["micro_batches"] = context.micro_batches
    write_json(context.dir / "metrics.json", numbers)
    if isinstance(labels, OnlineLabels):
        cost["forward_images"] = labels.forward_images
    external = context.external()
    if external is None:
        return Outcome(cost, numbers, _storage(image_file, labels), _upstream(context))
    origin = {"external": True, "content": external.content, "form": external.form}
    return Outcome(cost, numbers, _delivered(context, external, labels), _known(context), provenance=origin)


def cut(recipe: StudentRecipe, micro_batches: int) -> StudentRecipe:
    """The recipe with each part of a batch cut further: the same images an update, fewer in memory at once.

    Gradients of the parts are summed; networks with BatchNorm normalise each part by itself, so the row says it.
    """
    return recipe if micro_batches == 1 else replace(recipe, accumulate=recipe.accumulate * micro_batches)


def _with_labels(outer: Checkpoint, labels: LabelSource) -> Checkpoint:
    """The student's checkpoint, which also remembers what the teachers of online labels have seen."""
    if not isinstance(labels, OnlineLabels):
        return outer
    saved = outer.load()
    if saved is not None:
        labels.forward_images = saved["forward_images"]
    inner = saved["inner"] if saved is not None else None
    return Within(outer, lambda: {"forward_images": labels.forward_images}, inner)


def _storage(image_file: Path, labels: LabelSource) -> list[dict[str, Any]]:
    """Every byte that lies on disk once: where class numbers are the labels, they are not counted as images too."""
    entries = labels.ledger()
    inside = sum(e["bytes"] for e in entries) if isinstance(labels, HardLabels) else 0
    return [entry("distilled images", "image", image_file.stat().st_size - inside), *entries]


def _labels(context: Context, images: int) -> LabelSource:
    policy = context.spec.labels
    if policy in ("stored", "vector"):
        # A set from elsewhere may bring its own.
        file = context.inputs.get("relabel", context.inputs["synthesis"]).path / LABELS
        if policy == "stored":
            return StoredLabels(LabelStream(file))
        return VectorLabels(LabelVectors(file), context.device)
    if policy == "online":
        return OnlineLabels(context.teachers(), context.spec.precision, context.spec.label)
    return HardLabels(context.dataset.classes, images)


def _delivered(context: Context, external: External, labels: LabelSource) -> list[dict[str, Any]]:
    """The files as they were delivered, and what labels that were made here add to them."""
    needed = [e for e in external.ledger if e["kind"] != "teacher" or isinstance(labels, OnlineLabels)]
    made_here = context.roles("relabel") or context.roles("teacher")
    return [*needed, *(labels.ledger() if made_here else [])]


def _known(context: Context) -> dict[str, Any]:
    """Costs of what was done here for a set from elsewhere; those of its synthesis and its teachers are unknown."""
    relabel = context.inputs.get("relabel")
    return {"relabel": relabel.record().cost} if relabel else {}


def _upstream(context: Context) -> dict[str, Any]:
    """Costs of everything that this row stands on: its synthesis, its labels, and each of their teachers once."""
    synthesis = context.inputs["synthesis"].record()
    relabels = [a.record() for a in context.roles("relabel")]
    found: dict[str, Any] = {**synthesis.upstream, "synthesis": synthesis.cost}
    if relabels:
        found["relabel"] = relabels[0].cost
    teachers = costs(context.roles("teacher"))
    for record in (synthesis, *relabels):
        teachers |= record.upstream.get("teacher", {}).get("each", {})
    if teachers:
        found["teacher"] = summed(teachers)
    return found
