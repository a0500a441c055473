"""A launch waits for another one that is just submitting the same stages, and then finds them in Slurm."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from suite.cluster import submitting as module
from suite.cluster.cancelled import cancelled_stages
from suite.cluster.profile import Profile
from suite.cluster.runs import Run, create_run
from suite.cluster.submitting import FILE, STOP, StillSubmitting, await_others, still_submitting, submitting
from suite.store import Store
from suite.store.files import read_json, write_json
from tests.cluster.toys import diamond
from tests.faults.toy_site import ToySite, wait_for

PLAN = diamond()
NODES = [(s.kind, s.key) for s in PLAN.stages]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(Store(tmp_path / "store"), "other", PLAN.stages[:2], Profile(cluster="slurm"))


def store(run: Run) -> Store:
    return Store(run.path.parents[2])


def test_a_second_launch_during_the_first_submits_nothing_again(tmp_path: Path) -> None:
    """Three arrays of one task, a second a call: the second launch begins behind the first call."""
    site = ToySite(tmp_path, None, seeds=1)
    jobs = tmp_path / "jobs"
    site.commands.fault("sbatch", f'sleep 1; echo "$((1000 + n))|0|PENDING|None||$(basename "$(dirname "${{@: -1}}")")"'
                                  f' >> {jobs}; echo $((1000 + n)); exit')  # fmt: skip
    site.commands.fault("squeue", f"[ -e {jobs} ] && cat {jobs}; exit 0")
    site.commands.fault("scontrol", "echo 'MaxArraySize            = 1001'; exit")
    (site.commands.folder / "srun").symlink_to("/bin/false")
    first = site.start()
    wait_for(lambda: site.commands.calls("sbatch"))
    second = site.launch()
    out, err = first.communicate(timeout=60)
    assert first.returncode == second.returncode == 0, out + err + second.stdout + second.stderr
    assert "is just submitting 3 stages of these: waiting" in second.stdout
    assert "nothing to submit: 3 stages in flight" in second.stdout
    (total,) = [line for line in site.launch("--dry-run").stdout.splitlines() if "total" in line]
    assert total.split()[-3:] == ["3", "0", "0"], "in flight, held, to run: a dry run asks Slurm, too"
    site.commands.fault("squeue", "exit 1")
    assert "stages in flight count as to run: squeue: exit status 1" in site.launch("--dry-run").stdout
    submitted = Counter(i for a in site.arrays() for pack in a["packs"] for i in pack)
    assert submitted == {0: 1, 1: 1, 2: 1}
    assert not list(site.store.root.rglob(FILE))


def test_waiting_ends_with_the_other_launch(run: Run) -> None:
    ended: list[float] = []

    def other() -> None:
        with submitting(run):
            time.sleep(1.0)
        ended.append(time.monotonic())

    thread = threading.Thread(target=other)
    thread.start()
    wait_for((run.path / FILE).exists)
    assert await_others(store(run), NODES)
    assert ended
    thread.join()
    assert not await_others(store(run), NODES), "nobody submits any more"


def test_launches_of_other_stages_and_dead_ones_are_not_waited_for(run: Run) -> None:
    with submitting(run):
        assert not await_others(store(run), NODES[2:])
    gone = f"{os.getpid()}:1"  # this process's number, given to another before
    write_json(run.path / FILE, {"schema": 1, "host": socket.gethostname(), "process": gone})
    assert not await_others(store(run), NODES)


def test_a_launch_on_another_host_counts_as_dead_when_its_file_stays_as_it_is(run: Run) -> None:
    write_json(run.path / FILE, {"schema": 1, "host": "login-2", "process": "7:7"})
    begin = time.monotonic()
    assert await_others(store(run), NODES, patience=0.5)
    assert 0.5 <= time.monotonic() - begin < 10


def test_a_launch_on_another_host_that_never_ends_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows signs of life however long one of its own steps takes."""
    monkeypatch.setattr(module, "_BEAT", 0.1)
    with submitting(run):
        body = read_json(run.path / FILE)
        write_json(run.path / FILE, body | {"host": "login-2"})
        with pytest.raises(StillSubmitting, match=r"submitting\.json") as caught:
            await_others(store(run), NODES, patience=0.5)
    assert caught.value.exit_code == 3 and "remove this file" in caught.value.hint


def test_a_cancelled_launch_submits_nothing_more(tmp_path: Path) -> None:
    """The first array is in and the second finds no room; cancelling makes room, which the launch does not take."""
    site = ToySite(tmp_path, None, seeds=1)
    site.commands.fault("sbatch", "[ $n -gt 1 ] && { echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1; }\n"
                                  "echo 1001; exit")  # fmt: skip
    site.commands.fault("squeue", "exit 0")
    site.commands.fault("scontrol", "echo 'MaxArraySize            = 1001'; exit")
    (site.commands.folder / "srun").symlink_to("/bin/false")
    first = site.start()
    wait_for(lambda: len(site.commands.calls("sbatch")) > 1)
    cancelled = site.launch("--cancel", "--yes")
    assert cancelled.returncode == 0 and "1 launcher still submitting" in cancelled.stdout, cancelled.stderr
    out, err = first.communicate(timeout=60)
    assert first.returncode == 1 and "cancelled while it submitted: 2 stages not submitted" in err, out + err
    assert len(cancelled_stages(site.store, site.plan.name)) >= 2
    calls = len(site.commands.calls("sbatch"))
    again = site.start("--retry", "cancelled")
    wait_for(lambda: len(site.commands.calls("sbatch")) > calls)
    again.kill()
    again.communicate()


def test_what_is_submitted_when_its_grid_is_cancelled_is_cancelled(tmp_path: Path) -> None:
    site = ToySite(tmp_path, None, seeds=1)
    stop = f"for d in {site.store.root}/runs/*/*/; do echo '{{}}' > $d/{STOP}; done"
    site.commands.fault("sbatch", f"{stop}; echo 77; exit")
    site.commands.fault("scancel", "exit 0")
    site.commands.fault("squeue", "exit 0")
    site.commands.fault("scontrol", "echo 'MaxArraySize            = 1001'; exit")
    (site.commands.folder / "srun").symlink_to("/bin/false")
    done = site.launch()
    assert done.returncode == 1 and "3 stages not submitted" in done.stderr, done.stdout + done.stderr
    assert site.commands.calls("scancel") == ["77"] and len(site.commands.calls("sbatch")) == 1
    assert len(cancelled_stages(site.store, site.plan.name)) == 3


@pytest.mark.parametrize("age", [0, 600])
def test_a_launch_of_another_host_counts_as_submitting_while_it_shows_that_it_lives(run: Run, age: int) -> None:
    write_json(run.path / FILE, {"schema": 1, "host": "login-2", "process": "7:7"})
    then = time.time() - age
    os.utime(run.path / FILE, (then, then))
    assert still_submitting(store(run), run.grid) == ([] if age else [run.path])
    assert [p.name for p in run.path.glob(".*")] == []
