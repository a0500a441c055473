"""A launcher that dies or is interrupted: its jobs go on, and the next launch takes them over."""

from __future__ import annotations

import re
import signal
import subprocess
import time

import pytest

from tests.faults.toy_site import LIVE, ToySite, some, wait_for

pytestmark = pytest.mark.slurm

#: What sbatch does at which the launcher is killed, and how many arrays are then in Slurm.
DEATHS = {
    "before sbatch": ('[ $n = 1 ] && { kill -9 $PPID; exit 1; }', 0),
    "after sbatch, before the id is saved": ('[ $n = 1 ] && { real "$@"; kill -9 $PPID; exit 0; }', 1),
    "midway, before sbatch": ('[ $n = 2 ] && { kill -9 $PPID; exit 1; }', 1),
    "midway, before the id is saved": ('[ $n = 2 ] && { real "$@"; kill -9 $PPID; exit 0; }', 2),
    "after the last sbatch": ('[ $n = 3 ] && { real "$@"; kill -9 $PPID; exit 0; }', 3),
}  # fmt: skip


@pytest.mark.parametrize("when", some(DEATHS, "midway, before the id is saved"))
def test_a_killed_launchers_jobs_are_adopted_and_each_stage_is_submitted_once(site: ToySite, when: str) -> None:
    code, submitted = DEATHS[when]
    site.commands.fault("sbatch", code)
    site.hold("prepare")  # nothing ends before it is adopted
    dead = site.launch()
    assert dead.returncode == -signal.SIGKILL
    assert len(site.jobs_in_slurm(LIVE)) == submitted
    known = sum(a["job"] is not None for a in site.arrays())

    again = site.launch()
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("adopted 1 array of run") == submitted - known
    assert_all_run_once(site)
    assert "nothing to do" in site.launch().stdout


@pytest.mark.slow
def test_a_launcher_killed_midway_through_fifty_arrays_has_one_of_them_adopted(site: ToySite) -> None:
    site.make(seeds=48, long=True, max_array=2)
    site.commands.fault("sbatch", '[ $n = 25 ] && { real "$@"; kill -9 $PPID; exit 0; }')
    site.hold("prepare")
    assert site.launch().returncode == -signal.SIGKILL
    assert [a["job"] is None for a in site.arrays()] == [False] * 24 + [True]
    assert len(site.jobs_in_slurm(LIVE)) == 25

    again = site.launch()
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("adopted") == again.stdout.count("adopted 1 array of run") == 1
    assert len(site.jobs_in_slurm(LIVE)) == len(site.commands.calls("sbatch")) == len(site.arrays()) == 50
    assert_all_run_once(site)


def assert_all_run_once(site: ToySite) -> None:
    """What is held comes to its end: each stage in one job, and published by one attempt."""
    site.release("prepare")
    done = site.launch("--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "adopted" not in done.stdout, "once is enough"
    assert site.submissions() == dict.fromkeys(range(len(site.plan.stages)), 1), "each stage was submitted exactly once"
    site.assert_published_once()


@pytest.mark.slow
def test_adopted_ids_are_written_down(site: ToySite) -> None:
    site.commands.fault("sbatch", '[ $n = 1 ] && { real --hold "$@"; kill -9 $PPID; exit 0; }')
    site.launch()
    (job,) = site.jobs_in_slurm()
    again = site.launch()
    assert "adopted 1 array of run" in again.stdout
    from suite.cluster.runs import recent_runs

    assert job in {a.job for run in recent_runs(site.store) for a in run.arrays}
    assert "adopted 1 array" not in site.launch().stdout, "once is enough"
    site.clear()


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", some(["sbatch hangs", "no room", "waiting"], "sbatch hangs"))
def test_an_interrupted_launcher_says_what_is_submitted_and_leaves_at_once(
    site: ToySite, where: str, sig: signal.Signals, code: int
) -> None:
    """The best of up to three tries counts: other work on this machine may delay one of them."""
    seconds: list[float] = []
    while min(seconds, default=9.0) > 2.0 and len(seconds) < 3:
        site.store = type(site.store)(site.folder / f"store-{len(seconds)}")
        seconds.append(interrupt(site, where, sig, code))
    print(f"left after {' '.join(f'{s:.2f}' for s in seconds)} s")
    assert min(seconds) <= 2.0


def interrupt(site: ToySite, where: str, sig: signal.Signals, code: int) -> float:
    """Interrupt a launch while its jobs wait and run. Returns the seconds until it is gone."""
    faults = {"sbatch hangs": "[ $n = 2 ] && sleep 60", "waiting": "",
              "no room": "[ $n -ge 2 ] && { echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1; }"}  # fmt: skip
    site.commands.fault("sbatch", faults[where])
    (site.commands.folder / "sbatch.calls").unlink(missing_ok=True)
    process = site.start("--wait", SUITE_TOY_SECONDS="60")
    try:
        calls = {"sbatch hangs": 2, "no room": 2, "waiting": 3}[where]
        wait_for(lambda: len(site.commands.calls("sbatch")) >= calls)
        wait_for(lambda: where != "waiting" or len([a for a in site.arrays() if a["job"]]) == 3)
        time.sleep(1.0)
        begin = time.monotonic()
        process.send_signal(sig)
        out, err = process.communicate(timeout=30)
        took = time.monotonic() - begin
    finally:
        process.kill()
    assert process.returncode == code, err
    jobs = [a["job"] for a in site.arrays() if a["job"]]
    assert f"jobs {' '.join(jobs)}" in out
    assert re.search(r"cancel with: python -m suite\.launch .* --cancel", out), "spares what other grids wait for"
    assert "Traceback" not in err
    assert jobs and set(jobs) <= set(site.jobs_in_slurm(LIVE)), "jobs go on"
    if where == "sbatch hangs":
        unknown = [a["name"] for a in site.arrays() if a["job"] is None]
        assert f"scancel --name={unknown[0]}" in out
    site.clear()
    return took


def test_the_callers_environment_reaches_no_job(site: ToySite) -> None:
    caught = site.folder / "environment"
    site.make(seeds=1, setup=[f"env > '{caught}'-$SLURM_ARRAY_JOB_ID"])
    leaks = {
        "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "nowhere", "SBATCH_EXPORT": "NONE", "SLURM_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "5", "SLURM_PROCID": "3", "SQUEUE_STATES": "CANCELLED", "SLURM_CLUSTERS": "nowhere",
        "PYTHONPATH": "/nonsense", "CUDA_VISIBLE_DEVICES": "9", "SUBMITIT_EXECUTOR": "local",
    }  # fmt: skip
    done = site.launch("--wait", **leaks)
    assert done.returncode == 0, done.stdout + done.stderr
    files = list(site.folder.glob("environment-*"))
    assert len(files) == 3
    for path in files:
        text = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
        assert not {k for k in text if k.startswith(("SBATCH_", "SQUEUE_"))}
        assert text["SLURM_JOB_ID"] != "77" and text["SLURM_ARRAY_TASK_ID"] == "0" and text["SLURM_PROCID"] == "0"
        assert text["PYTHONPATH"] != "/nonsense" and text.get("CUDA_VISIBLE_DEVICES") != "9"
        assert "SLURM_CLUSTERS" not in text and "SUBMITIT_EXECUTOR" not in text


@pytest.mark.slow
def test_names_of_folders_reach_no_shell(site: ToySite) -> None:
    trap = site.folder / "trap"
    site.make(seeds=1)
    site.store = type(site.store)(site.folder / f"$(touch {trap})" / "store")
    done = site.launch("--wait")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, "what looks like a variable is refused"
    weird = site.folder / f"a b'; touch {trap.name}; `touch {trap.name}` \"&"
    weird.mkdir()
    site.store = type(site.store)(weird / "store")
    done = site.launch("--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    site.assert_published_once()
    assert not [p for p in site.folder.rglob("trap") if p.is_file()]


def test_two_launches_at_once_publish_each_stage_once(site: ToySite) -> None:
    race(site, 1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_launches_at_once_a_hundred_times(site: ToySite) -> None:
    race(site, 100)


def race(site: ToySite, times: int) -> None:
    """Launch a grid twice at the same instant, again and again in new stores."""
    root = site.store.root
    for n in range(times):
        site.store = type(site.store)(root.with_name(f"store-{n}"))
        site.make(seeds=1)
        gate = site.folder / "gate"
        gate.unlink(missing_ok=True)
        pair = [at_gate(site, str(gate)) for _ in range(2)]
        time.sleep(0.5)
        gate.touch()
        outputs = [p.communicate(timeout=300) for p in pair]
        assert [p.returncode for p in pair] == [0, 0], outputs
        site.assert_published_once()


def at_gate(site: ToySite, gate: str) -> subprocess.Popen[str]:
    """A launch that begins when a file appears."""
    import sys

    from tests.cluster.toys import ROOT

    code = (
        "import os, runpy, sys, time, suite.launch\n"
        f"while not os.path.exists({gate!r}): time.sleep(0.001)\n"
        f"sys.argv = ['suite.launch', {str(site.grid)!r}, '--profile', {str(site.profile)!r}, '--store', "
        f"{str(site.store.root)!r}, '--wait']\n"
        "from suite.errors import guarded\nguarded(suite.launch.main)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=site.environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.slow
def test_a_grid_gets_the_stages_that_it_shares_with_a_grid_that_is_cancelled(site: ToySite) -> None:
    site.make(seeds=2, ipc=2, name="large")
    large = site.grid, site.plan
    # Nothing ends before both are launched and one is cancelled.
    assert site.launch(SUITE_TOY_SECONDS="15").returncode == 0
    site.make(seeds=2, ipc=1, name="small")
    shared = {s.key for s in site.plan.stages}
    assert shared < {s.key for s in large[1].stages}
    second = site.launch()
    assert second.returncode == 0 and "5 stages in flight" in second.stdout, second.stdout + second.stderr

    small, site.grid = site.grid, large[0]
    cancelled = site.launch("--cancel", "--yes")
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    site.grid = small
    done = site.launch("--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    site.assert_published_once()
    site.clear()
