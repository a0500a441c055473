"""Every published headline is in the table of papers beside measurements; contradictions are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from suite.leaderboard.make import Beside, make
from suite.leaderboard.published import Published
from suite.leaderboard.rows import collect
from suite.leaderboard.tables import Table
from suite.store import Record
from tests.leaderboard.factory import record

PAPERS = Published(Path(__file__).resolve().parents[2] / "results" / "published.csv")

#: (method, dataset, IPC, student, metric, published value, words of the source).
HEADLINES = [
    # E2D: abstract and the figure of its README, with the baselines in it
    ("E2D", "imagenet1k", None, None, "speedup", 18, "arXiv 2602.15277"),
    ("E2D", "imagenet21k", None, None, "speedup", 4.3, "arXiv 2602.15277"),
    *(
        (m, "imagenet1k", ipc, student, metric, value, "E2D repo")
        for m, numbers in {
            "E2D": (49.9, 58.8, 2.5, 10.9),
            "EDC": (48.6, 58.0, 46.0, 215.0),
            "DELT": (46.1, 59.2, 17.1, 63.7),
            "DWA": (37.9, 55.2, 30.1, 112.4),
            "RDED": (42.0, 56.5, 0.1, 0.6),
        }.items()
        for value, (ipc, student, metric) in zip(
            numbers,
            [(i, s, t) for s, t in (("ResNet18", "top1"), (None, "synthesis_time")) for i in (10, 50)],
            strict=True,
        )
    ),
    ("E2D", "imagenet1k", 10, None, "speedup", 18.4, "E2D repo"),
    ("E2D", "imagenet1k", 50, None, "speedup", 19.7, "E2D repo"),
    # DELT
    ("DELT", "imagenet1k", 10, "ResNet18", "top1", 46.1, "DELT: A Simple"),
    ("DELT", "imagenet1k", 50, "ResNet18", "top1", 59.2, "DELT: A Simple"),
    ("DELT", "imagenet1k", 100, "ResNet18", "top1", 62.4, "DELT: A Simple"),
    ("DELT", "imagenet1k", 50, "ResNet101", "top1", 66.1, "DELT: A Simple"),
    ("DELT", "imagenet1k", 50, None, "gain", 4.9, "DELT: A Simple"),
    ("RDED", "imagenet1k", 50, "ResNet101", "top1", 61.2, "DELT: A Simple"),
    ("DELT", "imagenet1k", 100, "ResNet101", "top1", 67.6, "DELT: A Simple"),
    ("SRe2L", "imagenet1k", 50, None, "synthesis_time", 29.0, "DELT: A Simple"),
    ("CDA", "imagenet1k", 50, None, "synthesis_time", 29.0, "DELT: A Simple"),
    ("DELT(RI=1K)", "imagenet1k", 50, None, "synthesis_time", 18.8, "DELT: A Simple"),
    ("DELT(RI=1K)", "imagenet1k", 50, None, "speedup", 35.2, "DELT: A Simple"),
    ("DELT", "imagenet1k", 50, None, "synthesis_time", 17.6, "DELT: A Simple"),
    ("DELT", "imagenet1k", 50, None, "speedup", 39.3, "DELT: A Simple"),
    ("G-VBSM", "imagenet1k", 50, None, "synthesis_time", 114.1, "DELT: A Simple"),
    ("SRe2L", "tinyimagenet", 50, None, "synthesis_time", 5.0, "DELT: A Simple"),
    ("DELT", "tinyimagenet", 50, None, "synthesis_time", 3.4, "DELT: A Simple"),
    ("DELT", "tinyimagenet", 50, None, "speedup", 32.0, "DELT: A Simple"),
    ("SRe2L", "cifar10", 50, None, "synthesis_time", 0.084, "DELT: A Simple"),
    ("DELT", "cifar10", 50, None, "synthesis_time", 0.083, "DELT: A Simple"),
    ("DELT", "cifar10", 50, None, "speedup", 1.1, "DELT: A Simple"),
    ("DELT", "imagenet1k", 50, None, "diversity", 0.869, "DELT repo"),
    ("RDED", "imagenet1k", 50, None, "diversity", 0.918, "DELT repo"),
    ("CDA", "imagenet1k", 50, None, "diversity", 0.915, "DELT repo"),
    ("SRe2L", "imagenet1k", 50, None, "diversity", 0.930, "DELT repo"),
    ("DELT", "imagenet1k", 50, None, "diversity_gain", 5, "DELT: A Simple"),
    ("SRe2L", "imagenet1k", 50, "ResNet18", "top1", 46.8, "DELT: A Simple"),
    ("SRe2L+EarlyLate", "imagenet1k", 50, "ResNet18", "top1", 53.4, "DELT: A Simple"),
    ("CDA", "imagenet1k", 50, "ResNet18", "top1", 53.5, "DELT: A Simple"),
    ("CDA+EarlyLate", "imagenet1k", 50, "ResNet18", "top1", 55.9, "DELT: A Simple"),
    ("DELT", "imagenet1k", None, None, "gain", 2, "DELT: A Simple"),
    ("DELT", "imagenet1k", None, None, "gain", 5, "DELT: A Simple"),
    ("DELT", "imagenet1k", None, None, "gain", 1.3, "DELT repo"),
    ("DELT", "imagenette", 1, "ResNet18", "top1", 24.1, "DELT: A Simple"),
    ("RDED", "imagenette", 1, "ResNet18", "top1", 35.8, "DELT: A Simple"),
    ("DELT", "imagenet100", 10, "ResNet18", "top1", 28.2, "DELT: A Simple"),
    ("RDED", "imagenet100", 10, "ResNet18", "top1", 36.0, "DELT: A Simple"),
    ("DELT", "tinyimagenet", 50, "ResNet18", "top1", 55.7, "DELT: A Simple"),
    ("RDED", "tinyimagenet", 50, "ResNet18", "top1", 58.2, "DELT: A Simple"),
    # D3
    ("D3", "imagenet1k", 2, None, "gain", 6.9, "arXiv 2403.00999"),
    ("D3", "imagenet1k", 2, None, "gain", 5.6, "arXiv 2403.00999"),
    *(("D3", "imagenet1k", i, "ConvNet", "top1", v, "D3 repo") for i, v in ((1, 11.5), (2, 17.4), (10, 20.3))),
    *(("D3", "imagenet1k", i, "ResNet", "top1", v, "D3 repo") for i, v in ((1, 9.7), (2, 16.03), (10, 18.5))),
    ("D3", "imagenet1k", 10, "ResNet", "top1", 18.9, "D3 repo"),
    ("TESLA", "imagenet1k", 2, "ConvNet4", "top1", 10.5, "DC-Bench"),
]  # fmt: skip


def table(slug: str, *records: Record) -> Table:
    return {t.slug: t for t in make(collect(records), Beside(PAPERS))}[slug]


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """With one cell of E2D measured."""
    return table("published", *(record("e2d", 10, s, accuracy=49.0 + s) for s in range(3))).rows


def test_every_headline_stands_in_the_table_with_its_source(lines: list[dict[str, Any]]) -> None:
    there = [(x["method"], x["dataset"], x["ipc"], x["student"], x["metric"], x["value"]) for x in lines]
    sources = [x["source"] for x in lines]
    absent = [
        headline
        for headline in HEADLINES
        if not any(at == headline[:6] and headline[6] in s for at, s in zip(there, sources, strict=True))
    ]
    assert not absent


def test_what_was_not_run_has_an_empty_measured_column(lines: list[dict[str, Any]]) -> None:
    assert len(lines) == len(PAPERS.numbers)
    measured = [x for x in lines if x["measured"] is not None]
    assert {x["method"] for x in measured} == {"E2D"} and lines[: len(measured)] == measured
    assert all(x["verdict"] is None and x["n"] is None for x in lines[len(measured) :])


def test_a_measured_number_has_difference_tolerance_and_verdict(lines: list[dict[str, Any]]) -> None:
    (line,) = [x for x in lines if x["measured"] is not None and x["metric"] == "top1"]
    assert (line["value"], line["measured"], line["n"], line["measured_sd"]) == (49.9, 50.0, 3, 1.0)
    assert line["difference"] == pytest.approx(0.1) and line["tolerance"] == 2.0, "twice our sd: the paper gives none"
    assert (line["verdict"], line["mark"], line["primary"]) == ("reproduced", "digitised", "yes")
    (time,) = [x for x in lines if x["measured"] is not None and x["metric"] == "synthesis_time"]
    assert time["verdict"] == "not comparable (hours of another machine)" and time["unit"] == "GPU-h"


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(40.0, "below"), (41.9, "reproduced"), (45.0, "above"), (None, "not comparable")]
)
def test_verdicts(accuracy: float | None, verdict: str) -> None:
    protocol = "paper" if accuracy is not None else "matched"
    records = [record("rded", seed=s, accuracy=(accuracy or 42.0) + 0.1 * s, protocol=protocol) for s in range(2)]
    found = [
        x
        for x in table("published", *records).rows
        if x["measured"] is not None and x["source"].startswith("RDED paper") and x["metric"] == "top1"
    ]
    assert [x["verdict"].partition(" (")[0] for x in found] == [verdict]
    if accuracy is None:
        assert found[0]["verdict"] == "not comparable (protocol matched)"


def test_contradictions_are_shown_with_their_sources() -> None:
    (line,) = [
        x
        for x in table("contradictions", record()).rows
        if (x["method"], x["dataset"], x["ipc"], x["student"], x["teacher"], x["labels"])
        == ("SRe2L", "imagenet1k", 10, "ResNet18", "ResNet18", "soft-fkd")
    ]
    for value, source in ((20.1, "LPLD"), (21.3, "SRe2L repo"), (31.1, "CIM"), (41.9, "DELT")):
        part = line["numbers"].partition(f"{value} (")[2].partition(")")[0]
        assert source in part, line["numbers"]
    assert (line["low"], line["high"], line["primary"]) == (20.1, 41.9, "21.3")
