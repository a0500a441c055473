"""A worker whose stages compute nothing: everything around them (submitit, attempts, inputs, publishing) is real.

The interpreter of toy profiles: `toy_worker.py -u -m MODULE ARGUMENT...` runs a module of the suite with `run_pack`
replaced. `SUITE_TOY_SECONDS` is what a stage takes; `SUITE_TOY_FAIL=KEY[,KEY...]` fails stages, as `SUITE_TOY_KIND`
(`infra` or `data`). Attempts get no further while the folder `SUITE_TOY_HOLD` has a file of their stage's kind or key.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from suite.errors import DataError, InfraError, SuiteError
from suite.spec.keys import plain
from suite.spec.stages import Stage, stage_from_json
from suite.store import Attempt, Record, Store
from suite.store.attempts import Blocked, is_current, open_inputs

FAILURES = {"infra": InfraError, "data": DataError}
#: A test that fails leaves its stages held; they leave the cluster to others after so many seconds.
LONGEST_HOLD = 400.0


def run_pack(run_dir: str, indices: list[int], notice: object = None, tasks: int = 1) -> int:
    """As `suite.work.run_pack`."""
    run = Path(run_dir)
    store = Store(json.loads((run / "settings.json").read_text())["store"])
    lines = (run / "stages.jsonl").read_text().splitlines()
    return 0 if all([run_stage(stage_from_json(json.loads(lines[i])), store) for i in indices]) else 1


def run_stage(stage: Stage, store: Store) -> bool:
    record = Record(stage.kind, stage.key, "", "done", plain(stage.spec))
    try:
        inputs = open_inputs(store, stage)
        if stage.key in store.published(stage.kind) and is_current(store.open(stage.kind, stage.key), inputs):
            return True
        with Attempt(store, stage, inputs) as attempt:
            hold(stage)
            time.sleep(float(os.environ.get("SUITE_TOY_SECONDS", "0")))
            if stage.key in os.environ.get("SUITE_TOY_FAIL", "").split(","):
                raise FAILURES[os.environ.get("SUITE_TOY_KIND", "infra")]("the toy broke")
            if stage.kind == "evaluation":
                fill(record)
            (attempt.dir / "data.bin").write_text(f"{stage.kind} {stage.key}")
            attempt.publish(record)
            if attempt.published:  # not if another attempt was faster
                print(f"published {stage.kind} {stage.key}", flush=True)
    except SuiteError as error:
        record.status = "blocked" if isinstance(error, Blocked) else "failed"
        record.failure = {"kind": error.kind, "message": error.line()}
        Attempt(store, stage, {}).fail(record)
        return False
    return True


def hold(stage: Stage) -> None:
    """Wait until the test lets go of this stage."""
    folder = Path(os.environ.get("SUITE_TOY_HOLD", "/nonexistent"))
    deadline = time.monotonic() + LONGEST_HOLD
    while any((folder / name).exists() for name in (stage.kind, stage.key)) and time.monotonic() < deadline:
        time.sleep(0.05)


def fill(record: Record) -> None:
    """Give a record what a row of the leaderboards needs."""
    record.device = {"type": "cpu", "name": "toy"}
    record.numbers = {"accuracy_last": 50.0, "accuracy_best": 50.0, "best_epoch": 1, "epochs": 1, "classes": 10}
    versions = {"python": "3", "torch": "2"}
    record.provenance = {"commit": "toy", "dirty": "", "loader": "toy", "seed": record.spec["seed"], **versions}


if __name__ == "__main__":
    at = sys.argv.index("-m")
    work = types.ModuleType("suite.work")
    work.run_pack = run_pack  # type: ignore[attr-defined]
    sys.modules["suite.work"] = work
    sys.argv = sys.argv[at + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
