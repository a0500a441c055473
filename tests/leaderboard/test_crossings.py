"""Where the leaderboards meet: equal bytes, seconds, students, protocols, diversity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suite.errors import DataError
from suite.leaderboard.crossings import MANY, _budgets
from suite.leaderboard.make import Beside, make
from suite.leaderboard.rows import collect
from suite.leaderboard.similarity import read_similarities
from suite.leaderboard.tables import Table
from suite.store import Record
from tests.leaderboard.factory import record


def tables(*records: Record, **similarity: dict[str, float]) -> dict[str, Table]:
    return {t.slug: t for t in make(collect(records), Beside(similarity=similarity))}


def test_accuracy_at_equal_bytes_is_the_best_that_fits_whatever_its_ipc() -> None:
    """random: 15 MB an IPC; rded: 46.8 MB more for its teacher."""
    table = tables(
        record("random", 1, accuracy=5.0), record("random", 10, accuracy=20.0), record("random", 50, accuracy=18.0),
        record("rded", 1, accuracy=12.0), record("rded", 10, accuracy=40.0),
    )["equal_bytes"]  # fmt: skip
    found = {(r["budget"], r["method"]): (r["ipc"], r["mean"]) for r in table.rows}
    assert found == {
        (20e6, "random"): (1, 5.0), (50e6, "random"): (1, 5.0),
        (100e6, "random"): (1, 5.0), (100e6, "rded"): (1, 12.0),
        (200e6, "random"): (10, 20.0), (200e6, "rded"): (10, 40.0),
        (500e6, "random"): (10, 20.0), (500e6, "rded"): (10, 40.0),
        (1e9, "random"): (10, 20.0), (1e9, "rded"): (10, 40.0),
    }  # fmt: skip
    assert all(r["total_bytes"] <= r["budget"] for r in table.rows)


def test_budgets_hold_everything_and_are_fewer_for_very_many_lines() -> None:
    import numpy as np

    assert _budgets(np.array([15e6, 61.8e6])) == [20e6, 50e6, 100e6]
    assert _budgets(np.array([20e6])) == [20e6] and _budgets(np.array([7.0])) == [10.0]
    assert _budgets(np.full(MANY + 1, 15e6)) == [100e6]


def test_the_front_of_time_is_on_one_device_and_counts_inputs_apart() -> None:
    slow = record("e2d", accuracy=60.0)
    slow.upstream["synthesis"]["device"] = "another"
    table = tables(record("random", accuracy=10.0), record("rded", accuracy=40.0), record("sre2l", accuracy=30.0), slow)
    lines = {r["method"]: r for r in table["accuracy_time"].rows}
    assert {m: r["front"] for m, r in lines.items()} == {"random": "yes", "rded": "yes", "sre2l": "no", "e2d": "yes"}
    assert lines["sre2l"]["all_seconds"] == pytest.approx(16_200 + 64_000 + 900)


def test_generalisation_has_a_column_a_student_and_the_mean_of_the_others() -> None:
    records = [
        record("rded", accuracy=40.0), record("rded", student="mobilenet_v2", accuracy=30.0),
        record("rded", student="resnet50", accuracy=36.0), record("e2d", accuracy=50.0),
    ]  # fmt: skip
    lines = {r["method"]: r for r in tables(*records)["generalisation"].rows}
    rded = lines["rded"]
    assert [rded[f"student:{s}"] for s in ("mobilenet_v2", "resnet18", "resnet50")] == [30.0, 40.0, 36.0]
    assert rded["transfer"] == 33.0 and lines["e2d"]["transfer"] is None
    assert "generalisation" not in tables(record("rded"), record("e2d"))


def test_protocols_stand_side_by_side_with_the_change_of_rank() -> None:
    numbers = {"rded": (40.0, 30.0), "e2d": (50.0, 20.0), "random": (10.0, 10.0)}
    records = [
        record(m, seed=s, protocol=p, accuracy=a + 0.1 * s)
        for m, pair in numbers.items()
        for p, a in zip(("paper", "matched"), pair, strict=True)
        for s in range(3)
    ]
    lines = {r["method"]: r for r in tables(*records, record("sre2l", accuracy=99.0))["protocols"].rows}
    assert {m: (r["rank_paper"], r["rank_matched"], r["moved"]) for m, r in lines.items()} == {
        "rded": (2, 1, -1), "e2d": (1, 2, 1), "random": (3, 3, 0),
    }, "a method without both is in neither ranking"  # fmt: skip
    assert lines["e2d"]["difference"] == pytest.approx(30.0)
    assert "protocols" not in tables(record("rded"))


def test_diversity_joins_by_the_key_of_the_set_and_says_what_is_missing() -> None:
    records = [record("rded", seed=s) for s in range(2)] + [record("e2d"), record("rded", 1)]
    keys = [r.inputs["synthesis"]["key"] for r in records]
    table = tables(*records, resnet18={keys[0]: 0.9, keys[1]: 0.92})["diversity"]
    lines = {r["method"]: r for r in table.rows}
    assert lines["rded"]["similarity"] == pytest.approx(0.91) and lines["rded"]["n"] == 2
    assert lines["e2d"]["similarity"] is None and lines["e2d"]["flag"] == "hole"
    assert "python -m suite.bench diversity" in table.footnotes[lines["e2d"]["notes"][0] - 1]
    assert len(table) == 2, "IPC 1 has no pairs"
    assert "diversity" not in tables(*records, resnet18={"0" * 16: 0.5})


@pytest.mark.parametrize("text", ["", "[]", '{"benchmark": "loader"}', '{"benchmark": "diversity"}'])
def test_what_is_no_measurement_of_diversity_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "diversity.json"
    path.write_text(text)
    with pytest.raises(DataError):
        read_similarities([path])


def test_a_similarity_beyond_a_cosine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "diversity.json"
    path.write_text(json.dumps({"benchmark": "diversity", "settings": {"network": "x"}, "sets": {"k": 1.5}}))
    with pytest.raises(DataError, match="not a cosine"):
        read_similarities([path])
