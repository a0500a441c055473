"""P4: what decodes images dies, or stalls for ever: the worker leaves in time, as `infra`, and says at which samples.

The worker is a process of its own, so that a thread or a child that is left behind would keep it from ending.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.cluster.reconcile import reconcile
from suite.grid import Plan, load_plan
from suite.store import Store
from tests.cluster.toys import ROOT, TINY
from tests.faults.attempts import find
from tests.faults.toy_site import some, wait_for
from tests.tiny import run_in_fork, write_grid, write_run

pytestmark = pytest.mark.ffcv

#: Seconds without a batch after which a loader counts as stalled, in these runs.
TIMEOUT = 5.0
#: What happens inside the real loaders, and what is said of it. `{pid}` becomes the file that names a decoding child.
FFCV = "from ffcv.loader.epoch_iterator import EpochIterator as E\n"
CHILD = """
import os, time
from suite.data.folder_stream import FolderStream
opened = FolderStream.__init__
def init(self, *words):
    opened(self, *words)
    def stall(image):
        open({pid!r}, "a").write(f"{{os.getpid()}}\\n")
        time.sleep(3600)
    self._images.transform = stall
FolderStream.__init__ = init
"""
FAULTS = {
    "ffcv stalls": ("ffcv", FFCV + "import time\nE.run_pipeline = lambda *a: time.sleep(3600)", "gave nothing for 5 s"),
    "ffcv's thread dies": ("ffcv", FFCV + "E.run = lambda self: None", "FFCV's thread died"),
    "a child stalls": ("torchvision", CHILD, "torchvision's loader failed"),
    "a child is killed": ("torchvision", CHILD, "torchvision's loader failed"),
}


def place(tiny: tuple[Plan, Store, Path], folder: Path, loader: str) -> tuple[Plan, Store, int]:
    """A store with images for a loader, a plan, and the position of a synthesis in it that reads them."""
    if loader == "ffcv":
        plan, store = tiny[0], Store(shutil.copytree(tiny[1].root, folder / "store"))
        index = find(plan, "synthesis", "random")
        shutil.rmtree(store.home("synthesis", plan.stages[index].key))
        return plan, store, index
    plan, store = (
        load_plan(write_grid(folder, TINY.replace("seeds:", f"loader: {loader}\nseeds:"))),
        Store(folder / "store"),
    )
    assert run_in_fork(write_run(plan, store), [0]) == 0
    return plan, store, find(plan, "synthesis")


def worker(run: Path, index: int, fault: str) -> subprocess.Popen[str]:
    """A worker on one stage, with code that is run before it."""
    main = f"{fault}\nimport sys, suite.work\nfrom suite.errors import guarded\n"
    main += f"sys.argv = ['suite.work', {str(run)!r}, '{index}']\nguarded(suite.work.main)\n"
    return subprocess.Popen([sys.executable, "-c", main], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip


@pytest.mark.parametrize("fault", some(FAULTS, "ffcv stalls"))
def test_a_lost_loader_is_infra_in_time_and_the_next_attempt_completes(
    tiny: tuple[Plan, Store, Path], tmp_path: Path, fault: str
) -> None:
    loader, code, said = FAULTS[fault]
    plan, store, index = place(tiny, tmp_path, loader)
    key, run = plan.stages[index].key, write_run(plan, store, loader_timeout=TIMEOUT)
    children = tmp_path / "children"
    begin = time.monotonic()
    process = worker(run, index, code.format(pid=str(children)) if loader == "torchvision" else code)
    try:
        if fault == "a child is killed":
            wait_for(children.exists, 60)
            os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1, out
    (record,) = store.failures("synthesis", key)
    assert record.failure is not None and record.failure["kind"] == "infra"
    for word in (said, "digits train", "samples 0 to "):
        assert word in record.failure["message"]
    assert record.seconds < 3 * TIMEOUT and time.monotonic() - begin < 100
    assert not children.exists() or not any(Path(f"/proc/{pid}").exists() for pid in children.read_text().split())
    assert index in {t.index for t in reconcile(plan, store).todo}, "the same launch tries it again"
    assert run_in_fork(write_run(plan, store), [index]) == 0
