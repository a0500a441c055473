"""All at once: a node fails, a task is requeued, one is cancelled, the launcher is killed; then one launch more."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from suite.cluster.whereabouts import attempt_host
from tests.faults.toy_site import ToySite, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3600)]


def running(site: ToySite) -> dict[str, str]:
    """Node of each running task of a synthesis, by `job_index`."""
    assert site.cluster is not None
    words = ("--noheader", "--array", "--states=RUNNING", "--format=%N|%F_%K|%j")
    lines = [line.split("|") for line in site.cluster.call("squeue", *words).splitlines()]
    own = {a["name"] for a in site.arrays() if a["kind"] == "synthesis"}
    return {task: node for node, task, name in lines if name in own}


def break_things(site: ToySite) -> tuple[set[str], str]:
    """Break the site while eight syntheses are worked on, two on each node, and none gets any further.

    Returns:
        Syntheses that lost their node, and one that was cancelled. Another one was requeued, on a third node.
    """
    cluster = site.cluster
    assert cluster is not None
    working = site.store.root.glob
    wait_for(lambda: len(list(working("synthesis/*/*/attempts/*"))) == 8, 300)
    pids = [attempt_host(path)[1] for path in working("synthesis/*/*/attempts/*")]
    packs = {f"{a['job']}_{i}": pack for a in site.arrays() for i, pack in enumerate(site.packs()[a["name"]])}
    nodes = running(site)
    tasks = {node: task for task, node in nodes.items()}
    lost, requeued, cancelled = (tasks[node] for node in ("n1", "n2", "n3"))
    site.fail_node("n1")
    cluster.call("scontrol", "requeue", requeued)
    cluster.call("scancel", cancelled)

    def hit() -> bool:
        ends = site.ends()
        wanted = ((lost, "NODE_FAIL"), (requeued, "REQUEUED"), (cancelled, "CANCELLED"))
        return all(state in ends.get(task, ()) for task, state in wanted)

    wait_for(hit)
    wait_for(lambda: sum(Path("/proc", pid).exists() for pid in pids) == 4)
    assert not site.store.published("synthesis"), "all of that hit tasks that were at work"
    return {key for task, node in nodes.items() if node == "n1" for key in packs[task]}, packs[cancelled][0]


def test_the_second_launch_finishes_two_hundred_stages_and_each_is_published_once(site: ToySite) -> None:
    site.make(seeds=10, ipc=10, long=True, max_in_flight=64)
    assert len(site.plan.stages) >= 200
    site.commands.fault("sbatch", '[ $n = 4 ] && { real "$@"; kill -9 $PPID; exit 0; }')
    site.hold("synthesis")
    dead = site.launch()
    assert dead.returncode == -signal.SIGKILL
    assert [a["job"] is None for a in site.arrays()] == [False, False, False, True]
    lost, cancelled = break_things(site)
    site.release("synthesis")
    try:
        again = site.launch("--wait", "--retry", "cancelled", timeout=3000)
    finally:
        site.repair_node("n1")
    print(again.stdout)
    assert again.returncode == 0, again.stdout + again.stderr
    site.assert_published_once(killed=lost)
    counts = site.submissions()
    assert counts.keys() == set(range(len(site.plan.stages)))
    more = {site.plan.stages[i].key: n for i, n in counts.items() if n > 1}
    print(f"{len(site.plan.stages)} stages, {len(site.arrays())} arrays, {len(more)} stages submitted twice")
    its_student = {s.key for s in site.plan.stages if cancelled in s.inputs.values()}
    assert {cancelled} <= more.keys() <= {cancelled} | its_student, "only what was cancelled was submitted again"
    assert set(more.values()) == {2}
    assert "nothing to do" in site.launch().stdout
