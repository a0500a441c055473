"""The page in a real browser, opened from disk, by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from suite.leaderboard.rows import collect
from tests.leaderboard.conftest import Visit
from tests.leaderboard.factory import record
from tests.leaderboard.sites import pictured, site_of, write, written
from tests.leaderboard.test_formats import sample

Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("made_up"), sample())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    return write(folder / "report", site_of(pictured(folder / "store")))


def test_every_view_opens_from_disk_without_a_console_message_or_a_request_off_the_disk(
    stored: Path, visit: Open
) -> None:
    seen = visit(stored)
    for link in seen.page.locator("#views a").all():
        link.click()
        name = link.get_attribute("data-view")
        assert seen.page.locator("section:visible").count() == 1
        assert seen.page.locator(f"#view-{name}").is_visible()
        assert link.get_attribute("aria-current") == "page"
    seen.page.goto(stored.as_uri() + "#view=accuracy")
    seen.page.locator("section:visible tbody button").first.click()
    seen.page.locator("dialog summary").first.click()
    seen.page.get_by_text("Provenance").last.wait_for()
    assert seen.messages == []
    assert len(seen.requests) >= 4, "page, pictures and a file of rows"
    assert all(r.startswith((stored.parent.as_uri(), "data:")) for r in seen.requests)


def test_a_request_off_the_page_would_be_noticed(stored: Path, visit: Open, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(
        stored.read_text().replace("</main>", '<img src="https://example.com/x.png"><script>1</script></main>')
    )
    messages = "\n".join(visit(path).messages)
    assert messages.count("Content Security Policy") == 2, "neither the picture nor the script is let through"


def test_a_column_sorts_up_and_down_with_holes_last(made_up: Path, visit: Open) -> None:
    seen = visit(made_up)
    head = seen.page.get_by_role("button", name="Accuracy %")
    head.click()
    down = seen.column("Accuracy %")
    numbers = [float(v) for v in down if v != "-"]
    assert numbers == sorted(numbers, reverse=True) and down[-1] == "-" and len(numbers) > 8
    assert seen.page.locator("section:visible th[aria-sort=descending]").count() == 1
    head.click()
    assert [float(v) for v in seen.column("Accuracy %") if v != "-"] == numbers[::-1]
    assert seen.column("Accuracy %")[-1] == "-"
    seen.page.get_by_role("button", name="Method").click()
    assert seen.column("Method") == sorted(seen.column("Method"))
    assert seen.messages == []


def test_words_filter_lines_of_every_table_and_points_of_the_plot(made_up: Path, visit: Open) -> None:
    seen = visit(made_up)
    query, lines = seen.page.locator("#query"), seen.page.locator("section:visible tbody tr")
    everything, points = lines.count(), seen.points()
    query.fill("rded|e2d 10")
    assert 0 < lines.count() < everything
    assert all(v.startswith(("rded", "e2d")) for v in seen.column("Method"))
    assert set(seen.column("IPC")) == {"10"}, "a number matches whole values"
    assert 0 < seen.points() < points
    query.fill("-random")
    assert not any(v.startswith("random") for v in seen.column("Method"))
    seen.page.get_by_role("link", name="Storage").click()
    assert not any(v.startswith("random") for v in seen.column("Method"))
    seen.page.get_by_role("button", name="Clear").click()
    assert any(v.startswith("random") for v in seen.column("Method"))
    query.fill("nothing at all")
    assert lines.count() == 0
    assert seen.page.locator("section:visible .count").inner_text().startswith("0 of")


def test_a_choice_filters_exactly(made_up: Path, visit: Open) -> None:
    seen = visit(made_up)
    seen.page.locator("#facet-student").select_option("mobilenet_v2")
    assert seen.column("Method") == ["rded"]
    seen.page.get_by_role("link", name="Synthesis time").click()
    assert len(seen.column("Method")) > 1, "a table without students is not filtered by them"


def test_a_line_opens_its_rows_with_provenance_costs_and_the_log(stored: Path, visit: Open) -> None:
    seen = visit(stored, "view=accuracy")
    seen.page.locator("#query").fill("rded 1")
    seen.page.get_by_role("button", name="rded").click()
    dialog = seen.page.get_by_role("dialog")
    assert dialog.get_by_role("heading").first.inner_text().startswith("rded")
    summaries = dialog.locator("summary")
    assert summaries.count() == 2, "a row a seed"
    summaries.first.click()
    dialog.get_by_text("Provenance").wait_for()
    text = dialog.inner_text()
    for fact in ("4f0c2d9be1a7", "NVIDIA A100-SXM4-40GB", "ffcv", "torch 2.8.0", "46,800,000", "991", "End of the log"):
        assert fact in text, fact
    assert "published after 25.4 s" in text and "submitit" not in text and "alert" not in text
    assert dialog.locator("img").count() == 1
    assert dialog.locator("img").evaluate("i => i.complete || i.decode().then(() => true)")
    seen.page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert seen.messages == []


def test_a_hole_opens_with_its_reason(made_up: Path, visit: Open) -> None:
    seen = visit(made_up)
    seen.page.locator("#query").fill("e2d 50")
    assert "diverged at step 120" in seen.page.locator("section:visible ol.notes").inner_text()
    seen.page.locator("section:visible tbody tr").click()
    text = seen.page.get_by_role("dialog").inner_text()
    assert text.count("no number, diverged at step 120: loss is nan") == 2


def test_rows_that_are_not_beside_the_page_are_said_to_be_missing(stored: Path, visit: Open, tmp_path: Path) -> None:
    alone = tmp_path / "index.html"
    alone.write_text(stored.read_text())
    seen = visit(alone, "view=accuracy")
    seen.page.locator("section:visible tbody button").first.click()
    seen.page.locator("dialog summary").first.click()
    seen.page.get_by_text("rows/000.js is not beside this page").wait_for()


def test_a_point_of_the_plot_opens_its_line(made_up: Path, visit: Open) -> None:
    seen = visit(made_up, "view=storage")
    seen.page.locator("section:visible .mark-point").first.click()
    assert seen.page.locator("#view-accuracy").is_visible()
    assert "No such line" not in seen.page.get_by_role("dialog").inner_text()


def test_a_plot_names_mixed_devices_and_counts_what_a_log_axis_cannot_hold(tmp_path: Path, visit: Open) -> None:
    free, other = record("random"), record("e2d")
    free.upstream["synthesis"]["seconds"] = 0.0
    other.upstream["synthesis"]["device"] = "NVIDIA H100"
    seen = visit(written(tmp_path, collect([free, record("rded"), other])), "view=synthesis_time")
    assert seen.points() == 2
    caption = seen.page.locator("section:visible figcaption")
    assert "not comparable: NVIDIA A100-SXM4-40GB, NVIDIA H100." in caption.inner_text()
    assert "not on a log axis: 1." in caption.inner_text()
    seen.page.locator("section:visible figure select").select_option("total_bytes")
    assert seen.points() == 3 and "comparable" not in caption.inner_text()


def test_a_permalink_brings_back_view_filter_order_and_line(made_up: Path, visit: Open) -> None:
    first = visit(made_up)
    first.page.get_by_role("link", name="Storage").click()
    first.page.locator("#query").fill("rded|sre2l")
    first.page.locator("#facet-ipc").select_option("10")
    first.page.get_by_role("button", name="Total").click()
    lines = first.column("Method")
    first.page.locator("section:visible tbody button").first.click()
    heading = first.page.locator("#cell-title").inner_text()
    second = visit(made_up, first.hash)
    assert second.page.locator("#cell-title").inner_text() == heading
    second.page.keyboard.press("Escape")
    assert second.column("Method") == lines
    assert second.page.locator("#query").input_value() == "rded|sre2l"
    assert second.page.locator("#facet-ipc").input_value() == "10"
    assert second.page.locator("#view-storage th[aria-sort=ascending]").count() == 1
    assert second.messages == []


def test_a_link_to_nothing_is_harmless(made_up: Path, visit: Open) -> None:
    seen = visit(made_up, "view=nope&student=nobody&sort=x.y&cell=%3Cscript%3E&q=%3Cb%3E")
    assert seen.page.locator("#cell-title").inner_text() == "No such line"
    assert "<script>" in seen.page.get_by_role("dialog").inner_text()
    assert seen.messages == []


def test_back_returns_to_the_view_before(made_up: Path, visit: Open) -> None:
    seen = visit(made_up)
    seen.page.get_by_role("link", name="Storage").click()
    seen.page.get_by_role("link", name="Provenance").click()
    seen.page.go_back()
    assert seen.page.locator("#view-storage").is_visible()


def test_the_gallery_shows_sets_beside_real_images_and_all_images_of_a_class(stored: Path, visit: Open) -> None:
    seen = visit(stored, "view=gallery")
    names = seen.column("Set")
    assert names[0] == "real images" and names.count("rded") == 2 and names.count("random") == 2
    tiles = seen.page.locator(".gallery tbody tr:nth-child(2) .tile")
    assert tiles.count() == 10
    assert "CC BY 4.0" in seen.page.locator("#view-gallery").inner_text()
    seen.page.get_by_role("button", name="real images, class class 4").click()
    assert seen.page.locator(".gallery tbody tr:nth-child(1) .tile").count() == 3
    assert seen.page.locator(".gallery tbody tr:nth-child(2) .tile").count() == 1, "IPC 1 has one image"
    assert "class=4" in seen.hash
    seen.page.locator("#facet-ipc").select_option("2")
    assert set(seen.column("IPC")) == {"-", "2"}
    sheets = [r for r in seen.requests if r.endswith(".png")]
    assert len(set(sheets)) >= 3
    assert seen.messages == []


def test_the_page_is_used_with_the_keyboard_alone(stored: Path, visit: Open) -> None:
    seen = visit(stored)
    keys, focus = seen.page.keyboard, "document.activeElement"
    keys.press("Tab")
    assert seen.page.evaluate(f"{focus}.textContent") == "Skip to the tables"
    keys.press("Enter")
    assert seen.page.evaluate(f"{focus}.id") == "main"
    keys.press("Tab")
    assert seen.page.evaluate(f"{focus}.id") == "query"
    keys.type("rded")
    lines = seen.page.locator("section:visible tbody tr")
    assert lines.count() == 2
    for _ in range(40):
        keys.press("Tab")
        if seen.page.evaluate(f"{focus}.closest('thead') !== null"):
            break
    keys.press("Enter")
    assert seen.page.locator("section:visible th[aria-sort]").count() == 1
    for _ in range(40):
        keys.press("Tab")
        if seen.page.evaluate(f"{focus}.closest('tbody') !== null"):
            break
    opener = seen.page.evaluate(f"{focus}.closest('tr').dataset.cell")
    keys.press("Enter")
    dialog = seen.page.get_by_role("dialog")
    assert dialog.is_visible()
    for _ in range(10):
        keys.press("Tab")
        if seen.page.evaluate(f"{focus}.tagName") == "SUMMARY":
            break
    keys.press("Enter")
    dialog.get_by_text("Provenance").wait_for()
    keys.press("Escape")
    assert not dialog.is_visible()
    assert seen.page.evaluate(f"{focus}.closest('tr').dataset.cell") == opener, "focus is where it was"


@pytest.mark.parametrize("view", ["accuracy", "synthesis_time", "storage", "gallery", "provenance"])
def test_nothing_is_wider_than_a_phone(stored: Path, visit: Open, view: str) -> None:
    seen = visit(stored, f"view={view}", width=390)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_scripts_the_page_says_where_the_numbers_are(made_up: Path, chromium: object, tmp_path: Path) -> None:
    path = written(tmp_path, sample(), files=["accuracy.md", "accuracy.csv"])
    context = chromium.new_context(java_script_enabled=False)  # type: ignore[attr-defined]
    page = context.new_page()
    page.goto(path.as_uri())
    assert "accuracy.md" in page.locator("noscript").inner_text()
    context.close()
