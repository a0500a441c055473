"""Where in a grid file an error of planning belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from suite.errors import SuiteError, UserError
from suite.grid.expand import Selection
from suite.grid.overrides import Rule
from suite.grid.yaml_strict import Document

T = TypeVar("T")


class Places:
    """Finds the override that caused an error, and runs methods' own code so that what it refuses gets a place.

    Args:
        selection: The grid.
        document: For positions.
    """

    def __init__(self, selection: Selection, document: Document) -> None:
        self.selection, self.document = selection, document

    def where(self, rules: Iterable[Rule], section: str) -> str:
        """The place of the last rule that sets something of a section, else of the first product or cell."""
        for rule in reversed(list(rules)):
            if getattr(rule, section):
                return self.document.where(rule.location)
        parts = self.selection.products or self.selection.cells
        return self.document.where(parts[0].location)

    def guard(self, call: Callable[[], T], rules: list[Rule], section: str) -> T:
        """Run a method's own code: what it refuses is an error of the grid, at the override that caused it.

        Raises:
            UserError: For anything that the code refuses.
        """
        try:
            return call()
        except SuiteError as error:
            raise UserError(error.what, where=error.where or self.where(rules, section), hint=error.hint) from error
        except (ValueError, TypeError) as error:
            hint = "correct the override" if any(getattr(r, section) for r in rules) else "exclude it"
            raise UserError(str(error), where=self.where(rules, section), hint=hint) from error
