"""I1: no trap of a grid file gets as far as a store or a scheduler. The messages are tested with the parser."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from suite import launch
from suite.errors import guarded
from tests.cluster.toys import ROOT, TINY
from tests.faults.commands import NAMES, Commands
from tests.grid.test_yaml_traps import TRAPS

#: Traps that are YAML, and mean what nobody wants: (name, what is replaced, by what, a word of the message).
MEANINGS = [
    ("include", "name: tiny", "name: tiny\ninclude: other.yaml", "unknown key 'include'"),
    ("extends", "name: tiny", "name: tiny\nextends: tiny.yaml", "unknown key 'extends'"),
    ("path", "name: tiny", "name: ../../etc", "is not a name"),
    ("home", "name: tiny", "name: ~/x", "is not a name"),
    ("output", "name: tiny", "name: tiny\noutput: /etc/passwd", "unknown key 'output'"),
    ("shell", "name: tiny", "name: $(rm -rf)", "is not a name"),
    ("true is not one", "seeds: [0]", "seeds: [true]", "true is not a whole number"),
    ("quoted number", "seeds: [0]", "seeds: ['0']", "is not a whole number"),
    ("float for integer", "seeds: [0]", "seeds: [0, 0.0]", "is not a whole number"),
    ("the same twice", "seeds: [0]", "seeds: [0, 0]", "is a duplicate of line"),
    ("exponent without dot", "student.steps: 20", "student.steps: 20, student.lr: -1e-3", "student.lr"),
    ("text for a number", "student.steps: 20", "student.steps: 1h", "student.steps"),
    ("null", "ipc: [1]", "ipc: ~", "ipc has no value"),
    ("empty list", "ipc: [1]", "ipc: []", "ipc is empty"),
]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Slurm's commands, which nobody may call."""
    found = Commands(tmp_path / "bin", alone=True)
    monkeypatch.setenv("PATH", found.path)
    return found


def launched(path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    words = [str(path), "--profile", str(ROOT / "slurm" / "testcluster.yaml"), "--store", str(store)]
    monkeypatch.setattr("sys.argv", ["launch", *words])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            guarded(launch.main)
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(left.value.code or 0)


@pytest.mark.parametrize("content", [t[1] for t in TRAPS], ids=[t[0] for t in TRAPS])
def test_no_trap_reaches_a_store_or_a_scheduler(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, content: str | bytes
) -> None:
    path = tmp_path / "g.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert launched(path, tmp_path / "store", monkeypatch) == 2
    assert not (tmp_path / "store").exists()
    assert not [name for name in NAMES if commands.calls(name)]


@pytest.mark.parametrize(("old", "new", "word"), [m[1:] for m in MEANINGS], ids=[m[0] for m in MEANINGS])
def test_no_meaning_that_nobody_wants_reaches_a_store_or_a_scheduler(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    old: str, new: str, word: str,
) -> None:  # fmt: skip
    path = tmp_path / "g.yaml"
    assert old in TINY
    path.write_text(TINY.replace(old, new))
    assert launched(path, tmp_path / "store", monkeypatch) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith(f"error: {path}:") and word in line, line
    assert not (tmp_path / "store").exists()
    assert not [name for name in NAMES if commands.calls(name)]
