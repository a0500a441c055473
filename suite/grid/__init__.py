"""From a grid file to a plan: strict YAML, cells, stages, keys and a cost estimate. No torch."""

from suite.grid.estimate import Estimate, estimate
from suite.grid.expand import MAX_CELLS, Cell
from suite.grid.plan import Plan, load_plan

__all__ = ["MAX_CELLS", "Cell", "Estimate", "Plan", "estimate", "load_plan"]
