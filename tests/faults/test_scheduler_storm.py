"""All at once: a node fails, a task is requeued, one is cancelled, the launcher is killed; then one launch more."""

from __future__ import annotations

import re
import signal
from collections import Counter

import pytest

from tests.faults.toy_site import ToySite, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_the_second_launch_finishes_two_hundred_stages_and_each_is_published_once(site: ToySite) -> None:
    site.make(seeds=10, ipc=10, long=True, max_in_flight=64)
    assert len(site.plan.stages) >= 200
    cluster = site.cluster
    assert cluster is not None
    call = cluster.call

    def running(node: str) -> list[str]:
        lines = call("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%N|%F_%K|%j").splitlines()
        return [task for at, task, name in (line.split("|") for line in lines)
                if at == node and name.startswith("suite-") and "synthesis" in name]  # fmt: skip

    site.commands.fault("sbatch", '[ $n = 4 ] && { real "$@"; kill -9 $PPID; exit 0; }')
    dead = site.launch(SUITE_TOY_SECONDS="1")
    assert dead.returncode == -signal.SIGKILL
    assert [a["job"] is None for a in site.arrays()] == [False, False, False, True]

    # The site breaks and people interfere, each on a node of their own.
    wait_for(lambda: all(running(n) for n in ("n1", "n2", "n3")), 400)
    site.fail_node("n1")
    call("scontrol", "requeue", running("n2")[0])
    call("scancel", running("n3")[0])
    try:
        again = site.launch("--wait", "--retry", "cancelled", timeout=3000, SUITE_TOY_SECONDS="1")
    finally:
        site.repair_node("n1")
    print(again.stdout)
    assert again.returncode == 0, again.stdout + again.stderr
    site.assert_published_once()
    published: Counter[str] = Counter()
    for path in site.store.root.glob("runs/*/*/logs/*/*_log.out"):
        published.update(re.findall(r"^published \w+ (\w+)$", path.read_text(), re.MULTILINE))
    assert published == dict.fromkeys((s.key for s in site.plan.stages), 1)
    more = {i: n for i, n in site.submissions().items() if n > 1}
    assert len(more) <= 3, "only what was lost was submitted again"
    print(f"{len(site.plan.stages)} stages, {len(site.arrays())} arrays, {len(more)} stages submitted twice")
    assert "nothing to do" in site.launch().stdout
