"""A synthesis whose shards run is shown as running, with how far they are; not as waiting for its merge."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from suite.cluster.profile import Profile
from suite.cluster.runs import Array, Run, create_run
from suite.cluster.states import State, states
from suite.grid import Plan
from suite.store import Store
from tests.cluster.toys import prepare, publish, synthesis
from tests.test_status import slurm_says

HEAD = prepare()
WHOLE = synthesis("sre2l", {"prepare": HEAD.key}, ())
PARTS = replace(WHOLE, shards=4).parts()
PLAN = Plan("cut", [HEAD, WHOLE])


def cut(store: Store, cluster: str) -> Run:
    """Shards 1 to 3 in an array, since shard 0 is there already, and the merge behind them."""
    publish(HEAD, store)
    publish(PARTS[0], store)
    made = create_run(store, "cut", [*PARTS[1:], replace(WHOLE, shards=4)], Profile(cluster=cluster))  # type: ignore[arg-type]
    made.arrays = [
        Array(f"suite-{made.id}-00-shard", "shard", [[0], [1], [2]], "7"),
        Array(f"suite-{made.id}-01-synthesis", "synthesis", [[3]], "8"),
    ]
    made.save()
    return made


def shown(store: Store) -> State:
    head, whole = states(PLAN, store).states
    assert head.state == "done"
    return whole


def test_shards_in_slurm_make_their_synthesis_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    made = cut(store, "slurm")
    merge = f"8|0|PENDING|Dependency||{made.arrays[1].name}"

    def said(*words: str) -> State:
        lines = [f"7|{i}|{w}|None|n1|{made.arrays[0].name}" for i, w in enumerate(words) if w]
        calls = slurm_says(tmp_path, monkeypatch, [*lines, merge])
        calls.unlink(missing_ok=True)
        found = shown(store)
        assert len(calls.read_text().splitlines()) == 1, "one query, cut or not"
        return found

    found = said("RUNNING", "PENDING", "RUNNING")
    assert (found.state, found.detail) == ("running", "1 of 4 shards are made, 2 run: job 7_0")
    publish(PARTS[1], store)
    assert said("", "PENDING", "RUNNING").detail == "2 of 4 shards are made, 1 run: job 7_2"
    assert said("", "PENDING", "PENDING").state == "pending"
    for part in PARTS[2:]:
        publish(part, store)
    assert said("", "", "").state == "pending", "its merge waits"


def test_shards_on_this_machine_make_their_synthesis_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    cut(store, "local")
    slurm_says(tmp_path, monkeypatch, [])
    assert shown(store).state == "missing"
    home = store.home("shard", PARTS[2].key) / "attempts"
    (home / f"000-local-0-{socket.gethostname()}-4194999-aaaaaa").mkdir(parents=True)
    assert shown(store).state == "missing", "its process is gone"
    (home / f"000-local-0-{socket.gethostname()}-{os.getpid()}-aaaaaa").mkdir()
    found = shown(store)
    assert found.state == "running"
    assert found.detail == f"1 of 4 shards are made, 1 run: {socket.gethostname()}, process {os.getpid()}"
