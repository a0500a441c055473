"""A scheduler that answers late, oddly or not at all, and tasks that fail: nothing twice, and siblings go on."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from suite.cluster.reconcile import reconcile
from suite.cluster.sbatch import Unclear, parse_id
from suite.spec.stages import Stage
from suite.store.retries import MAX_INFRA
from tests.cluster.toys import run
from tests.faults.toy_site import ToySite, some, wait_for

slurm = pytest.mark.slurm

#: What a user sees of sbatch, while a real one makes the job.
ANSWERS = {
    "a banner around the id": 'echo "Welcome: 12 jobs are queued"; real "$@"; echo "99 days left"; exit',
    "the id with a cluster": 'echo "$(real "$@");testcluster"; exit',
    "no id, but a number": 'real "$@" > /dev/null; echo "Job 12 of user 7 is accepted"; exit',
    "a lost answer": 'real "$@" > /dev/null; echo "sbatch: error: Batch job submission failed: Socket timed out on'
    ' send/recv operation" >&2; exit 1',
    "an answer lost before the job was made": '[ $n = 1 ] && { echo "sbatch: error: Batch job submission failed: Unable'
    ' to contact slurm controller (connect failure)" >&2; exit 1; }',
    "a rate limit": '[ $n = 1 ] && { echo "sbatch: error: RPC rate limit exceeded, too many requests" >&2; exit 1; }',
}


@slurm
@pytest.mark.parametrize("answer", some(ANSWERS, "a lost answer"))
def test_odd_answers_of_sbatch_submit_each_stage_once(site: ToySite, answer: str) -> None:
    site.make(seeds=1)
    site.commands.fault("sbatch", ANSWERS[answer])
    done = site.launch("--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(site.submissions().values()) == {1} and len(site.submissions()) == 3
    assert {a["job"] for a in site.arrays()} == set(site.jobs_in_slurm()), "every id is the job's own"
    site.assert_published_once()


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("123\n", "123"),
        ("123;cluster-1\n", "123"),
        ("hello\n123\n\nbye 7\n", "123"),
        ("Submitted batch job 123\n", "123"),
        ("Submitted batch job 123 on cluster c.1\n", "123"),
        ("123\n123;c\n", "123"),
        ("", None),
        ("12 jobs\n", None),
        ("123\n124\n", None),
        ("job 123\n", None),
        ("-1\n", None),
        ("123;\n", None),
        ("123;a b\n", None),
    ],
)
def test_ids_are_parsed_or_refused_and_never_guessed(text: str, job: str | None) -> None:
    if job is None:
        with pytest.raises(Unclear):
            parse_id(text)
    else:
        assert parse_id(text) == job


@slurm
@pytest.mark.slow
def test_a_limit_on_submitted_jobs_is_waited_out(site: ToySite, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.cluster import slurm, window
    from suite.cluster.profile import load_profile
    from suite.cluster.runs import create_run
    from suite.cluster.waves import make_waves

    site.make(seeds=8, long=True)
    limit = 5
    monkeypatch.setattr(window, "_FIRST", 0.5)
    monkeypatch.setenv("PATH", site.commands.path)
    monkeypatch.setenv("SLURM_CONF", site.environment()["SLURM_CONF"])
    # A site's limit of five tasks a user: the array's own and those in the queue.
    site.commands.fault(
        "sbatch",
        f"""
    script=${{@: -1}}
    new=$(sed -n 's/^#SBATCH --array=//p' $script | tr -d "'" | sed 's/%.*//' | tr ',' '\\n' |
        awk -F- '{{ n += NF == 2 ? $2 - $1 + 1 : 1 }} END {{ print n }}')
    there=$({site.commands.folder}/../bin/squeue --noheader --array | wc -l)
    [ $((new + there)) -gt {limit} ] && {{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2
    echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy' >&2; exit 1; }}
    """,
    )
    profile = load_profile(site.profile)
    run = create_run(site.store, site.plan.name, site.plan.stages, profile)
    arrays = slurm.submit(run, make_waves(site.plan.stages, profile), site.plan.stages, profile, patience=120)
    assert all(sum(map(bool, a.packs)) <= limit for a in arrays)
    done = site.launch("--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(site.submissions().values()) == {1} and len(site.submissions()) == len(site.plan.stages)
    site.assert_published_once()


@slurm
@pytest.mark.slow
def test_a_profiles_window_bounds_tasks_in_slurm(site: ToySite, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite.cluster import slurm, window
    from suite.cluster.profile import load_profile
    from suite.cluster.query import live_tasks
    from suite.cluster.runs import create_run
    from suite.cluster.waves import make_waves

    site.make(seeds=6, long=True, in_flight_per_run=4)
    monkeypatch.setattr(window, "_FIRST", 0.5)
    monkeypatch.setenv("PATH", site.commands.path)
    monkeypatch.setenv("SLURM_CONF", site.environment()["SLURM_CONF"])
    most = 0
    real = slurm.sbatch

    def counting(*args: object) -> str:
        nonlocal most
        job = real(*args)  # type: ignore[arg-type]
        most = max(most, sum(t.name.startswith("suite-") for t in live_tasks()))
        return job

    monkeypatch.setattr(slurm, "sbatch", counting)
    profile = load_profile(site.profile)
    run = create_run(site.store, site.plan.name, site.plan.stages, profile)
    slurm.submit(run, make_waves(site.plan.stages, profile), site.plan.stages, profile, patience=120)
    assert 1 < most <= 4
    assert site.launch("--wait").returncode == 0
    site.assert_published_once()


@slurm
@pytest.mark.slow
def test_no_room_for_long_is_said_and_the_same_command_submits_the_rest(
    site: ToySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from suite.cluster import slurm, window
    from suite.cluster.profile import load_profile
    from suite.cluster.runs import create_run
    from suite.cluster.waves import make_waves
    from suite.errors import InfraError

    monkeypatch.setattr(window, "_FIRST", 0.2)
    monkeypatch.setenv("PATH", site.commands.path)
    monkeypatch.setenv("SLURM_CONF", site.environment()["SLURM_CONF"])
    site.commands.fault("sbatch", '[ $n -gt 1 ] && { echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; }\n'
                                  'real --hold "$@"; exit')  # fmt: skip
    profile = load_profile(site.profile)
    run = create_run(site.store, site.plan.name, site.plan.stages, profile)
    with pytest.raises(InfraError, match=r"6 stages not submitted.*the same command"):
        slurm.submit(run, make_waves(site.plan.stages, profile), site.plan.stages, profile, patience=1.0)
    (job,) = site.jobs_in_slurm()
    site.cluster.call("scontrol", "release", job)  # type: ignore[union-attr]
    site.commands.fault("sbatch", "")
    assert site.launch("--wait").returncode == 0
    assert set(site.submissions().values()) == {1}


@slurm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("long", "kind", "times"),
    [(False, "infra", MAX_INFRA), (True, "data", 1)],
    ids=["packed, failed until it is held back", "a task each, held back at once"],
)
def test_one_failed_synthesis_blocks_its_students_alone(site: ToySite, long: bool, kind: str, times: int) -> None:
    site.make(seeds=100, long=long, max_in_flight=64)
    victim = next(s for s in site.plan.stages if s.kind == "synthesis")
    (child,) = [s for s in site.plan.stages if victim.key in s.inputs.values()]
    for _ in range(times):
        done = site.launch("--wait", SUITE_TOY_FAIL=victim.key, SUITE_TOY_KIND=kind)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "the toy broke" in done.stdout
    left = {s.key for s in site.plan.stages} - {k for kind in ("prepare", "teacher", "synthesis", "evaluation")
                                                for k in site.store.published(kind)}  # fmt: skip
    assert left == {victim.key, child.key}, "siblings and what needs them are published"
    if long:  # followed task by task: the student of the failed synthesis was never started
        assert not site.store.failures("evaluation", child.key)
    assert_blocked(site, victim, child, f"{kind}: the toy broke")
    again = site.launch("--wait", "--retry", kind)
    assert again.returncode == 0, again.stdout + again.stderr
    site.assert_published_once(failed=left)


def assert_blocked(site: ToySite, victim: Stage, child: Stage, why: str) -> None:
    """Status and report say of a student alone that its synthesis failed, and how; a hole is no number."""
    states = {s["key"]: (s["state"], s["detail"]) for s in site.status() if s["state"] != "done"}
    assert states.keys() == {victim.key, child.key}
    assert states[victim.key] == ("failed", why)
    assert states[child.key] == ("blocked", f"synthesis {victim.key} failed ({why})")
    rows, others = site.rows(), sum(s.kind == "evaluation" for s in site.plan.stages) - 1
    assert len(rows.frame) == others and set(rows.frame["accuracy_last"]) == {50.0}
    (hole,) = rows.holes
    assert hole.key == child.key and hole.reason.startswith(f"blocked (synthesis failed ({why.replace(':', '):', 1)}")
    words = (site.grid, "--store", site.store.root, "--out", site.folder / "reports", "--gallery", "none")
    made = run("suite.report", *words)
    assert made.returncode == 0, made.stderr
    assert hole.reason in " ".join(made.stdout.split()), "the leaderboards say so"


@slurm
@pytest.mark.slow
def test_students_start_when_their_own_synthesis_is_there(site: ToySite) -> None:
    site.make(seeds=12, long=True, max_in_flight=2)
    process = site.start("--wait", SUITE_TOY_SECONDS="2")
    try:
        counts = []
        while process.poll() is None:
            counts.append([len(site.store.published(k)) for k in ("synthesis", "evaluation")])
            time.sleep(0.2)
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert any(students > 0 and made < 12 for made, students in counts), "students before the last synthesis"
    site.assert_published_once()


def alone(folder: Path, array: int, **more: object) -> ToySite:
    """A site in scripts: it takes every job, numbers it, and runs none."""
    site = ToySite(folder, None, max_array=array, max_in_flight=array, **more)
    site.commands.fault("sbatch", "echo $((1000 + n)); exit")
    site.commands.fault("squeue", "exit 0")
    site.commands.fault("scontrol", f"echo 'MaxArraySize            = {array}'; exit")
    (site.commands.folder / "srun").symlink_to("/bin/false")
    return site


def test_ten_thousand_cells_are_at_most_25_submissions(tmp_path: Path) -> None:
    site = alone(tmp_path, 1001, seeds=100, ipc=100, pack_minutes=30)
    assert len(site.plan.cells) == 10_000
    done = site.launch()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(site.commands.calls("sbatch")) <= 25
    queries = sum(len(site.commands.calls(name)) for name in ("squeue", "scontrol", "sacct"))
    assert queries <= 5
    submitted = Counter(i for a in site.arrays() for pack in a["packs"] for i in pack)
    assert len(submitted) == len(site.plan.stages) and set(submitted.values()) == {1}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("long", [False, True], ids=["short stages", "long stages"])
def test_a_hundred_thousand_stages_are_at_most_100_submissions_and_5_queries(tmp_path: Path, long: bool) -> None:
    site = alone(tmp_path, 1001, seeds=500, ipc=100, long=long)
    assert len(site.plan.stages) > 100_000
    begin = time.monotonic()
    done = site.launch(timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: len(site.commands.calls(name)) for name in ("sbatch", "squeue", "scontrol", "sacct")}
    tasks = sum(bool(p) for a in site.arrays() for p in a["packs"])
    print(f"{len(site.plan.stages)} stages, {tasks} tasks, {counts}, {time.monotonic() - begin:.0f} s")
    assert counts["sbatch"] <= 100
    assert counts["squeue"] + counts["scontrol"] + counts["sacct"] <= 5
    submitted = Counter(i for a in site.arrays() for pack in a["packs"] for i in pack)
    assert len(submitted) == len(site.plan.stages) and set(submitted.values()) == {1}


@slurm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "notes"),
    [("exit 127", 1), ("echo 'sacct: error: Slurm accounting storage is disabled' >&2; exit 1", 1),
     ("echo -n '1_0|COMPL'; exit 0", 0), ("sleep 60; exit 1", 1)],
    ids=["missing", "disabled", "half a line", "hangs"],
)  # fmt: skip
def test_accounting_that_fails_changes_nothing(site: ToySite, answer: str, notes: int) -> None:
    """Slurm has forgotten how the tasks of the first launch ended, and accounting does not tell."""
    site.make(seeds=1)
    site.commands.fault("sacct", answer)
    site.commands.fault("squeue", 'real "${@/--states=all/--states=PENDING,RUNNING,COMPLETING}"; exit')
    assert site.launch(SUITE_TOY_SECONDS="120").returncode == 0
    jobs, cluster = site.jobs_in_slurm(), site.cluster
    assert cluster is not None and len(jobs) == 3
    wait_for(lambda: cluster.call("squeue", "--noheader", "--states=RUNNING", f"--jobs={min(jobs)}"))
    cluster.call("scancel", *jobs)
    wait_for(lambda: not cluster.call("squeue", "--noheader", "--name", ",".join(jobs.values())))
    done = site.launch("--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(site.commands.calls("sacct")) == 1
    assert (done.stdout + done.stderr).count("accounting was not asked") == notes
    assert not reconcile(site.plan, site.store).todo
    assert {s["state"] for s in site.status()} == {"done"} and len(site.commands.calls("sacct")) == 1


@slurm
@pytest.mark.slow
def test_jobs_of_a_node_that_fails_run_on_another(site: ToySite) -> None:
    site.make(seeds=4, long=True)
    cluster = site.cluster
    assert cluster is not None
    process = site.start("--wait", SUITE_TOY_SECONDS="3")
    try:
        wait_for(lambda: "n1" in cluster.call("squeue", "--noheader", "--states=RUNNING", "--format=%N").split())
        site.fail_node("n1")
        out, err = process.communicate(timeout=400)
    finally:
        process.kill()
        site.repair_node("n1")
    assert process.returncode == 0, out + err
    site.assert_published_once(killed={s.key for s in site.plan.stages})


@slurm
@pytest.mark.slow
def test_a_stage_that_died_with_its_node_runs_again_without_that_node(site: ToySite) -> None:
    site.make(seeds=1)
    cluster = site.cluster
    assert cluster is not None
    process = site.start("--wait", SUITE_TOY_SECONDS="5")
    try:
        format_ = "--format=%F_%K|%N|%j"
        running = ""
        while not running:
            lines = cluster.call("squeue", "--noheader", "--array", "--states=RUNNING", format_).splitlines()
            running = next((line for line in lines if line.endswith("prepare")), "")
        job, node, _ = running.split("|")
        cluster.call("scontrol", "update", f"jobid={job}", "requeue=0")  # as on a site that does not requeue
        site.fail_node(node)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
        site.repair_node(node)
    assert process.returncode == 1, out + err
    assert f"job {job} on {node} ended as NODE_FAIL" in out
    (failure,) = site.store.failures("prepare", site.plan.stages[0].key)
    assert failure.node == node and failure.failure is not None and failure.failure["kind"] == "infra"
    assert any(f"on {node} ended as NODE_FAIL" in json.dumps(stage) for stage in site.status())

    again = site.launch("--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"not on {node}, where stages failed" in again.stdout
    newest = max(site.store.root.glob("runs/toy/*"))
    scripts = [path.read_text() for path in newest.glob("logs/*/submission.sh")]
    assert scripts and all(f"#SBATCH --exclude={node}\n" in text for text in scripts)
    site.assert_published_once(failed={s.key for s in site.plan.stages}, killed={site.plan.stages[0].key})
