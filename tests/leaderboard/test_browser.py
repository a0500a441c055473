"""The page in a real browser, opened from disk."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from suite.leaderboard.boards import leaderboards
from suite.leaderboard.page import page
from suite.leaderboard.plots import pictures
from tests.leaderboard.test_formats import sample

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")


def opened(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what it wrote to the console."""
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
            "--disable-background-networking", f"--user-data-dir={profile}", "--virtual-time-budget=2000",
            "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def html() -> str:
    rows = sample()
    return page("sample", rows, leaderboards(rows), pictures(rows))


def test_the_page_opens_from_disk_without_console_messages(html: str, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(html)
    dom, messages = opened(path, tmp_path / "profile")
    assert messages == []
    assert dom.count("<svg") == 3 and "Provenance" in dom


def test_a_request_off_the_page_would_be_noticed(html: str, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(html.replace("</main>", '<img src="file:///nowhere.png"></main>'))
    _, messages = opened(path, tmp_path / "profile")
    assert any("Content Security Policy" in m for m in messages)


def test_columns_sort_and_lines_filter(html: str, tmp_path: Path) -> None:
    drive = """<script>
    const table = document.getElementById("table-accuracy");
    const head = [...table.tHead.rows[0].cells].find(h => h.textContent.startsWith("Accuracy"));
    const column = () => [...table.tBodies[0].rows].map(r => r.cells[head.cellIndex].textContent).join(" ");
    const out = [];
    head.querySelector("button").click(); out.push(column());
    head.querySelector("button").click(); out.push(column());
    const field = document.querySelector("[data-for=table-accuracy]");
    field.value = "mobilenet"; field.dispatchEvent(new Event("input"));
    out.push([...table.tBodies[0].rows].filter(r => !r.hidden).length);
    document.body.dataset.result = out.join(";") + ";" + head.getAttribute("aria-sort");
    </script></body>"""
    path = tmp_path / "index.html"
    path.write_text(html.replace("</body>", drive))
    dom, messages = opened(path, tmp_path / "profile")
    assert messages == []
    found = re.search(r'data-result="([^"]*)"', dom)
    assert found
    up, down, visible, state = found[1].split(";")
    numbers = [float(v) for v in up.split() if v != "-"]
    assert numbers == sorted(numbers) and up.split()[-1] == "-"
    assert [float(v) for v in down.split() if v != "-"] == numbers[::-1] and down.split()[-1] == "-"
    assert (visible, state) == ("1", "descending")
