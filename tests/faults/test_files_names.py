"""F6: names that are too long for a file system, or no text: refused in one line, or simply used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.toys import ROOT, TINY


def suite(module: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command; its words may be any bytes."""
    command = [sys.executable, "-m", f"suite.{module}", *words]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=400, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("store", "said"),
    [("x" * 256, "File name too long"), ("/".join(["y" * 200] * 22), "at most 4096")],
    ids=["a name of 256 bytes", "a path of 4400 bytes"],
)
def test_a_store_with_a_name_that_is_too_long_is_refused_in_one_line(tmp_path: Path, store: str, said: str) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(TINY)
    done = suite("launch", grid, "--store", tmp_path / store)
    assert done.returncode == 2 and said in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"], "nothing was made"


def test_a_grid_may_have_a_name_that_is_no_text_and_a_store_may_not(tmp_path: Path) -> None:
    grid, store = tmp_path / os.fsdecode(b"t\xff.yaml"), tmp_path / "store"
    grid.write_text(TINY)
    done = suite("launch", grid, "--store", store, "--dry-run")
    assert done.returncode == 0 and "to run: 3 new" in done.stdout, done.stdout + done.stderr
    done = suite("launch", grid, "--store", tmp_path / os.fsdecode(b"caf\xe9"))
    assert done.returncode == 2 and "unicode" in done.stderr
    assert done.stderr.startswith("error: --store: ") and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == [grid.name], "nothing was made"
