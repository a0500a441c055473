"""The artifact decides what is done; everything else runs again, for a stated reason."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suite.cluster.reconcile import clear_published, reconcile
from suite.grid import Plan
from suite.store import Store
from tests.cluster.toys import descendants, diamond, evaluation, fail, prepare, publish, publish_all, synthesis

PLAN = diamond()
FILES = ("data.bin", "sub/more.json", "record.json", "manifest.json")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the whole plan is published; copied, since publishing waits for the disk."""
    root = tmp_path_factory.mktemp("template") / "store"
    publish_all(PLAN, Store(root))
    return root


@pytest.fixture
def full(template: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(template, tmp_path / "full"))


def keys(plan: Plan, items: list) -> set[str]:
    return {plan.stages[t.index].key for t in items}


def flip(path: Path, at: int) -> None:
    """Change one byte and leave size and modification time as they were."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x01
    path.write_bytes(bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_an_empty_store_runs_everything_as_new(store: Store) -> None:
    found = reconcile(PLAN, store)
    assert [t.reason for t in found.todo] == ["new"] * len(PLAN.stages)
    assert not found.done and not found.held
    assert not store.root.exists(), "looking must not create anything"


def test_a_published_plan_has_nothing_to_do(full: Store) -> None:
    found = reconcile(PLAN, full)
    assert not found.todo and not found.held and len(found.done) == len(PLAN.stages)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add"])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("index", [0, 1, 5, len(PLAN.stages) - 1])
def test_damage_reruns_exactly_the_descendants(full: Store, index: int, file: str, damage: str) -> None:
    stage = PLAN.stages[index]
    path = full.home(stage.kind, stage.key) / "out" / file
    match damage:
        case "flip":
            flip(path, 7)
        case "truncate":
            path.write_bytes(path.read_bytes()[:-1])
        case "delete":
            path.unlink()
        case "add":
            path.with_name("extra").write_text("x")
    found = reconcile(PLAN, full)
    assert keys(PLAN, found.todo) == descendants(PLAN, stage)
    assert found.todo[0].why == "corrupt"
    assert all(t.why == "stale" and " runs again" in t.detail for t in found.todo[1:])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_reruns_exactly_the_descendants(
    template: Path, tmp_path_factory: pytest.TempPathFactory, data
) -> None:
    store = Store(shutil.copytree(template, tmp_path_factory.mktemp("any") / "store"))
    stage = data.draw(st.sampled_from(PLAN.stages))
    path = store.home(stage.kind, stage.key) / "out" / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    assert keys(PLAN, reconcile(PLAN, store).todo) == descendants(PLAN, stage)


@pytest.mark.parametrize("index", range(len(PLAN.stages)))
def test_a_missing_artifact_reruns_exactly_the_descendants(full: Store, index: int) -> None:
    stage = PLAN.stages[index]
    full.quarantine(stage.kind, stage.key, "test")
    found = reconcile(PLAN, full)
    assert keys(PLAN, found.todo) == descendants(PLAN, stage)
    assert [t.why for t in found.todo] == ["new"] + ["stale"] * (len(found.todo) - 1)


def test_an_input_that_was_replaced_makes_its_users_stale(full: Store) -> None:
    teacher = PLAN.stages[1]
    full.quarantine(teacher.kind, teacher.key, "test")
    publish(teacher, full, "other bytes")
    found = reconcile(PLAN, full)
    assert keys(PLAN, found.todo) == descendants(PLAN, teacher) - {teacher.key}
    assert f"{teacher.key} changed" in found.todo[0].detail


def test_superseded_artifacts_are_kept_in_quarantine(full: Store) -> None:
    teacher = PLAN.stages[1]
    flip(full.home(teacher.kind, teacher.key) / "out" / "data.bin", 3)
    found = reconcile(PLAN, full)
    assert clear_published(PLAN, full, found.todo) == len(descendants(PLAN, teacher))
    for t in found.todo:
        home = full.home(PLAN.stages[t.index].kind, PLAN.stages[t.index].key)
        assert not (home / "out").exists()
        assert [p.name.split("-")[0] for p in (home / "quarantine").iterdir()] == [t.why]
    assert clear_published(PLAN, full, found.todo) == 0, "a second launch finds nothing to move"
    publish_all(Plan("again", [PLAN.stages[t.index] for t in found.todo]), full)
    assert not reconcile(PLAN, full).todo


def test_infra_failures_run_again_and_say_why(store: Store) -> None:
    fail(PLAN.stages[0], store, "infra", "an older failure")
    fail(PLAN.stages[0], store, "infra", "the newest failure")
    assert reconcile(PLAN, store).todo[0].reason == "failed (infra: the newest failure)"


def test_what_another_launch_published_meanwhile_is_not_moved_away(full: Store) -> None:
    teacher = PLAN.stages[1]
    flip(full.home(teacher.kind, teacher.key) / "out" / "data.bin", 3)
    mine = other = reconcile(PLAN, full)
    clear_published(PLAN, full, other.todo)
    publish_all(Plan("again", [PLAN.stages[t.index] for t in other.todo]), full)
    assert clear_published(PLAN, full, mine.todo) == 0
    assert not reconcile(PLAN, full).todo


@pytest.mark.parametrize("kind", ["user", "data", "oom", "numeric"])
def test_what_would_fail_again_is_held_back_with_what_needs_it(store: Store, kind: str) -> None:
    fail(PLAN.stages[0], store, "infra", "an older failure")
    fail(PLAN.stages[0], store, kind, "the newest failure")
    found = reconcile(PLAN, store)
    assert not found.todo, "everything needs the dataset"
    assert found.held[0].detail.endswith("the newest failure")
    head = PLAN.stages[0]
    for item in found.held[1:]:
        assert item.why == "blocked"
        assert item.detail.startswith(f"prepare {head.key} ") and "the newest failure" in item.detail
    asked = reconcile(PLAN, store, retry=[kind])
    assert not asked.held and len(asked.todo) == len(PLAN.stages)


def test_nodes_where_a_stage_failed_are_excluded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    for node in ("n1", "n2"):
        monkeypatch.setenv("SLURMD_NODENAME", node)
        fail(PLAN.stages[0], store, "infra")
    first, *rest = reconcile(PLAN, store).todo
    assert first.exclude_nodes == ("n1", "n2")
    assert not any(t.exclude_nodes for t in rest)


def test_failures_before_a_publication_say_nothing_about_the_next_attempt(store: Store) -> None:
    head = PLAN.stages[0]
    fail(head, store, "user")
    publish(head, store)
    store.quarantine(head.kind, head.key, "corrupt")
    assert reconcile(PLAN, store).todo[0].reason == "new"
    assert list((store.home(head.kind, head.key) / "quarantine").glob("*.failed/*.json")), "kept all the same"


def test_diverged_stages_wait_for_retry_numeric_and_hold_their_users_back(store: Store) -> None:
    publish(PLAN.stages[0], store)
    publish(PLAN.stages[1], store)
    diverged = next(s for s in PLAN.stages if s.kind == "synthesis" and s.spec.method == "sre2l")
    fail(diverged, store, "numeric", "NaN at step 3")
    found = reconcile(PLAN, store)
    assert keys(PLAN, found.held) == descendants(PLAN, diverged)
    assert [t.why for t in found.held] == ["diverged", "blocked"]
    assert not keys(PLAN, found.todo) & descendants(PLAN, diverged)
    again = reconcile(PLAN, store, retry=["numeric"])
    assert not again.held
    assert descendants(PLAN, diverged) <= keys(PLAN, again.todo)


def test_a_failure_is_forgotten_once_a_later_attempt_published(store: Store) -> None:
    fail(PLAN.stages[0], store, "numeric")
    publish(PLAN.stages[0], store)
    assert 0 in reconcile(PLAN, store).done


def test_a_failure_record_that_cannot_be_read_does_not_hide_the_stage(store: Store) -> None:
    fail(PLAN.stages[0], store, "infra")
    folder = store.home("prepare", PLAN.stages[0].key) / "failed"
    next(folder.iterdir()).write_text("{")
    assert reconcile(PLAN, store).todo[0].why == "failed"


def test_a_hundred_thousand_stages_and_an_empty_store_cost_one_scan_a_kind(store: Store) -> None:
    p = prepare()
    s = synthesis("random", {"prepare": p.key}, ())
    inputs = {"prepare": p.key, "synthesis": s.key}
    first = evaluation("random", inputs)
    # Keys are made up: hashing 100,000 specs is the planner's cost, not this one's.
    many = [type(first)("evaluation", first.spec, inputs, f"{i:016x}") for i in range(100_000)]
    plan = Plan("large", [p, s, *many])
    begin = time.process_time()
    assert len(reconcile(plan, store).todo) == len(plan.stages)
    assert time.process_time() - begin < 5.0
