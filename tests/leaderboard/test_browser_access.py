"""The page for everyone: axe-core finds no violation above minor, light or dark, on a desk or on a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.conftest import Visit
from tests.leaderboard.sites import pictured, site_of, write

pytest.importorskip("axe_playwright_python")
VIEWS = ("accuracy", "synthesis_time", "storage", "gallery", "provenance")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    return write(folder / "report", site_of(pictured(folder / "store")))


def violations(page: Any) -> list[str]:
    """Violations of axe-core's rules that are moderate, serious or critical, with the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {n['html'][:120]}" for v in found if v["impact"] != "minor" for n in v["nodes"]]


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 390), (True, 390)])
def test_axe_finds_no_violation_above_minor(stored: Path, visit: Callable[..., Visit], dark: bool, width: int) -> None:
    seen = visit(stored, dark=dark, width=width)
    for view in VIEWS:
        seen.page.goto(f"{stored.as_uri()}#view={view}")
        seen.page.locator("section:visible summary").first.click() if view in VIEWS[:3] else None
        assert violations(seen.page) == [], view
    seen.page.goto(f"{stored.as_uri()}#view=accuracy")
    seen.page.locator("section:visible tbody button").first.click()
    seen.page.locator("dialog summary").first.click()
    seen.page.get_by_role("dialog").get_by_text("Provenance").wait_for()
    assert violations(seen.page) == [], "a line's rows"


def test_axe_would_find_one(stored: Path, visit: Callable[..., Visit]) -> None:
    seen = visit(stored)
    seen.page.evaluate(
        "document.querySelector('#query').closest('label').replaceWith(document.querySelector('#query'))"
    )
    seen.page.evaluate("document.querySelector('#query').removeAttribute('placeholder')")
    assert any(v.startswith("label") for v in violations(seen.page))
