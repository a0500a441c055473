"""`python -m suite.methods` and `suite.launch --list` say what methods do, and say it from the classes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from suite.errors import UserError
from suite.grid import load_plan
from suite.methods import discover, get
from suite.methods.__main__ import facts, full, list_methods
from suite.spec.datasets import REGISTRY

NAMES = sorted(discover())
HEAVY = ("torch", "numpy", "pandas", "ffcv", "submitit", "torchvision", "suite.learn")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, check=False)


def test_every_method_is_listed_with_paper_version_defaults_and_stages(capsys: pytest.CaptureFixture[str]) -> None:
    list_methods()
    blocks = {b.split()[0]: b for b in capsys.readouterr().out.split("\n\n")}
    assert set(blocks) == set(NAMES)
    for name in NAMES:
        cls, text = get(name), " ".join(blocks[name].split())
        assert f"{name} {cls.paper} version {cls.version}" in text
        assert all(f"{f.name}=" in text for f in fields(cls))  # type: ignore[arg-type]
        assert " -> ".join(cls.stages(cls.labels)) in text
        assert cls.labels in text
    assert max(len(line) for b in blocks.values() for line in b.splitlines()) <= 120


def test_launch_list_prints_the_same() -> None:
    mine, launched = run("-m", "suite.methods"), run("-m", "suite.launch", "--list")
    assert mine.returncode == launched.returncode == 0
    assert mine.stdout == launched.stdout and mine.stderr == launched.stderr == ""


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom suite.methods.__main__ import list_methods\nlist_methods(as_json=True)\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    assert run("-c", code).stderr.strip() == "[]"


def test_json_is_what_the_classes_say() -> None:
    listed = {m["name"]: m for m in json.loads(run("-m", "suite.methods", "--json").stdout)}
    assert set(listed) == set(NAMES)
    assert listed["sre2l"]["defaults"]["iterations"] == 4000 and listed["sre2l"]["defaults"]["crop"] == [0.08, 1]
    assert {"dataset": "tinyimagenet", "ipc": None} in [
        {k: v[k] for k in ("dataset", "ipc")} for v in listed["sre2l"]["paper_values"]
    ]
    assert listed["e2d"]["teachers"]["imagenet1k"][0] == "resnet18"
    (one,) = json.loads(run("-m", "suite.methods", "random", "--json").stdout)
    assert one == listed["random"] == json.loads(json.dumps(facts(get("random"))))


@pytest.mark.parametrize("name", NAMES)
def test_one_method_in_full_has_its_docstring_and_its_papers_values(name: str) -> None:
    cls, text = get(name), full(get(name))
    assert (cls.__doc__ or "").splitlines()[0] in text
    flat = " ".join(text.split())
    for (base, ipc), values in cls.paper_values.items():
        assert f"{base} ipc {ipc} " in flat if ipc is not None else f"{base} " in flat
        assert all(f"{field}=" in flat for field in values)


def test_unknown_names_and_flags_are_one_line_and_exit_2() -> None:
    with pytest.raises(UserError, match="did you mean 'sre2l'"):
        list_methods(["sre2"])
    for words in (["sre2"], ["--frob"]):
        done = run("-m", "suite.methods", *words)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


@pytest.mark.parametrize("name", NAMES)
def test_stages_that_are_listed_are_those_that_a_plan_makes(name: str, tmp_path: Path) -> None:
    """Derived twice: from what the class declares, and from the plan of a cell on every dataset."""
    grid = tmp_path / "one.yaml"
    grid.write_text(
        f"name: one\nprotocol: [paper, matched]\nproduct: {{method: [{name}], dataset: [{', '.join(REGISTRY)}], "
        "ipc: [1], teacher: [resnet18], student: [resnet18]}\n"
    )
    plan = load_plan(grid)
    inputs = {s.key: s.inputs for s in plan.stages}
    kinds = {s.key: s.kind for s in plan.stages}
    for cell, last in zip(plan.cells, [s for s in plan.stages if s.kind == "evaluation"], strict=True):
        assert (cell.dataset, cell.protocol) == (last.spec.dataset, last.spec.protocol)  # type: ignore[union-attr]
        waiting: list[str] = [last.key]
        used: set[str] = set()
        while waiting:
            key = waiting.pop()
            used.add(kinds[key])
            waiting += inputs[key].values()
        assert used == set(get(name).stages(last.spec.labels)), cell  # type: ignore[union-attr]
