"""A worker whose stages compute nothing: everything around them (submitit, attempts, inputs, publishing) is real.

The interpreter of toy profiles: `toy_worker.py -u -m MODULE ARGUMENT...` runs a module of the suite with `run_pack`
replaced. `SUITE_TOY_SECONDS` is what a stage takes; `SUITE_TOY_FAIL=KEY[,KEY...]` fails stages, kind `infra`.
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

from suite.errors import InfraError, SuiteError
from suite.spec.keys import plain
from suite.spec.stages import Stage, stage_from_json
from suite.store import Attempt, Record, Store
from suite.store.attempts import Blocked, is_current, open_inputs


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
            time.sleep(float(os.environ.get("SUITE_TOY_SECONDS", "0")))
            if stage.key in os.environ.get("SUITE_TOY_FAIL", "").split(","):
                raise InfraError("the toy broke")
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


if __name__ == "__main__":
    at = sys.argv.index("-m")
    work = types.ModuleType("suite.work")
    work.run_pack = run_pack  # type: ignore[attr-defined]
    sys.modules["suite.work"] = work
    sys.argv = sys.argv[at + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
