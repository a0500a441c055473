"""Every way in which a YAML file surprises or attacks its reader is refused in one line with its place."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from suite.errors import UserError, guarded
from suite.grid import load_plan
from suite.grid.yaml_strict import MAX_BYTES, load_yaml, parse_yaml
from tests.grid.conftest import SMALL

PLACE = re.compile(r"g:[1-9]\d*:[1-9]\d*")
LAUGHS = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"

#: (name, file content, line:column, a word of the message)
TRAPS = [
    ("duplicate key", "a: 1\nb: 2\na: 3\n", "3:1", "line 3 is already on line 1"),
    ("duplicate key, deep", "a:\n  - {b: 1, c: 2, b: 1}\n", "2:18", "'b'"),
    ("sexagesimal", "time: 10:30\n", "1:7", "base-60"),
    ("sexagesimal hours", "time: 1:30:00\n", "1:7", "base-60"),
    ("sexagesimal with zero", "time: 01:00:00\n", "1:7", "base-60"),
    ("octal", "a: 010\n", "1:4", "leading zero"),
    ("octal float", "a: 010.5\n", "1:4", "leading zero"),
    ("YAML 1.2 octal", "a: 0o17\n", "1:4", "decimal"),
    ("hexadecimal", "a: 0x1F\n", "1:4", "decimal"),
    ("binary", "a: 0b11\n", "1:4", "decimal"),
    ("underscores", "a: 1_000\n", "1:4", "underscores"),
    ("nan", "a: .nan\n", "1:4", "finite"),
    ("inf", "a: [1, -.Inf]\n", "1:8", "finite"),
    ("overflow", "a: 1e999\n", "1:4", "too large"),
    ("huge integer", f"a: {'9' * 5000}\n", "1:4", "too large"),
    ("billion laughs", LAUGHS, "1:4", "anchor"),
    ("alias alone", "a: *b\n", "1:4", "alias"),
    ("self reference", "a: &a [*a]\n", "1:4", "anchor"),
    ("merge key", "<<: {a: 1}\n", "1:1", "merge"),
    ("depth, flow lists", "[" * 1000, "1:21", "nested deeper"),
    ("depth, flow mappings", "{a: " * 1000, "1:81", "nested deeper"),
    ("depth, block", "".join(" " * i + "a:\n" for i in range(1000)), "21:21", "nested deeper"),
    ("depth, dashes", "- " * 100_000, "1:41", "nested deeper"),
    ("nodes", "a: [" + "1," * 60_000 + "1]", "1:99999", "50,000"),
    ("python tag", "a: !!python/object/apply:os.system [ls]\n", "1:4", "tag"),
    ("harmless tag", "a: !!str 1\n", "1:4", "tag"),
    ("local tag", "a: !x 1\n", "1:4", "tag"),
    ("empty tag", "a: ! 1\n", "1:4", "tag"),
    ("directive", "%YAML 1.1\n---\na: 1\n", "1:1", "directive"),
    ("byte order mark", b"\xef\xbb\xbfa: 1\n", "1:1", "byte order mark"),
    ("UTF-16 with mark", "a: 1\n".encode("utf-16"), "1:1", "UTF-16"),
    ("UTF-16 without mark", "a: 1\n".encode("utf-16-le"), "1:1", "UTF-16"),
    ("UTF-32", "a: 1\n".encode("utf-32-be"), "1:1", "UTF-16 or UTF-32"),
    ("Latin-1", "a: 1\nb: é\n".encode("latin-1"), "2:4", "UTF-8"),
    ("NUL", b"a: 1\nb: x\x00y\n", "2:5", "NUL"),
    ("escaped NUL", 'a: "x\\0y"\n', "1:4", "control character"),
    ("terminal escape", 'a: "\\e[2J"\n', "1:4", "control character"),
    ("raw terminal escape", "a: \x1b[2J\n", "1:4", "control character"),
    ("tab as indentation", "a:\n\tb: 1\n", "2:1", "tab"),
    ("tab after colon", "a:\t1\n", "1:3", "tab"),
    ("CRLF", "a: 1\r\nb: 2\r\n", "1:5", "carriage return"),
    ("NEL", "a: 1\x85b: 2\n", "1:5", "NEL"),
    ("line separator", "a: 1\u2028b: 2\n", "1:5", "U+2028"),
    ("two documents", "a: 1\n---\nb: 2\n", "2:1", "second document"),
    ("empty file", "", "1:1", "empty"),
    ("comments only", "# nothing\n\n# here\n", "1:1", "empty"),
    ("null document", "---\n", "1:1", "empty"),
    ("unclosed list", "a: [1\nb: 2\n", "2:2", "not YAML"),
    ("unclosed quote", 'a: "x\n', "2:1", "not YAML"),
    ("colon in value", "a: b: c\n", "1:5", "not YAML"),
    ("reserved character", "a: @x\n", "1:4", "not YAML"),
    ("list as a key", "? [a]\n: 1\n", "1:3", "as a key"),
    ("number as a key", "1: a\n", "1:1", "not text"),
    ("true as a key", "true: a\n", "1:1", "not text"),
    ("no key", ": a\n", "1:1", "not YAML"),
]


@pytest.mark.parametrize(("content", "place", "word"), [t[1:] for t in TRAPS], ids=[t[0] for t in TRAPS])
def test_trap_is_one_line_with_its_place_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, place: str, word: str
) -> None:
    path = tmp_path / "g.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            guarded(lambda: len(load_plan(path).cells))
    finally:
        signal.signal(signal.SIGTERM, before)
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {path}:{place}: ")
    assert word in lines[0] and " - " in lines[0]
    assert len(lines[0]) < 400


@pytest.mark.parametrize("content", [t[1] for t in TRAPS], ids=[t[0] for t in TRAPS])
def test_traps_are_refused_without_libyaml_too(content: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.grid.yaml_strict._LOADER", yaml.SafeLoader)
    with pytest.raises(UserError) as caught:
        parse_yaml(content if isinstance(content, bytes) else content.encode(), "g")
    assert PLACE.fullmatch(caught.value.where)


def test_command_line_refuses_a_trap_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("name: a\nname: b\n")
    done = subprocess.run(
        [sys.executable, "-m", "suite.launch", str(path), "--dry-run", "--store", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {path}:2:1: key 'name' on line 2 is already on line 1 - remove one of the two\n"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("1e-3", 0.001),
        ("1.0e-3", 0.001),
        (".5", 0.5),
        ("+3", 3),
        ("-0", 0),
        ("0", 0),
        ("2026-01-01", "2026-01-01"),
        ("1-12:00:00", "1-12:00:00"),
        ("90m", "90m"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ("'10:30'", "10:30"),
        ("nan", "nan"),
        ("1.2.3", "1.2.3"),
        ("é 😀", "é 😀"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    got = parse_yaml(f"a: {text}\n".encode(), "g").value["a"]
    assert got == value and type(got) is type(value)


def test_words_of_yaml_1_1_are_text_as_keys() -> None:
    assert parse_yaml(b"no: 1\non: 2\nyes: 3\n", "g").value == {"no": 1, "on": 2, "yes": 3}


def test_positions_count_characters_not_bytes() -> None:
    document = parse_yaml("é: {ö: [x, y]}\n".encode(), "g")
    assert document.where(("é", "ö", 1)) == "g:1:12"
    assert document.where(("é", "ö"), key=True) == "g:1:5"
    assert document.where(("é", "none", 3)) == "g:1:4"  # the nearest place that exists


def test_larger_than_the_cap_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take for ever
    begin = time.monotonic()
    with pytest.raises(UserError, match="1,099,511,627,776 bytes"):
        load_yaml(path)
    assert time.monotonic() - begin < 1
    with pytest.raises(UserError, match="larger than"):
        parse_yaml(b"#" * (MAX_BYTES + 1), "g")
    assert parse_yaml(b"a: 1\n" + b"#" * (MAX_BYTES - 5), "g").value == {"a": 1}


def test_what_is_not_a_regular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    begin = time.monotonic()
    for path, word in [
        (fifo, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (Path("/dev/null"), "not a regular file"),
        (tmp_path, "directory"),
        (Path("g\0.yaml"), "null"),
        (tmp_path / ("x" * 300), "too long"),
        (fifo / "g.yaml", "Not a directory"),
    ]:
        with pytest.raises(UserError, match=word) as caught:
            load_yaml(path)
        assert caught.value.exit_code == 2 and caught.value.hint
    assert time.monotonic() - begin < 2


def test_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").symlink_to(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="symbolic links"):
        load_yaml(tmp_path / "a.yaml")


def test_a_missing_grid_names_its_likely_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(SMALL)
    with pytest.raises(UserError, match=r"did you mean 'quickstart\.yaml'"):
        load_yaml(tmp_path / "quickstrat.yaml")


def test_one_megabyte_is_parsed_in_seconds() -> None:
    entry = b"  - {method: random, dataset: digits, ipc: 1, teacher: convnet3, student: convnet3}\n"
    begin = time.monotonic()
    document = parse_yaml(b"cells:\n" + entry * 4_000, "g")
    seconds = time.monotonic() - begin
    print(f"{len(entry) * 4_000:,} bytes in {seconds:.2f} s")
    assert len(document.value["cells"]) == 4_000
    assert seconds < 15  # 0.4 s on an idle core


PIECES = st.sampled_from(
    ["a", "b", ": ", ":", "- ", "\n", "  ", "[", "]", "{", "}", ",", "?", "|", ">", "'", '"', "\\", "#", "---", "...",
     "%YAML", "&x", "*x", "!!int", "1", "0", "_", "e9", ".", "~", "null", "true", "<<", "\t", "\r", "\0", "é", "\ufeff"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=30).map(lambda p: "".join(p).encode())))
@example(b'"\\ud800": 1')
@example(b"? ? ? a")
@example(b"\xf0\x9f\x98\x80: [")
@example(b"- - -\n- \n -")
@example(b"a: !<\x21\n")
def test_any_bytes_give_a_value_or_a_user_error_with_a_place(data: bytes) -> None:
    try:
        document = parse_yaml(data, "g")
    except UserError as error:
        assert PLACE.fullmatch(error.where), error.where
        assert error.hint and "\n" not in error.line()
        return
    lines = data.decode().split("\n")
    for line, column in [*document.values.values(), *document.keys.values()]:
        assert 1 <= line <= len(lines) + 1 and column >= 1
    assert all(isinstance(part, str | int) for location in document.values for part in location)
