"""A worker that meets a fault in one stage of the tiny grid, and what it left behind."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.grid import Plan
from suite.spec.stages import Stage
from suite.store import Record, Store
from tests.tiny import run_in_fork, write_run


@dataclass
class Bench:
    """A copy of the finished tiny store in which some stages are to be made again.

    Attributes:
        plan: The tiny plan.
        store: The copy.
        run: A run directory with every stage of the plan.
    """

    plan: Plan
    store: Store
    run: Path

    def position(self, kind: str, **spec: Any) -> int:
        """Where the first stage of a kind with these values stands in the plan."""
        return next(
            i
            for i, s in enumerate(self.plan.stages)
            if s.kind == kind and all(getattr(s.spec, k) == v for k, v in spec.items())
        )

    def work(self, *positions: int, fault: str = "") -> int:
        """Make stages again in a worker. Returns its exit code."""
        for position in positions:
            out = self.home(position) / "out"
            if out.exists():
                shutil.rmtree(out)
        return run_in_fork(self.run, list(positions), fault)

    def stage(self, position: int) -> Stage:
        return self.plan.stages[position]

    def home(self, position: int) -> Path:
        stage = self.stage(position)
        return self.store.home(stage.kind, stage.key)

    def failures(self, position: int) -> list[Record]:
        return self.store.failures(self.stage(position).kind, self.stage(position).key)

    def record(self, position: int) -> Record:
        return self.store.open(self.stage(position).kind, self.stage(position).key).record()

    def digest(self, position: int) -> str:
        return self.store.open(self.stage(position).kind, self.stage(position).key).digest


def bench(tiny: tuple[Plan, Store, Path], folder: Path) -> Bench:
    """A copy of the finished tiny grid below a folder."""
    plan, reference, _ = tiny
    store = Store(shutil.copytree(reference.root, folder / "store"))
    return Bench(plan, store, write_run(plan, store))
