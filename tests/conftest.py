"""The tiny grid, run once a session, for every test that looks at what a real run leaves behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from suite.grid import Plan, load_plan
from suite.store import Store
from tests.tiny import write_grid, write_run

# A shell's background jobs ignore SIGINT, and so would every launcher that a test starts from one.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store, Path]:
    """The tiny grid, run once: plan, store and run directory. Read-only for tests; copy before changing."""
    from suite.work import run_pack

    folder = tmp_path_factory.mktemp("tiny")
    plan = load_plan(write_grid(folder))
    store = Store(folder / "store")
    run = write_run(plan, store)
    assert run_pack(str(run), list(range(len(plan.stages)))) == 0
    return plan, store, run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests fork processes that compute, and a team of threads that an earlier test left would be missing there."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
