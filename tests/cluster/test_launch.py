"""The command line of `suite.launch`, run as a person runs it, on real stages of the digits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from suite.cluster.reconcile import reconcile
from suite.grid import load_plan
from suite.spec.stages import Stage
from suite.store import Store
from tests.cluster.toys import ROOT, TINY, command, fail, publish_all, run

HEAVY = {"torch", "numpy", "pandas", "submitit", "ffcv", "torchvision"}


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def imported(module: str, *words: object) -> tuple[int, set[str]]:
    """Exit code of a command, and the top-level modules that it imported."""
    line = command(module, *words)
    line[1:1] = ["-X", "importtime"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    names = (entry.rpartition("|")[2].strip() for entry in done.stderr.splitlines() if "import time:" in entry)
    return done.returncode, {name.partition(".")[0] for name in names}


def workers(needle: str) -> list[int]:
    """Processes with a text in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if needle in path.read_bytes().decode(errors="replace") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(what, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def test_dry_run_creates_nothing_and_imports_nothing_heavy(grid: Path, store: Path) -> None:
    code, modules = imported("suite.launch", grid, "--dry-run", "--store", store)
    assert code == 0
    assert not modules & HEAVY
    assert not store.exists()


def test_a_local_run_publishes_everything_and_relaunch_submits_nothing(grid: Path, store: Path) -> None:
    done = run("suite.launch", grid, "--store", store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done: 3 stages published" in done.stdout
    assert f"python -m suite.report {grid}" in done.stdout
    assert not reconcile(load_plan(grid), Store(store)).todo
    assert not workers(str(store))
    runs = sorted((store / "runs" / "tiny").iterdir())

    code, modules = imported("suite.launch", grid, "--store", store)
    assert code == 0 and not modules & HEAVY
    assert sorted((store / "runs" / "tiny").iterdir()) == runs, "a finished grid makes no run"


def test_relaunch_submits_nothing_on_a_published_plan(grid: Path, store: Path) -> None:
    publish_all(load_plan(grid), Store(store))
    done = run("suite.launch", grid, "--store", store)
    assert done.returncode == 0
    assert "nothing to do: every stage is published" in done.stdout
    assert f"next: python -m suite.report {grid}" in done.stdout
    assert not (store / "runs").exists()


def test_a_dead_worker_fails_its_stage_and_its_siblings_go_on(tmp_path: Path, store: Path) -> None:
    grid = tmp_path / "two.yaml"
    grid.write_text(TINY.replace("[digits]", "[digits, digits-c5]"))
    done = run("suite.launch", grid, "--store", store, "--slots", 1, SUITE_FAULT="prepare:start")
    assert done.returncode == 1
    plan, place = load_plan(grid), Store(store)
    for stage in plan.stages:
        failures = place.failures(stage.kind, stage.key)
        if stage.kind == "prepare":
            assert [f.failure["kind"] for f in failures if f.failure] == ["infra"]
            assert "the process died" in done.stdout
        else:
            assert not failures, "what cannot run is not even tried"
    arrays = next((store / "runs" / "tiny").iterdir()) / "logs"
    assert len(list(arrays.iterdir())) == 2, "the second stage got a process of its own"


@pytest.mark.parametrize(
    ("sig", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_workers_die_with_the_launcher(grid: Path, store: Path, sig: int, code: int) -> None:
    launcher = subprocess.Popen(
        command("suite.launch", grid, "--store", store), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: list(store.glob("runs/*/*/logs/*/*_log.out")))
        wait_until(lambda: len([w for w in workers(str(store)) if w != launcher.pid]) >= 2)
        launcher.send_signal(sig)
        _, errors = launcher.communicate(timeout=20)
        assert launcher.returncode == code
        assert b"Traceback" not in errors
        wait_until(lambda: not workers(str(store)), 20)
    finally:
        launcher.kill()
        launcher.wait()
    done = run("suite.launch", grid, "--store", store, "--dry-run")
    assert done.returncode == 0, done.stderr


def test_a_diverged_stage_is_held_back_until_asked_for(grid: Path, store: Path) -> None:
    plan, place = load_plan(grid), Store(store)
    *rest, last = plan.stages
    publish_all(type(plan)("rest", rest), place)
    fail(last, place, "numeric", "NaN in the loss at step 7")
    done = run("suite.launch", grid, "--store", store)
    assert done.returncode == 1
    assert "1 diverged" in done.stdout and "NaN in the loss at step 7" in done.stdout
    assert "--retry numeric" in done.stdout
    assert not (store / "runs").exists()
    again = run("suite.launch", grid, "--store", store, "--retry", "numeric", "--dry-run")
    assert "to run: 1 failed" in again.stdout


def test_a_dataset_without_source_is_refused_before_anything_is_made(tmp_path: Path, store: Path) -> None:
    grid = tmp_path / "cifar.yaml"
    grid.write_text(TINY.replace("[digits]", "[cifar10-n5]"))
    done = run("suite.launch", grid, "--store", store)
    assert done.returncode == 2
    assert f"python -m suite.prepare cifar10-n5 --source DIR --store {store}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not store.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.yaml"], "missing.yaml"),
        ([], "a grid is needed"),
        (["GRID", "--profile", "nowhere"], "no profile 'nowhere'"),
        (["GRID", "--variant", "nothing"], "nothing"),
        (["GRID", "--slots", "0"], "--slots"),
        (["GRID", "--retry", "everything"], "everything"),
        (["GRID", "--max-cells", "0"], "cell"),
        (["GRID", "--frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_exit_2_and_makes_nothing(grid: Path, store: Path, words: list[str], message: str) -> None:
    done = run("suite.launch", *[str(grid) if w == "GRID" else w for w in words], "--store", store)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not store.exists()


def test_slurm_without_slurm_is_exit_3(grid: Path, store: Path) -> None:
    done = run("suite.launch", grid, "--store", store, "--profile", "testcluster", PATH="/nonexistent")
    assert done.returncode == 3
    assert "no sbatch" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_list_names_every_method_without_torch() -> None:
    code, modules = imported("suite.launch", "--list")
    assert code == 0 and not modules & HEAVY
    text = run("suite.launch", "--list").stdout
    assert "arXiv:2306.13092" in text and "iterations=" in text


def test_status_shows_and_counts_every_stage(grid: Path, store: Path) -> None:
    import json

    plan, place = load_plan(grid), Store(store)
    publish_all(type(plan)("first", plan.stages[:1]), place)
    fail(plan.stages[1], place, "oom", "needs 90 GB")
    text = run("suite.status", grid, "--store", store).stdout
    assert "failed" in text and "oom: needs 90 GB" in text
    found = json.loads(run("suite.status", grid, "--store", store, "--json").stdout)
    assert found["counts"] == {"done": 1, "failed": 1, "blocked": 1}
    assert [s["key"] for s in found["stages"]] == [s.key for s in plan.stages]


def test_a_run_writes_down_what_workers_need(grid: Path, store: Path) -> None:
    import json

    run("suite.launch", grid, "--store", store, SUITE_FAULT="prepare:start")
    (folder,) = (store / "runs" / "tiny").iterdir()
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["store"] == str(store) and settings["threads"] == 1
    lines = [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]
    planned: list[Stage] = load_plan(grid).stages
    assert [line["key"] for line in lines] == [s.key for s in planned]
    assert json.loads((folder / "jobs.json").read_text())["arrays"][0]["packs"] == [[0]]


@pytest.mark.parametrize(("words", "code"), [([], 2), (["no/such/grid.yaml", "local"], 2), (["x.yaml", "nowhere"], 2)])
def test_nightly_passes_bad_input_on(words: list[str], code: int) -> None:
    script = [str(ROOT / "slurm" / "nightly.sh"), *words]
    done = subprocess.run(
        script,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHON": command("x")[0]},
        check=False,
    )
    assert done.returncode == code
    assert not (ROOT / "reports" / "grid").exists()
