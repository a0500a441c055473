"""One row of each label policy, made once by real stages, and ways to call the commands in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from suite.errors import SuiteError
from suite.grid import Plan, load_plan
from suite.spec.stages import Stage
from suite.store import Record, Store
from tests.once import made_once
from tests.tiny import write_run

#: Two teachers, so that their order matters; IPC names the label policy.
GRID = """\
name: policies
seeds: [0]
product:
  - {method: [random], dataset: [digits], ipc: [2], teacher: [TEACHERS], student: [convnet2_w8]}
  - {method: [random_soft], dataset: [digits], ipc: [1, 2, 3, 4], teacher: [TEACHERS], student: [convnet2_w8]}
cells:
  - {method: random, dataset: digits, ipc: 2, teacher: TEACHERS, student: convnet2_w8, protocol: paper}
override:
  - {when: {protocol: matched}, set: {student.steps: 60, student.batch: 8, student.evaluations: 6}}
  - {when: {dataset: digits}, set: {teacher.epochs: 2}}
  - {when: {protocol: paper}, set: {student.epochs: 30}}
  - {when: {method: random_soft, ipc: 1}, set: {labels: stored}}
  - {when: {method: random_soft, ipc: 2}, set: {labels: vector}}
  - {when: {ipc: 4}, set: {labels: stored, label.prune: 0.5}}
""".replace("TEACHERS", "convnet1_w4+convnet1_w8")


@dataclass(frozen=True)
class Made:
    """A finished grid.

    Attributes:
        plan: Its plan.
        store: Where it is.
    """

    plan: Plan
    store: Store

    def rows(self) -> dict[str, Record]:
        """Rows by what they show: label policy, `pruned`, `paper`."""
        found = {}
        for cell, key in zip(self.plan.cells, self.plan.cell_keys, strict=True):
            record = self.store.open("evaluation", key).record()
            name = record.spec["labels"]
            name = "pruned" if cell.ipc == 4 else "paper" if cell.protocol == "paper" else name
            found[name] = record
        return found

    def stages(self, kind: str) -> list[Stage]:
        return [s for s in self.plan.stages if s.kind == kind]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The grid, run once. Rows of external sets may be added; nothing else changes it."""

    def make(folder: Path) -> None:
        from suite.work import run_pack

        (folder / "grid.yaml").write_text(GRID)
        plan = load_plan(folder / "grid.yaml")
        run = write_run(plan, Store(folder / "store"))
        assert run_pack(str(run), list(range(len(plan.stages)))) == 0

    folder = made_once(tmp_path_factory, "policies", make)
    return Made(load_plan(folder / "grid.yaml"), Store(folder / "store"))


Command = Callable[..., str]


def in_process(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> Command:
    """A command line that returns what it printed, or the one line of its error."""

    def call(*words: object) -> str:
        try:
            assert main([str(w) for w in words]) == 0
        except SuiteError as error:
            line = f"error: {error.line()}"
            assert "\n" not in line and error.hint, "one line, and what to do next"
            return line
        return capsys.readouterr().out

    return call


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str]) -> Command:
    from suite.export import main

    return in_process(main, capsys)


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Command:
    from suite.evaluate import main

    return in_process(main, capsys)
