"""I2, I4: command lines that are given nonsense, and text that would drive a terminal."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from suite.cluster.show import clean, printed
from suite.errors import UserError
from suite.grid import load_plan
from suite.grid.yaml_strict import MAX_BYTES, load_yaml
from suite.store import Store
from tests.cluster.toys import TINY, fail, run

COMMANDS = ("launch", "status", "report", "clean", "nightly")
#: Text that a name, a note or a message of a library may hold.
HOSTILE = "$(rm -rf ~) '\"` \n\r\x1b[2J\x1b]0;title\x07 <script> =cmd() \u202egnp\u0000\u009b31m [bold red]x[/]"


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def refused(command: str, *words: object, seconds: float = 60.0) -> str:
    """The one line with which a command refuses; it comes back by itself."""
    done = run(f"suite.{command}", *words, timeout=seconds)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    return done.stderr


def things(folder: Path) -> dict[str, tuple[Path, str]]:
    """What somebody may name as a grid, and a word of the refusal."""
    os.mkfifo(folder / "fifo.yaml")
    with (folder / "huge.yaml").open("wb") as file:
        file.truncate(1 << 30)  # a sparse gigabyte
    return {
        "missing": (folder / "missing.yaml", "missing.yaml"),
        "directory": (folder, "directory"),
        "fifo": (folder / "fifo.yaml", "not a regular file"),
        "endless": (Path("/dev/zero"), "not a regular file"),
        "huge": (folder / "huge.yaml", "1,073,741,824 bytes"),
    }


@pytest.mark.parametrize("name", ["missing", "directory", "fifo", "endless", "huge"])
def test_a_grid_that_is_none_is_refused_by_launch_without_blocking(tmp_path: Path, name: str) -> None:
    path, word = things(tmp_path)[name]
    assert word in refused("launch", path, "--dry-run", "--store", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_a_grid_that_never_ends_is_refused_by_every_command(tmp_path: Path, command: str) -> None:
    path, _ = things(tmp_path)["fifo"]
    (tmp_path / "store").mkdir()
    assert "not a regular file" in refused(command, path, "--store", tmp_path / "store")


@pytest.mark.parametrize("name", ["fifo", "endless", "huge"])
def test_refusing_reads_no_more_than_the_cap(tmp_path: Path, name: str) -> None:
    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path, _ = things(tmp_path)[name]
    before, begin = read(), time.monotonic()
    with pytest.raises(UserError):
        load_yaml(path)
    assert read() - before <= MAX_BYTES + 4096
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_is_refused_by_every_command(grid: Path, command: str) -> None:
    assert "--frobnicate" in refused(command, grid, "--frobnicate")


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("launch", ["GRID", "--dry-run", "--cancel"], "--cancel and --dry-run exclude each other"),
        ("launch", ["GRID", "--cancel", "--wait"], "--cancel and --wait exclude each other"),
        ("launch", ["GRID", "--cancel", "--retry", "oom"], "--cancel and --retry exclude each other"),
        ("launch", ["GRID", "--yes"], "--yes goes with --cancel"),
        ("launch", ["GRID", "--list", "--cancel"], "exclude each other"),
        ("status", ["GRID", "--watch", "--json"], "not allowed with"),
        ("nightly", ["GRID", "--dry-run", "--accept"], "not allowed with"),
        ("launch", ["GRID", "--only", "method=e2d"], "no cell of tiny has method e2d - allowed: random"),
        ("launch", ["GRID", "--only", ""], "is not axis=value"),
        ("launch", ["GRID", "--only"], "expected one argument"),
        ("launch", ["GRID", "--retry"], "expected at least one argument"),
        ("launch", ["GRID", "--retry", "canceled"], "cancelled"),
        ("launch", ["GRID", "GRID"], "unrecognized"),
        ("launch", ["GRID", "--max-in-flight", "0"], "--max-in-flight: "),
        ("launch", ["GRID", "--cancel", "--yes"], "a local run ends with its launcher"),
        ("nightly", ["GRID", "--accept"], "there is no night to accept"),
    ],
)
def test_two_actions_and_empty_selections_are_refused(
    grid: Path, tmp_path: Path, command: str, words: list[str], message: str
) -> None:
    asked = [str(grid) if w == "GRID" else w for w in words]
    assert message in refused(command, *asked, "--store", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_hostile_text_is_one_printable_line_everywhere(grid: Path, tmp_path: Path) -> None:
    plan, store = load_plan(grid), Store(tmp_path / "store")
    fail(plan.stages[0], store, "data", HOSTILE)
    for command, words in [("status", []), ("status", ["--json"]), ("launch", ["--dry-run"]), ("launch", [])]:
        done = run(f"suite.{command}", grid, "--store", store.root, *words)
        shown = done.stdout + done.stderr
        assert "rm -rf" in shown
        assert all(c.isprintable() or c == "\n" for c in shown), [c for c in shown if not c.isprintable()]


@pytest.mark.parametrize("text", [HOSTILE, "\x1b[31m", "a\tb\x0b\x0c\x85\u2028c", "\udcff", "\u200e\u2066"])
def test_cells_of_tables_are_one_printable_line(text: str) -> None:
    assert clean(text).isprintable()
    out = io.StringIO()
    printed([text and (["a"], [[text], [1]])], out)
    assert out.getvalue().count("\n") == 3 and all(c.isprintable() or c == "\n" for c in out.getvalue())


def test_a_table_on_a_terminal_takes_markup_for_text() -> None:
    from rich.console import Console

    from suite.cluster.show import rendered

    console = Console(file=io.StringIO(), force_terminal=True, width=200, highlight=False)
    console.print(rendered([(["a"], [["[bold red]x[/] [link=file:///etc/passwd]y[/link] \x1b[2J"]])]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold red]x[/]" in shown and "[link=file:///etc/passwd]" in shown and "\x1b[2J" not in shown
