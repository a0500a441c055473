"""`python -m suite.report` on a real store: what it prints, what it writes, and what it says about missing cells."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from suite import report
from suite.errors import UserError
from suite.grid import Plan, load_plan
from suite.leaderboard.boards import leaderboards
from suite.leaderboard.gather import from_plan, from_store
from suite.spec.stages import Stage
from suite.store import Attempt, Record, Store
from tests.leaderboard.factory import record_of, stages

ROOT = Path(__file__).resolve().parents[2]
GRID = """\
name: small
seeds: [0, 1]
protocol: [matched]
product:
  method: [random, sre2l]
  dataset: digits
  ipc: [1, 10]
  teacher: convnet3_w32
  student: convnet3_w32
exclude:
  - {method: random, ipc: 10, why: "too easy"}
"""


def publish(store: Store, stage: Stage, accuracy: float | None = None) -> None:
    """Publish an evaluation the way a compute node does."""
    record = record_of(stage, accuracy)
    inputs = record.inputs
    with Attempt(store, stage, {}) as attempt:
        attempt.inputs = inputs
        attempt.publish(record)


def fail(store: Store, stage: Stage, kind: str, message: str, status: str = "failed") -> None:
    """Leave the record of a failed attempt, the way a compute node does."""
    record = Record(stage.kind, stage.key, "", status, stage.to_json()["spec"])  # type: ignore[arg-type]
    record.failure = {"kind": kind, "message": message}
    Attempt(store, stage, {}).fail(record)


def parent(plan: Plan, stage: Stage, kind: str) -> Stage:
    return next(s for s in plan.stages if s.kind == kind and s.key in stage.inputs.values())


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def evaluations(plan: Plan) -> list[Stage]:
    by_key = {s.key: s for s in plan.stages}
    return [by_key[k] for k in plan.cell_keys]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "suite.report", *map(str, arguments)],
        capture_output=True, text=True, timeout=400, cwd=ROOT, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_a_report_through_a_real_store(grid: Path, store: Store, tmp_path: Path) -> None:
    for stage in evaluations(load_plan(grid)):
        publish(store, stage)
    out = tmp_path / "reports"
    done = run(grid, "--store", store.root, "--out", out)
    assert done.returncode == 0, done.stderr
    tables = ("accuracy", "synthesis_time", "storage", "equal_bytes", "accuracy_time", "published", "contradictions")
    figures = [f"figures/accuracy_{x}.{kind}" for x in ("ipc", "time", "bytes") for kind in ("pdf", "svg", "png")]
    assert set(files(out / "small")) == {
        *(name for t in tables for name in (f"{t}.csv", f"{t}.md", f"latex/{t}.tex", f"parquet/{t}.parquet")), *figures,
        "parquet/rows.parquet", "report.json", "index.html", "rows/000.js", "overview.png", "leaderboards.txt",
        "stamp.json",
    }  # fmt: skip
    assert done.stdout.rstrip().endswith(f"page: {out / 'small' / 'index.html'}")
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100
    for title in ("Accuracy", "Synthesis time", "Storage", "too easy"):
        assert title in done.stdout
    before = files(out / "small")
    (out / "small" / "stamp.json").unlink()  # draws everything again
    assert report.main([str(grid), "--store", str(store.root), "--out", str(out)]) == 0
    assert files(out / "small") == before


def test_every_hole_has_its_reason(grid: Path, store: Store) -> None:
    plan = load_plan(grid)
    cells = evaluations(plan)
    random0, random1, a, b, c, d = cells
    publish(store, random0)
    fail(store, random1, "oom", "needs 91 GB")
    fail(store, random1, "numeric", "diverged at step 120: loss is nan", "diverged")
    fail(store, parent(plan, a, "synthesis"), "data", "class 3 is empty")
    fail(store, a, "data", "blocked: an input cannot be used: missing /somewhere")
    fail(store, b, "data", "blocked: an input cannot be used: missing /somewhere")
    (store.home("evaluation", c.key) / "attempts" / "000-x-0-elsewhere-1-abc").mkdir(parents=True)
    rows = from_plan(store, plan.stages, plan.cells, plan.cell_keys, plan.excluded)
    reasons = {h.key: h.reason for h in rows.holes}
    assert reasons == {
        random1.key: "diverged at step 120: loss is nan [2 attempts]",
        a.key: "blocked (synthesis failed (data): class 3 is empty)",
        b.key: "not run",
        c.key: "started, not finished",
        d.key: "not run",
    }
    assert rows.excluded == [(2, "too easy")]
    lines = [(r["method"], r["ipc"], r["n"], r["flag"]) for r in leaderboards(rows)[0].rows]
    assert lines == [("random", 1, 1, ""), ("sre2l", 1, 0, "hole"), ("sre2l", 10, 0, "hole")]


def test_a_failed_teacher_blocks_the_cells_behind_it(grid: Path, store: Store) -> None:
    plan = load_plan(grid)
    cell = evaluations(plan)[-1]
    fail(store, parent(plan, cell, "teacher"), "infra", "node down")
    rows = from_plan(store, plan.stages, plan.cells, plan.cell_keys)
    assert {h.reason for h in rows.holes if h.method == "sre2l"} == {"blocked (teacher failed (infra): node down)"}


def test_a_corrupt_row_is_a_hole_and_refused(grid: Path, store: Store) -> None:
    plan = load_plan(grid)
    stage = evaluations(plan)[0]
    publish(store, stage)
    path = store.home("evaluation", stage.key) / "out" / "record.json"
    path.write_bytes(path.read_bytes().replace(b"accuracy_last", b"accuracy_LAST"))
    rows = from_plan(store, plan.stages, plan.cells, plan.cell_keys)
    assert rows.frame.empty
    assert [r.reason for r in rows.refused] == ["corrupt artifact: SHA-256 differs from the manifest"]
    assert rows.refused[0].reason in {h.reason for h in rows.holes}
    assert [r.key for r in from_store(store).refused] == [stage.key]


def test_without_a_grid_all_rows_and_failures_of_the_store_are_shown(store: Store, tmp_path: Path) -> None:
    for seed in range(2):
        publish(store, stages("rded", seed=seed)[1])
    broken = stages("e2d")[1]
    fail(store, broken, "oom", "needs 91 GB")
    assert report.main(["--store", str(store.root), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "all" / "accuracy.csv").open() as file:
        lines = {r["method"]: r for r in csv.DictReader(file)}
    assert (lines["rded"]["n"], lines["e2d"]["n"]) == ("2", "0")
    assert lines["e2d"]["notes"] == "seed 0 missing: failed (oom): needs 91 GB"


def test_settings_of_a_store_are_told_apart_by_the_syntheses_in_it(store: Store) -> None:
    for crops in (5, 10):
        for seed in range(2):
            made, evaluation = stages(seed=seed, params={"crops": crops})
            with Attempt(store, made, {}) as attempt:
                attempt.publish(Record("synthesis", made.key, "", "done", made.to_json()["spec"]))
            publish(store, evaluation, 40.0 + crops)
    table = leaderboards(from_store(store))[0]
    assert [(r["mean"], r["n"]) for r in table.rows] == [(50.0, 2), (45.0, 2)]


def test_nothing_to_report_is_one_line_with_the_next_command(grid: Path, tmp_path: Path) -> None:
    for arguments in ([], [grid]):
        done = run(*arguments, "--store", tmp_path / "nowhere", "--out", tmp_path / "out")
        assert done.returncode == 2
        assert re.fullmatch(
            r"error: .*there are no rows to report - python -m suite\.launch \S+ --store \S+\n", done.stderr
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--variant", "x"], ["--nope"], ["no_such_grid.yaml"]])
def test_bad_input_leaves_with_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_numbers_of_papers_stand_beside_rows_and_a_new_table_of_them_makes_a_new_report(
    store: Store, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.yaml"
    cell = "{method: rded, dataset: imagenet1k, ipc: 10, teacher: resnet18, student: resnet18}"
    papers, out = tmp_path / "papers.csv", tmp_path / "out"
    header = report.PUBLISHED.read_text().splitlines()[0]

    def verdict(published: str, override: str = "") -> tuple[str, str]:
        grid.write_text(f"name: g\nprotocol: [paper]\ncells:\n  - {cell}\n{override}")
        (stage,) = evaluations(load_plan(grid))
        if stage.key not in store.published("evaluation"):
            publish(store, stage, 42.0)
        line = f"RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,{published},,%,t,w,read,,"
        papers.write_text(f"{header}\n{line}\n")
        report.main([str(grid), "--store", str(store.root), "--out", str(out), "--published", str(papers)])
        with (out / "g" / "accuracy.csv").open() as file:
            (row,) = csv.DictReader(file)
        return row["published_low"], row["verdict"]

    assert verdict("41.5") == ("41.5", "reproduced")
    assert verdict("30") == ("30", "above")
    shorter = "override:\n  - {set: {student.epochs: 60}}\n"
    assert verdict("41.5", shorter) == ("41.5", "not comparable (settings are not the paper's)")
    with pytest.raises(UserError, match="no such file of published numbers"):
        report.main(["--store", str(store.root), "--published", str(tmp_path / "nowhere.csv")])


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a directory"):
        report.main(["--store", str(tmp_path / "file")])


def test_a_report_that_cannot_be_made_leaves_the_old_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, stages()[1])
    arguments = ["--store", str(store.root), "--out", str(tmp_path / "out")]
    assert report.main(arguments) == 0
    before = files(tmp_path / "out" / "all")
    publish(store, stages(seed=1)[1])

    def broken(*_: object) -> str:
        raise RuntimeError("template is broken")

    monkeypatch.setattr("suite.leaderboard.page.page", broken)
    with pytest.raises(RuntimeError):
        report.main(arguments)
    assert files(tmp_path / "out" / "all") == before


def test_an_unchanged_report_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite import report
    from suite.leaderboard.freshness import unchanged

    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "leaderboards.txt").write_text("table\n")
    report.stamp(folder, "state", ["leaderboards.txt"])
    assert unchanged(folder, "state") == "table\n"
    assert unchanged(folder, "another state") is None
    (folder / "leaderboards.txt").write_text("edited\n")
    assert unchanged(folder, "state") is None, "what was edited by hand is written again"
    (folder / "stamp.json").write_text("{")
    assert unchanged(folder, "state") is None


def test_the_demo_is_the_report_of_what_make_demo_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    store = Store(tmp_path / "store")
    arguments = ["--demo", "--store", str(store.root), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="there are no rows to report - make demo"):
        report.main(arguments)
    for stage in evaluations(load_plan(report.DEMO))[:4]:
        publish(store, stage)
    assert report.main(arguments) == 0
    assert f"page: {tmp_path / 'out' / 'quickstart' / 'index.html'}" in capsys.readouterr().out


def test_rows_of_a_report_are_reported_without_a_store(store: Store, tmp_path: Path) -> None:
    for seed in range(2):
        publish(store, stages("rded", seed=seed)[1])
    out = tmp_path / "out"
    assert report.main(["--store", str(store.root), "--out", str(out)]) == 0
    rows = out / "all" / "parquet" / "rows.parquet"
    assert report.main(["--rows", str(rows), "--store", str(tmp_path / "none"), "--out", str(out)]) == 0
    first, second = files(out / "all"), files(out / "rows")
    assert first["accuracy.csv"] == second["accuracy.csv"] and first["parquet/rows.parquet"] == rows.read_bytes()
    with pytest.raises(UserError, match="no such file of rows"):
        report.main(["--rows", str(tmp_path / "nowhere")])
