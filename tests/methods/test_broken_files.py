"""A broken method file spoils only itself, whatever it does when it is imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import suite

GRID = """\
name: one
product: {method: [METHOD], dataset: [digits], ipc: [1], teacher: [convnet2_w8], student: [convnet2_w8]}
"""


def launch(package: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "suite.launch", *map(str, words)],
        cwd=package.parent,  # which comes first on the module path
        env={**os.environ, "SUITE_DEBUG": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_broken_method_files_spoil_only_themselves(tmp_path: Path) -> None:
    package = tmp_path / "suite"
    shutil.copytree(Path(suite.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/local.yaml").write_text("cluster: local\n")
    methods = package / "methods"
    (methods / "syntax.py").write_text("def broken(:")
    (methods / "leaves.py").write_text("raise SystemExit(0)")
    (methods / "binary.py").write_bytes(b"\xff\xfe")
    (methods / "half.py").write_text(
        "from dataclasses import dataclass\nfrom suite.methods import Method, method\n"
        "@method(name='half', paper='none', version=1)\n@dataclass(frozen=True)\nclass Half(Method):\n"
        "    def recipe(self, base, classes, ipc, student):\n        return None\n"
    )
    (methods / "escapes.py").write_text("raise ValueError('\\x1b[2J\\n')")
    listed = launch(package, "--list")
    assert listed.returncode == 0
    assert "rded" in listed.stdout
    for name in ("syntax", "leaves", "binary", "half", "escapes"):
        assert f"suite/methods/{name}.py cannot be imported" in listed.stderr
    assert "method 'half' does not implement synthesize" in listed.stderr
    assert "\x1b" not in listed.stderr and "Traceback" not in listed.stderr

    grid = tmp_path / "one.yaml"
    for name, code in (("rded", 0), ("syntax", 2), ("leaves", 2)):
        grid.write_text(GRID.replace("METHOD", name))
        done = launch(package, grid, "--dry-run", "--store", tmp_path / "store")
        assert done.returncode == code, done.stderr
        assert code == 0 or f"{name!r} cannot be imported" in done.stderr

    shutil.copy(methods / "rded.py", methods / "a_copy.py")  # is imported before the original
    grid.write_text(GRID.replace("METHOD", "rded"))
    done = launch(package, grid, "--dry-run", "--store", tmp_path / "store")
    assert done.returncode == 2
    assert "registered twice: suite.methods.a_copy and suite.methods.rded" in done.stderr
    grid.write_text(GRID.replace("METHOD", "random"))
    assert launch(package, grid, "--dry-run", "--store", tmp_path / "store").returncode == 0
