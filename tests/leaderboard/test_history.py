"""Changes between two states, and steps over nights."""

from __future__ import annotations

import io
import json
import random
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from suite import report
from suite.comparisons import over_nights
from suite.errors import UserError
from suite.leaderboard.history import changes
from suite.leaderboard.rows import collect
from suite.leaderboard.trend import Point, steps, trends
from suite.nights.history import Night, Row, Timing, write_night
from suite.nights.places import nights_folder
from suite.store import Record, Store
from tests.leaderboard.factory import record, stages
from tests.leaderboard.test_report import ROOT, publish


def seeds(method: str, *accuracies: float, key: str = "", **cell: object) -> list[Record]:
    found = [record(method, seed=i, accuracy=a, **cell) for i, a in enumerate(accuracies)]
    for i, r in enumerate(found):
        r.key = f"{key}{i}{r.key}"[:16] if key else r.key
    return found


def test_equal_states_have_no_changes() -> None:
    rows = collect([*seeds("rded", 40, 41, 42), *seeds("e2d", 50, 51)])
    assert len(changes(rows, rows, "itself")) == 0


def test_new_gone_and_other_numbers_and_ranks_are_told_apart() -> None:
    then = collect([*seeds("rded", 40, 41, 42), *seeds("e2d", 50, 51, 52), *seeds("random", 20, 21)])
    now = collect([*seeds("rded", 40, 41, 42), *seeds("e2d", 30, 31, 32, key="ab"), *seeds("cda", 10, 11)])
    lines = {r["method"]: r for r in changes(now, then, "before").rows}
    assert {m: x["change"] for m, x in lines.items()} == {
        "rded": "rank", "e2d": "numbers", "random": "gone", "cda": "new",
    }  # fmt: skip
    assert (lines["e2d"]["before"], lines["e2d"]["mean"], lines["e2d"]["difference"]) == (51, 31, -20)
    assert lines["e2d"]["p"] < 0.001 and (lines["e2d"]["rank_before"], lines["e2d"]["rank"]) == (1, 2)
    assert (lines["rded"]["rank_before"], lines["rded"]["rank"]) == (2, 1)


def test_a_cell_whose_settings_changed_is_compared_as_a_cell() -> None:
    then = collect([record("rded", seed=0, accuracy=40.0)])
    other = record("rded", seed=0, accuracy=45.0)
    other.spec["recipe"] = {**other.spec["recipe"], "epochs": 5}
    other.key = "ff" * 8
    (line,) = changes(collect([other]), then, "before").rows
    assert (line["change"], line["before"], line["mean"]) == ("numbers", 40.0, 45.0)


def test_against_a_report_a_store_and_a_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.strip()
    old, new = Store(tmp_path / "old"), Store(tmp_path / "new")
    for store in (old, new):
        publish(store, stages("rded")[1], 40.0)
    assert report.main(["--store", str(old.root), "--out", str(tmp_path / "out")]) == 0
    publish(new, stages("e2d")[1], 50.0)
    capsys.readouterr()
    for state in (tmp_path / "out" / "all", old.root):
        assert report.main(["--store", str(new.root), "--out", str(tmp_path / "o"), "--against", str(state)]) == 0
        out = capsys.readouterr().out
        assert "Changes since" in out and "new" in out.partition("Changes since")[2]
        assert (tmp_path / "o" / "all" / "changes.csv").read_text().splitlines()[1].startswith("new,e2d")
    # Rows of the factory are of another commit: as of HEAD there were none.
    assert report.main(["--store", str(new.root), "--out", str(tmp_path / "o"), "--against", head]) == 0
    assert (tmp_path / "o" / "all" / "changes.csv").read_text().count("\nnew,") == 2
    for bad in ("no-such-revision", "--all", str(tmp_path)):
        with pytest.raises(UserError, match="neither"):
            report.main(["--store", str(new.root), "--out", str(tmp_path / "o"), f"--against={bad}"])


def test_a_step_is_found_where_it_is_and_noise_is_none() -> None:
    rng = random.Random(0)
    quiet = [50 + rng.gauss(0, 0.3) for _ in range(40)]
    assert steps(quiet) == []
    assert steps([*quiet[:20], *(v - 3 for v in quiet[20:])]) == [20]
    assert steps([5.0] * 10) == [] and steps([5.0] * 6 + [7.0] * 6) == [6], "numbers that repeat bit by bit"
    assert steps([5.0, 5.0, 9.0]) == [], "too few nights"
    assert steps([*[5.0] * 8, 9.0]) == [], "one odd night is no step"


def test_trends_name_the_night_of_the_step() -> None:
    points = [
        Point(f"2026-01-{n:02d}", name, f"label {name}", "accuracy", 40 + 5 * (n > 9 and name == "a") + n % 2 / 9)
        for n in range(1, 16)
        for name in "ab"
    ]
    summary, single = trends(points)
    (a, b) = summary.rows
    assert (a["identity"], a["steps"], a["since"]) == ("a", 1, "2026-01-10")
    assert a["difference"] == pytest.approx(5.0, abs=0.2) and (b["steps"], b["since"]) == (0, None)
    assert len(single) == 30 and {r["step"] for r in single.rows} == {0, 1}
    assert trends(points[:2]) == []


def test_nights_of_a_grid_become_trends(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for n in range(1, 9):
        level = 50.0 + 4 * (n > 4)
        row = Row(identity="e", label="", key="k", bytes={"image": 9}, seed=0, accuracy=level)
        rows = [row, row.model_copy(update={"seed": 1, "accuracy": level + 1})]
        timing = Timing(identity="t", label="synthesis rded", device="cpu", seconds=3.0, attempt_seconds=4.0, gpus=0)
        night = Night(
            grid="g", night=f"2026-02-{n:02d}", started="", seconds=1, ended="complete", commit="c", planned=1,
            published=1, rows=tuple(rows), timings=(timing,),
        )  # fmt: skip
        write_night(nights_folder(store, "g"), night)
    summary, _ = over_nights(store, "g")
    found = {r["what"]: (r["since"], r["before"], r["level"]) for r in summary.rows}
    assert found == {"accuracy": ("2026-02-05", 50.5, 54.5), "speed": (None, None, 3.0), "storage": (None, None, 9.0)}
    assert over_nights(store, "another") == []


def test_a_report_of_a_grid_with_nights_has_the_figure(tmp_path: Path) -> None:
    from suite.leaderboard.figures import figure_files

    tables = trends([Point(f"n{i}", "a", "x", "accuracy", float(i > 3)) for i in range(8)])
    files = figure_files(tables)
    assert set(files) == {"figures/trend.pdf", "figures/trend.svg", "figures/trend.png"}
    assert files == figure_files(tables)
    picture = Image.open(io.BytesIO(files["figures/trend.png"]))
    assert picture.size == (780, 570) and [round(d) for d in picture.info["dpi"]] == [300, 300]


def test_a_process_of_its_own_draws_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.leaderboard import figures

    tables = trends([Point(f"n{i}", "a", "x", "accuracy", float(i > 3)) for i in range(8)])
    here = figures.figure_files(tables)
    monkeypatch.setattr(figures, "MANY", 1)
    with figures.drawing(tables) as drawn:
        assert drawn() == here


GOLDEN = ROOT / "tests" / "golden" / "historic"


@pytest.mark.parametrize("folder", sorted(p.name for p in GOLDEN.iterdir()))
def test_rows_of_older_schemas_keep_loading(folder: str) -> None:
    """Records as an older suite wrote them give the rows that it made of them."""
    records = [Record.from_json(json.loads(p.read_text())) for p in sorted((GOLDEN / folder).glob("record-*.json"))]
    rows = collect(records)
    expected = json.loads((GOLDEN / folder / "rows.json").read_text())
    assert [h.reason for h in rows.holes] == expected["holes"] and not rows.refused
    lines = json.loads(rows.frame.to_json(orient="records"))
    assert len(lines) == len(expected["rows"]) >= 4
    for line, golden in zip(lines, expected["rows"], strict=True):
        assert {name: line[name] for name in golden} == golden
