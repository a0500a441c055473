"""Costs and bytes of a row: nothing hides, and nothing counts twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from suite.data.distilled import DistilledSet
from suite.learn.soft_labels import HardLabels, OnlineLabels
from suite.learn.view_plans import ViewPlan
from suite.stages.context import costs, summed
from suite.stages.evaluation import _storage, _upstream
from suite.store import Artifact, Record
from suite.store.files import write_json
from tests.learn.training import linear_teacher


def artifact(folder: Path, kind: str, key: str, seconds: float, upstream: dict[str, Any] | None = None) -> Artifact:
    path = folder / key
    path.mkdir()
    record = Record(kind, key, "a", "done", {}, cost={"seconds": seconds, "device": "cpu"}, upstream=upstream or {})
    write_json(path / "record.json", record.to_json())
    return Artifact(path, {"key": key})


def upstream_of(inputs: dict[str, Artifact]) -> dict[str, Any]:
    context: Any = SimpleNamespace(
        inputs=inputs, roles=lambda kind: [a for r, a in inputs.items() if r.partition(".")[0] == kind]
    )
    return _upstream(context)


def test_teachers_of_stored_labels_are_a_cost_of_the_row(tmp_path: Path) -> None:
    """A method without a teacher, such as `random_soft`, still stands on the one that labelled its images."""
    teacher = artifact(tmp_path, "teacher", "t", 100.0)
    inputs = {
        "synthesis": artifact(tmp_path, "synthesis", "s", 1.0),
        "relabel": artifact(tmp_path, "relabel", "r", 7.0, {"teacher": summed(costs([teacher]))}),
    }
    found = upstream_of(inputs)
    assert found["teacher"]["seconds"] == 100.0 and found["relabel"]["seconds"] == 7.0


def test_each_teacher_is_counted_once_whether_it_makes_or_labels(tmp_path: Path) -> None:
    made = [artifact(tmp_path, "teacher", k, s) for k, s in (("a", 1.0), ("b", 10.0))]
    label = artifact(tmp_path, "teacher", "c", 100.0)
    synthesis = artifact(tmp_path, "synthesis", "s", 5.0, {"teacher": summed(costs(made))})
    found = upstream_of({"synthesis": synthesis, "teacher.0": made[1], "teacher.1": label})
    assert found["teacher"]["seconds"] == 111.0 and set(found["teacher"]["each"]) == {"a", "b", "c"}


@pytest.mark.parametrize(("classes", "width"), [(10, 1), (256, 1), (257, 2), (1000, 2)])
def test_the_ledger_of_hard_labels_is_the_file(tmp_path: Path, classes: int, width: int) -> None:
    made = DistilledSet(
        torch.zeros(2 * classes, 3, 8, 8, dtype=torch.uint8), torch.arange(classes).repeat_interleave(2)
    )
    path = tmp_path / "distilled.safetensors"
    made.save(path)
    entries = _storage(path, HardLabels(classes, 2 * classes))
    assert sum(e["bytes"] for e in entries) == path.stat().st_size
    assert {e["kind"]: e["bytes"] for e in entries}["label"] == 2 * classes * width
    with safe_open(path, "pt") as file:
        assert file.get_tensor("labels").nbytes == 2 * classes * width
    again = DistilledSet.load(path).check(classes, 2, 8)
    assert torch.equal(again.labels, made.labels)


def test_online_labels_count_what_teachers_saw() -> None:
    labels = OnlineLabels([linear_teacher(seed=s) for s in (0, 1)])
    for n in (5, 3):
        labels.targets(ViewPlan(torch.arange(n)), torch.zeros(n, 3, 16, 16), torch.zeros(n, dtype=torch.int64))
    assert labels.forward_images == 16
