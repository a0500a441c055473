"""From a checked grid to cells: variants, counting before expanding, exclusions and duplicates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any

from suite.errors import UserError, did_you_mean
from suite.grid.schema import AXES, CellEntry, Exclude, Grid, PartialProduct, Product, Variant
from suite.grid.yaml_strict import Document, Location
from suite.spec.stages import Loader, Precision, Protocol

MAX_CELLS = 100_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a grid.

    Attributes:
        method: Name of a registered method.
        dataset: Name of a dataset, suffixes included.
        ipc: Images per class.
        teacher: An architecture, or several joined by `+`.
        student: An architecture.
        protocol: `paper` or `matched`.
        seed: Of synthesis, relabelling and student.
    """

    method: str
    dataset: str
    ipc: int
    teacher: str
    student: str
    protocol: Protocol
    seed: int


@dataclass(frozen=True)
class Part:
    """Something of a grid with its place.

    Attributes:
        item: The checked value.
        location: Where it stands in the file.
        required: Whether it is an error that it matches nothing. Exclusions and overrides of a grid may match nothing
            in a variant of it.
    """

    item: Any
    location: Location
    required: bool = True


@dataclass(frozen=True)
class Selection:
    """A grid after a variant was chosen: what `expand` reads.

    Attributes:
        name: Of the plan: the grid's, and the variant's after a dot.
        products: Parts with {axis: values}, the axes in the order of `AXES`, then protocol and seed.
        cells: Parts with `CellEntry`.
        excludes: Parts with `Exclude`, in order.
        overrides: Parts with `Override`, in order; later ones win.
    """

    name: str
    seeds: tuple[int, ...]
    protocols: tuple[Protocol, ...]
    loader: Loader
    precision: Precision
    products: list[Part]
    cells: list[Part]
    excludes: list[Part]
    overrides: list[Part]


def select(grid: Grid, document: Document, variant: str | None = None) -> Selection:
    """Apply a variant.

    Raises:
        UserError: If there is no such variant, or it replaces axes of one product among several.
    """
    change = Variant()
    scope: Location = ()
    if variant is not None:
        if variant not in grid.variants:
            hint = did_you_mean(variant, grid.variants) if grid.variants else "this grid has no variants"
            raise UserError(f"unknown variant {variant!r}", where=document.where(("variants",)), hint=hint)
        change, scope = grid.variants[variant], ("variants", variant)
    name = grid.name if variant is None else f"{grid.name}.{variant}"
    if len(name) > 64:
        where = document.where(("variants", variant or ""), key=True)
        raise UserError(f"{name!r} is longer than 64 characters", where=where, hint="shorten one of the two names")
    seeds, protocols = change.seeds or grid.seeds, change.protocol or grid.protocol
    in_variant = variant is not None
    return Selection(
        name=name,
        seeds=seeds,
        protocols=protocols,
        loader=change.loader or grid.loader,
        precision=change.precision or grid.precision,
        products=[
            Part({**axes, "protocol": protocols, "seed": seeds}, location)
            for axes, location in _products(grid, change, (*scope, "product"), document)
        ],
        cells=_parts(grid.cells, ("cells",)) if change.cells is None else _parts(change.cells, (*scope, "cells")),
        excludes=_parts(grid.exclude, ("exclude",), not in_variant) + _parts(change.exclude, (*scope, "exclude")),
        overrides=_parts(grid.override, ("override",), not in_variant) + _parts(change.override, (*scope, "override")),
    )


def _parts(items: tuple[Any, ...], location: Location, required: bool = True) -> list[Part]:
    return [Part(item, (*location, i), required) for i, item in enumerate(items)]


def _axes(product: Product | PartialProduct) -> dict[str, tuple[Any, ...]]:
    return {axis: values for axis in AXES if (values := getattr(product, axis)) is not None}


def _products(
    grid: Grid, change: Variant, scope: Location, document: Document
) -> Iterator[tuple[dict[str, tuple[Any, ...]], Location]]:
    """The products of a grid, replaced or changed by a variant."""
    base = [_axes(p) for p in grid.product]
    if change.product is None:
        yield from ((axes, ("product", i)) for i, axes in enumerate(base))
        return
    for i, axes in enumerate(map(_axes, change.product)):
        if len(axes) < len(AXES):
            if len(base) != 1:
                missing = ", ".join(a for a in AXES if a not in axes)
                raise UserError(
                    f"product of a variant lacks {missing}",
                    where=document.where((*scope, i)),
                    hint="name all five axes where the grid itself has several products or none",
                )
            axes = {axis: axes.get(axis, base[0][axis]) for axis in AXES}
        yield axes, (*scope, i)


def _entry_axes(entry: CellEntry, selection: Selection) -> dict[str, tuple[Any, ...]]:
    axes: dict[str, tuple[Any, ...]] = {axis: (getattr(entry, axis),) for axis in AXES}
    axes["protocol"] = selection.protocols if entry.protocol is None else (entry.protocol,)
    axes["seed"] = selection.seeds if entry.seed is None else (entry.seed,)
    return axes


def _sources(selection: Selection) -> Iterator[tuple[dict[str, tuple[Any, ...]], Location]]:
    yield from ((part.item, part.location) for part in selection.products)
    yield from ((_entry_axes(part.item, selection), part.location) for part in selection.cells)


def count(selection: Selection) -> int:
    """Number of cells before exclusions, from axis lengths alone."""
    return sum(prod(len(values) for values in axes.values()) for axes, _ in _sources(selection))


def check_count(selection: Selection, document: Document, max_cells: int = MAX_CELLS) -> None:
    """Refuse a grid that is too large, before anything is expanded.

    Raises:
        UserError: If there are more than `max_cells` before exclusions.
    """
    total = count(selection)
    if total > max_cells:
        raise UserError(
            f"the grid has {total:,} cells, more than {max_cells:,}",
            where=document.where(selection.products[0].location if selection.products else ("cells",)),
            hint="shorten an axis, exclude by splitting the product, or raise --max-cells",
        )


def expand(selection: Selection, document: Document) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    """All cells in file order (the last axis runs fastest), and those that are excluded with the reason.

    Raises:
        UserError: If a cell stands in the grid twice, an exclusion matches nothing, or everything is excluded.
    """
    return _exclude(_expand_all(selection, document), selection, document)


def _expand_all(selection: Selection, document: Document) -> list[Cell]:
    sources = list(_sources(selection))
    cells: list[Cell] = []
    seen: dict[Cell, Location] = {}
    for axes, location in sources:
        made = [Cell(*values) for values in itertools.product(*axes.values())]
        if len(sources) > 1:  # one product cannot repeat itself: its axes hold distinct values
            for cell in made:
                if cell in seen:
                    line = document.position(seen[cell])[0]
                    raise UserError(
                        f"cell {describe(cell)} is a duplicate of line {line}",
                        where=document.where(location),
                        hint="remove it from one of the two places",
                    )
                seen[cell] = location
        cells += made
    return cells


def describe(cell: Cell) -> str:
    """A cell in one line."""
    return (
        f"{cell.method} {cell.dataset} ipc{cell.ipc} {cell.teacher} -> {cell.student} {cell.protocol} seed{cell.seed}"
    )


class Matcher:
    """Which of several conditions a cell meets, remembered by the axes that the conditions name."""

    def __init__(self, conditions: list[dict[str, tuple[Any, ...]]]) -> None:
        self.conditions = [{axis: frozenset(values) for axis, values in c.items()} for c in conditions]
        self.axes = sorted({axis for c in self.conditions for axis in c})
        self._values = attrgetter(*self.axes) if self.axes else lambda cell: ()
        self.memo: dict[Any, tuple[int, ...]] = {}

    def __call__(self, cell: Cell) -> tuple[int, ...]:
        """Indices of the conditions that the cell meets, ascending."""
        signature = self._values(cell)
        found = self.memo.get(signature)
        if found is None:
            values = {axis: getattr(cell, axis) for axis in self.axes}
            found = self.memo[signature] = tuple(
                [i for i, condition in enumerate(self.conditions) if meets(condition, values)]
            )
        return found


def meets(condition: Mapping[str, frozenset[Any]], values: Mapping[str, Any]) -> bool:
    """Whether each named axis has one of the allowed values."""
    return all(values[axis] in allowed for axis, allowed in condition.items())


def _exclude(cells: list[Cell], selection: Selection, document: Document) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    if not selection.excludes:
        return cells, []
    rules: list[Exclude] = [part.item for part in selection.excludes]
    matcher = Matcher([rule.conditions() for rule in rules])
    kept: list[Cell] = []
    excluded: list[tuple[Cell, str]] = []
    used: set[int] = set()
    for cell in cells:
        if matches := matcher(cell):
            used.update(matches)
            excluded.append((cell, rules[matches[0]].why))
        else:
            kept.append(cell)
    for i, part in enumerate(selection.excludes):
        if part.required and i not in used:
            where = document.where(part.location)
            raise UserError("exclude matches no cell", where=where, hint="remove it, or correct its conditions")
    if not kept:
        where = document.where(selection.excludes[-1].location)
        raise UserError("every cell of the grid is excluded", where=where, hint="leave at least one")
    return kept, excluded
