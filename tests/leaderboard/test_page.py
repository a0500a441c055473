"""What the page holds: bounded, the same every time, and with text that stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.leaderboard.boards import leaderboards
from suite.leaderboard.embed import embed, packed, script_json
from suite.leaderboard.page import page, site
from suite.leaderboard.rows import Rows, collect
from tests.leaderboard.conftest import Visit
from tests.leaderboard.factory import grid, record
from tests.leaderboard.sites import written
from tests.leaderboard.test_formats import HOSTILE, hostile_rows, sample


class Tags(HTMLParser):
    """Collects element names and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def made(rows: Rows, name: str = "sample") -> str:
    return page(name, rows, leaderboards(rows))


def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return dict(json.loads(found[1]))


def test_a_second_page_has_the_same_bytes() -> None:
    first, second = sample(), sample()
    assert site("x", first, leaderboards(first)) == site("x", second, leaderboards(second))


def test_nothing_on_the_page_is_a_date() -> None:
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b\d\d:\d\d:\d\d", made(sample()))


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = made(sample())
    links = [v for n, v in Tags(text).attributes if n in ("href", "src", "xlink:href", "action") and v]
    assert links and all(v.startswith(("#", "data:")) for v in links)
    assert (
        "@import" not in text
        and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        and "https://" not in text
    )


def test_ids_are_unique_and_views_have_a_section() -> None:
    attributes = Tags(made(sample())).attributes
    ids = [v for n, v in attributes if n == "id"]
    assert len(ids) == len(set(ids))
    views = {v.removeprefix("#view=") for n, v in attributes if n == "href" and v and v.startswith("#view=")}
    assert {f"view-{v}" for v in views} <= set(ids) and len(views) >= 4


def test_only_the_pages_own_script_and_style_may_run() -> None:
    policy = next(v for n, v in Tags(made(sample())).attributes if v and v.startswith("default-src 'none'"))
    assert "unsafe" not in policy and policy.count("'sha256-") == 2 and "http" not in policy


def test_hostile_text_is_inert_in_the_page() -> None:
    text = made(hostile_rows(), HOSTILE)
    tags = Tags(text)
    assert tags.names.count("script") == 2, "data and script"
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    assert not any("javascript:" in (v or "") for n, v in tags.attributes if n in ("href", "src"))
    assert "\x1b" not in text and "\u202e" not in text
    assert "<script>alert" in json.dumps(data(text)), "the text itself is there, as data"


def test_hostile_text_is_inert_in_the_browser(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(written(tmp_path, hostile_rows(), HOSTILE))
    seen.page.evaluate("() => { window.alert = () => { throw new Error('ran') } }")
    for view in ("accuracy", "synthesis_time", "storage", "provenance"):
        seen.page.locator(f"#views a[data-view={view}]").click()
        assert "<script>alert(1)</script>" in seen.page.locator("main").inner_text()
    seen.page.locator("#views a[data-view=accuracy]").click()
    seen.page.locator("section:visible tbody button").last.click()
    seen.page.get_by_role("dialog").get_by_text("Provenance").wait_for()
    assert seen.page.evaluate("document.querySelectorAll('main script, dialog script, i, b > *').length") == 0
    assert seen.messages == []


@given(st.text() | st.sampled_from(["</script>", "<!--<script>", "]]>", "&lt;", "\u2028", "\\u003c", "\ud800"]))
def test_no_text_ends_the_data(text: str) -> None:
    embedded = str(script_json({"text": [text], text: 1}))
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == {"text": [text], text: 1}


def test_a_number_that_browsers_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        script_json([float("nan")])


@given(st.lists(st.text(max_size=3), max_size=30))
def test_packed_text_unpacks(texts: list[str]) -> None:
    column = packed(texts)
    assert [column["text"][i] for i in column["pick"]] == texts
    assert column["text"] == sorted(set(texts))


def test_the_page_holds_a_bounded_number_of_lines_and_rows_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = collect(grid())
    monkeypatch.setattr("suite.leaderboard.embed.MAX_LINES", 3)
    monkeypatch.setattr("suite.leaderboard.details.MAX_ROWS", 7)
    monkeypatch.setattr("suite.leaderboard.details.CHUNK", 2)
    monkeypatch.setattr("suite.leaderboard.points.MAX_POINTS", 4)
    files = site("x", rows, leaderboards(rows))
    held = data(files["index.html"].decode())
    assert [(t["count"], t["total"] > 3) for t in held["tables"]] == [(3, True)] * 3
    assert (held["rows"]["count"], held["rows"]["total"], held["points"]["count"]) == (7, 20, 4)
    assert held["rows"]["files"] == [f"rows/{i:03d}.js" for i in range(4)] == sorted(set(files) - {"index.html"})


def test_every_row_in_the_page_is_in_the_side_file_that_it_names() -> None:
    rows = collect(grid())
    files = site("x", rows, leaderboards(rows))
    held = data(files["index.html"].decode())["rows"]
    keys = next(c for c in held["columns"] if c["name"] == "key")
    for i, chunk in enumerate(held["chunk"]):
        script = files[held["files"][chunk]].decode()
        part = json.loads(script.removeprefix(f"ROW_DETAILS[{chunk}] = ").removesuffix(";\n"))
        assert keys["text"][keys["pick"][i]] in part


def test_the_best_of_a_block_and_the_second_are_marked() -> None:
    table = leaderboards(
        collect([record(m, accuracy=a) for m, a in (("a", 30.0), ("b", 40.0), ("c", 40.0), ("d", 20.0))])
    )[0]
    mean = next(c for c in embed(table)["columns"] if c["name"] == "mean")
    assert sorted(mean["text"][i] for i in mean["first"]) == ["40.00", "40.00"]
    assert [mean["text"][i] for i in mean["second"]] == ["30.00"]


def test_numbers_sort_by_their_value_and_not_by_how_they_are_written() -> None:
    rows = collect([record("a", accuracy=30.001), record("b", accuracy=30.002)])
    mean = next(c for c in embed(leaderboards(rows)[0])["columns"] if c["name"] == "mean")
    assert mean["text"] == ["30.00", "30.00"] and mean["value"] == [30.002, 30.001]


def test_a_page_of_no_rows_is_a_page(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(written(tmp_path, collect([])))
    assert "No rows yet" in seen.page.locator("section:visible").inner_text()
    assert seen.messages == []
