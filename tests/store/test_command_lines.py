"""What every command line does where printing, the file system or the store's place is hostile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite.errors import InfraError, UserError
from suite.store import Store
from suite.store.files import write_json

SAY = "from suite.errors import guarded\nguarded(lambda: print({text!r}))"


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SUITE_DEBUG": "0", **options.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, timeout=60, **options
    )


def test_a_full_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = run(SAY.format(text="x" * 100_000), stdout=full)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: standard output")
    assert "No space left" in done.stderr


@pytest.mark.parametrize("descriptors", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_do_not_matter(descriptors: tuple[int, ...], tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
from suite.errors import guarded
def main():
    with open({str(tmp_path / "file")!r}, "w") as file:
        file.write("kept")
        print("to nowhere")
        print("to nowhere", file=sys.stderr)
        return 3
guarded(main)
"""
    closing = subprocess.list2cmdline([f"{d}>&-" for d in descriptors])
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closing}', sys.executable, code], timeout=60)
    assert done.returncode == 3
    assert (tmp_path / "file").read_text() == "kept"


def test_a_locale_without_the_character_shows_its_escape() -> None:
    done = run(SAY.format(text="1.0 \u00b1 0.2"), env={"PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1.0 \\xb1 0.2\n"


def test_a_refusing_file_system_is_one_line_and_debug_shows_more() -> None:
    code = "from suite.errors import guarded\nguarded(lambda: open('/proc/nope/file', 'w'))"
    done = run(code)
    assert done.returncode == 1
    assert done.stderr.startswith("error: /proc/nope/file: No such file") and done.stderr.count("\n") == 1
    assert "Traceback" in run(code, env={"SUITE_DEBUG": "1"}).stderr


@pytest.mark.parametrize("place", ["file", "file/below", "n" * 300, "nul\0"])
def test_a_store_is_a_directory_or_nothing_yet(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be the store") as caught:
        Store(tmp_path / place)
    assert caught.value.line().isprintable()
    Store(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_messages_cannot_drive_a_terminal() -> None:
    error = UserError("class '\x1b[31mred\n'", where="a\nfile\udcff", hint="\x00\u202e")
    assert error.line() == "a file\\udcff: class '\\x1b[31mred ' - \\x00\\u202e"


def test_a_read_only_file_system_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(InfraError, match=r"row\.json: cannot write 3 bytes: Read-only"):
        write_json(tmp_path / "row.json", {})


@pytest.mark.parametrize(
    "words",
    [
        ["launch", "--nonsense"],
        ["launch"],
        ["status"],
        ["report", "--store", ""],
        ["report", "--store"],
        ["prepare"],
        ["prepare", "digits", "--jobs", "many"],
        ["bench", "nothing"],
        ["work", "somewhere"],
    ],
    ids=" ".join,
)
def test_bad_flags_are_one_line_and_exit_2(words: list[str]) -> None:
    command = [sys.executable, "-m", f"suite.{words[0]}", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: python -m suite.{words[0]}") and "--help" in done.stderr


def test_home_directories_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/store").root == tmp_path / "store"
    with pytest.raises(UserError, match="no name"):
        Store(" ")
