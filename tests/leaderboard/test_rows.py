"""Records become rows, holes or refusals; nothing else happens to them."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from suite.leaderboard.boards import leaderboards
from suite.leaderboard.rows import COLUMNS, Refusal, collect, failure_reason, ledger
from suite.leaderboard.statistics import groups
from tests.leaderboard.factory import entry, failed, record, stages


def test_every_column_has_its_declared_type_even_without_rows() -> None:
    for records in ([], [record()]):
        frame = collect(records).frame
        assert list(frame.columns) == list(COLUMNS)
        assert [str(t) for t in frame.dtypes] == [t if t != "string" else "string" for t in COLUMNS.values()]


def test_a_row_holds_costs_per_image_and_in_total() -> None:
    row = collect([record("sre2l", ipc=10)]).frame.iloc[0]
    assert row["synthesis_seconds"] == pytest.approx(16_200)
    assert row["seconds_per_image"] == pytest.approx(1.62)
    assert (row["image_iterations"], row["iterations_per_image"]) == (40_000_000, 4000)
    assert (row["teacher_seconds"], row["relabel_seconds"]) == (64_000, 900)
    assert pd.isna(row["statistics_seconds"])
    assert (row["image_bytes"], row["label_bytes"]) == (150_000_000, 6_081_000_000)


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("commit", lambda r: r.provenance.pop("commit")),
        ("commit", lambda r: r.provenance.pop("dirty")),
        ("key", lambda r: setattr(r, "key", "")),
        ("seed", lambda r: r.provenance.pop("seed")),
        ("seed", lambda r: r.provenance.update(seed=7)),
        ("device", lambda r: r.device.pop("name")),
        ("environment", lambda r: r.provenance["environment"].pop("torch")),
        ("environment", lambda r: r.provenance.pop("environment")),
        ("loader", lambda r: r.provenance.update(loader=None)),
    ],
)
def test_a_number_without_provenance_is_refused_and_counted(part: str, spoil: Any) -> None:
    bare = record()
    bare.provenance["environment"] = dict(bare.provenance["environment"])
    spoil(bare)
    rows = collect([bare, record("e2d")])
    assert list(rows.frame["method"]) == ["e2d"]
    assert [r.reason for r in rows.refused] == [f"no provenance: {part}"]


def test_provenance_may_list_versions_side_by_side() -> None:
    flat = record()
    flat.provenance = {**flat.provenance, **flat.provenance.pop("environment")}
    assert "torch 2.8.0" in collect([flat]).frame["versions"].iloc[0]


@pytest.mark.parametrize("value", [None, "42", True, -0.5, 100.5, math.nan, math.inf])
def test_an_accuracy_that_is_no_percentage_is_refused(value: Any) -> None:
    odd = record()
    odd.numbers["accuracy_last"] = value
    rows = collect([odd])
    assert rows.frame.empty
    assert "accuracy_last" in rows.refused[0].reason


def test_epochs_may_be_fractions_where_the_budget_is_in_steps() -> None:
    short = record()
    short.numbers.update(epochs=0.75, best_epoch=0.5, steps=150)
    row = collect([short]).frame.iloc[0]
    assert (row["epochs"], row["best_epoch"], row["steps"]) == (0.75, 0.5, 150)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, "12", True])
def test_a_duration_that_is_none_is_refused(seconds: Any) -> None:
    odd = record()
    odd.upstream["synthesis"]["seconds"] = seconds
    assert collect([odd]).refused[0].reason.startswith("unreadable record: seconds is")


def test_a_failed_attempt_is_a_hole_with_its_newest_reason() -> None:
    first, second = failed("infra", "node down"), failed("oom", "needs 90 GB")
    first.attempt, second.attempt = "000-1", "001-1"
    rows = collect([], failures=[second, first])
    assert [h.reason for h in rows.holes] == ["failed (oom): needs 90 GB [2 attempts]"]
    assert rows.frame.empty


def test_a_diverged_attempt_is_a_hole_never_a_zero() -> None:
    rows = collect([failed("numeric", "diverged at step 120", "diverged")])
    assert [h.reason for h in rows.holes] == ["diverged at step 120"]
    line = groups(rows).iloc[0]
    assert line["n"] == 0
    assert pd.isna(line["mean"]) and pd.isna(line["rank"])


def test_a_failed_evaluation_of_a_set_from_elsewhere_is_a_hole_marked_like_its_rows() -> None:
    guest, own = failed(method="guest"), failed(method="rded")
    made = {guest.inputs["synthesis"]["key"]: {"spec": {"method": "external"}}}
    rows = collect([], failures=[guest, own], synthesis=made)
    assert [h.method for h in rows.holes] == ["guest (external)", "rded"]


def test_a_published_row_hides_its_failed_attempts() -> None:
    rows = collect([record()], failures=[failed()])
    assert len(rows.frame) == 1
    assert rows.holes == []


def test_a_blocked_attempt_does_not_show_paths() -> None:
    reason = failure_reason(failed("data", "blocked: an input cannot be used: missing /scratch/me/store"))
    assert reason == "blocked (an input failed or is missing)"


def test_records_that_could_not_be_read_stay_counted() -> None:
    broken = Refusal("ab" * 8, "evaluation", "corrupt artifact: missing file")
    assert collect([record()], refused=[broken]).refused == [broken]


def test_bytes_are_counted_by_what_they_hold_and_unshipped_ones_apart() -> None:
    entries = [
        entry("a", "image", 1), entry("b", "latent", 2), entry("c", "label", 4), entry("d", "decoder", 8),
        entry("e", "teacher", 16), entry("f", "aug", 32), entry("g", "preproc", 64, shipped=False),
    ]  # fmt: skip
    found = ledger(entries)
    assert found == {
        "image_bytes": 3,
        "label_bytes": 4,
        "auxiliary_bytes": 56,
        "total_bytes": 63,
        "unshipped_bytes": 64,
    }
    assert set(ledger([]).values()) == {None}


def test_other_parameters_are_never_averaged() -> None:
    specs, records = {}, []
    for crops in (5, 10):
        for seed in range(2):
            made, _ = stages(seed=seed, params={"crops": crops})
            specs[made.key] = made.to_json()
            records.append(record(seed=seed, params={"crops": crops}, accuracy=40.0 + crops))
    told = groups(collect(records, synthesis=specs))
    assert [(n, m) for n, m in zip(told["n"], told["mean"], strict=True)] == [(2, 50.0), (2, 45.0)]
    untold = groups(collect(records))  # without the synthesis specs only the keys tell the rows apart
    assert list(untold["n"]) == [1, 1, 1, 1]
    assert "setting" in [c.name for c in leaderboards(collect(records, synthesis=specs))[0].columns]
    assert "setting" not in [c.name for c in leaderboards(collect(records[:2], synthesis=specs))[0].columns]


def test_a_synthesis_counts_once_for_all_its_students() -> None:
    records = [record("e2d", seed=s, student=a) for s in range(2) for a in ("resnet18", "mobilenet_v2")]
    made = [stages("e2d", seed=s)[0] for s in range(2)]
    time = leaderboards(collect(records, synthesis={m.key: m.to_json() for m in made}))[1]
    assert [(r["n"], r["seconds"]) for r in time.rows] == [(2, 4400.75)]


def test_seconds_of_different_devices_stand_in_different_lines() -> None:
    other = record("e2d", seed=1)
    other.upstream["synthesis"]["device"] = "NVIDIA H100"
    time = leaderboards(collect([record("e2d"), other]))[1]
    assert [r["device"] for r in time.rows] == ["NVIDIA A100-SXM4-40GB", "NVIDIA H100"]
