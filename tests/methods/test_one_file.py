"""Adding a method touches no other file, and methods stay short."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import suite
from suite.methods import discover, get

FOLDER = Path(suite.__file__).parent / "methods"
GRID = """\
name: one
loader: torchvision
protocol: [paper, matched]
product: {method: [my_method], dataset: [digits], ipc: [1], teacher: [convnet2_w8], student: [convnet2_w8]}
override:
  - when: {dataset: digits}
    set: {teacher.epochs: 1, iterations: 3}
  - {when: {dataset: digits, protocol: matched}, set: {student.steps: 4}}
  - {when: {dataset: digits, protocol: paper}, set: {student.epochs: 4}}
"""


def test_the_median_method_file_has_at_most_120_lines_with_docstring() -> None:
    files = {Path(sys.modules[cls.__module__].__file__ or "") for cls in discover().values()}
    assert files <= {p for p in FOLDER.glob("*.py") if not p.name.startswith("_")}
    lines = {p.name: len(p.read_text().splitlines()) for p in files}
    assert median(lines.values()) <= 120, lines
    assert {len({get(n).__module__ for n in discover()}), len(files)} == {len(files)}


RUN = """\
from pathlib import Path
from suite.cluster.profile import find_profile, load_profile
from suite.cluster.runs import create_run
from suite.grid import load_plan
from suite.methods.__main__ import list_methods
from suite.report import main
from suite.store import Store
from suite.work import run_pack

list_methods(["my_method"])
plan, profile = load_plan(Path("one.yaml")), load_profile(find_profile("local"))
run = create_run(Store(Path(profile.store).absolute()), plan.name, plan.stages, profile)
assert run_pack(str(run.path), list(range(len(plan.stages)))) == 0
main(["one.yaml", "--store", profile.store])
"""


def test_adding_a_method_touches_no_other_file(tmp_path: Path) -> None:
    """The template, renamed and put beside the others, is listed, planned, run and ranked; all in one process."""
    shutil.copytree(FOLDER.parent, tmp_path / "suite", ignore=shutil.ignore_patterns("__pycache__"))
    text = (FOLDER / "template.py.txt").read_text()
    text = text.replace('name="template"', 'name="my_method"').replace("class Template", "class MyMethod")
    (tmp_path / "suite/methods/my_method.py").write_text(text)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/local.yaml").write_text("cluster: local\nstore: store\n")
    (tmp_path / "one.yaml").write_text(GRID)
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepare -> teacher -> synthesis -> evaluation" in done.stdout
    (board,) = (tmp_path / "reports").rglob("accuracy.csv")
    assert board.read_text().count("my_method") == 2
