"""The same seed gives the same bits, another seed other ones; every row carries its provenance."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from suite.grid import Plan
from suite.spec.stages import Stage
from suite.store import Store
from tests.tiny import run_in_fork, write_run

pytestmark = pytest.mark.ffcv


def test_same_seed_is_bit_identical(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> None:
    plan, reference, _ = tiny
    again = Store(tmp_path / "store")
    run = write_run(plan, again)
    assert run_in_fork(run, list(range(len(plan.stages)))) == 0
    for stage in plan.stages:
        assert again.open(stage.kind, stage.key).digest == reference.open(stage.kind, stage.key).digest, stage.label()


def test_another_seed_differs(tiny: tuple[Plan, Store, Path], tmp_path: Path) -> None:
    plan, reference, _ = tiny
    shutil.copytree(reference.root, tmp_path / "store")
    store = Store(tmp_path / "store")
    for stage in [s for s in plan.stages if s.kind == "synthesis"]:
        other = Stage.make("synthesis", replace(stage.spec, seed=1), stage.inputs)
        plan_of_one = Plan(name="other", stages=[other], cells=[], cell_keys=[], excluded=[])
        assert run_in_fork(write_run(plan_of_one, store), [0]) == 0
        assert store.open("synthesis", other.key).digest != store.open("synthesis", stage.key).digest, stage.label()


def test_rows_carry_full_provenance(tiny: tuple[Plan, Store, Path]) -> None:
    plan, store, _ = tiny
    rows = list(store.records("evaluation"))
    assert {r.key for r in rows} == set(plan.cell_keys)
    for row in rows:
        p = row.provenance
        assert len(p["commit"]) >= 40 and "dirty" in p and p["seed"] == 0 and p["loader"] == "ffcv"
        assert p["environment"]["torch"] and p["environment"]["ffcv"] and p["host"]
        assert row.device["type"] == "cpu" and row.device["name"] and row.device["threads"] == 1
        assert row.seconds > 0 and row.cost["seconds"] > 0 and row.cost["peak_memory_bytes"] > 0
        assert row.upstream["synthesis"]["images"] == 10
        assert ("teacher" in row.upstream) == (row.spec["method"] != "random")
        assert (row.cost.get("forward_images", 0) > 0) == (row.spec["labels"] == "online")
        assert row.numbers["val_images"] == 355
        assert 0 <= row.numbers["accuracy_last"] <= row.numbers["accuracy_best"] <= 100
        ledger = {entry["kind"]: entry["bytes"] for entry in row.storage if entry["shipped"]}
        assert ledger["image"] >= 10 * 3 * 16 * 16


def test_storage_is_what_lies_on_disk(tiny: tuple[Plan, Store, Path]) -> None:
    plan, store, _ = tiny
    for stage in [s for s in plan.stages if s.kind == "evaluation"]:
        row = store.open("evaluation", stage.key).record()
        images = store.open("synthesis", stage.inputs["synthesis"]).path / "distilled.safetensors"
        with_classes = ("image", "label") if row.spec["labels"] == "hard" else ("image",)
        assert sum(e["bytes"] for e in row.storage if e["kind"] in with_classes) == images.stat().st_size
        if "relabel" in stage.inputs:
            folder = store.open("relabel", stage.inputs["relabel"]).path
            files = sum(p.stat().st_size for p in folder.iterdir() if p.name not in ("manifest.json", "record.json"))
            assert sum(e["bytes"] for e in row.storage if e["kind"] in ("label", "aug", "meta")) == files
