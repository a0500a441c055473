"""A part of a plan: the cells that meet conditions from the command line, and the stages that they need."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from suite.errors import UserError, did_you_mean
from suite.grid.expand import meets
from suite.grid.plan import Plan
from suite.grid.schema import CONDITIONS
from suite.spec.stages import Stage

_FLAG = "--only"
_EXAMPLE = "e.g. method=e2d,ipc=10"
_NUMBERS = ("ipc", "seed")


def parse_only(texts: Sequence[str]) -> list[dict[str, frozenset[Any]]]:
    """Read `axis=value,...` conditions.

    Args:
        texts: One text a flag. Within a text different axes must all be met, and an axis that is named twice may have
            either value; a cell is kept if it meets any of the texts.

    Raises:
        UserError: If something else is written there, or no axis has that name.
    """
    return [_conditions(text) for text in texts]


def _conditions(text: str) -> dict[str, frozenset[Any]]:
    found: dict[str, set[Any]] = {}
    for part in text.split(","):
        axis, equals, word = (p.strip() for p in part.partition("="))
        if not equals or not axis or not word:
            raise UserError(f"{part!r} is not axis=value", where=_FLAG, hint=_EXAMPLE)
        if axis not in CONDITIONS:
            raise UserError(f"no axis {axis!r}", where=_FLAG, hint=did_you_mean(axis, CONDITIONS))
        value: Any = word
        if axis in _NUMBERS:
            if not re.fullmatch(r"[0-9]{1,10}", word):
                raise UserError(f"{axis} is a whole number, not {word!r}", where=_FLAG, hint=_EXAMPLE)
            value = int(word)
        found.setdefault(axis, set()).add(value)
    return {axis: frozenset(values) for axis, values in found.items()}


def subset(plan: Plan, texts: Sequence[str]) -> Plan:
    """The part of a plan that conditions select; the plan itself if there are none.

    Args:
        plan: The whole plan.
        texts: Conditions as in `parse_only`.

    Raises:
        UserError: If a value is in no cell of the grid, or no cell meets the conditions.
    """
    if not texts:
        return plan
    wanted = parse_only(texts)
    _check_values(plan, wanted)
    kept = [
        (cell, key)
        for cell, key in zip(plan.cells, plan.cell_keys, strict=True)
        if any(meets(c, {axis: getattr(cell, axis) for axis in c}) for c in wanted)
    ]
    if not kept:
        raise UserError(
            f"no cell of {plan.name} meets {' or '.join(texts)}",
            where=_FLAG,
            hint="each value is in the grid, but no cell has them together",
        )
    return replace(
        plan,
        stages=needed(plan.stages, {key for _, key in kept}),
        cells=[cell for cell, _ in kept],
        cell_keys=[key for _, key in kept],
        excluded=[],
    )


def _check_values(plan: Plan, wanted: list[dict[str, frozenset[Any]]]) -> None:
    for axis in CONDITIONS:
        asked = frozenset().union(*(c.get(axis, frozenset()) for c in wanted))
        if not asked:
            continue
        there = {getattr(cell, axis) for cell in plan.cells}
        if unknown := sorted(asked - there):
            hint = did_you_mean(str(unknown[0]), there)
            raise UserError(f"no cell of {plan.name} has {axis} {unknown[0]}", where=_FLAG, hint=hint)


def needed(stages: Sequence[Stage], keys: set[str]) -> list[Stage]:
    """The stages with these keys and everything that they need, in their order.

    Args:
        stages: In an order in which inputs come before what needs them.
        keys: Keys of evaluations.
    """
    wanted = set(keys)
    kept = []
    for stage in reversed(stages):
        if stage.key in wanted:
            wanted.update(stage.inputs.values())
            kept.append(stage)
    return kept[::-1]
