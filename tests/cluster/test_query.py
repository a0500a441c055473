"""What Slurm says is parsed with care, and never trusted further than it goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from suite.cluster import query
from suite.cluster.avoid import nodes_to_avoid
from suite.cluster.profile import Profile
from suite.cluster.query import (
    QueryFailed,
    Task,
    call,
    in_flight,
    jobs_named,
    live_tasks,
    max_array_size,
    parse_squeue,
)
from suite.cluster.reconcile import Todo
from suite.cluster.runs import Array, Run, create_run
from suite.cluster.states import states
from suite.cluster.whereabouts import running_at
from suite.store import Store
from tests.cluster.toys import diamond, fail, publish


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Slurm commands that a test writes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("12|3|RUNNING|None|n1|a", Task("12", 3, "RUNNING", "None", "a", "n1")),
        ("12|N/A|PENDING|Dependency||a|b", Task("12", 0, "PENDING", "Dependency", "a|b")),
        ("12|4|CANCELLED by 123|None||a", Task("12", 4, "CANCELLED", "None", "a")),
        ("12|4|SOMETHING_NEW|None||a", Task("12", 4, "SOMETHING_NEW", "None", "a")),
        ("12|4||None||a", Task("12", 4, "", "None", "a")),
        ("12|4|RUNN", None),
        ("*** Welcome to the cluster ***", None),
        ("", None),
    ],
)
def test_lines_of_squeue(line: str, expected: Task | None) -> None:
    assert parse_squeue(line + "\n") == ([expected] if expected else [])


def test_tasks_that_are_over_are_not_in_flight(commands: Path) -> None:
    words = ("RUNNING", "PENDING", "SUSPENDED", "REQUEUED", "UNHEARD_OF", "COMPLETING", "CANCELLED by 0", "TIMEOUT")
    text = "\n".join(f"{i}|N/A|{w}|None||n{i}" for i, w in enumerate(words))
    script(commands, "squeue", f"/bin/cat <<'END'\n{text}\nEND")
    alive = ["RUNNING", "PENDING", "SUSPENDED", "REQUEUED", "UNHEARD_OF"]
    assert [t.state for t in live_tasks()] == alive


def test_tasks_in_hidden_partitions_are_asked_for(commands: Path) -> None:
    """Slurm leaves one's own out, too, unless it is told to show all."""
    script(commands, "squeue", "case $* in *--all*) echo '7|0|PENDING|None||suite-x';; esac")
    assert [t.job for t in live_tasks()] == ["7"]
    script(commands, "squeue", "case $* in *--all*) echo 7;; esac")
    assert jobs_named("suite-x") == ["7"]


def test_nodes_to_avoid_are_at_most_half_of_the_partition_that_is_asked_for(commands: Path) -> None:
    lines = [*(f"c{i}|cpu*" for i in range(100)), "g1|gpu", "g2|gpu", "g2|hidden", "c1|hidden"]
    script(commands, "sinfo", "case $* in *--all*) /bin/cat <<'END'\n{}\nEND\n;; esac".format("\n".join(lines)))
    todo = [Todo(0, "failed", "", True, nodes) for nodes in (("g1", "g2", "c3"), ("g2",), ("gone",))]
    avoided = nodes_to_avoid(todo, {"gpu", "", "gpu,hidden", "unheard of"})
    assert avoided == {"gpu": ["g2"], "": ["c3"], "gpu,hidden": ["g2"], "unheard of": []}
    assert nodes_to_avoid([Todo(0, "new", "", True)], {"gpu"}) == {}, "nobody asks without need"


def test_jobs_are_found_by_name_although_their_id_was_never_written(tmp_path: Path) -> None:
    run = Run(tmp_path, "slurm", [Array("suite-x-00-teacher", "teacher", [[0], [1, 2]])])
    run.keys = [("teacher", f"k{i}") for i in range(3)]
    tasks = [Task("9", 1, "PENDING", "", "suite-x-00-teacher"), Task("8", 0, "RUNNING", "", "somebody else's")]
    assert in_flight([run], tasks) == {("teacher", "k1"): tasks[0], ("teacher", "k2"): tasks[0]}


def test_a_query_that_hangs_is_given_up(commands: Path) -> None:
    script(commands, "squeue", "exec /bin/sleep 60")
    with pytest.raises(QueryFailed, match="did not answer"):
        call(["squeue"], timeout=0.3)


def test_a_failing_query_shows_its_first_line(commands: Path) -> None:
    script(commands, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(QueryFailed, match="Unable to contact"):
        live_tasks()


def test_the_sites_array_limit_is_read(commands: Path) -> None:
    script(commands, "scontrol", "echo 'MaxArraySize            = 42'")
    assert max_array_size() == 42
    script(commands, "scontrol", "echo nothing")
    assert max_array_size() == query.DEFAULT_MAX_ARRAY


def test_status_is_right_from_artifacts_alone_when_slurm_is_gone(tmp_path: Path, commands: Path) -> None:
    plan, store = diamond(), Store(tmp_path / "store")
    publish(plan.stages[0], store)
    fail(plan.stages[1], store, "data", "first line\n\x1b[31msecond")
    folder = store.root / "runs" / "diamond" / "20260101T000000Z-aaaaaa"
    folder.mkdir(parents=True)
    (folder / "stages.jsonl").write_text("")
    Run(folder, "slurm", [Array("suite-x", "teacher", [])]).save()
    picture = states(plan, store)
    assert [s.state for s in picture.states][:3] == ["done", "failed", "blocked"]
    assert "no squeue" in picture.note


def test_an_attempt_counts_as_running_while_its_process_lives(tmp_path: Path) -> None:
    import socket

    host = socket.gethostname()
    mine = tmp_path / f"000-local-0-{host}-{os.getpid()}-abcdef"
    gone = tmp_path / f"000-local-0-{host}-4194999-abcdef"
    away = tmp_path / "000-17-0-some-node-3-55-abcdef"
    assert running_at([mine], None) == f"{host}, process {os.getpid()}"
    assert running_at([gone, away], None) == ""
    assert running_at([away], Task("17", 2, "PENDING", "Resources", "n")) == ""
    assert running_at([away], Task("17", 2, "RUNNING", "None", "n")) == "some-node-3, job 17_2"


def test_the_epilog_of_a_task_that_may_be_requeued_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store, pauses = diamond(), Store(tmp_path / "store"), []
    run = create_run(store, "diamond", plan.stages, Profile(cluster="slurm"))
    run.arrays = [Array(f"suite-{run.id}-00-all", "all", [[i] for i in range(len(plan.stages))], "7")]
    run.save()
    looks = iter(["COMPLETING", "COMPLETING", "COMPLETING", "COMPLETING", "PENDING"])
    monkeypatch.setattr(query, "user_tasks", lambda: [Task("7", 3, next(looks), "None", run.arrays[0].name)])
    monkeypatch.setattr(query.time, "sleep", pauses.append)
    nodes = [(s.kind, s.key) for s in plan.stages]
    assert not query.tasks_after_epilogs(store, nodes[4:])[0].live and not pauses, "another stage's"
    assert query.tasks_after_epilogs(store, nodes[3:])[0].live and len(pauses) == 3
