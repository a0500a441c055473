"""Overrides: what `set` may name, the types and ranges of its values, and on what each of them may depend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from suite.errors import UserError, did_you_mean
from suite.grid.expand import Part
from suite.grid.schema import show
from suite.grid.yaml_strict import Document, Location
from suite.methods import get
from suite.spec.recipes import LabelRecipe, Labels, StudentRecipe, TeacherRecipe
from suite.spec.stages import StatisticsSpec, SynthesisSpec, Weights

#: What stages that all methods share may depend on, so that no two cells get different ones by accident.
SHARED_CONDITIONS = frozenset({"dataset", "teacher"})
_STATISTICS = ("per_class", "crop", "flip", "patch", "batch", "seed")
_SECTIONS = ("student", "label", "synthesis", "teacher", "statistics")
_SYNTHESIS = ("stack", "compile")
_SHARED = ("teacher", "statistics")
#: Whose teachers protocol `paper` uses, for synthesis and labels: the paper's, or those of the cell.
Teachers = Literal["paper", "grid"]


@dataclass(frozen=True)
class Rule:
    """A checked override.

    Attributes:
        location: Where it stands.
        required: Whether it is an error that it has no effect.
        conditions: {axis: allowed values}.
        method: Hyper-parameters, still as the file has them; `typed` turns them into values of one method.
        student: Fields of `StudentRecipe`.
        label: Fields of `LabelRecipe`.
        synthesis: `stack` and `compile` of `SynthesisSpec`.
        teacher: Fields of `TeacherRecipe`, `weights` and `seed`.
        statistics: Fields of `StatisticsSpec`.
        labels: Label policy, or None.
        teachers: Whose teachers protocol `paper` uses, or None.
    """

    location: Location
    required: bool
    conditions: dict[str, frozenset[Any]]
    method: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    label: dict[str, Any] = field(default_factory=dict)
    synthesis: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    labels: Labels | None = None
    teachers: Teachers | None = None

    @property
    def shared(self) -> bool:
        """Whether it sets something of a stage that all methods share."""
        return bool(self.teacher or self.statistics)

    def meets_shared(self, dataset: str, arch: str) -> bool:
        """Whether a teacher, or its statistics, on a dataset takes this rule's values."""
        return dataset in self.conditions.get("dataset", (dataset,)) and arch in self.conditions.get("teacher", (arch,))


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v >= low, f"at least {low} is allowed"


_POSITIVE: tuple[Callable[[Any], bool], str] = (lambda v: v > 0, "more than 0 is allowed")
_FRACTION: tuple[Callable[[Any], bool], str] = (lambda v: 0 <= v < 1, "0 up to, not including, 1 is allowed")
_AREA: tuple[Callable[[Any], bool], str] = (lambda v: 0 < v[0] <= v[1] <= 1, "0 < smallest <= largest <= 1 is allowed")
_SUM = 0.01
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "part": (lambda v: v == 0 or v >= 2, "0 for none, or at least 2 images are allowed"),
    "label.weights": (
        lambda v: len(v) > 0 and min(v) >= 0 and abs(sum(v) - 1) <= _SUM,
        "one number a teacher, none below 0, with sum 1",
    ),
    "milestones": (
        lambda v: all(0 < m <= 1 for m in v) and list(v) == sorted(set(v)),
        "shares of the training, ascending, more than 0 and at most 1 are allowed",
    ),
    "magnitude": (lambda v: 0 <= v <= 10, "0 to 10 are allowed"),
    "accumulate": _at_least(1),
    "stack": _at_least(1),
    "stop": _at_least(1),
    "gamma": _POSITIVE,
    "prune": _FRACTION,
    "epochs": _at_least(1),
    "steps": _at_least(1),
    "batch": _at_least(1),
    "per_class": _at_least(1),
    "patch": _at_least(1),
    "patch_shuffle": _at_least(1),
    "evaluations": _at_least(1),
    "pad": _at_least(0),
    "warmup": _at_least(0),
    "seed": (lambda v: 0 <= v <= 2**31, "0 to 2147483648 are allowed"),
    "weight_decay": _at_least(0),
    "ce_weight": _at_least(0),
    "lr": _POSITIVE,
    "temperature": _POSITIVE,
    "momentum": _FRACTION,
    "ema": _FRACTION,
    "label_smoothing": _FRACTION,
    "crop": _AREA,
}


@cache
def _types(owner: Any) -> dict[str, Any]:
    hints = get_type_hints(owner)
    return {f.name: hints[f.name] for f in fields(owner)}


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def section_types(section: str) -> dict[str, Any]:
    """The names that `student.` and the other sections may be followed by, and their types."""
    if section == "student":
        # Exactly one of the two is set, so that neither can be null in a grid.
        return _types(StudentRecipe) | {"epochs": int, "steps": int}
    if section == "label":
        return _types(LabelRecipe)
    if section == "teacher":
        return _types(TeacherRecipe) | {"weights": Weights, "seed": int}
    owner, names = (SynthesisSpec, _SYNTHESIS) if section == "synthesis" else (StatisticsSpec, _STATISTICS)
    hints = _types(owner)
    return {name: hints[name] for name in names}


def typed(annotation: Any, value: Any, name: str, where: str) -> Any:
    """A value as its annotated type: strict, but a list may be a tuple and a whole number a float.

    Raises:
        UserError: If it is of another type.
    """
    try:
        return _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        if get_origin(annotation) is Literal:
            what, hint = f"{show(value)} is not allowed", did_you_mean(str(value), get_args(annotation))
        else:
            what, hint = f"{show(value)} is not {_type_name(annotation)}", _HINTS.get(annotation, "")
        raise UserError(f"{name}: {what}", where=where, hint=hint or f"give {_type_name(annotation)}") from None


_HINTS: dict[Any, str] = {
    int: "write it without quotes and without a decimal point",
    float: "write it without quotes",
    bool: "write true or false",
}


def _type_name(annotation: Any) -> str:
    """A type in a grid's words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    parts = [_type_name(part) for part in get_args(annotation) if part is not Ellipsis]
    if get_origin(annotation) is tuple:
        if Ellipsis in get_args(annotation):
            return f"a list of {parts[0].split()[-1]}s"
        same = len(set(parts)) == 1
        return f"a list of {len(parts)} {parts[0].split()[-1]}s" if same else f"a list of {', '.join(parts)}"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(parts)
    return words.get(annotation, str(annotation))


#: Keys without a section, and their types.
_WHOLE: dict[str, Any] = {"labels": Labels, "teachers": Teachers}


def parse_rules(parts: list[Part], methods: Iterable[str], document: Document) -> list[Rule]:
    """Check overrides one by one.

    Args:
        parts: Overrides with their places.
        methods: Names of the grid's methods; an override that names no method may concern all of them.
        document: For positions.

    Raises:
        UserError: At the first name, type, range or condition that is not allowed.
    """
    return [_parse(part, list(dict.fromkeys(methods)), document) for part in parts]


def _parse(part: Part, methods: list[str], document: Document) -> Rule:
    conditions = {axis: frozenset(values) for axis, values in part.item.when.conditions().items()}
    rule = Rule(part.location, part.required, conditions)
    concerned = [m for m in methods if m in conditions.get("method", (m,))]
    concerned += sorted(conditions.get("method", frozenset()) - set(concerned))
    whole: dict[str, Any] = {}
    for key, value in part.item.set.items():
        location = (*part.location, "set", key)
        where, where_key = document.where(location), document.where(location, key=True)
        section, dot, name = key.partition(".")
        if key in _WHOLE:
            whole[key] = typed(_WHOLE[key], value, key, where)
        elif dot and section in _SECTIONS:
            allowed = section_types(section)
            if name not in allowed:
                hint = did_you_mean(name, allowed)
                raise UserError(f"{section} has no {name!r}", where=where_key, hint=hint)
            if section == "synthesis" and not any(name in get(method, where).engine() for method in concerned):
                raise UserError(
                    f"{key} has no effect: none of {', '.join(concerned)} has such a loop",
                    where=where_key,
                    hint="add a method that optimises images to when",
                )
            if section in _SHARED:
                _check_shared(part, key, conditions, document)
            getattr(rule, section)[name] = _in_range(name, typed(allowed[name], value, key, where), key, where)
        else:
            for method in concerned:
                _check_parameter(method, key, value, where, where_key, "method" in conditions)
            rule.method[key] = value
    if "epochs" in rule.student and "steps" in rule.student:
        where = document.where((*part.location, "set", "student.steps"), key=True)
        raise UserError("student.epochs and student.steps are both set", where=where, hint="keep one of them")
    return replace(rule, **whole)


def _in_range(name: str, value: Any, key: str, where: str) -> Any:
    test, hint = _RANGES.get(key) or _RANGES.get(name, (lambda v: True, ""))
    if value is not None and not test(value):
        shown = list(value) if isinstance(value, tuple) else value
        raise UserError(f"{key}: {shown} is out of range", where=where, hint=hint)
    return value


def _check_shared(part: Part, key: str, conditions: dict[str, frozenset[Any]], document: Document) -> None:
    """Teachers and statistics are shared by all methods: they may depend on the dataset and the architecture only."""
    stage = "teachers" if key.startswith("teacher") else "statistics"
    for axis in conditions:
        if axis not in SHARED_CONDITIONS:
            raise UserError(
                f"{key} depends on {axis}, but {stage} are shared by all cells",
                where=document.where((*part.location, "when", axis), key=True),
                hint="give it an override of its own, with at most dataset and teacher in when",
            )
    joined = [t for t in sorted(conditions.get("teacher", ())) if "+" in t]
    if joined:
        raise UserError(
            f"{key} is set for {joined[0]!r}, which is several teachers",
            where=document.where((*part.location, "when", "teacher")),
            hint="name single architectures; a teacher is the same alone and in an ensemble",
        )


def _check_parameter(method: str, name: str, value: Any, where: str, where_key: str, conditioned: bool) -> None:
    owner: Any = get(method, where)
    types = _types(owner)
    if name not in types:
        near = did_you_mean(name, [*types, *_WHOLE])
        if not near.startswith("did you mean") and not conditioned:
            near = f"add method to when, or write {', '.join(f'{s}.NAME' for s in _SECTIONS)}, {' or '.join(_WHOLE)}"
        elif not near.startswith("did you mean"):
            near = f"{near}; also {', '.join(f'{s}.NAME' for s in _SECTIONS)}"
        raise UserError(f"method {method!r} has no hyper-parameter {name!r}", where=where_key, hint=near)
    typed(types[name], value, name, where)


def method_values(method: str, rules: Iterable[Rule], document: Document) -> dict[str, Any]:
    """The hyper-parameters that rules set for one method, typed; later rules win."""
    owner: Any = get(method)
    types = _types(owner)
    values: dict[str, Any] = {}
    for rule in rules:
        for name, value in rule.method.items():
            values[name] = typed(types[name], value, name, document.where((*rule.location, "set", name)))
    return values


def student_values(rules: Iterable[Rule]) -> dict[str, Any]:
    """The fields of `StudentRecipe` that rules set; a budget in steps clears one in epochs and the reverse."""
    values: dict[str, Any] = {}
    for rule in rules:
        values |= rule.student
        if "steps" in rule.student:
            values["epochs"] = None
        elif "epochs" in rule.student:
            values["steps"] = None
    return values


def engine_values(method: str, rules: Iterable[Rule]) -> dict[str, Any]:
    """The fields `stack` and `compile` of `SynthesisSpec` that rules set and a method uses."""
    used = get(method).engine()
    return {name: value for rule in rules for name, value in rule.synthesis.items() if name in used}


def label_values(rules: Iterable[Rule]) -> dict[str, Any]:
    """The fields of `LabelRecipe` that rules set."""
    return {name: value for rule in rules for name, value in rule.label.items()}
