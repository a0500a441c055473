"""`suite.status`: one word for every state, one query whatever the number of jobs, right without Slurm."""

from __future__ import annotations

import io
import json
import re
import resource
import time
from pathlib import Path

import pytest

from suite.cluster import states
from suite.cluster.cancelled import remember
from suite.cluster.pace import Pace
from suite.cluster.profile import Profile
from suite.cluster.query import Task
from suite.cluster.runs import Array, Run, any_in_slurm, create_run
from suite.cluster.show import printed
from suite.cluster.states import Picture
from suite.cluster.watch import watch
from suite.cluster.words import LIVE, WORDS, word
from suite.grid import Plan, load_plan
from suite.status import as_json, tables
from suite.store import Store
from tests.cluster.test_query import script
from tests.cluster.toys import TINY, diamond, evaluation, fail, prepare, publish, run, synthesis
from tests.faults.commands import NAMES, Commands
from tests.grid.test_bounds import BIG

PLAN = diamond()

#: Slurm's word, the suite's word, whether the stage may still come about.
STATES = [
    ("PENDING", "pending", True),
    ("CONFIGURING", "pending", True),
    ("RUNNING", "running", True),
    ("RESIZING", "running", True),
    ("SIGNALING", "running", True),
    ("STAGE_OUT", "running", True),
    ("SUSPENDED", "suspended", True),
    ("STOPPED", "suspended", True),
    ("REQUEUED", "requeued", True),
    ("REQUEUE_FED", "requeued", True),
    ("REQUEUE_HOLD", "on hold", True),
    ("SPECIAL_EXIT", "on hold", True),
    ("RESV_DEL_HOLD", "on hold", True),
    ("PREEMPTED", "preempted", False),
    ("COMPLETING", "ending", False),
    ("COMPLETED", "ended", False),
    ("REVOKED", "ended", False),
    ("CANCELLED", "cancelled", False),
    ("CANCELLED by 123", "cancelled", False),
    ("CANCELLED+", "cancelled", False),
    ("FAILED", "failed", False),
    ("TIMEOUT", "failed", False),
    ("DEADLINE", "failed", False),
    ("OUT_OF_MEMORY", "failed", False),
    ("OUT_OF_ME+", "unknown", True),
    ("NODE_FAIL", "failed", False),
    ("BOOT_FAIL", "failed", False),
    ("LAUNCH_FAILED", "failed", False),
    ("RECONFIG_FAIL", "failed", False),
    ("", "unknown", True),
    ("   ", "unknown", True),
    ("SOMETHING_NEW", "unknown", True),
    ("running", "running", True),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def submitted(store: Store, plan: Plan = PLAN) -> Run:
    made = create_run(store, plan.name, plan.stages, Profile(cluster="slurm"))
    made.arrays = [Array(f"suite-{made.id}-00-all", "all", [[i] for i in range(len(plan.stages))], "1")]
    made.save()
    return made


def began(made: Run, *indices: int) -> None:
    """Leave the logs of tasks that began."""
    folder = made.logs / made.arrays[0].name
    folder.mkdir(exist_ok=True)
    for index in indices:
        (folder / f"1_{index}_0_log.out").touch()


def slurm_says(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> Path:
    """A squeue that prints lines and counts its calls."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "answer").write_text("".join(line + "\n" for line in lines))
    script(folder / "bin", "squeue", f"echo $@ >> {folder}/calls\nexec /bin/cat {folder}/answer")
    for name in ("sacct", "scontrol", "sinfo"):
        script(folder / "bin", name, f"echo {name} >> {folder}/calls; exit 1")
    monkeypatch.setenv("PATH", str(folder / "bin"))
    return folder / "calls"


@pytest.mark.parametrize(("said", "expected", "alive"), STATES)
def test_every_state_of_slurm_has_a_fixed_word(said: str, expected: str, alive: bool) -> None:
    task = Task("1", 0, said, "None", "n")
    assert task.word == word(said) == expected
    assert task.live is alive


def test_the_table_is_complete() -> None:
    assert {s for s, _, _ in STATES} >= set(WORDS)
    assert set(states.STATES) >= set(LIVE)


@pytest.mark.parametrize(("said", "expected", "alive"), [s for s in STATES if s[0].strip("+").isupper() or not s[0]])
def test_status_prints_the_word(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: str, alive: bool
) -> None:
    publish(PLAN.stages[0], store)
    name = submitted(store).arrays[0].name
    slurm_says(tmp_path, monkeypatch, [f"1|1|{said}|Resources||{name}"])
    picture = states.states(PLAN, store)
    shown = picture.states[1]
    if expected == "running":  # its process is not at this stage: there is no attempt
        assert shown.state == "pending" and "RUNNING: waits for its turn" in shown.detail
    elif expected in ("ending", "ended"):
        assert shown.state == "missing", "the artifact decides, and it is not there"
    else:
        assert shown.state == expected
        assert shown.job == "1_1" and (said.split("+")[0] or "without a state") in shown.detail
    assert picture.alive is alive


def test_status_asks_once_whatever_the_number_of_runs_and_says_why(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(PLAN.stages[0], store)
    runs = [submitted(store) for _ in range(5)]
    fail(PLAN.stages[1], store, "data", "no class 7\n\x1b[31min the source")
    fail(PLAN.stages[3], store, "numeric", "NaN at step 12")
    waiting = f"1|4|PENDING|Priority||{runs[-1].arrays[0].name}"
    calls = slurm_says(tmp_path, monkeypatch, [waiting, "77|N/A|RUNNING|None|n1|somebody else's"])
    picture = states.states(PLAN, store)
    assert len(calls.read_text().splitlines()) == 1
    found = {s.stage.key: s for s in picture.states}
    why = {i: (found[PLAN.stages[i].key].state, found[PLAN.stages[i].key].detail) for i in range(len(PLAN.stages))}
    assert why[0] == ("done", "")
    assert why[1][0] == "failed" and "data: no class 7" in why[1][1]
    assert why[3] == ("diverged", "NaN at step 12")
    assert why[4] == ("pending", "job 1_4 PENDING (Priority)")
    assert why[7][0] == "blocked" and PLAN.stages[3].key in why[7][1], "blocked by which key"
    out = io.StringIO()
    printed(tables(picture, None), out)
    assert "\x1b" not in out.getvalue() and "no class 7 [31min the source" in out.getvalue()
    listed = out.getvalue().partition("why\n")[2].splitlines()
    assert [line.split()[0] for line in listed[:3]] == ["failed", "diverged", "pending"], "what needs a person first"


def test_a_scancelled_task_shows_as_cancelled_and_so_does_what_was_written_down(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(PLAN.stages[0], store)
    one = submitted(store)
    slurm_says(tmp_path, monkeypatch, [f"1|1|CANCELLED by 0|None||{one.arrays[0].name}"])
    assert states.states(PLAN, store).states[1].state == "cancelled"
    remember(one.path, {("synthesis", PLAN.stages[3].key): "job 1_3 by --cancel"})
    began(one, *range(len(PLAN.stages)))
    slurm_says(tmp_path, monkeypatch, [])
    found = states.states(PLAN, store).states
    assert (found[3].state, found[3].detail) == ("cancelled", "job 1_3 by --cancel")
    assert (found[7].state, found[1].state) == ("blocked", "missing")


def test_a_task_that_slurm_has_forgotten_is_told_apart_from_one_never_submitted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that began has a log; one that did not was cancelled while it waited: Slurm keeps no record of that."""
    publish(PLAN.stages[0], store)
    made = submitted(store, Plan(PLAN.name, [PLAN.stages[i] for i in (1, 3, 4)]))
    began(made, 0)
    slurm_says(tmp_path, monkeypatch, [])
    found = states.states(PLAN, store).states
    assert [(found[i].state, found[i].job) for i in (1, 2, 3)] == [
        ("missing", "1_0"),
        ("missing", ""),
        ("cancelled", "1_1"),
    ]
    assert "job 1_0 is gone and left no record" in found[1].detail and found[2].detail == "new"
    assert found[3].detail == "job 1_1 left the queue without having begun"
    assert (found[4].state, found[4].job) == ("missing", "1_2"), "Slurm removes what waits for a teacher that died"


@pytest.mark.parametrize("how", ["missing", "failing", "hanging", "half a line"])
def test_status_is_right_from_artifacts_when_slurm_is_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    publish(PLAN.stages[0], store)
    fail(PLAN.stages[1], store, "infra", "node went away")
    submitted(store)
    calls = slurm_says(tmp_path, monkeypatch, [])
    match how:
        case "missing":
            (tmp_path / "bin" / "squeue").unlink()
        case "failing":
            script(tmp_path / "bin", "squeue", "echo 'slurm_load_jobs error: Invalid user' >&2; exit 1")
        case "hanging":
            monkeypatch.setattr("suite.cluster.query.TIMEOUT", 0.2)
            monkeypatch.setattr("suite.cluster.query.call.__defaults__", (0.2,))
            script(tmp_path / "bin", "squeue", "exec /bin/sleep 60")
        case "half a line":
            (tmp_path / "answer").write_text("1|1|RUNN")
    picture = states.states(PLAN, store)
    assert [s.state for s in picture.states][:3] == ["done", "failed", "missing"]
    assert picture.note.startswith("Slurm was not asked: "), "one remark, not one a stage"
    assert not calls.exists() or len(calls.read_text().splitlines()) == 1


def test_a_finished_grid_does_not_ask_slurm(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("one", PLAN.stages[:1])
    publish(PLAN.stages[0], store)
    submitted(store, plan)
    calls = slurm_says(tmp_path, monkeypatch, [])
    assert [s.state for s in states.states(plan, store).states] == ["done"]
    assert not calls.exists()


def test_a_store_of_local_runs_does_not_ask_slurm(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workstations may have Slurm's commands and no cluster."""
    run = submitted(store)
    run.cluster = "local"
    run.save()
    calls = slurm_says(tmp_path, monkeypatch, [])
    picture = states.states(PLAN, store)
    assert not calls.exists() and not picture.note and {s.state for s in picture.states} == {"missing"}


def test_a_run_that_cannot_be_read_may_be_in_slurm(store: Store) -> None:
    """One of another account, say: the question costs little, what its jobs work on much."""
    assert not any_in_slurm(store)
    (store.root / "runs" / "tiny" / "20260101T000000Z-abcdef" / "jobs.json").mkdir(parents=True)
    assert any_in_slurm(store)


def test_json_has_every_stage_with_its_job(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = submitted(store).arrays[0].name
    slurm_says(tmp_path, monkeypatch, [f"1|0|RUNNING|None|n1|{name}"])
    found = json.loads(json.dumps(as_json(states.states(PLAN, store))))
    assert [s["key"] for s in found["stages"]] == [s.key for s in PLAN.stages]
    assert found["stages"][0]["job"] == "1_0" and found["excluded_nodes"] == []
    assert sum(found["counts"].values()) == len(PLAN.stages)


def in_arrays(made: Run, count: int) -> list[str]:
    """Cut a run as a launch does, into arrays of a thousand tasks. Returns what squeue says of the tasks."""
    names = [f"suite-{made.id}-{n:02d}-evaluation" for n in range(count)]
    made.arrays = [
        Array(name, "evaluation", [[i] for i in range(n * 1000, n * 1000 + 1000)], str(n))
        for n, name in enumerate(names)
    ]
    made.save()
    return [f"{n}|{i}|PENDING|Dependency||{name}" for n, name in enumerate(names) for i in range(1000)]


def test_a_hundred_thousand_planned_stages_cost_one_query_and_seconds(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = prepare()
    s = synthesis("random", {"prepare": p.key}, ())
    inputs = {"prepare": p.key, "synthesis": s.key}
    first = evaluation("random", inputs)
    many = [type(first)("evaluation", first.spec, inputs, f"{i:016x}") for i in range(100_000)]
    plan = Plan("large", [p, s, *many])
    made = submitted(store, plan)
    lines = in_arrays(made, 100)
    calls = slurm_says(tmp_path, monkeypatch, lines)
    begin = time.process_time()
    picture = states.states(plan, store)
    tables(picture, 20)
    seconds = time.process_time() - begin
    print(f"{len(plan.stages):,} stages, {len(lines):,} tasks in {seconds:.2f} s")
    assert sum(s.state == "pending" for s in picture.states) == 100_000
    assert len(calls.read_text().splitlines()) == 1
    assert seconds < 5  # 2.1 s on a quiet core


@pytest.mark.slow
@pytest.mark.parametrize("launched", [False, True], ids=["planned", "launched"])
def test_status_of_a_hundred_thousand_stages_takes_seconds(tmp_path: Path, launched: bool) -> None:
    """The whole command in a cold process: reading the grid, planning, asking, looking, printing."""
    grid, site = tmp_path / "big.yaml", Commands(tmp_path / "bin", alone=True)
    grid.write_text(BIG.format(seeds=", ".join(map(str, range(50)))))
    if launched:
        lines = in_arrays(submitted(Store(tmp_path / "store"), load_plan(grid, max_cells=200_000)), 100)
        (tmp_path / "answer").write_text("".join(line + "\n" for line in lines))
        site.fault("squeue", f"exec cat {tmp_path}/answer")
    for looks in (1, 2, 3):  # the best of three: a second of a shared processor may hold half of one
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.monotonic()
        done = run("suite.status", grid, "--store", tmp_path / "store", PATH=site.path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and "big: 111,010 stages" in done.stdout, done.stderr
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{seconds:.2f} CPU-s, {time.monotonic() - begin:.2f} s")
        assert ("PENDING (Dependency)" in done.stdout) == launched
        asked = {"squeue": looks} if launched else {}
        assert {name: len(site.calls(name)) for name in NAMES} == dict.fromkeys(NAMES, 0) | asked
        if seconds < 5:
            return
    pytest.fail(f"{seconds:.2f} CPU-s at the third time")


def test_pauses_grow_from_half_a_minute_to_five_with_jitter_and_start_again_after_a_change() -> None:
    pace = Pace(30.0, 300.0)
    pauses = [pace.next(i == 0) for i in range(12)]
    assert 27 <= pauses[0] <= 30
    assert pauses[:5] == sorted(pauses[:5])
    assert all(270 <= p <= 300 for p in pauses[8:])
    assert len(set(pauses)) > 9, "jitter"
    assert 27 <= pace.next(True) <= 30


def test_watch_prints_changes_only_and_ends_when_nothing_is_in_flight(capsys: pytest.CaptureFixture[str]) -> None:
    def picture(*words: str) -> Picture:
        return Picture("g", [states.State(s, w) for s, w in zip(PLAN.stages, words, strict=False)])

    looks = [picture("pending"), picture("pending"), picture("running"), picture("done"), picture("never reached")]
    waits: list[float] = []
    last = watch(lambda: looks.pop(0), lambda p: tables(p, 5), Pace(30, 300), waits.append)
    assert [s.state for s in last.states] == ["done"] and len(looks) == 1
    assert len(waits) == 3 and waits[1] > waits[0] and waits[2] < waits[1]
    assert capsys.readouterr().out.count("g: 1 stage") == 3


def test_watch_draws_a_live_view_on_a_terminal(tmp_path: Path) -> None:
    """Under a real pseudo-terminal, on a finished grid: it draws once and ends."""
    import pty
    import subprocess

    from tests.cluster.toys import ROOT, command

    grid, store = tmp_path / "tiny.yaml", Store(tmp_path / "store")
    grid.write_text(TINY)
    for stage in load_plan(grid).stages:
        publish(stage, store)
    parent, child = pty.openpty()
    done = subprocess.run(
        command("suite.status", grid, "--store", store.root, "--watch"),
        cwd=ROOT,
        stdout=child,
        timeout=120,
        check=False,
    )
    text = __import__("os").read(parent, 1 << 16).decode()
    assert done.returncode == 0
    assert "tiny: 3 stages" in text and "evaluation" in text and re.search(r"\x1b\[", text)


def test_bad_words_are_refused_in_one_line(tmp_path: Path) -> None:
    grid = tmp_path / "tiny.yaml"
    grid.write_text(TINY)
    for words, message in [
        (["--only", "method=rdde"], "no cell of tiny has method rdde"),
        (["--watch", "--json"], "not allowed with"),
        (["--profile", "nowhere"], "no profile"),
    ]:
        done = run("suite.status", grid, "--store", tmp_path / "store", *words)
        assert done.returncode == 2 and done.stdout == ""
        assert message in done.stderr and done.stderr.count("\n") == 1
