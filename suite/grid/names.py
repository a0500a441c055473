"""Whether the names in a grid exist: methods, datasets, architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from suite.errors import UserError
from suite.grid.expand import Selection
from suite.grid.schema import AXES
from suite.grid.yaml_strict import Document, Location
from suite.methods import get
from suite.spec.archs import check_arch
from suite.spec.datasets import dataset


def check_teacher(name: str, where: str = "") -> None:
    """Check a teacher: an architecture, or several different ones joined by `+`.

    Raises:
        UserError: If one of them is unknown or stands there twice.
    """
    archs = name.split("+")
    for arch in archs:
        check_arch(arch, where)
    if len(set(archs)) < len(archs):
        raise UserError(f"teacher {name!r} names an architecture twice", where=where, hint="keep one of them")


_CHECKS: dict[str, Callable[[str, str], Any]] = {
    "method": get,
    "dataset": dataset,
    "teacher": check_teacher,
    "student": check_arch,
}


def check_names(selection: Selection, document: Document) -> None:
    """Check every name of a selection: axes, explicit cells, conditions.

    Raises:
        UserError: At the first name that does not exist.
    """
    for part in selection.products:
        _check_values(part.item, part.location, document)
    for part in selection.cells:
        _check_values({axis: (getattr(part.item, axis),) for axis in AXES}, part.location, document)
    for part in selection.excludes:
        _check_values(part.item.conditions(), part.location, document)
    for part in selection.overrides:
        _check_values(part.item.when.conditions(), (*part.location, "when"), document)


def _check_values(values: dict[str, tuple[Any, ...]], location: Location, document: Document) -> None:
    for axis, check in _CHECKS.items():
        for i, name in enumerate(values.get(axis, ())):
            check(name, document.where((*location, axis, i)))
