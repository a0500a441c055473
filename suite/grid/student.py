"""How the student of a cell learns, before it becomes part of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from suite.spec.recipes import LabelRecipe, Labels, RelabelRecipe, StudentRecipe


@dataclass(frozen=True)
class Student:
    """How a cell's student learns.

    Attributes:
        labels: Label policy.
        label: How soft labels follow from logits.
        recipe: How it is trained.
        relabel: How stored labels are made; None for other policies.
        special: Fields in which its label teachers differ from the grid's.
    """

    labels: Labels
    label: LabelRecipe
    recipe: StudentRecipe
    relabel: RelabelRecipe | None
    special: tuple[tuple[str, Any], ...] = ()
