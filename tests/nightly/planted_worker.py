"""The real worker with three faults, where `SUITE_PLANT` is set: as if the code had got worse since the night before.

The interpreter of a test profile: `planted_worker.py -u -m MODULE ARGUMENT...`. Students of `random` reach a tenth of
their accuracy, `rded` takes fifteen seconds longer to choose its images, and one student of `random_soft` fails.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
SLEEP, SEED = 15.0, 1


def plant() -> None:
    """Change stage modules as they are imported."""
    real = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        module: Any = real(name, package)
        if name == "suite.stages.evaluation" and not hasattr(module, "planted"):
            module.planted, run = True, module.run
            module.run = lambda context: evaluation(run, context)
        if name == "suite.stages.synthesis" and not hasattr(module, "planted"):
            module.planted = True
            slow_down()
        return module

    importlib.import_module = import_module


def evaluation(run: Any, context: Any) -> Any:
    if (context.spec.method, context.spec.seed) == ("random_soft", SEED):
        raise ValueError("planted")
    outcome = run(context)
    if context.spec.method == "random":
        outcome.numbers["accuracy_last"] /= 10
    return outcome


def slow_down() -> None:
    from suite.methods import get

    cls: Any = get("rded")
    real = cls.synthesize

    def synthesize(self: Any, *arguments: Any) -> Any:
        time.sleep(SLEEP)  # inside of what is timed
        return real(self, *arguments)

    cls.synthesize = synthesize


if __name__ == "__main__":
    if os.environ.get("SUITE_PLANT"):
        plant()
    sys.argv = sys.argv[sys.argv.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
