"""`relabel` and the labels of `evaluation` on real files: every policy writes, reads and counts what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from suite.learn import models
from suite.learn.label_stream import InOrder, Pool
from suite.learn.soft_labels import LabelSource, StoredLabels, VectorLabels
from suite.learn.view_plans import DrawnViews, Renderer
from suite.spec.datasets import dataset
from suite.spec.recipes import LabelRecipe, RelabelRecipe, StudentRecipe
from suite.spec.stages import RelabelSpec
from suite.spec.storage import hard_label_bytes, label_bytes, stream_bytes, vector_bytes
from suite.stages import evaluation, relabel
from suite.stages.context import Context, Settings
from suite.store import Artifact, Record
from suite.store.files import write_json
from tests.learn.training import CPU, DIGITS, some_digits

ARCHS = ("convnet1_w4_bn", "convnet1_w8_bn")
IPC = 20
STREAM = RelabelRecipe(2, 20, crop=(0.5, 1.0))
VECTOR = RelabelRecipe(1, 100, (1.0, 1.0), False, False)
WEIGHTED = LabelRecipe("weighted", (0.75, 0.25), 10)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A synthesis of real digits, and two teachers with random weights."""
    root = tmp_path_factory.mktemp("inputs")

    def artifact(role: str, arch: str = "") -> Artifact:
        path = root / role
        path.mkdir()
        record = Record(role.partition(".")[0], role, "a", "done", {}, cost={"seconds": 1.0, "device": "cpu"})
        write_json(path / "record.json", record.to_json())
        return Artifact(path, {"key": role, "spec": {"arch": arch}})

    found = {"synthesis": artifact("synthesis")}
    some_digits(IPC).save(found["synthesis"].path / "distilled.safetensors")
    for i, arch in enumerate(ARCHS):
        found[f"teacher.{i}"] = artifact(f"teacher.{i}", arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            save_file(models.build(arch, 10, 16).state_dict(), found[f"teacher.{i}"].path / "weights.safetensors")
    return found


def run(inputs: dict[str, Artifact], folder: Path, labels: Any, recipe: RelabelRecipe) -> tuple[Any, Context, Path]:
    """Run `relabel`; its outcome, its context and its file."""
    spec = RelabelSpec(labels, "digits", IPC, ARCHS, recipe, 7, "fp32")
    stage: Any = SimpleNamespace(spec=spec)
    context = Context(stage, inputs, folder, Settings("store"), CPU, lambda done, total: None)
    return relabel.run(context), context, folder / "labels.safetensors"


def source(inputs: dict[str, Artifact], folder: Path, labels: str, label: LabelRecipe) -> LabelSource:
    """The labels that an evaluation opens."""
    spec = SimpleNamespace(labels=labels, label=label, precision="fp32", dataset="digits")
    given = inputs | {"relabel": Artifact(folder, {"key": "r"})}
    stage: Any = SimpleNamespace(spec=spec)
    return evaluation._labels(Context(stage, given, folder, Settings("store"), CPU, lambda d, t: None), IPC * 10)


@pytest.mark.parametrize(
    ("labels", "recipe", "seen"),
    [
        ("vector", VECTOR, 200),
        ("vector", replace(VECTOR, label=replace(WEIGHTED, temperature=3.0)), 200),
        ("stored", STREAM, 2 * 200),
        ("stored", replace(STREAM, label=WEIGHTED), 2 * 200),
        ("stored", replace(STREAM, label=LabelRecipe(prune=0.5)), 200),
        ("stored", replace(STREAM, epochs=40, label=LabelRecipe("norm", prune=0.975)), 10 * 20),
    ],
)
def test_files_passes_and_ledgers_are_those_of_the_formulas(
    inputs: dict[str, Artifact], tmp_path: Path, labels: str, recipe: RelabelRecipe, seen: int
) -> None:
    outcome, _, path = run(inputs, tmp_path, labels, recipe)
    assert outcome.cost["forward_images"] == seen * len(ARCHS), "nothing is asked that is not stored"
    assert outcome.cost["images"] == 200 and outcome.upstream["teacher"]["seconds"] == 2.0
    found = source(inputs, tmp_path, labels, recipe.label)
    ledger = {e["kind"]: e["bytes"] for e in found.ledger()}
    assert sum(ledger.values()) == path.stat().st_size
    assert sum(ledger.values()) - ledger["meta"] == label_bytes(labels, recipe, 200, 10)
    kind = {"vector": VectorLabels, "stored": StoredLabels}[labels]
    assert isinstance(found, kind)
    planner = found.planner(DrawnViews(StudentRecipe(batch=20, crop=(0.5, 1.0)), 200, 16, 0))
    assert isinstance(planner, DrawnViews if labels == "vector" else Pool if recipe.label.prune else InOrder)


def test_all_policies_with_one_set_take_the_bytes_of_the_accounting(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    """Hard, one vector, stored and pruned 40 times, of 200 images and 10 classes: 40 epochs in batches of 20."""
    whole = replace(STREAM, epochs=40)
    pruned = replace(whole, label=LabelRecipe(prune=0.975))
    sizes = {}
    for name, labels, recipe in (("vector", "vector", VECTOR), ("stored", "stored", whole), ("40x", "stored", pruned)):
        (tmp_path / name).mkdir()
        sizes[name] = run(inputs, tmp_path / name, labels, recipe)[2].stat().st_size
    assert sizes["stored"] == pytest.approx(stream_bytes(whole, 200, 10), rel=0.01)
    assert stream_bytes(whole, 200, 10) == 40 * 200 * (4 + 2 * 10 + 8 + 1 + 4) + 400 * 16
    assert stream_bytes(pruned, 200, 10) == 10 * (20 * (4 + 2 * 10 + 8 + 1 + 4) + 16), "400 x 0.025 batches"
    assert sizes["40x"] - stream_bytes(pruned, 200, 10) < 2_000 and sizes["vector"] - vector_bytes(200, 10) < 200
    assert stream_bytes(whole, 200, 10) == 40 * stream_bytes(pruned, 200, 10)
    assert hard_label_bytes(200, 10) == 200 == source(inputs, tmp_path, "hard", LabelRecipe()).ledger()[0]["bytes"]


@pytest.mark.parametrize("label", [LabelRecipe(), WEIGHTED, LabelRecipe("norm", part=10)])
def test_an_evaluation_asks_online_what_relabel_stores(
    inputs: dict[str, Artifact], tmp_path: Path, label: LabelRecipe
) -> None:
    run(inputs, tmp_path, "stored", replace(STREAM, epochs=1, label=label))
    stored, online = (source(inputs, tmp_path, labels, label) for labels in ("stored", "online"))
    drawn, images = DrawnViews(StudentRecipe(batch=20, crop=(0.5, 1.0)), 200, 16, 0), some_digits(IPC)
    planner, render = stored.planner(drawn), Renderer(images.images, dataset("digits"), CPU)
    online.planner(drawn)
    for batch in range(planner.batches):
        plan = planner.plan(0, batch)
        x, hard = render(plan), images.labels[plan.index]
        assert torch.equal(stored.targets(plan, x, hard), online.targets(plan, x, hard).half().float())
    assert DIGITS.classes == 10
