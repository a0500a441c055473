"""Imports run one way, and command lines stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "suite"

#: What each part may import, besides itself and `BASE`.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "failures": set(),
    "faults": set(),
    "preemption": set(),
    "provenance": set(),
    "spec": set(),
    "store": set(),
    "data": {"store"},
    "learn": {"data", "store"},
    "methods": {"learn", "data"},
    "stages": {"methods", "learn", "data", "store"},
    "work": {"stages", "learn", "store"},
    "grid": {"methods"},
    "cluster": {"grid", "store", "methods"},
    "leaderboard": {"store"},
    "exchange": {"leaderboard", "grid", "methods", "learn", "data", "store"},
    "benchmarks": {"work", "stages", "grid", "data", "learn", "methods", "store", "leaderboard"},
    "preflight": {"cluster", "data"},
    "launch": {"preflight", "cluster", "grid", "store", "methods"},
    "status": {"cluster", "grid", "store"},
    "nights": {"cluster", "grid", "store"},
    "nightly": {"preflight", "nights", "cluster", "grid", "store"},
    "clean": {"cluster", "grid", "store"},
    "comparisons": {"leaderboard", "nights", "grid", "store"},
    "report": {"comparisons", "leaderboard", "nights", "grid", "store", "data"},
    "export": {"exchange", "store"},
    "evaluate": {"exchange", "work", "stages", "data", "store"},
    "prepare": {"data", "stages", "store"},
    "bench": {"benchmarks"},
}
BASE = {"errors", "failures", "faults", "preemption", "provenance", "spec"}


def part(path: Path) -> str:
    return path.relative_to(SUITE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(p for p in SUITE.rglob("*.py") if p != SUITE / "__init__.py")


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SUITE)))
def test_imports_run_one_way(path: Path) -> None:
    own = part(path)
    assert own in ALLOWED, f"{own} has no place in the layers: say in tests/test_layers.py what it may import"
    used = {n.split(".")[1] for n in imported(ast.parse(path.read_text())) if n.startswith("suite.")}
    forbidden = {u for u in used if (SUITE / u).is_dir() or (SUITE / f"{u}.py").is_file()} - {own} - BASE - ALLOWED[own]
    assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SUITE)))
def test_modules_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420, "a file holds one thing, in about 400 lines at most"


def test_bottom_layers_are_light() -> None:
    code = (
        "import sys, suite.spec.stages, suite.store, suite.methods as m; m.discover(); assert m.METHODS, 'no methods'\n"
        "heavy = {'torch', 'torchvision', 'timm', 'pandas', 'numpy', 'ffcv', 'submitit'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
