"""Shards of a synthesis: merged, they are the artifact that one task would have made, byte for byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suite.cluster.profile import Profile, Resources
from suite.cluster.shards import cut
from suite.grid import Plan, load_plan
from suite.spec.stages import Stage, stage_from_json
from suite.store import Store
from suite.store.files import sha256
from suite.work import run_pack
from tests.tiny import run_in_fork, write_grid, write_run

pytestmark = pytest.mark.ffcv

#: One method without state across batches in many batches, one whose starts are scored, one that only selects.
GRID = """\
name: shards
seeds: [0]
protocol: [matched]
product:
  method: [random, sre2lpp, e2d]
  dataset: [digits]
  ipc: [2]
  teacher: [convnet2_w8]
  student: [convnet2_w8]
override:
  - {when: {dataset: digits}, set: {student.steps: 6, teacher.epochs: 1, statistics.per_class: 20, labels: hard}}
  - {when: {method: sre2lpp}, set: {iterations: 3, batch: 4, candidates: 6, crops: 2}}
  - {when: {method: e2d}, set: {iterations: 4, explore: 2, batch: 4}}
"""
LOCAL = Profile(cluster="local")


def syntheses(plan: Plan) -> list[Stage]:
    return [s for s in plan.stages if s.kind == "synthesis"]


def run_stages(plan: Plan, store: Store, stages: list[Stage], fault: str = "") -> int:
    run, indices = write_run(Plan(plan.name, stages), store), list(range(len(stages)))
    return run_in_fork(run, indices, fault) if fault else run_pack(str(run), indices)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    """The grid up to its syntheses, each in one task. Read-only: copy before changing."""
    folder = tmp_path_factory.mktemp("whole")
    plan, store = load_plan(write_grid(folder, GRID)), Store(folder / "store")
    assert run_stages(plan, store, [s for s in plan.stages if s.kind != "evaluation"]) == 0
    return plan, store


@pytest.fixture
def inputs(whole: tuple[Plan, Store], tmp_path: Path) -> tuple[Plan, Store, Store]:
    """The plan, the store of the whole run, and a copy of it without syntheses."""
    shutil.copytree(whole[1].root, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "synthesis")
    return whole[0], whole[1], Store(tmp_path / "store")


def made(store: Store, stage: Stage) -> str:
    return sha256(store.open(stage.kind, stage.key).path / "distilled.safetensors")


@pytest.mark.parametrize("count", [2, 5])
def test_shards_merge_into_the_artifact_of_one_task(inputs: tuple[Plan, Store, Store], count: int) -> None:
    plan, reference, store = inputs
    pieces = cut(syntheses(plan), LOCAL, store, count)
    assert pieces.syntheses == 3 and pieces.shards == 3 * count and not pieces.whole
    assert run_stages(plan, store, pieces.stages) == 0
    for stage in syntheses(plan):
        assert made(store, stage) == made(reference, stage), stage.label()
        ours, theirs = store.open(stage.kind, stage.key), reference.open(stage.kind, stage.key)
        assert ours.digest == theirs.digest
        same = {"key", "spec", "inputs", "input_digests", "files", "schema"}
        assert {k: ours.manifest[k] for k in same} == {k: theirs.manifest[k] for k in same}


def test_costs_are_summed_and_each_shards_own_are_kept(inputs: tuple[Plan, Store, Store]) -> None:
    plan, reference, store = inputs
    stage = next(s for s in syntheses(plan) if s.spec.method == "e2d")  # type: ignore[union-attr]
    assert run_stages(plan, store, cut([stage], LOCAL, store, 5).stages) == 0
    record, before = (s.open(stage.kind, stage.key).record() for s in (store, reference))
    own: dict[str, dict[str, Any]] = record.cost["shards"]
    assert list(own) == [f"{i}/5" for i in range(1, 6)] and all(c["attempt"] and c["commit"] for c in own.values())
    for name in ("image_iterations", "forward_images", "images"):
        assert record.cost[name] == sum(c[name] for c in own.values()) == before.cost[name]
    assert record.cost["seconds"] == pytest.approx(sum(c["seconds"] for c in own.values()))
    assert record.cost["peak_memory_bytes"] == max(c["peak_memory_bytes"] for c in own.values())
    assert record.upstream.keys() == before.upstream.keys() and record.device == before.device


def test_the_key_does_not_know_of_shards(whole: tuple[Plan, Store]) -> None:
    for stage in syntheses(whole[0]):
        some = replace(stage, shards=5)
        read = stage_from_json(json.loads(json.dumps(some.to_json())))
        assert (read.key, read.shards) == (some.key, 5)
        assert Stage.make("synthesis", stage.spec, stage.inputs).key == some.key == some.parts()[3].whole().key
        keys = {p.key for n in (2, 5) for p in replace(stage, shards=n).parts()}
        assert len(keys) == 7 and stage.key not in keys


def test_a_failed_shard_is_made_again_alone(inputs: tuple[Plan, Store, Store]) -> None:
    plan, reference, store = inputs
    stage = next(s for s in syntheses(plan) if s.spec.method == "e2d")  # type: ignore[union-attr]
    pieces = cut([stage], LOCAL, store, 5)
    *shards, merge = pieces.stages
    assert run_stages(plan, store, shards[:2] + shards[3:]) == 0
    assert run_stages(plan, store, [shards[2]], fault="shard:computed") == -9
    assert run_stages(plan, store, [merge]) == 1, "a part is missing"
    (failed,) = store.failures(stage.kind, stage.key)
    assert failed.failure is not None and failed.failure_kind == "infra" and shards[2].key in failed.failure["message"]

    again = cut([stage], LOCAL, store, 5)
    assert again.there == 4 and [s.key for s in again.stages] == [shards[2].key, stage.key]
    assert run_stages(plan, store, again.stages) == 0
    assert made(store, stage) == made(reference, stage)


def test_a_merge_fails_as_its_shard_did(inputs: tuple[Plan, Store, Store]) -> None:
    """A diverged shard is a diverged synthesis: a row that counts as a hole, and is not tried again."""
    from suite.store import Attempt
    from tests.cluster.toys import record

    plan, _, store = inputs
    stage = next(s for s in syntheses(plan) if s.spec.method == "e2d")  # type: ignore[union-attr]
    *shards, merge = cut([stage], LOCAL, store, 2).stages
    lost = record(shards[1], "diverged")
    lost.failure = {"kind": "numeric", "message": "loss is not finite"}
    Attempt(store, shards[1], {}).fail(lost, ("node7", "31_4"))
    assert run_stages(plan, store, [shards[0], merge]) == 1
    (failed,) = store.failures(stage.kind, stage.key)
    assert (failed.status, failed.failure_kind, failed.node, failed.job) == ("diverged", "numeric", "node7", "31_4")
    assert "loss is not finite" in (failed.failure or {})["message"]


@pytest.mark.parametrize("point", ["start", "computed", "recorded", "sealed", "published"])
def test_a_killed_merge_leaves_nothing_half_written(inputs: tuple[Plan, Store, Store], point: str) -> None:
    plan, reference, store = inputs
    stage = next(s for s in syntheses(plan) if s.spec.method == "random")  # type: ignore[union-attr]
    *shards, merge = cut([stage], LOCAL, store, 2).stages
    assert run_stages(plan, store, shards) == 0
    assert run_stages(plan, store, [merge], fault=f"synthesis:{point}") == -9
    assert (stage.key in store.published("synthesis")) == (point == "published")
    assert run_stages(plan, store, [merge]) == 0
    assert made(store, stage) == made(reference, stage)
    assert not store.attempts(stage.kind, stage.key)
    assert not store.published("shard"), "parts are removed once they are merged"
    assert run_stages(plan, store, [*shards, merge]) == 0, "late shards and merges find it done"
    assert not store.published("shard")


def test_a_damaged_part_is_not_merged(inputs: tuple[Plan, Store, Store]) -> None:
    plan, reference, store = inputs
    stage = next(s for s in syntheses(plan) if s.spec.method == "random")  # type: ignore[union-attr]
    *shards, merge = cut([stage], LOCAL, store, 2).stages
    assert run_stages(plan, store, shards) == 0
    path = store.home("shard", shards[0].key) / "out" / "part.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run_stages(plan, store, [merge]) == 1
    assert stage.key not in store.published("synthesis")
    again = cut([stage], LOCAL, store, 2)
    assert [s.key for s in again.stages] == [shards[0].key, stage.key]
    assert run_stages(plan, store, again.stages) == 0
    assert made(store, stage) == made(reference, stage)


def test_parts_of_other_inputs_are_not_merged(inputs: tuple[Plan, Store, Store]) -> None:
    """A teacher that was trained again makes parts stale, as it makes the whole."""
    plan, _, store = inputs
    stage = next(s for s in syntheses(plan) if s.spec.method == "sre2lpp")  # type: ignore[union-attr]
    *shards, merge = cut([stage], LOCAL, store, 2).stages
    assert run_stages(plan, store, shards) == 0
    out = store.home("shard", shards[0].key) / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    from suite.store.artifacts import seal
    from suite.store.files import dump_json

    manifest["input_digests"]["teacher.0"] = "0" * 64
    manifest["seal"] = seal(manifest)
    (out / "manifest.json").write_bytes(dump_json(manifest))
    assert run_stages(plan, store, [merge]) == 1
    assert [s.key for s in cut([stage], LOCAL, store, 2).stages] == [shards[0].key, stage.key]


def test_the_profile_says_how_many_and_the_method_whether(whole: tuple[Plan, Store], tmp_path: Path) -> None:
    plan, store = whole[0], Store(tmp_path)
    fine = Profile(cluster="local", stages={"synthesis": Resources(shards=3), "synthesis:digits": Resources(shards=4)})
    assert cut(syntheses(plan), fine, store).shards == 12
    assert cut(syntheses(plan), fine, store, 2).shards == 6, "the command line decides"
    assert cut(syntheses(plan), LOCAL, store).stages == syntheses(plan), "nothing is cut unless somebody asks"
    many = cut(syntheses(plan), LOCAL, store, 1000)
    assert many.shards == 10 + 6 + 5, "classes of `random`, batches of 4 in slots of 10 classes, batches of 4"
    carried = syntheses(plan)[-1]
    spec = replace(carried.spec, params=carried.spec.params | {"reference_quirks": True})  # type: ignore[union-attr,type-var]
    one = cut([Stage.make("synthesis", spec, carried.inputs)], LOCAL, store, 5)  # type: ignore[arg-type]
    assert one.whole == {"e2d"} and one.shards == 0 and len(one.stages) == 1
