"""What counts as drifted: pure functions of what nights measured."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.nights.history import Finding, Night, Row, Timing
from suite.nights.rules import Limits, accuracy, compare, pooled, speed, storage

LIMITS = Limits()
PERCENT = st.floats(0, 100)


def rows(*accuracies: float, identity: str = "a", size: int = 100, first: int = 0) -> list[Row]:
    return [
        Row(identity=identity, label=f"row {identity}", seed=first + i, key=f"k{i}", accuracy=a, bytes={"image": size})
        for i, a in enumerate(accuracies)
    ]


def timings(*seconds: float, identity: str = "t", device: str = "A100") -> list[Timing]:
    return [
        Timing(identity=identity, label="synthesis x", device=device, seconds=s, attempt_seconds=s + 5, gpus=1)
        for s in seconds
    ]


def night(name: str, rows: list[Row] = (), timings: list[Timing] = (), findings: list[Finding] = ()) -> Night:  # type: ignore[assignment]
    return Night(
        grid="g", night=name, started="2026-01-01T00:00:00+00:00", seconds=1.0, ended="complete", commit="c",
        planned=1, published=1, rows=tuple(rows), timings=tuple(timings), findings=tuple(findings),
    )  # fmt: skip


def whats(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.what, f.identity) for f in findings]


@pytest.mark.parametrize(
    ("tonight", "before", "drifted"),
    [
        ([50.0], [50.9], False),  # single seeds: less than a point is noise
        ([50.0], [51.1], True),
        ([50.0, 50.0, 50.0], [51.0, 51.0, 51.0], False),  # exactly a point
        ([50.0, 50.0, 50.0], [51.01, 51.01, 51.01], True),
        ([49.0, 51.0, 50.0], [52.0, 53.0, 51.5], False),  # 2.17 lower, but seeds spread by 0.9: 2.2 are allowed
        ([47.0, 49.0, 48.0], [52.0, 53.0, 51.5], True),
        ([60.0], [50.0], False),  # better is not a finding
        ([50.0], [], False),  # nothing to compare with
    ],
)
def test_accuracy_drifts_beyond_a_point_and_three_standard_errors(
    tonight: list[float], before: list[float], drifted: bool
) -> None:
    assert bool(accuracy(rows(*tonight), rows(*before), LIMITS)) is drifted


@given(st.lists(PERCENT, min_size=1, max_size=5), st.lists(PERCENT, min_size=1, max_size=5))
def test_accuracy_follows_the_formula(now: list[float], base: list[float]) -> None:
    allowed = max(1.0, 3 * pooled(now, base) * math.sqrt(1 / len(now) + 1 / len(base)))
    assert bool(accuracy(rows(*now), rows(*base), LIMITS)) is (fmean(base) - fmean(now) > allowed)


@given(st.lists(PERCENT, min_size=2, max_size=9))
def test_pooled_of_equal_samples_is_their_own_deviation(values: list[float]) -> None:
    n = len(values)
    assert pooled(values, values) == pytest.approx(stdev(values) * math.sqrt((2 * n - 2) / (2 * n - 2)), abs=1e-6)


def test_nights_that_repeat_the_same_bits_are_not_more_evidence() -> None:
    """The same three seeds on seven nights are three values: s and n are those of three."""
    base = rows(50.0, 52.0, 54.0)
    assert not accuracy(rows(46.0, 48.0, 50.0), base, LIMITS)
    assert not accuracy(rows(46.0, 48.0, 50.0), base * 7, LIMITS)


@pytest.mark.parametrize(
    ("tonight", "before", "drifted"),
    [
        ([100.0, 100.0, 100.0], [[96.0, 96.0, 96.0]], False),
        ([101.0, 101.0, 500.0], [[95.0, 95.0, 95.0]], True),  # the median of three
        ([90.0, 101.0, 500.0], [[95.0, 96.5, 97.0]], False),
        ([10.6, 10.6, 10.6], [[10.0, 10.0, 10.0]], False),  # 6 %, but less than a second
        ([200.0], [[100.0]], False),  # too few for a median of three
        ([200.0], [[100.0], [100.0], [100.0]], False),  # one slow night of three
        ([200.0], [[100.0], [100.0], [100.0], [200.0]], True),  # two
        ([], [[100.0]], False),
    ],
)
def test_speed_drifts_beyond_five_percent_of_the_median_of_three(
    tonight: list[float], before: list[list[float]], drifted: bool
) -> None:
    assert bool(speed(timings(*tonight), [timings(*b) for b in before], LIMITS)) is drifted


def test_speed_is_compared_on_the_same_device_only() -> None:
    slow, fast = timings(200, 200, 200, device="T4"), timings(100, 100, 100, device="H200")
    assert not speed(slow, [fast], LIMITS)
    assert "on T4" in speed(slow, [fast, timings(100, 100, 100, device="T4")], LIMITS)


def test_any_change_of_bytes_is_found_against_the_newest_night() -> None:
    assert not storage(rows(50), rows(50))
    assert storage(rows(50, size=101), rows(50)) == "image 100 -> 101 B (seed 0)"
    assert storage(rows(50, size=99), rows(50)), "smaller is a change too"
    assert not storage(rows(50, first=7), rows(50, size=1)), "another seed is another set"
    assert not storage(rows(50, size=101), rows(50) + rows(50, size=101))


def test_exactly_what_changed_is_found() -> None:
    before = night("2026-01-01", rows(50, 51, 52) + rows(20, 20, 20, identity="b"), timings(100, 100, 100))
    tonight = rows(45, 46, 47) + rows(20, 20, 20, identity="b", size=101)
    assert not compare(list(before.rows), list(before.timings), [before], {}, LIMITS)
    found = compare(tonight, timings(150, 151, 152), [before], {}, LIMITS)
    assert whats(found) == [("accuracy", "a"), ("speed", "t"), ("storage", "b")]


def test_a_drop_is_reported_every_night_until_it_is_accepted_or_gone() -> None:
    """A night whose value drifted is no measure for the next one."""
    good, bad = rows(50, 51, 52), rows(45, 46, 47)
    nights, reported = [night("01", good)], []
    for n in range(2, 12):
        found = compare(bad, [], nights, {}, LIMITS)
        reported.append(bool(found))
        nights.append(night(f"{n:02d}", bad, findings=found))
    assert all(reported)
    assert not compare(good, [], nights, {}, LIMITS)
    taken = {("accuracy", "a"): "11"}
    assert not compare(bad, [], nights, taken, LIMITS)
    assert compare(rows(40, 41, 42), [], nights, taken, LIMITS), "and the next drop is one again"


def test_the_window_is_of_nights_that_count() -> None:
    old = [night(f"{n:02d}", rows(60)) for n in range(5)]
    new = [night(f"1{n}", rows(50)) for n in range(7)]
    assert compare(rows(50), [], old, {}, LIMITS)
    assert not compare(rows(50), [], old + new, {}, LIMITS)
