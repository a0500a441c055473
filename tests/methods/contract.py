"""What every method promises, as functions: run over the registry, and over a filled-in template."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from functools import cache
from typing import Any, get_args

import torch
from pydantic import TypeAdapter

from suite.data.distilled import DistilledSet
from suite.learn.job import Counters, Job
from suite.learn.share import Share
from suite.learn.statistics import ClassStatistics, compute_statistics
from suite.methods import Method
from suite.spec.archs import check_arch
from suite.spec.datasets import REGISTRY
from suite.spec.keys import canonical, plain
from suite.spec.recipes import LabelRecipe, Labels, StudentRecipe, teacher_recipe
from tests.learn.synthesis_parts import DigitImages, small_teacher, tiny_job

#: Values that make any method short. A new method needs an entry only for fields of other names.
SHORT: dict[str, Any] = {
    **{"iterations": 5, "explore": 2, "candidates": 12, "crops": 2, "rounds": 5},
    **{"epochs": 1, "network": "convnet1_w4"},
}
IPC = 2


@cache
def statistics(seed: int) -> ClassStatistics:
    teacher, real = small_teacher(seed), DigitImages()
    x = (real.images / 255 - teacher.mean[0]) / teacher.std[0]
    return compute_statistics(teacher.model, zip(x.split(256), real.labels.split(256), strict=True), 10, 4)


def short(cls: type[Method], **overrides: Any) -> Method:
    """The method on digits, with few iterations."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    return cls.for_dataset("digits", IPC, {k: v for k, v in SHORT.items() if k in names} | overrides)


def job_for(cls: type[Method], seed: int = 0, ipc: int = IPC, teachers: int = 1) -> Job:
    """A job with exactly the inputs that the method declares."""
    job = tiny_job(ipc=ipc, seed=seed, teachers=teachers)
    if "statistics" in cls.needs:
        job.statistics = [statistics(i) for i in range(teachers)]
    if "teacher" not in cls.needs:
        job.teachers = []
    if "real" not in cls.needs:
        job.real = None
    return job


def check_images(cls: type[Method]) -> None:
    """Shapes, determinism, the seed, counters."""
    method = short(cls)
    done: list[tuple[int, int]] = []
    job = job_for(cls)
    job.progress = lambda at, total: done.append((at, total))
    made = method.synthesize(job)
    assert isinstance(made, DistilledSet)
    made.check(10, IPC, 16)
    assert made.images.device.type == made.labels.device.type == "cpu"
    assert made.images.float().std() > 10, "images carry nothing"
    assert len(made.images.flatten(1).unique(dim=0)) == 10 * IPC, "two images are the same"
    assert all(0 <= at <= total for at, total in done)

    torch.manual_seed(12345)  # nothing may depend on the global generator
    again_job = job_for(cls)
    again = method.synthesize(again_job)
    assert torch.equal(again.images, made.images) and again_job.counters == job.counters
    assert torch.equal(method.synthesize(job_for(cls, seed=1)).images, made.images) == cls.deterministic

    planned = method.image_iterations(IPC) * 10 * IPC
    assert (planned > 0) == (job.counters.image_iterations > 0)
    assert job.counters.image_iterations <= planned
    assert (job.counters.forward_images > 0) == ("teacher" in cls.needs)
    assert job.counters.forward_images >= job.counters.image_iterations


def check_shards(
    cls: type[Method], counts: tuple[int, ...] = (2, 5), ipc: int = 3, stack: int = 1, **overrides: Any
) -> None:
    """Shards hold the images that one process would have made, each of them once, after as many updates."""
    method = short(cls, **overrides)
    parts = method.parts(10, ipc)
    if parts == 1:
        return
    whole = replace(job_for(cls, ipc=ipc), stack=stack)
    expected = method.synthesize(whole)
    for count in counts:
        images, seen, counters = torch.zeros_like(expected.images), torch.zeros(10 * ipc, dtype=torch.int64), Counters()
        for index in range(count):
            job = replace(job_for(cls, ipc=ipc), stack=stack, share=Share(index, count, stack))
            made = method.synthesize(job)
            slots = job.share.slots
            assert slots is not None, "the method did not ask for its share"
            assert len(slots) > 0 or count > parts or stack > 1, "fewer parts than the method says"
            images[slots] = made.images[slots]
            seen[slots] += 1
            counters.image_iterations += job.counters.image_iterations
            counters.forward_images += job.counters.forward_images
        assert bool((seen == 1).all()), "every image is in exactly one shard"
        assert torch.equal(images, expected.images)
        assert counters.image_iterations == whole.counters.image_iterations or stack > 1
        # What is prepared for a class that lies in several shards is prepared by each of them.
        assert counters.forward_images >= whole.counters.forward_images


def check_compiled(cls: type[Method]) -> None:
    """A compiler sees one graph of every teacher, and the images are those without one, up to roundings.

    The graph is run by the eager back end: what `fullgraph` refuses is refused by all of them.
    """
    alone, compiled = (
        short(cls).synthesize(replace(job_for(cls, ipc=3), compile=how)).images.int() for how in (False, "aot_eager")
    )
    differ = (alone - compiled).abs()
    assert int(differ.max()) <= 2 and float((differ > 0).float().mean()) < 0.02


def check_teachers_stay(cls: type[Method]) -> None:
    """Teachers leave a synthesis as they entered it: weights, mode, gradients and hooks."""
    job = job_for(cls)
    before = [{k: v.clone() for k, v in t.state_dict().items()} for t in job.teachers]
    short(cls).synthesize(job)
    for teacher, state in zip(job.teachers, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())
        assert not teacher.training and all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in teacher.modules())


def check_facts(cls: type[Method]) -> None:
    """Fields, paper values, teachers and recipes of every dataset, as a plan reads them."""
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.name) and cls.version >= 1
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}|baseline", cls.paper), cls.paper
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    documented = "".join(c.__doc__ or "" for c in cls.__mro__ if issubclass(c, Method))
    assert all(f"{name}: " in documented for name in names), f"undocumented fields among {names}"
    if cls.paper != "baseline":
        assert re.search(r"\b20\d\d\b", documented), "authors, venue and year of the paper"
        told = documented + "".join(getattr(cls, name).__doc__ or "" for name in ("recipe", "synthesize"))
        assert re.search(r"\b(sections?|equations?|algorithm|appendix|table|reference)\b", told, re.I), (
            "which part of it?"
        )
    assert set(cls.paper_labels) <= set(REGISTRY)
    for (base, ipc), values in cls.paper_values.items():
        assert base == "*" or base in REGISTRY
        assert ipc is None or ipc >= 1
        assert set(values) <= set(names)
    for table in (cls.paper_teachers, cls.paper_label_teachers):
        assert set(table) <= set(REGISTRY) and all(check_arch(a) for archs in table.values() for a in archs)
    unsaid = {b for b in cls.paper_teachers if cls.label_policy(b, "paper") != "hard"} - set(cls.paper_label_teachers)
    assert not unsaid, f"under protocol paper the grid's teacher would label what other teachers made: {unsaid}"
    for base, facts in REGISTRY.items():
        for ipc in (1, 10, 50):
            method = cls.for_dataset(base, ipc)
            params = plain({name: getattr(method, name) for name in names})
            assert TypeAdapter(cls).validate_python(params) == method, "a stored spec does not give the method back"
            for student in ("convnet3", "resnet18", "mobilenet_v2"):
                recipe = method.recipe(base, facts.classes, ipc, student)
                assert isinstance(recipe, StudentRecipe) and canonical(recipe)
                assert (recipe.epochs is None) != (recipe.steps is None)
                assert 1 <= recipe.batch <= ipc * facts.classes
                assert recipe.loss == "ce" or cls.label_policy(base, "paper") != "hard"
                assert not (base == "digits" and recipe.flip), "digits are not symmetric"
                if cls.label_policy(base, "paper") == "stored":
                    assert recipe.pad == 0, "label streams store resized crops, not padded ones"
            check_labels(method, base, ipc)
            assert isinstance(method.image_iterations(ipc), int | float) and method.image_iterations(ipc) >= 0


def check_labels(method: Method, base: str, ipc: int) -> None:
    """Policies that stages know; label recipes and teachers that fit."""
    policy, classes = type(method).label_policy(base, "paper"), REGISTRY[base].classes
    assert policy in get_args(Labels)
    assert type(method).label_policy(base, "matched") == ("hard" if policy == "hard" else "online")
    label = method.label_recipe(base, classes, ipc)
    assert isinstance(label, LabelRecipe) and canonical(label)
    assert 0 <= label.prune < 1 and label.temperature > 0 and label.part >= 0
    assert label.prune == 0 or policy == "stored", "only streams are pruned"
    assert label.temperature == 1 or policy == "vector", "students soften other labels themselves"
    teacher = replace(teacher_recipe(base), **method.label_teacher(base, ipc))
    assert 1 <= (teacher.epochs if teacher.stop is None else teacher.stop) <= teacher.epochs
