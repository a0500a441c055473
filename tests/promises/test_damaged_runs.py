"""A worker that is given a damaged run directory says so in one line, and one stage's failure stays its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from suite.errors import SuiteError, UserError
from suite.grid import load_plan
from suite.store import Store
from suite.work import run_pack
from tests.tiny import write_grid, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(load_plan(write_grid(tmp_path)), Store(tmp_path / "store"))


def lines(text: str) -> Callable[[Path], object]:
    return lambda run: (run / "stages.jsonl").write_text(text)


def settings(text: str) -> Callable[[Path], object]:
    return lambda run: (run / "settings.json").write_text(text)


def other_version(run: Path) -> None:
    first, *rest = (run / "stages.jsonl").read_text().splitlines()
    (run / "stages.jsonl").write_text("\n".join([json.dumps(json.loads(first) | {"key": "0" * 16}), *rest]) + "\n")


@pytest.mark.parametrize(
    "damage",
    [
        settings("{"),
        settings("[]"),
        settings("{}"),
        settings('{"store": 5}'),
        lambda run: (run / "settings.json").unlink(),
        lines("garbage\n"),
        lines("[]\n"),
        lines('{"kind": "nope", "spec": {}, "inputs": {}, "key": "x"}\n'),
        lines('{"kind": "prepare", "spec": {"dataset": "digits"}, "inputs": {}, "key": "x"}\n'),
        lambda run: (run / "stages.jsonl").unlink(),
        lambda run: (run / "stages.jsonl").write_bytes(b"\xff\xfe\n"),
        other_version,
    ],
)
def test_damaged_run_directories_are_refused_in_one_line(run: Path, damage: Callable[[Path], object]) -> None:
    damage(run)
    with pytest.raises(UserError) as caught:
        run_pack(str(run), [0])
    assert str(run) in caught.value.where and "\n" not in caught.value.line()
    assert not list(run.parents[2].glob("prepare/*")), "nothing was started"


def test_an_input_that_cannot_be_read_fails_its_stage_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unreadable(self: Store, kind: str, key: str) -> None:
        raise PermissionError(13, "Permission denied", str(self.home(kind, key)))

    monkeypatch.setattr(Store, "open", unreadable)
    plan = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    needy = [i for i, s in enumerate(plan) if s["inputs"]][:2]
    assert run_pack(str(run), needy) == 1
    assert capfd.readouterr().err.count("failed (infra)") == len(needy)


def test_foreseen_failures_have_no_traceback_in_the_log(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise SuiteError("refused")

    monkeypatch.setattr("suite.stages.context.compute", refuse)
    monkeypatch.delenv("SUITE_DEBUG", raising=False)
    assert run_pack(str(run), [0]) == 1
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.setenv("SUITE_DEBUG", "1")
    assert run_pack(str(run), [0]) == 1
    assert "Traceback" in capfd.readouterr().err
