"""The typed schema of a grid file: which keys exist, their types and ranges, and messages that point into the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from suite.errors import UserError, did_you_mean
from suite.grid.yaml_strict import Document, Location, load_yaml
from suite.spec.stages import Loader, Precision, Protocol

#: Axes of a product, in the order in which cells are listed.
AXES = ("method", "dataset", "ipc", "teacher", "student")
#: Everything that a cell is, and that a condition may name.
CONDITIONS = (*AXES, "protocol", "seed")


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


T = TypeVar("T")
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Word = Annotated[str, Field(min_length=1, max_length=256)]
Ipc = Annotated[int, Field(ge=1, le=10_000)]
Seed = Annotated[int, Field(ge=0, le=2**31)]
#: A value or a list of values; always a tuple after validation.
Many = Annotated[tuple[T, ...], BeforeValidator(_listed), Field(min_length=1)]
#: A list; a tuple after validation.
Listed = Annotated[tuple[T, ...], BeforeValidator(_tupled)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Product(_Strict):
    """Axes whose cartesian product makes cells."""

    method: Many[Word]
    dataset: Many[Word]
    ipc: Many[Ipc]
    teacher: Many[Word]
    student: Many[Word]


class PartialProduct(_Strict):
    """The axes that a variant replaces."""

    method: Many[Word] | None = None
    dataset: Many[Word] | None = None
    ipc: Many[Ipc] | None = None
    teacher: Many[Word] | None = None
    student: Many[Word] | None = None


class CellEntry(_Strict):
    """One explicit cell; without `protocol` or `seed` it takes those of the grid."""

    method: Word
    dataset: Word
    ipc: Ipc
    teacher: Word
    student: Word
    protocol: Protocol | None = None
    seed: Seed | None = None


class When(_Strict):
    """Conditions: a cell matches if each named axis has one of the listed values."""

    method: Many[Word] | None = None
    dataset: Many[Word] | None = None
    ipc: Many[Ipc] | None = None
    teacher: Many[Word] | None = None
    student: Many[Word] | None = None
    protocol: Many[Protocol] | None = None
    seed: Many[Seed] | None = None

    def conditions(self) -> dict[str, tuple[Any, ...]]:
        """The conditions that are set."""
        return {a: getattr(self, a) for a in CONDITIONS if getattr(self, a) is not None}


class Exclude(When):
    """Cells that are left out, and why."""

    why: Annotated[str, Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def _some_condition(self) -> Exclude:
        if not self.conditions():
            raise ValueError("exclude names no condition, so it would leave every cell out")
        return self


class Override(_Strict):
    """Values that matching cells take instead of the defaults."""

    when: When = When()
    set: Annotated[dict[str, Any], Field(min_length=1)]


class Variant(_Strict):
    """A named change to a grid: seeds, protocol and axes are replaced; overrides and exclusions are appended."""

    seeds: Many[Seed] | None = None
    protocol: Many[Protocol] | None = None
    loader: Loader | None = None
    precision: Precision | None = None
    product: Annotated[tuple[PartialProduct, ...] | None, BeforeValidator(_listed)] = None
    cells: Listed[CellEntry] | None = None
    exclude: Listed[Exclude] = ()
    override: Listed[Override] = ()


class Grid(_Strict):
    """A grid file."""

    name: Name
    seeds: Many[Seed] = (0,)
    protocol: Many[Protocol] = ("matched",)
    loader: Loader = "ffcv"
    precision: Precision = "fp32"
    product: Annotated[tuple[Product, ...], BeforeValidator(_listed)] = ()
    cells: Listed[CellEntry] = ()
    exclude: Listed[Exclude] = ()
    override: Listed[Override] = ()
    variants: dict[Name, Variant] = {}


_SECTIONS: dict[str, type[BaseModel]] = {
    "product": Product,
    "cells": CellEntry,
    "exclude": Exclude,
    "override": Override,
    "when": When,
}

_WORDS = {
    "int_type": ("is not a whole number", "write it without quotes and without a decimal point"),
    "int_from_float": ("is not a whole number", "write it without a decimal point"),
    "float_type": ("is not a number", "write it without quotes"),
    "string_type": ("is not text", "quote it if it is meant as text"),
    "bool_type": ("is neither true nor false", "write true or false"),
    "tuple_type": ("is not a list", "write [a, b], or one item a line with a dash"),
    "list_type": ("is not a list", "write [a, b], or one item a line with a dash"),
    "model_type": ("is not a mapping", "write keys with values here"),
    "dict_type": ("is not a mapping", "write keys with values here"),
    "string_pattern_mismatch": ("is not a name", "1 to 64 of a-z, 0-9, dot, dash and underscore, first a-z or 0-9"),
}


_RANGES = {"ipc": "1 to 10000 are allowed", "seed": "0 to 2147483648 are allowed"}
_RANGES["seeds"] = _RANGES["seed"]


def load_grid(path: Path) -> tuple[Grid, Document]:
    """Read a grid file and check everything that can be checked without knowing methods and datasets.

    Raises:
        UserError: With `file:line:col` of the first problem in the file.
    """
    document = load_yaml(path)
    return check_grid(document), document


def check_grid(document: Document) -> Grid:
    """Check a parsed file against the schema.

    Raises:
        UserError: With `file:line:col` of the first problem in the file.
    """
    if not isinstance(document.value, dict):
        raise UserError("a grid is a mapping of keys to values", where=document.where(()), hint="start with name: ...")
    try:
        grid = Grid.model_validate(document.value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=True)
        # A misspelt key comes before the key that is missing because of it.
        _report(min(problems, key=lambda p: (p["type"] == "missing", _position(document, p))), document)
    if not grid.product and not grid.cells:
        raise UserError("the grid has neither product nor cells", where=document.where(()), hint="add a product")
    _check_repeats(grid, document)
    return grid


def _position(document: Document, problem: Any) -> tuple[int, int]:
    return document.position(problem["loc"], key=problem["type"] == "extra_forbidden")


def show(value: Any) -> str:
    """A value as a message shows it: short, and in YAML's words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list | tuple):
        kind = "a mapping" if isinstance(value, dict) else "a list"
        return kind if value else f"an empty {kind[2:]}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _report(problem: Any, document: Document) -> NoReturn:
    """Raise one problem of pydantic's as the suite's error."""
    kind, location, value = problem["type"], tuple(problem["loc"]), problem["input"]
    name = next((str(p) for p in reversed(document.resolve(location)) if isinstance(p, str)), "")
    where, hint = document.where(location), ""
    if kind == "extra_forbidden":
        what = f"unknown key {location[-1]!r}"
        where, hint = document.where(location, key=True), did_you_mean(str(location[-1]), _allowed(location[:-1]))
    elif kind == "missing":
        what = f"{location[-1]!r} is missing"
        hint = "add it here"
    elif value is None:
        what, hint = f"{name} has no value", "give one, or remove the key"
    elif kind in ("greater_than_equal", "less_than_equal"):
        field = str(location[-1] if isinstance(location[-1], str) else location[-2])
        what, hint = f"{name}: {value} is out of range", _RANGES.get(field, "")
    elif kind == "too_short":
        what, hint = f"{name} is empty", "give at least one value"
    elif kind == "literal_error":
        expected = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        what, hint = f"{name}: {show(value)} is not allowed", did_you_mean(str(value), expected.split(", "))
    elif kind in _WORDS:
        what, hint = f"{name}: {show(value)} {_WORDS[kind][0]}", _WORDS[kind][1]
        if kind == "string_pattern_mismatch" and len(location) > 1 and location[-1] == "[key]":
            what = f"{location[-2]!r} is not a name"
    else:
        text = problem["msg"].removeprefix("Value error, ")
        what = text if kind == "value_error" else f"{name}: {show(value)} is refused: {text}"
    raise UserError(what, where=where, hint=hint)


def _allowed(parents: Location) -> list[str]:
    """The keys that are allowed inside a location."""
    model: type[BaseModel] = Grid
    inside_variants = False
    for part in parents:
        if inside_variants:
            model, inside_variants = Variant, False
        elif part == "variants" and model is Grid:
            inside_variants = True
        elif isinstance(part, str) and part in _SECTIONS:
            model = _SECTIONS[part]
    return list(model.model_fields)


def _check_repeats(grid: Grid, document: Document) -> None:
    """Refuse an axis, a seed or a protocol that is listed twice."""
    scopes: list[tuple[Location, Grid | Variant]] = [((), grid)]
    scopes += [(("variants", name), variant) for name, variant in grid.variants.items()]
    for scope, part in scopes:
        for key in ("seeds", "protocol"):
            _check_distinct(getattr(part, key), (*scope, key), document)
        for i, product in enumerate(part.product or ()):
            for axis in AXES:
                _check_distinct(getattr(product, axis), (*scope, "product", i, axis), document)


def _check_distinct(values: tuple[Any, ...] | None, location: Location, document: Document) -> None:
    seen: dict[Any, int] = {}
    for i, value in enumerate(values or ()):
        if value in seen:
            first = document.position((*location, seen[value]))[0]
            raise UserError(
                f"{location[-1]}: {show(value)} is a duplicate of line {first}",
                where=document.where((*location, i)),
                hint="remove one of the two",
            )
        seen[value] = i
