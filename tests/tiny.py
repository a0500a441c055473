"""A tiny real grid (digits, all methods, seconds of work) that the promises are tested on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from suite.grid import Plan
from suite.store import Store

TINY = """\
name: tiny
seeds: [0]
protocol: [matched]
product:
  method: [random, rded, sre2l, e2d]
  dataset: [digits]
  ipc: [1]
  teacher: [convnet2_w8]
  student: [convnet2_w8]
override:
  - {when: {dataset: digits}, set: {student.steps: 6, teacher.epochs: 1}}
  - {when: {dataset: digits}, set: {statistics.per_class: 20, statistics.batch: 64}}
  - {when: {method: rded}, set: {candidates: 20}}
  - {when: {method: sre2l}, set: {iterations: 4, labels: stored}}
  - {when: {method: e2d}, set: {iterations: 6, explore: 3}}
"""


def write_grid(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def write_run(plan: Plan, store: Store, checkpoint_minutes: float = 10.0, loader_timeout: float = 600.0) -> Path:
    """A run directory with every stage of a plan."""
    run = store.root / "runs" / plan.name / "test"
    run.mkdir(parents=True, exist_ok=True)
    settings = {
        "store": str(store.root),
        "sources": {},
        "weights": None,
        "threads": 1,
        "device": "cpu",
        "loader_timeout": loader_timeout,
        "checkpoint_minutes": checkpoint_minutes,
    }
    (run / "settings.json").write_text(json.dumps(settings))
    (run / "stages.jsonl").write_text("".join(json.dumps(s.to_json()) + "\n" for s in plan.stages))
    return run


def run_in_fork(run: Path, indices: list[int], fault: str = "") -> int:
    """Run stages in a forked process, which has the parent's imports and decoded images; minus the signal if killed."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.environ["SUITE_FAULT"] = fault
            from suite.work import run_pack

            code = run_pack(str(run), indices)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
