"""A synthesis whose batches are optimised side by side, through its stage: the same images up to roundings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from suite.data.distilled import DistilledSet
from suite.grid import Plan
from suite.spec.stages import Stage
from suite.store import Store
from tests.faults.attempts import find
from tests.tiny import write_run

pytestmark = pytest.mark.ffcv


def images(plan: Plan, reference: Store, folder: Path, **settings: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The images and the cost of the tiny grid's SRe2L, with two batches of five classes."""
    import shutil

    from suite.work import run_pack

    before = plan.stages[find(plan, "synthesis", "sre2l")]
    spec: Any = before.spec
    stage = Stage.make(
        "synthesis", replace(spec, params={**spec.params, "batch": 5, "iterations": 8}, **settings), before.inputs
    )
    if not (folder / "store").exists():
        shutil.copytree(reference.root, folder / "store")
    store = Store(folder / "store")
    assert run_pack(str(write_run(Plan("stacked", [stage]), store)), [0]) == 0
    found = store.open("synthesis", stage.key)
    return DistilledSet.load(found.path / "distilled.safetensors").images, found.record().cost


def test_stacked_batches_are_alone_up_to_roundings(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> None:
    alone, cost = images(tiny[0], tiny[1], tmp_path)
    stacked, other = images(tiny[0], tiny[1], tmp_path, stack=10)
    differ = (alone.int() - stacked.int()).abs()
    assert int(differ.max()) <= 2 and float((differ > 0).float().mean()) < 0.02
    assert cost["image_iterations"] == other["image_iterations"] and cost["forward_images"] == other["forward_images"]


@pytest.mark.slow  # a compiler's first look at a network takes a minute
def test_compiled_teachers_give_the_same_images_up_to_roundings(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> None:
    alone, _ = images(tiny[0], tiny[1], tmp_path)
    compiled, _ = images(tiny[0], tiny[1], tmp_path, compile=True)
    differ = (alone.int() - compiled.int()).abs()
    assert int(differ.max()) <= 2 and float((differ > 0).float().mean()) < 0.02
