"""D3: a compute node without network: what would have to be downloaded is never asked for, and a command is named.

The worker runs in a network namespace of its own, with nothing in it, and every socket that is connected and every name
that is looked up is written down by an audit hook.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite.data.prepare import prepare_spec
from suite.grid import Plan
from suite.spec.stages import Stage, TeacherSpec
from suite.store import Store
from tests.cluster.toys import publish
from tests.helpers import ROOT
from tests.tiny import write_run

#: Calls that reach for the network are written to a file.
HOOK = """
import sys
calls = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
sys.addaudithook(lambda event, words: event in calls and open({log!r}, "a").write(f"{{event}} {{words}}\\n"))
"""
WORKER = """
import suite.work
from suite.errors import guarded
sys.argv = ["suite.work", {run!r}, "{index}"]
guarded(suite.work.main)
"""
PROBE = "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/')"


def offline(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python without a network, and with empty caches of weights."""
    own = {"PYTHONPATH": str(ROOT), "TORCH_HOME": str(folder / "torch"), "HF_HOME": str(folder / "hub"),
           "HF_HUB_CACHE": str(folder / "hub")}  # fmt: skip
    words = ["unshare", "--net", sys.executable, "-c", code]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT, env=os.environ | own
    )


@pytest.fixture(scope="module", autouse=True)
def without_network(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where this account may make no namespace; else the probe shows that nothing can be reached in one."""
    folder = tmp_path_factory.mktemp("probe")
    done = offline(folder, HOOK.format(log=str(folder / "calls")) + PROBE)
    if "unshare" in done.stderr:
        pytest.skip(f"cannot take the network away: {done.stderr.strip()}")
    assert "Network is unreachable" in done.stderr, done.stderr
    assert "socket.connect" in (folder / "calls").read_text()


def stages(arch: str) -> list[Stage]:
    """ImageNet's images, and a teacher with weights that others have trained."""
    images = Stage.make("prepare", prepare_spec("imagenet1k", "folder"))
    spec = TeacherSpec("imagenet1k", arch, "pretrained", None, 0, "torchvision", "fp32")
    return [images, Stage.make("teacher", spec, {"prepare": images.key})]


@pytest.mark.parametrize(
    ("arch", "command"),
    [
        pytest.param("", "run: python -m suite.prepare imagenet1k --source DIR_OR_TAR", marks=pytest.mark.slow),
        ("resnet18", "on a login node: python -c \"import torchvision; torchvision.models.resnet18(weights="),
        pytest.param("timm.resnet18", "on a login node: python -c \"import timm; timm.create_model('resnet18'",
                     marks=pytest.mark.slow),
    ],
    ids=["images", "weights of torchvision", "weights of timm"],
)  # fmt: skip
def test_nothing_is_downloaded_on_a_node_without_network_and_the_command_is_named(
    tmp_path: Path, arch: str, command: str
) -> None:
    plan, store = Plan("offline", stages(arch or "resnet18")), Store(tmp_path / "store")
    index = 1 if arch else 0
    if arch:
        publish(plan.stages[0], store)
    log = tmp_path / "calls"
    done = offline(tmp_path, HOOK.format(log=str(log)) + WORKER.format(run=str(write_run(plan, store)), index=index))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    (record,) = store.failures(plan.stages[index].kind, plan.stages[index].key)
    assert record.failure is not None and record.failure["kind"] == "data"
    assert command in record.failure["message"] and command in done.stderr
    assert not log.exists(), log.read_text()
