"""Files of a report: golden bytes, equal bytes on a second run, and text that stays text.

`UPDATE_GOLDEN=1 pytest tests/leaderboard` rewrites the golden files; read the diff before committing it.
"""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from suite.leaderboard.boards import leaderboards
from suite.leaderboard.formats import clean, csv_text, duration, markdown_text, size, to_csv, to_markdown, to_terminal
from suite.leaderboard.plots import COLOURS, Look, named_groups, overview
from suite.leaderboard.rows import Refusal, Rows, collect
from suite.leaderboard.statistics import groups
from tests.leaderboard.factory import METHODS, failed, grid, record, stages

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "<script>alert(1)</script>|=cmd()\x1b[31m`**x**`[a](javascript:b)\n@all $x$\u202e"


def sample() -> Rows:
    """A dozen lines with holes, a suspicious row, a refused one, and two students."""
    made = [stages(m, i, s)[0] for m in METHODS for i in (1, 10) for s in range(3)]
    return collect(
        [*grid()[:-1], record("random", 50, accuracy=0.1), record("rded", 10, student="mobilenet_v2")],
        failures=[
            failed("oom", "needs 91 GB", method="sre2l", ipc=10, seed=0),
            failed("numeric", "diverged at step 120: loss is nan", "diverged", method="e2d", ipc=50),
            failed("numeric", "diverged at step 120: loss is nan", "diverged", method="e2d", ipc=50, seed=1),
        ],
        refused=[Refusal("0123456789abcdef", "rded imagenet1k ipc10", "no provenance: commit")],
        excluded=[(4, "no published number")],
        synthesis={s.key: s.to_json() for s in made},
    )


def rendered(rows: Rows) -> dict[str, str]:
    """All text formats; the page has tests of its own."""
    tables = leaderboards(rows)
    files = {}
    for t in tables:
        files[f"{t.slug}.csv"], files[f"{t.slug}.md"] = to_csv(t), to_markdown(t, rows, "sample")
    files["terminal.txt"] = terminal(rows)
    return files


def terminal(rows: Rows) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, color_system=None, highlight=False)
    for t in leaderboards(rows):
        console.print(to_terminal(t))
    return out.getvalue()


NAMES = sorted(rendered(collect([])))


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    text = rendered(sample())[name]
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_a_second_run_writes_the_same_bytes() -> None:
    first, second = sample(), sample()
    assert rendered(first) == rendered(second)
    png = overview(leaderboards(first)[0], first, "sample")
    assert png == overview(leaderboards(second)[0], second, "sample")
    assert b"matplotlib" not in png and b"Software" not in png


def test_nothing_in_a_report_is_a_date() -> None:
    text = "\n".join(rendered(sample()).values())
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b\d\d:\d\d:\d\d", text)


def test_csv_has_full_precision_and_empty_cells_for_holes() -> None:
    lines = list(csv.DictReader(io.StringIO(rendered(sample())["accuracy.csv"])))
    best = next(r for r in lines if (r["method"], r["ipc"]) == ("e2d", "1"))
    assert float(best["mean"]) == pytest.approx((22.015 + 22.475 + 21.785) / 3, abs=1e-8)
    hole = next(r for r in lines if (r["method"], r["ipc"]) == ("e2d", "50"))
    assert (hole["mean"], hole["sd"], hole["rank"], hole["n"]) == ("", "", "", "0")
    assert hole["notes"] == "seeds 0, 1 missing: diverged at step 120: loss is nan"


def test_holes_show_as_a_dash_with_a_footnote() -> None:
    text = rendered(sample())["accuracy.md"]
    assert "| - | e2d | imagenet1k | 50 | resnet18 | resnet18 | paper | - | - | - | - | - | 0 | 2 |" in text
    assert "2. seeds 0, 1 missing: diverged at step 120: loss is nan" in text


def test_the_terminal_fits_100_columns() -> None:
    lines = terminal(sample()).splitlines()
    assert max(len(line) for line in lines) <= 100
    # Nothing is folded: every method line starts with a rank, a dash or the method.
    assert sum(line.strip().startswith(("random", "rded", "sre2l", "e2d")) for line in lines) >= 20


def test_a_narrow_terminal_goes_without_spare_columns_and_says_so() -> None:
    name = "a_method_of_twenty_eight_chars"
    rows = collect([record(name, i, student="mobilenet_v2_wide") for i in (1, 10)] + [record()])
    texts = []
    for table in leaderboards(rows):
        out = io.StringIO()
        Console(file=out, width=80, color_system=None).print(to_terminal(table, width=80))
        texts.append(out.getvalue())
        assert sum(name in line for line in texts[-1].splitlines()) == 2, "names are not folded"
    assert "In the files only: Image-iterations, Peak memory" in texts[1]
    assert "In the files only: Images, Labels, Auxiliary" in texts[2]


def test_every_shown_number_is_explained() -> None:
    for table in leaderboards(sample()):
        assert [c.name for c in table.columns if c.shown and not c.help] == ["dataset"]
        assert all(c.help in to_markdown(table, sample(), "x") for c in table.columns if c.name == "protocol")


def test_intervals_are_shown_within_0_and_100_and_stored_as_they_are() -> None:
    table = leaderboards(collect([record(accuracy=30.0), record(seed=1, accuracy=70.0)]))[0]
    assert "| 0.00 to 100.00 |" in to_markdown(table, collect([]), "x")
    line = next(csv.DictReader(io.StringIO(to_csv(table))))
    assert float(line["low"]) == pytest.approx(50 - 12.7062 * 20, abs=0.01)


def test_the_front_is_accuracy_at_equal_bytes_across_ipc() -> None:
    rows = collect(
        [record("random", 10, accuracy=30.0), record("e2d", 1, accuracy=40.0), record("rded", 1, accuracy=9.0)]
    )
    lines = leaderboards(rows)[2].rows
    assert [(r["method"], r["ipc"], r["front"]) for r in lines] == [
        ("e2d", 1, "yes"), ("rded", 1, "no"), ("random", 10, "no"),
    ]  # fmt: skip


def hostile_rows() -> Rows:
    bad = record()
    for name in ("method", "teacher", "protocol"):
        bad.spec[name] = HOSTILE
    bad.provenance = {**bad.provenance, "commit": HOSTILE}
    bad.device = {**bad.device, "name": HOSTILE}
    bad.upstream["synthesis"]["device"] = HOSTILE
    broken = failed("data", HOSTILE, ipc=1)
    broken.spec["student"] = HOSTILE
    return collect([bad], failures=[broken], refused=[Refusal("k", HOSTILE, HOSTILE)], excluded=[(1, HOSTILE)])


def test_hostile_text_is_inert_in_csv() -> None:
    for table in leaderboards(hostile_rows()):
        text = to_csv(table)
        assert "\x1b" not in text
        for line in csv.reader(io.StringIO(text)):
            assert not any(c.lstrip()[:1] in ("=", "+", "@") for c in line)
    assert csv_text("=cmd()") == "'=cmd()"
    assert csv_text("  @sum(1)").startswith("'")
    assert csv_text("\t=1") == "'\\u0009=1"
    assert csv_text("rded") == "rded"


def test_hostile_text_is_inert_in_markdown() -> None:
    rows = hostile_rows()
    for table in leaderboards(rows):
        text = to_markdown(table, rows, HOSTILE)
        assert "<script" not in text and "\x1b" not in text
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
        assert len(cells) == 1
    assert markdown_text("mobilenet_v2") == "mobilenet_v2"
    assert markdown_text("_x_ a|b <i>") == "\\_x\\_ a\\|b &lt;i&gt;"


def test_hostile_text_is_inert_on_a_terminal() -> None:
    text = terminal(hostile_rows())
    assert "\x1b" not in text and "\u202e" not in text
    assert "[a](javascript" in text.replace("\n", "").replace(" ", "")


@given(st.text(max_size=400))
def test_clean_text_is_one_printable_line(text: str) -> None:
    out = clean(text)
    assert len(out) <= 300
    assert out == " ".join(out.splitlines()) and out.isprintable()


def test_sizes_are_decimal() -> None:
    assert [size(v) for v in (0, 999, 1000, 30_410_000_000)] == ["0 B", "999 B", "1.00 kB", "30.41 GB"]


def test_times_have_three_digits_and_a_unit() -> None:
    times = (0, 8.76e-6, 9.999e-4, 0.0063649, 0.2, 99.95, 999.4, 16_200.4)
    shown = ["0 s", "8.76 µs", "1 ms", "6.36 ms", "200 ms", "100 s", "999 s", "16,200 s"]
    assert [duration(v) for v in times] == shown


@pytest.mark.parametrize("count", [0, 1, 40])
def test_figures_of_no_one_and_many_methods(count: int) -> None:
    rows = collect([record(f"m{i:02d}", accuracy=20.0 + i) for i in range(count)])
    assert overview(leaderboards(rows)[0], rows, "x").startswith(b"\x89PNG")


def test_teachers_are_never_joined_into_one_line() -> None:
    other = record("rded", accuracy=12.0)
    other.spec["teacher"], other.key = "resnet50", "ab" * 8
    named = named_groups(groups(collect([record(), other])))
    assert set(named["series"]) == {"rded by resnet18", "rded by resnet50"}


def test_a_method_looks_the_same_in_every_figure() -> None:
    look = Look.of(["b", "a", "c"] * 3)
    assert look.colours == {"a": COLOURS[0], "b": COLOURS[1], "c": COLOURS[2]}
