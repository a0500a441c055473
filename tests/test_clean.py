"""`suite.clean` deletes what nothing needs, and never what a grid references or a process works on."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from suite.clean import in_flight, referenced
from suite.cluster.cancel import Flying
from suite.cluster.cancelled import remember
from suite.cluster.garbage import Survey, Surveyor, delete
from suite.cluster.profile import Profile
from suite.cluster.query import Task
from suite.cluster.runs import Array, Run, create_run
from suite.errors import UserError
from suite.grid import Plan, load_plan
from suite.store import Store
from tests.cluster.toys import TINY, diamond, fail, publish, publish_all, run

PLAN = diamond()
NODES = {(s.kind, s.key) for s in PLAN.stages}
HOST = socket.gethostname()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def old(path: Path, days: float = 10.0) -> Path:
    """Let everything below a path have been changed days ago (its change times, too, as the survey sees them)."""
    when = time.time() - days * 86_400
    for p in (*path.rglob("*"), path):
        os.utime(p, (when, when))
    return path


@pytest.fixture(autouse=True)
def _no_change_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can set change times; here modification times stand in for them."""
    monkeypatch.setattr("suite.cluster.garbage.last_change", lambda entry: entry.st_mtime)


def attempt(store: Store, index: int, name: str) -> Path:
    stage = PLAN.stages[index]
    path = store.home(stage.kind, stage.key) / "attempts" / name
    path.mkdir(parents=True)
    (path / "half.bin").write_bytes(b"x" * 100)
    return path


def submitted(store: Store, indices: list[int]) -> Run:
    made = create_run(store, "diamond", [PLAN.stages[i] for i in indices], Profile(cluster="slurm"))
    made.arrays = [Array(f"suite-{made.id}-00-all", "all", [[i] for i in range(len(indices))], "1")]
    made.save()
    return made


def flying(made: Run, index: int = 0) -> Flying:
    task = Task("1", index, "RUNNING", "None", made.arrays[0].name)
    return Flying(task, made, tuple(made.keys[i] for i in made.arrays[0].packs[index]))


def look(
    store: Store, live: list[Flying] | None = None, *, age: float = 86_400, references: set | None = NODES,
    unreferenced: bool = False, asked: bool = True,
) -> Survey:  # fmt: skip
    return Surveyor(store, references, (live or []) if asked else None, age, unreferenced).look()


def paths(survey: Survey) -> set[Path]:
    return {item.path for item in survey.items}


def test_a_store_that_grids_reference_has_nothing_to_clean(store: Store) -> None:
    publish_all(PLAN, store)
    old(store.root)
    found = look(store, unreferenced=True)
    assert not found.items
    assert sum(found.counts.values()) == len(PLAN.stages)
    assert found.usage["teacher", "artifact"] > 0


def test_attempts_of_dead_processes_go_and_those_of_living_ones_stay(store: Store) -> None:
    dead = attempt(store, 0, f"000-local-0-{HOST}-4194999-aaaaaa")
    alive = attempt(store, 0, f"000-local-0-{HOST}-{os.getpid()}-bbbbbb")
    old(store.root)
    found = look(store)
    assert paths(found) == {dead}
    assert found.kept["attempt", "its process lives"] == 1
    assert found.items[0].size == 100 and delete(found.items[0])
    assert not dead.exists() and alive.exists()


def test_attempts_on_other_hosts_stay_while_their_job_lives_or_files_change(store: Store) -> None:
    """Scheduler and heartbeat: an attempt goes only if no job works on its stage and nothing in it changed for long."""
    away = attempt(store, 0, "000-17-0-node-3-55-aaaaaa")
    beating = attempt(store, 1, "000-18-0-node-4-66-bbbbbb")
    old(store.root)
    (beating / "half.bin").write_bytes(b"y")
    made = submitted(store, [0])
    assert not paths(look(store, [flying(made)])) & {away, beating}
    found = look(store, asked=False)
    assert away not in paths(found) and found.kept["attempt", "Slurm was not asked"] == 2
    assert paths(look(store)) & {away, beating} == {away}


def test_what_jobs_of_other_accounts_may_work_on_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cleans, root included, sees only their own jobs."""
    attempt(store, 0, "000-17-0-node-3-55-aaaaaa")
    old(store.root)
    submitted(store, [0])
    monkeypatch.setattr("os.getuid", lambda: 4711)
    found, note = in_flight(store)
    assert found is None and note == "jobs of 1 other account were not asked about; what they may work on was kept"


def test_an_attempt_that_wakes_up_after_the_survey_is_left(store: Store) -> None:
    path = attempt(store, 0, "000-17-0-node-3-55-aaaaaa")
    old(store.root)
    (item,) = look(store).items
    (path / "half.bin").write_bytes(b"it goes on")
    assert not delete(item) and path.exists()


def test_failures_and_checkpoints_go_once_their_stage_is_published(store: Store) -> None:
    publish(PLAN.stages[0], store)
    for index in (0, 1):
        fail(PLAN.stages[index], store, "infra")
        home = store.home(PLAN.stages[index].kind, PLAN.stages[index].key)
        (home / "checkpoints" / "abc").mkdir(parents=True)
        (home / "checkpoints" / "abc" / "a.ckpt").write_bytes(b"z" * 50)
    old(store.root)
    done, waiting = (store.home(s.kind, s.key) for s in PLAN.stages[:2])
    found = look(store)
    assert found.usage["prepare", "checkpoint"] == 50
    assert {p.parent for p in paths(found) if p.suffix == ".json"} == {done / "failed"}
    assert done / "checkpoints" in paths(found)
    assert not any(waiting in p.parents for p in paths(found)), "they say why, and where it goes on"
    for item in found.items:
        assert delete(item)
    assert (done / "out").is_dir() and store.open("prepare", PLAN.stages[0].key)
    gone = look(store, references=set())
    assert waiting / "checkpoints" in paths(gone), "no grid asks for its stage any more"


def test_what_a_killed_clean_had_half_deleted_is_counted_and_goes(store: Store) -> None:
    publish(PLAN.stages[0], store)
    left = store.home("prepare", PLAN.stages[0].key) / ".going-checkpoints-4194999"
    left.mkdir()
    (left / "a.ckpt").write_bytes(b"z" * 50)
    old(store.root)
    found = look(store)
    assert paths(found) == {left} and found.usage["prepare", "temporary"] == 50
    assert delete(found.items[0]) and not left.exists()


def test_what_was_set_aside_goes(store: Store) -> None:
    publish(PLAN.stages[0], store)
    place = store.quarantine("prepare", PLAN.stages[0].key, "superseded")
    old(store.root)
    (item,) = look(store).items
    assert item.path == place and item.why == "set aside: superseded"


def test_published_artifacts_go_only_on_request_and_only_if_no_grid_references_them(store: Store) -> None:
    publish_all(PLAN, store)
    old(store.root)
    keep = {n for n in NODES if n[0] in ("prepare", "teacher")}
    assert not look(store, references=keep).items
    found = look(store, references=keep, unreferenced=True)
    assert {p.name for p in paths(found)} == {"out"} and len(found.items) == len(NODES) - len(keep)
    for item in found.items:
        assert delete(item)
    assert {(s.kind, s.key) for s in PLAN.stages if s.key in store.published(s.kind)} == keep
    assert not look(store, references=None, unreferenced=True).items, "no grid known: everything counts as referenced"


def test_runs_that_are_over_go_and_those_in_flight_or_cancelled_stay(store: Store) -> None:
    over, live, stopped = (submitted(store, [i]) for i in range(3))
    remember(stopped.path, {(PLAN.stages[2].kind, PLAN.stages[2].key): "by --cancel"})
    old(store.root)
    found = look(store, [flying(live)])
    assert paths(found) == {over.path}
    assert found.kept["run", "it remembers what was cancelled"] == 1
    assert not paths(look(store, asked=False))
    publish_all(PLAN, store)
    assert paths(look(store)) == {over.path, live.path, stopped.path}


def test_nothing_younger_than_asked_for_goes(store: Store) -> None:
    path = attempt(store, 0, f"000-local-0-{HOST}-4194999-aaaaaa")
    old(path, days=3)
    assert paths(look(store)) == {path}
    assert not paths(look(store, age=30 * 86_400))


def test_what_nights_share_is_not_theirs(store: Store, tmp_path: Path) -> None:
    publish(PLAN.stages[0], store)
    store.quarantine("prepare", PLAN.stages[0].key, "corrupt")
    night = Store(tmp_path / "night")
    night.root.mkdir()
    (night.root / "prepare").symlink_to(store.root / "prepare")
    old(store.root)
    assert look(store).items and not look(night).items


def test_every_variant_of_every_grid_counts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TINY + "variants:\n  big: {seeds: [5], product: {ipc: [7]}}\n")
    found = referenced([], tmp_path)
    for variant in (None, "big"):
        assert {(s.kind, s.key) for s in load_plan(tmp_path / "a.yaml", variant=variant).stages} <= (found or set())
    other = tmp_path / "named.yml"
    other.write_text(TINY.replace("[1]", "[9]"))
    assert len(referenced([other], tmp_path) or ()) > len(found or ())
    (tmp_path / "b.yaml").write_text("name: [")
    with pytest.raises(UserError, match=r"b\.yaml"):
        referenced([], tmp_path)
    assert referenced([], tmp_path / "empty") is None


def test_the_command_lists_by_default_and_deletes_with_yes(tmp_path: Path, store: Store) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(TINY)
    plan: Plan = load_plan(grid)
    publish(plan.stages[0], store)
    home = store.home("prepare", plan.stages[0].key)
    left = home / "attempts" / f"000-local-0-{HOST}-4194999-aaaaaa"
    left.mkdir(parents=True)
    (left / "half.bin").write_bytes(b"x" * 1234)
    words = ("--store", store.root, "--folder", tmp_path, "--older-than", "0m")
    dry = run("suite.clean", *words)
    assert dry.returncode == 0 and left.exists()
    assert "attempt" in dry.stdout and "1.2 kB" in dry.stdout and "dry run: nothing was deleted" in dry.stdout
    assert str(left) in dry.stdout and "prepare" in dry.stdout
    done = run("suite.clean", *words, "--yes")
    assert done.returncode == 0 and "deleted 1 item, 1.2 kB" in done.stdout
    assert not left.exists() and store.open("prepare", plan.stages[0].key)
    assert "nothing to delete" in run("suite.clean", *words).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--older-than", "soon"], "not an age"),
        (["--store", "/nonexistent/store"], "no store"),
        (["--what", "everything"], "invalid choice"),
        (["--unreferenced", "--folder", "/nonexistent"], "everything would be unreferenced"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_words_are_refused_in_one_line(store: Store, words: list[str], message: str) -> None:
    store.root.mkdir()
    where = [] if "--store" in words else ["--store", store.root]
    done = run("suite.clean", *where, *words)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_cleaning_beside_a_real_worker_leaves_it_alone(tmp_path: Path, store: Store) -> None:
    """A process that really works in an attempt: `clean --older-than 0m --yes` in a loop, then it publishes."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.cluster.toys import prepare, record
from suite.store import Attempt, Store
with Attempt(Store({str(store.root)!r}), prepare(), {{}}) as attempt:
    (attempt.dir / "data.bin").write_text("half")
    print("working", flush=True)
    sys.stdin.readline()
    attempt.publish(record(prepare()))
"""
    worker = subprocess.Popen(
        [__import__("sys").executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "working\n"
        for item in look(store, age=0.0).items:
            delete(item)
        done = run("suite.clean", "--store", store.root, "--folder", tmp_path, "--older-than", "0m", "--yes")
        assert "its process lives" in done.stdout
        worker.communicate("go on\n", timeout=60)
        assert worker.returncode == 0
        assert store.open("prepare", PLAN.stages[0].key)
    finally:
        worker.kill()
        worker.wait()
