"""What runs again by itself: one pure function of the failed attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.store import Record
from suite.store.retries import KINDS, MAX_INFRA, decide


def failed(kind: str, node: str = "n1", job: str = "7", stage: str = "evaluation", status: str = "failed") -> Record:
    failure = {"kind": kind, "message": f"{kind} it was"}
    return Record(stage, "k", "a", status, {}, failure=failure, node=node, job=job)  # type: ignore[arg-type]


def test_a_stage_without_failures_runs() -> None:
    assert decide([]).retry


@pytest.mark.parametrize("kind", ["user", "data", "numeric"])
def test_what_would_fail_again_never_runs_by_itself(kind: str) -> None:
    assert not decide([failed(kind)]).retry
    assert not decide([failed("infra"), failed(kind)]).retry
    assert decide([failed(kind)], [kind]).retry, "a person may ask"
    assert not decide([failed(kind)], ["infra"]).retry


def test_infra_runs_again_a_bounded_number_of_times_elsewhere() -> None:
    history: list[Record] = []
    for attempt in range(1, MAX_INFRA + 1):
        history.append(failed("infra", f"n{attempt}"))
        decision = decide(history)
        assert decision.retry == (attempt < MAX_INFRA)
        assert decision.exclude_nodes == tuple(f"n{n}" for n in range(1, attempt + 1))
    assert decide(history, ["infra"]).retry and not decide(history, ["infra"]).exclude_nodes, "a person has looked"


def test_only_nodes_of_the_cluster_are_excluded_and_each_once() -> None:
    history = [failed("infra", "laptop", job=""), failed("infra", "n1"), failed("infra", "n1")]
    assert decide(history).exclude_nodes == ("n1",)
    assert decide([failed("infra", "n1"), failed("oom", "n2")]).exclude_nodes == ("n1",), "memory is not the node's"
    full = failed("infra", "n2")
    full.failure = {"kind": "infra", "message": "No space left on device", "place": "everywhere"}
    assert decide([failed("infra", "n1"), full]).exclude_nodes == ("n1",), "nor is the storage that all nodes share"
    assert not decide([full] * MAX_INFRA).retry


@pytest.mark.parametrize("stage", ["teacher", "evaluation"])
def test_out_of_memory_runs_once_more_with_halved_batches(stage: str) -> None:
    first = decide([failed("oom", stage=stage)])
    assert first.retry and first.micro_batches == 2
    assert not decide([failed("oom", stage=stage)] * 2).retry


@pytest.mark.parametrize("stage", ["synthesis", "statistics", "relabel", "prepare"])
def test_a_batch_that_is_part_of_the_objective_is_not_cut(stage: str) -> None:
    assert not decide([failed("oom", stage=stage)]).retry
    assert decide([failed("oom", stage=stage)], ["oom"]).micro_batches == 1


def test_blocked_attempts_do_not_count() -> None:
    assert decide([failed("data", status="blocked")] * 5).retry
    assert not decide([failed("user"), failed("data", status="blocked")]).retry


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(["n1", "n2", ""])), max_size=12))
def test_retries_end_whatever_happens(failures: list[tuple[str, str]]) -> None:
    history: list[Record] = []
    runs = 0
    for kind, node in failures:
        if not decide(history).retry:
            break
        runs += 1
        history.append(failed(kind, node))
    assert runs <= MAX_INFRA + 1, "at most the bounded tries of infra, and one of oom"
