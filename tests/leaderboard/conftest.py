"""A real browser for the page, opened from disk, with everything that it does on the side on record."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Visit:
    """A page in the browser.

    Attributes:
        page: Playwright's page.
        messages: What it wrote to the console, and errors of its scripts.
        requests: Every address that it asked for.
    """

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def hash(self) -> str:
        """The part of the address after #, once it has been written."""
        written = "location.hash === new URL(document.getElementById('permalink').href).hash"
        while not self.page.evaluate(written):  # the page's policy lets no polling script in
            self.page.wait_for_timeout(50)
        return str(self.page.evaluate("location.hash.slice(1)"))

    def points(self) -> int:
        """Number of marks in the plot in view, once it is drawn."""
        self.page.locator("section:visible figure:not([aria-busy])").wait_for()
        return int(self.page.locator("section:visible .mark-point").count())

    def column(self, header: str) -> list[str]:
        """The texts of a column of the table in view, without marks and footnotes."""
        heads = self.page.locator("section:visible thead th").all_inner_texts()
        place = [h.strip() for h in heads].index(header) + 1
        cells = self.page.locator(f"section:visible tbody tr > :nth-child({place})")
        return list(cells.evaluate_all("all => all.map(c => (c.querySelector('button') ?? c).textContent)"))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Opens a file in a fresh window: `visit(path, "view=storage", dark=True, width=390)`."""
    contexts = []

    def open_page(path: Path, part: str = "", *, dark: bool = False, width: int = 1280) -> Visit:
        scheme = "dark" if dark else "light"
        context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        seen = Visit(context.new_page())
        seen.page.set_default_timeout(20_000)
        seen.page.on("console", lambda m: seen.messages.append(f"{m.type}: {m.text}"))
        seen.page.on("pageerror", lambda e: seen.messages.append(f"error: {e}"))
        seen.page.on("request", lambda r: seen.requests.append(r.url))
        seen.page.goto(path.as_uri() + (f"#{part}" if part else ""))
        return seen

    yield open_page
    for context in contexts:
        context.close()
