"""Statistics against numbers from the book."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from suite.leaderboard.boards import leaderboards
from suite.leaderboard.details import _details
from suite.leaderboard.formats import to_csv
from suite.leaderboard.rows import collect
from suite.leaderboard.significance import separation
from suite.leaderboard.statistics import (
    groups,
    pareto,
    plain_records,
    seeds_text,
    summarise,
    suspicions,
    t_interval,
)
from suite.store import Record
from tests.leaderboard.factory import failed, grid, record


def test_t_interval_by_hand() -> None:
    s = summarise([1.0, 2.0, 3.0])
    assert (s.n, s.mean, s.sd) == (3, 2.0, 1.0)
    # t(0.975, 2) = 4.30265; 4.30265 / sqrt(3) = 2.48414
    assert s.low == pytest.approx(2 - 2.484138, abs=1e-5)
    assert s.high == pytest.approx(2 + 2.484138, abs=1e-5)
    five = summarise([50.1, 50.9, 49.7, 50.3, 50.5])
    assert five.sd == pytest.approx(0.447214, abs=1e-5)
    # t(0.975, 4) = 2.776445
    assert five.high is not None and five.mean is not None
    assert five.high - five.mean == pytest.approx(2.776445 * 0.447214 / math.sqrt(5), abs=1e-5)


def test_one_seed_has_no_spread_and_no_interval() -> None:
    s = summarise([42.0])
    assert (s.n, s.mean, s.sd, s.low, s.high) == (1, 42.0, None, None, None)
    assert all(math.isnan(v) for v in t_interval([42.0]))
    line = groups(collect([record()])).iloc[0]
    assert pd.isna(line["sd"]) and pd.isna(line["low"]) and pd.isna(line["high"])


def test_no_value_has_no_mean() -> None:
    assert summarise([None, pd.NA, math.nan]).mean is None
    assert summarise([]).n == 0


def seeds(method: str, *accuracies: float, **cell: object) -> list[Record]:
    return [record(method, seed=i, accuracy=a, **cell) for i, a in enumerate(accuracies)]


def test_ranks_are_by_last_epoch_within_a_contest_and_ties_share_them() -> None:
    records = [
        *seeds("rded", 39.9, 40.0, 40.1),
        *seeds("sre2l", 39.8, 40.0, 40.2),
        *seeds("e2d", 29.9, 30.0, 30.1),
        *seeds("random", 90.0, 90.1, ipc=50),
    ]
    records[-3].numbers["accuracy_best"] = 99.0
    g = groups(collect(records))
    assert dict(zip(g["method"], g["rank"], strict=True)) == {"rded": 1, "sre2l": 1, "e2d": 3, "random": 1}
    assert dict(zip(g["method"], g["place"], strict=True)) == {"rded": 1, "sre2l": 1, "e2d": 3, "random": 1}


def test_a_rank_is_shared_where_seeds_cannot_separate() -> None:
    g = groups(collect([*seeds("rded", 44, 50, 47), *seeds("sre2l", 43, 49, 46), *seeds("e2d", 29, 31, 30)]))
    assert g["rank"].tolist() == [1, 1, 3] and g["place"].tolist() == [1, 2, 3]
    assert pd.isna(g["p"][0]) and g["p"][1] > 0.5 and g["p"][2] < 0.01


def test_a_chain_of_small_steps_is_not_a_tie() -> None:
    g = groups(collect([*seeds("rded", 40, 41, 42), *seeds("sre2l", 38.8, 39.8, 40.8), *seeds("e2d", 37, 38, 39)]))
    assert g["rank"].tolist() == [1, 1, 3], "the third is tested against the first, not against its neighbour"


@given(
    a=st.lists(st.floats(0, 100), min_size=1, max_size=6),
    b=st.lists(st.floats(0, 100), min_size=2, max_size=6),
)
def test_separation_is_the_t_test_of_scipy(a: list[float], b: list[float]) -> None:
    one, two = summarise(a), summarise(b)
    assert one.mean is not None and two.mean is not None
    assume(((one.sd or 0) > 1e-3 and (two.sd or 0) > 1e-3) or (len(a) == 1 and (two.sd or 0) > 1e-3))
    expected = stats.ttest_ind(a, b, equal_var=len(a) == 1).pvalue
    found = separation((one.mean, one.sd, one.n), (two.mean, two.sd, two.n))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_two_single_seeds_are_not_separated_and_samples_without_spread_are_surely() -> None:
    assert separation((90.0, None, 1), (10.0, None, 1)) is None
    assert groups(collect([record("rded", accuracy=90.0), record("e2d", accuracy=10.0)]))["rank"].tolist() == [1, 1]
    assert separation((90.0, 0.0, 3), (10.0, 0.0, 3)) == 0.0
    assert separation((10.0, 0.0, 3), (10.0, 0.0, 3)) == 1.0


def test_best_epoch_stands_beside_and_is_never_the_accuracy() -> None:
    g = groups(collect([record(accuracy=40.0)])).iloc[0]
    assert (g["mean"], g["best"]) == (40.0, pytest.approx(40.31))


@pytest.mark.parametrize(
    ("accuracy", "classes", "constant", "words"),
    [
        (10.0, 10, False, "chance"),
        (10.9, 10, False, "chance"),
        (9.1, 10, True, "one class"),
        (0.0, 1000, False, "exactly 0 %"),
        (100.0, 10, False, "exactly 100 %"),
    ],
)
def test_suspicious_rows_say_why(accuracy: float, classes: int, constant: bool, words: str) -> None:
    assert words in "; ".join(suspicions(accuracy, classes, constant))


def test_honest_rows_are_not_suspicious() -> None:
    assert suspicions(11.1, 10, False) == []
    assert suspicions(42.0, 1000, False) == []


def test_suspicious_rows_are_kept_and_flagged() -> None:
    table = leaderboards(collect([record(accuracy=0.4), record("e2d", seed=1)]))[0]
    assert [(r["method"], r["flag"]) for r in table.rows] == [("e2d", ""), ("rded", "suspicious")]
    assert table.footnotes == ["seed 0 suspicious: within 1 point of chance (0.1 %)"]


def test_rows_with_cut_batches_have_a_footnote_and_keep_their_rank() -> None:
    """A lack of memory was answered with batches in two parts: recorded, shown, and no reason to doubt the number."""
    cut = record(seed=1, accuracy=40.0)
    cut.numbers["micro_batches"] = 2
    rows = collect([record(seed=0, accuracy=41.0), cut])
    assert rows.frame["micro_batches"].isna().tolist() == [True, False]
    table = leaderboards(rows)[0]
    note = "trained with each batch in 2 parts, since memory ran out (BatchNorm sees a part at a time)"
    assert table.footnotes == [f"seed 1 {note}"]
    assert [(r["notes"], r["flag"], r["rank"]) for r in table.rows] == [([1], "", 1)]
    student = dict(
        next(p for p in _details(plain_records(rows.frame)[1], None, None) if p["heading"] == "Student")["pairs"]
    )
    assert student["Batches"] == note.removeprefix("trained ")


def test_seeds_are_named_shortly() -> None:
    assert seeds_text([3]) == "seed 3"
    assert seeds_text([2, 0]) == "seeds 0, 2"
    assert seeds_text([4, 2, 3, 3]) == "seeds 2-4"


def test_pareto_front_by_hand() -> None:
    cost, gain = [1, 2, 2, 3, 4], [10, 9, 12, 12, 13]
    assert pareto(cost, gain) == [0, 2, 4]


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(24)))
def test_the_order_of_records_does_not_matter(order: list[int]) -> None:
    records = [*grid(), failed(ipc=50), failed("data", "gone", ipc=50, seed=1), record("cda"), record("cda", seed=1)]
    assert len(records) == 24
    straight = [to_csv(t) for t in leaderboards(collect(records))]
    assert [to_csv(t) for t in leaderboards(collect([records[i] for i in order]))] == straight


@given(values=st.lists(st.floats(0, 100), min_size=2, max_size=12))
def test_the_interval_holds_the_mean(values: list[float]) -> None:
    s = summarise(values)
    assert s.low is not None and s.high is not None and s.mean is not None
    assert s.low <= s.mean <= s.high
