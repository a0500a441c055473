"""Keys of cells as their methods define them, without any override: what a row of protocol `paper` has to have."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from suite.errors import UserError
from suite.grid.expand import Cell, Part, Selection
from suite.grid.plan import Planner
from suite.grid.yaml_strict import Document


def default_keys(cells: Iterable[Cell]) -> dict[Cell, str]:
    """Keys of the cells' evaluations with every value at its default; cells that cannot be planned so are left out.

    Args:
        cells: Cells, of any grid.
    """
    selection = Selection("defaults", (0,), ("paper",), "ffcv", "fp32", [Part({"method": ()}, ())], [], [], [])
    plans = Planner(selection, Document("defaults", {}, {(): (1, 1)}, {}))
    found = {}
    for cell in cells:
        with suppress(
            UserError
        ):  # a method or dataset of another version, or a cell that only an override makes possible
            found[cell] = plans.evaluation(cell).key
    return found
