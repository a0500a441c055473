"""The nightly command: what it refuses, what it goes on with, what it says and what it remembers."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from suite.cluster.profile import Profile
from suite.errors import DataError, UserError, guarded
from suite.grid import load_plan
from suite.nightly import main
from suite.nights.budget import check, expected
from suite.nights.history import read_nights
from suite.nights.identity import identities
from suite.nights.night import TIME_OVER, Task, choose_place, launch, record, run_night
from suite.nights.places import Place, begin, nights_folder, open_night, prune
from suite.nights.summary import needs_attention, summary
from suite.store import Store
from tests.cluster.toys import ROOT, publish_all, run
from tests.nightly.nights import GRID, publish_night, write_grid

Nightly = Callable[..., str]


@pytest.fixture
def site(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return write_grid(tmp_path)


@pytest.fixture
def nightly(grid: Path, site: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Nightly:
    """The command in this process; the launch that it makes is one of its own, the report is left out."""
    monkeypatch.setattr("suite.nights.night.report", lambda task, place: "")
    monkeypatch.chdir(ROOT)

    def call(*words: object, code: int) -> str:
        monkeypatch.setattr("sys.argv", ["nightly", str(grid), "--store", str(site.root), *map(str, words)])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as left:
            guarded(main)
        signal.signal(signal.SIGTERM, before)
        shown = capsys.readouterr()
        assert left.value.code == code, shown.out + shown.err
        assert "Traceback" not in shown.err
        return shown.out if code < 2 else shown.err

    return call


def key(grid: Path, kind: str, method: str, seed: int = 0) -> str:
    """The key of a stage."""
    return next(
        s.key
        for s in load_plan(grid).stages
        if s.kind == kind and s.spec.method == method and s.spec.seed == seed  # type: ignore[union-attr]
    )


def test_two_nights_name_exactly_what_changed(grid: Path, site: Store, nightly: Nightly) -> None:
    publish_night(grid, site)
    first = nightly(code=0)
    assert "the first night" in first and "failed: 0\ndrifted: 0\nnew: 2\n" in first
    publish_night(grid, site)
    same = nightly(code=0)
    assert "compared with 1 night" in same and "failed: 0\ndrifted: 0\nnew: 0\n" in same

    broken = key(grid, "synthesis", "random", 1)
    publish_night(grid, site, accuracy={"random": 30.0}, seconds={"rded": 20.0}, failed=[broken])
    text = nightly(code=1)
    body = text.partition("failed: ")[2].splitlines()
    assert body[0] == "1"
    assert body[1].startswith(f"  synthesis {broken} random digits ipc1 seed1: failed (user: ValueError: planted)")
    assert body[1].endswith("1 stage behind it")
    assert body[2] == "drifted: 2"
    assert body[3].startswith("  accuracy: random digits ipc1 -> convnet3_w16 matched: 40.50 -> 30.50 % (-10.00 points")
    assert body[4].startswith("  speed: synthesis rded digits ipc1: 10 -> 20 s (+100 %, 5 % are allowed; median of 3")
    assert body[5] == "new: 0"
    assert len(text.splitlines()) <= 24, "one screen"
    assert len(read_nights(nights_folder(site, "watched"))) == 3


def test_a_finding_comes_back_until_it_is_accepted(grid: Path, site: Store, nightly: Nightly) -> None:
    for size, code in [(1000, 0), (1200, 1), (1200, 1)]:
        publish_night(grid, site, size=size)
        text = nightly(code=code)
    assert "storage: random" in text and "image 1,000 -> 1,200 B" in text
    assert "2 findings accepted" in nightly("--accept", code=0)
    publish_night(grid, site, size=1200)
    nightly(code=0)
    publish_night(grid, site, size=1000)
    assert "image 1,200 -> 1,000 B" in nightly(code=1)


def test_quiet_says_nothing_when_there_is_nothing_to_say(grid: Path, site: Store, nightly: Nightly) -> None:
    publish_night(grid, site)
    assert nightly("--quiet", code=0) == ""
    publish_night(grid, site, accuracy={"rded": 20.0})
    assert "accuracy: rded" in nightly("--quiet", code=1)


def test_a_night_measures_again_what_a_finished_grid_would_not_submit(grid: Path, site: Store) -> None:
    """Keys are the grid's own: no leaderboard of the site's store gets rows of nights, and prepare is shared."""
    plan = load_plan(grid)
    publish_all(plan, site)
    place = begin(nights_folder(site, plan.name), site, ("prepare",))
    assert place.store.published("prepare") == site.published("prepare") != set()
    assert not place.store.published("evaluation")
    before = {kind: site.published(kind) for kind in ("synthesis", "evaluation")}
    (place.path / "night.json").unlink()
    publish_night(grid, site)
    assert {kind: site.published(kind) for kind in before} == before


def test_an_interrupted_night_goes_on_and_a_finished_one_does_not(grid: Path, site: Store, nightly: Nightly) -> None:
    publish_night(grid, site)
    folder = nights_folder(site, "watched")
    name = open_night(folder).name  # type: ignore[union-attr]
    assert f"going on with night {name}" in nightly(code=0)
    assert open_night(folder) is None
    publish_night(grid, site)
    assert open_night(folder).name == f"{name}.02"  # type: ignore[union-attr]


def test_at_the_end_of_the_wall_clock_what_is_left_is_cancelled_and_said(
    grid: Path, site: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Profile.model_validate({"cluster": "slurm", "gpus": 1, "nightly": {"wall_clock": "1h"}})
    plan = load_plan(grid)
    task = Task(grid, None, profile, "site", plan, site, nights_folder(site, plan.name), [])
    place = begin(task.folder, site, ("prepare",))
    asked: list[tuple[list[str], float | None]] = []

    def launch(task: Task, place: Place, flags: list[str], seconds: float | None = None) -> int:
        asked.append((flags, seconds))
        return 0 if "--cancel" in flags else TIME_OVER

    monkeypatch.setattr("suite.nights.night.launch", launch)
    code, stopped = run_night(task, place, expected(plan, profile, site, []))
    assert (code, stopped) == (1, True)
    assert asked[0][0][0] == "--wait" and 3500 < (asked[0][1] or 0) <= 3600
    assert asked[1:] == [(["--cancel", "--yes"], None)]
    night = record(task, place, stopped, 3600.0)
    text = summary(night, [], expected(plan, profile, site, []), [], 0)
    assert "stopped by the wall clock" in text and "not reached: 14 stages" in text and needs_attention(night)


def test_a_launch_that_takes_too_long_is_ended(grid: Path, site: Store) -> None:
    plan = load_plan(grid)
    task = Task(grid, None, Profile(), "local", plan, site, nights_folder(site, plan.name), [])
    place = begin(task.folder, site, ("prepare",))
    assert launch(task, place, ["--wait"], 0.05) == TIME_OVER


def test_a_night_that_is_too_old_is_closed_and_a_new_one_begun(grid: Path, site: Store) -> None:
    publish_night(grid, site, failed=[key(grid, "synthesis", "rded")])
    plan = load_plan(grid)
    task = Task(grid, None, Profile(), "local", plan, site, nights_folder(site, plan.name), [])
    old = open_night(task.folder)
    assert old is not None
    (old.path / "night.json").write_text(json.dumps({"schema": 1, "started": "2026-01-01T00:00:00+00:00"}))
    place = choose_place(task)
    assert place.name == f"{old.name}.02"
    (closed,) = task.earlier
    assert (closed.night, closed.ended, len(closed.failures)) == (old.name, "stopped", 1)


def test_old_artifacts_go_and_the_history_stays(grid: Path, site: Store, nightly: Nightly) -> None:
    folder = nights_folder(site, "watched")
    for _ in range(3):
        publish_night(grid, site)
        nightly(code=0)
    assert prune(folder, 1) == [n.night for n in read_nights(folder)][:2]
    assert len(read_nights(folder)) == 3
    assert site.published("prepare"), "what nights share is not theirs to delete"
    assert len(list(folder.glob("*/store"))) == 1


def test_a_damaged_history_is_one_line(grid: Path, site: Store, nightly: Nightly) -> None:
    publish_night(grid, site)
    nightly(code=0)
    path = next((nights_folder(site, "watched") / "history").iterdir())
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"schema": 99}))
    with pytest.raises(DataError, match="not the record of a night"):
        read_nights(path.parents[1])
    path.write_text("{")
    done = run("suite.nightly", grid, "--store", site.root, "--dry-run")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(path) in done.stderr


def test_identities_outlive_versions_and_seeds_but_not_recipes(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_plan(grid)
    before = identities(plan.stages)
    assert len({before[s.key] for s in plan.stages if s.kind == "evaluation"}) == 2, "seeds share one"
    monkeypatch.setitem(__import__("suite.spec.stages").spec.stages.VERSIONS, "synthesis", 99)
    later = load_plan(grid)
    assert not {s.key for s in later.stages if s.kind == "synthesis"} & set(before)
    assert set(identities(later.stages).values()) == set(before.values())
    grid.write_text(GRID + "override:\n  - set: {student.steps: 7}\n")
    other = load_plan(grid)
    changed = {identities(other.stages)[s.key] for s in other.stages if s.kind == "evaluation"}
    assert not changed & set(before.values())


SITE = "cluster: slurm\npartition: p\ngpus: 1\ndevice: cuda\nmax_array: 2\npack_minutes: 1\nnightly: {%s}\n"


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("gpu_hours: 0.000001", "GPU-hours (estimated), 1e-06 are allowed"),
        ("wall_clock: 15m, in_flight: 7", "h are allowed"),
        ("in_flight: 1", "arrays with a task each, 1 tasks in flight are allowed"),
    ],
)
def test_a_night_over_its_budget_is_refused_with_the_numbers_before_anything_is_made(
    tmp_path: Path, site: Store, budget: str, words: str, nightly: Nightly
) -> None:
    text = GRID if "wall" not in budget else GRID + "override:\n  - set: {student.steps: 900000}\n"
    write_grid(tmp_path, text)
    profile = tmp_path / "site.yaml"
    profile.write_text(SITE % budget)
    message = nightly("--profile", profile, code=2)
    assert words in message and message.count("\n") == 1 and "nightly:" in message
    assert not site.root.exists()


def test_a_night_without_its_dataset_is_refused_before_it_begins(grid: Path, site: Store, nightly: Nightly) -> None:
    grid.write_text(grid.read_text().replace("digits", "cifar10"))
    how = f"suite.prepare cifar10 --source DIR --store {site.root},"
    message = nightly(code=2)
    assert how in message and message.count("\n") == 1
    shown = nightly("--dry-run", code=0)
    assert "budget: " in shown and how in shown
    assert not site.root.exists()


def test_shards_count_for_the_budget_of_tasks(grid: Path, site: Store) -> None:
    stages = {"nightly": {"in_flight": 40}, "stages": {"synthesis": {"shards": 2}}}
    whole, cut = (expected(load_plan(grid), Profile.model_validate({"cluster": "slurm", **more}), site, [])
                  for more in ({}, stages))  # fmt: skip
    assert cut.arrays > whole.arrays and cut.each * cut.arrays <= 40


def test_a_budget_of_tasks_holds_over_all_arrays(grid: Path, site: Store) -> None:
    profile = Profile.model_validate(
        {"cluster": "slurm", "gpus": 1, "device": "cuda", "max_array": 2, "nightly": {"in_flight": 20}}
    )
    figures = expected(load_plan(grid), profile, site, [])
    assert figures.arrays >= 3 and figures.each * figures.arrays <= 20
    check(figures, profile, grid)
    with pytest.raises(UserError):
        check(
            figures, profile.model_copy(update={"nightly": profile.nightly.model_copy(update={"in_flight": 2})}), grid
        )


def test_what_earlier_nights_took_replaces_the_estimate(grid: Path, site: Store, nightly: Nightly) -> None:
    profile = Profile(cluster="slurm", gpus=1)
    publish_night(grid, site)
    assert expected(load_plan(grid), profile, site, []).basis == "estimated"
    nightly(code=0)
    figures = expected(load_plan(grid), profile, site, read_nights(nights_folder(site, "watched")))
    assert figures.basis == "measured"
    assert figures.hours * 3600 >= 12.0 * 3, "teacher, synthesis and evaluation, one after another"


@pytest.mark.parametrize(
    "line", ["in_flight: 0", "gpu_hours: -1", "wall_clock: 10:30", "reuse: [evaluation]", "windw: 3", "keep: yes"]
)
def test_a_bad_budget_points_into_the_profile(tmp_path: Path, nightly: Nightly, line: str) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text(f"cluster: slurm\nnightly:\n  {line}\n")
    message = nightly("--profile", profile, code=2)
    assert "site.yaml:3:" in message and message.count("\n") == 1


def test_dry_run_shows_the_budget_and_makes_nothing(grid: Path, site: Store, nightly: Nightly) -> None:
    text = nightly("--dry-run", code=0)
    assert "GPU-hours estimated (no limit)" in text and "dry run" in text
    assert not site.root.exists()


def test_the_script_is_a_thin_line_over_the_command(grid: Path, site: Store) -> None:
    script = ROOT / "slurm" / "nightly.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    publish_night(grid, site)
    done = subprocess.run(
        [str(script), str(grid), "local", str(site.root)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHON": sys.executable}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nightly watched, night" in done.stdout
