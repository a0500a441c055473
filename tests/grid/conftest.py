"""Small grids as text, and tiny methods of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pytest

from suite.errors import UserError
from suite.grid import Plan, load_plan
from suite.methods import METHODS, Method, discover, method
from suite.spec.recipes import StudentRecipe

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job

SMALL = """\
name: small
seeds: [0, 1]
protocol: [matched]
product:
  method: [random, sre2l]
  dataset: digits
  ipc: [1, 2]
  teacher: [convnet3_w32]
  student: [convnet3_w32, convnet2]
"""

Planned = Callable[..., Plan]
Refused = Callable[..., str]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """Plan a grid given as text."""

    def plan(text: str, **options: object) -> Plan:
        path = tmp_path / "g.yaml"
        path.write_text(text)
        return load_plan(path, **options)  # type: ignore[arg-type]

    return plan


@pytest.fixture
def refused(planned: Planned, tmp_path: Path) -> Refused:
    """The message with which a grid given as text is refused, without the folder."""

    def message(text: str, **options: object) -> str:
        with pytest.raises(UserError) as caught:
            planned(text, **options)
        line = caught.value.line()
        assert "\n" not in line
        assert caught.value.where.startswith(f"{tmp_path}/g.yaml:"), line
        return line.removeprefix(f"{tmp_path}/")

    return message


@pytest.fixture
def toys() -> Iterator[None]:
    """Two methods that exist only in a test: `toy` with every kind of field, `toy_free` that needs nothing."""
    discover()

    @method(name="toy", paper="test", version=3, needs=("real", "teacher", "statistics"), labels="stored")
    @dataclass(frozen=True)
    class Toy(Method):
        count: int = 3
        rate: float = 0.5
        flag: bool = True
        mode: Literal["slow", "fast"] = "slow"
        area: tuple[float, float] = (0.1, 1.0)
        cap: int | None = None

        paper_values: ClassVar[dict] = {("cifar10", 10): {"count": 7}}
        paper_teachers: ClassVar[dict] = {"cifar10": ("convnet4", "convnet5")}
        paper_label_teachers: ClassVar[dict] = {"cifar10": ("convnet4",)}

        def __post_init__(self) -> None:
            if self.count > 100:
                raise ValueError(f"count {self.count} is more than 100")

        def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
            return StudentRecipe(epochs=self.count, batch=4)

        def image_iterations(self, ipc: int) -> int:
            return self.count

        def synthesize(self, job: Job) -> DistilledSet:
            raise AssertionError("planning never runs a method")

    @method(name="toy_free", paper="test", version=1)
    @dataclass(frozen=True)
    class Free(Method):
        def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
            return StudentRecipe(epochs=2)

        def synthesize(self, job: Job) -> DistilledSet:
            raise AssertionError("planning never runs a method")

    yield
    del METHODS["toy"], METHODS["toy_free"]
