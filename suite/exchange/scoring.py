"""How a distilled set from elsewhere is scored: the stages of its rows, planned by the parts that plan a grid's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydantic import TypeAdapter

from suite.errors import DataError, UserError, did_you_mean
from suite.exchange.delivered import Delivered
from suite.grid.expand import Cell, Part
from suite.grid.overrides import Rule, parse_rules, section_types
from suite.grid.places import Places
from suite.grid.schema import Override
from suite.grid.student import StudentPlanner
from suite.grid.yaml_strict import Document, Location, parse_yaml
from suite.learn.label_stream import LabelStream
from suite.learn.soft_labels import StoredLabels
from suite.learn.view_plans import DrawnViews
from suite.methods import METHODS, discover, get
from suite.spec.datasets import dataset
from suite.spec.recipes import LabelRecipe, StudentRecipe
from suite.spec.stages import EvaluationSpec, Loader, Precision, Protocol, RelabelSpec, Stage

#: The teacher of rows whose teacher nobody names.
UNKNOWN = "unknown"
_NAME = "1 to 64 of a-z, 0-9, dot, dash and underscore, first a-z or 0-9"


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        name: Of the set, on leaderboards.
        dataset: The dataset that it stands for.
        ipc: Images a class.
        student: Architecture.
        protocol: `paper` (then of the method `recipe`) or `matched`.
        seed: Of the student, and of labels that are made here.
        recipe: Method whose student recipe protocol `paper` takes.
        settings: `student.NAME=VALUE` and `label.NAME=VALUE`, as a grid's overrides.
        loader: What reads the validation images.
        precision: `fp32` or `bf16`.
    """

    name: str
    dataset: str
    ipc: int
    student: str
    protocol: Protocol
    seed: int
    recipe: str | None
    settings: tuple[str, ...]
    loader: Loader
    precision: Precision


@dataclass(frozen=True)
class Inputs:
    """Stages that rows of a set stand on.

    Attributes:
        prepare: Key of the prepared dataset.
        synthesis: Key of the imported set.
        teachers: (architecture, key) of label teachers in the store.
    """

    prepare: str
    synthesis: str
    teachers: tuple[tuple[str, str], ...] = ()

    @property
    def roles(self) -> dict[str, str]:
        """The teachers as inputs."""
        return {f"teacher.{i}": key for i, (_, key) in enumerate(self.teachers)}


def check_name(name: str) -> str:
    """Return a name that rows of a set can have.

    Raises:
        UserError: If it is none, or that of a method of the suite.
    """
    from suite.grid.schema import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValueError:
        raise UserError(f"{name!r} cannot be the name of a set", where="--name", hint=_NAME) from None
    if name in discover():
        hint = f"a name of its own, e.g. --name {name}-released"
        raise UserError(f"{name!r} is a method of the suite", where="--name", hint=hint)
    return name


class _Flags(Document):
    """Settings of a command line as a document: errors name the flag."""

    def where(self, location: Iterable[str | int], key: bool = False) -> str:
        name = next((part for part in location if isinstance(part, str) and "." in part), "")
        return f"--set {name}".strip()


class _FlagPlaces(Places):
    """Where errors of planning belong, on a command line."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def where(self, rules: Iterable[Rule], section: str) -> str:
        return "--set" if any(getattr(rule, section, None) for rule in rules) else ""


def plan(request: Request, delivered: Delivered, inputs: Inputs) -> list[Stage]:
    """The stages of a row, in the order in which they run: perhaps `relabel`, then `evaluation`.

    Raises:
        UserError: If recipe, labels and settings do not fit together.
    """
    facts, teachers = dataset(request.dataset), _archs(delivered, inputs)
    cell = Cell(
        request.name, request.dataset, request.ipc, "+".join(teachers) or UNKNOWN, request.student, request.protocol,
        request.seed,
    )  # fmt: skip
    document = _document(request.settings)
    rules = [_own_labels(delivered), *_rules(document)]
    # Protocol `matched` asks no method for its recipe.
    name = _recipe(request.recipe) if request.protocol == "paper" else "random"
    places = _FlagPlaces(document)
    method = places.guard(lambda: get(name).for_dataset(facts.base, request.ipc), [], "method")
    if delivered.labels != "hard" and delivered.label_file is None and not teachers:
        hint = "--teacher KEY or ARCH=FILE, weights in teachers/N-ARCH.safetensors, or a label file"
        raise UserError(f"no teacher labels these images, but {delivered.labels} labels are asked for", hint=hint)
    student = StudentPlanner(places).plan(cell, method, lambda: teachers, rules)
    _check_stream(delivered, student.recipe, request.seed)
    base = {"prepare": inputs.prepare, "synthesis": inputs.synthesis}
    stages: list[Stage] = []
    if student.relabel is not None and delivered.label_file is None:
        seed = 0 if student.labels == "vector" else request.seed
        made: Any = student.labels
        spec = RelabelSpec(made, request.dataset, request.ipc, teachers, student.relabel, seed, request.precision)
        stages.append(Stage.make("relabel", spec, {"synthesis": inputs.synthesis, **inputs.roles}))
        base["relabel"] = stages[0].key
    elif student.labels == "online":
        base |= inputs.roles
    evaluation = EvaluationSpec(
        request.name, request.dataset, request.ipc, cell.teacher, request.student, request.protocol, request.seed,
        student.labels, student.label, student.recipe, request.loader, request.precision,
    )  # fmt: skip
    return [*stages, Stage.make("evaluation", evaluation, base)]


def again(row: EvaluationSpec, name: str, delivered: Delivered, inputs: Inputs) -> list[Stage]:
    """The evaluation of a row of another store, on the set that it was exported with.

    Raises:
        UserError: If labels that it learns from are neither in the set nor in the store.
    """
    brought: object = delivered.label_file
    if row.labels == "online":
        brought = delivered.teachers or inputs.teachers
    if row.labels != "hard" and not brought:
        raise UserError(
            f"the row learns from {row.labels} labels, but the set does not bring them",
            hint="export the row itself: python -m suite.export ROW_KEY; or name online teachers with --teacher",
        )
    spec = dataclasses.replace(row, method=name)
    roles = inputs.roles if row.labels == "online" else {}
    return [Stage.make("evaluation", spec, {"prepare": inputs.prepare, "synthesis": inputs.synthesis, **roles})]


def _archs(delivered: Delivered, inputs: Inputs) -> tuple[str, ...]:
    """Architectures of the label teachers, as far as they are known."""
    if delivered.label_file is not None:
        return tuple(delivered.label_file.facts.get("teachers", ()))
    return tuple(arch for arch, _ in inputs.teachers) or delivered.external.teachers


def _check_stream(delivered: Delivered, recipe: StudentRecipe, seed: int) -> None:
    """Refuse a stream whose views are not those of the recipe, before anything is trained."""
    if delivered.label_file is None or delivered.label_file.labels != "stored":
        return
    images = delivered.images.distilled.images
    try:
        StoredLabels(LabelStream(delivered.label_file.path)).planner(
            DrawnViews(recipe, len(images), images.shape[-1], seed)
        )
    except DataError as error:
        hint = "--set student.batch=..., student.crop=... and others, or --teacher for labels that are made anew"
        raise UserError(error.what, where=error.where, hint=hint) from error


def _recipe(name: str | None) -> str:
    if name is None:
        hint = f"--recipe METHOD: {', '.join(sorted(discover()))}"
        raise UserError("protocol paper needs the method whose recipe trains the student", hint=hint)
    if name not in discover():
        raise UserError(f"unknown method {name!r}", where="--recipe", hint=did_you_mean(name, METHODS))
    return name


def _own_labels(delivered: Delivered) -> Rule:
    """The policy of the labels that there are, and how a stream's followed from logits."""
    label: dict[str, Any] = {}
    if delivered.label_file is not None and delivered.label_file.labels == "stored":
        made = TypeAdapter(LabelRecipe).validate_python(delivered.label_file.facts["recipe"]["label"])
        label = {f.name: getattr(made, f.name) for f in fields(made) if getattr(made, f.name) != f.default}
    return Rule((), False, {}, label=label, labels=delivered.labels)


def _document(settings: Sequence[str]) -> Document:
    """`NAME=VALUE` words as the `set` of an override.

    Raises:
        UserError: At the first that is not `student.NAME=VALUE` or `label.NAME=VALUE`.
    """
    lines = []
    for setting in settings:
        name, equals, value = setting.partition("=")
        section, _, part = name.partition(".")
        if not equals or section not in ("student", "label") or not part or "\n" in setting:
            hint = "student.NAME=VALUE or label.NAME=VALUE"
            raise UserError(f"{setting!r} is not a setting", where="--set", hint=hint)
        if part not in (allowed := section_types(section)):
            raise UserError(f"{section} has no {part!r}", where="--set", hint=did_you_mean(part, allowed))
        lines.append(f"{name}: {value}")
    parsed = parse_yaml("\n".join(lines or ["{}"]).encode(), "--set")
    return _Flags(parsed.file, parsed.value, parsed.values, parsed.keys)


def _rules(document: Document) -> list[Rule]:
    if not document.value:
        return []
    location: Location = ("set",)
    return parse_rules([Part(Override(set=document.value), location, False)], [], document)
