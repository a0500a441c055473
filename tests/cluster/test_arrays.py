"""From waves to arrays: every stage once, inputs first, few calls, and tasks that follow tasks."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from suite.cluster.arrays import Draft, all_ancestors, direct_inputs, make_drafts
from suite.cluster.profile import Profile
from suite.cluster.waves import make_waves
from suite.spec.stages import Stage, input_kind
from tests.cluster.toys import NET, diamond, evaluation, prepare, synthesis

PROFILE = Profile(cluster="slurm", pack_minutes=10)


def fan(parents: int, children: int) -> list[Stage]:
    """Syntheses of several IPCs with students of several seeds each."""
    p = prepare()
    stages, students = [p], []
    for n in range(parents):
        s = Stage.make("synthesis", type(synthesis("random", {}, ()).spec)(
            "random", 1, {}, "digits", n + 1, (), 0, "torchvision", "fp32"), {"prepare": p.key})  # fmt: skip
        stages.append(s)
        students += [evaluation("random", {"prepare": p.key, "synthesis": s.key}, seed=i) for i in range(children)]
    return [*stages, *students]


def drafts_of(stages: Sequence[Stage], seconds: dict[str, float], limit: int = 1000, budget: int = 100) -> list[Draft]:
    waves = make_waves(stages, PROFILE, [seconds[s.kind] for s in stages])
    return make_drafts(waves, stages, limit, budget)


@settings(max_examples=100, deadline=None)
@given(
    parents=st.integers(1, 12), children=st.integers(0, 4), long=st.floats(1, 3000), short=st.floats(1, 3000),
    limit=st.integers(1, 9), budget=st.integers(1, 40),
)  # fmt: skip
def test_every_stage_is_in_one_array_behind_its_inputs(
    parents: int, children: int, long: float, short: float, limit: int, budget: int
) -> None:
    stages = fan(parents, children)
    drafts = drafts_of(stages, {"prepare": 1.0, "synthesis": long, "evaluation": short}, limit, budget)
    place = {(stages[i].kind, stages[i].key): (n, index)
             for n, d in enumerate(drafts) for index, pack in d.packs.items() for i in pack}  # fmt: skip
    assert sum(len(p) for d in drafts for p in d.packs.values()) == len(stages) == len(place)
    for n, draft in enumerate(drafts):
        assert len(draft.packs) <= limit and max(draft.packs) < max(limit, 1)
        for index, pack in draft.packs.items():
            inputs = [place[input_kind(role), key] for i in pack for role, key in stages[i].inputs.items()]
            assert all(number < n for number, _ in inputs)
            if draft.follows is not None:
                assert (draft.follows, index) in inputs, "a task follows a task that it needs"
                assert all(len(drafts[number].packs[at]) == 1 for number, at in inputs if number == draft.follows)
    kinds = len({s.kind for s in stages})
    assert len(drafts) <= max(budget, kinds)


def test_students_follow_their_own_synthesis() -> None:
    stages = fan(5, 3)
    drafts = drafts_of(stages, {"prepare": 1.0, "synthesis": 3000.0, "evaluation": 100.0})
    assert [(d.wave.kind, d.follows, len(d.packs)) for d in drafts] == [
        ("prepare", None, 1), ("synthesis", None, 5), ("evaluation", 1, 5)
    ]  # fmt: skip
    for index, pack in drafts[2].packs.items():
        (parent,) = drafts[1].packs[index]
        assert [stages[i].inputs["synthesis"] for i in pack] == [stages[parent].key] * 3


def test_long_students_of_one_synthesis_are_arrays_side_by_side() -> None:
    drafts = drafts_of(fan(5, 3), {"prepare": 1.0, "synthesis": 3000.0, "evaluation": 3000.0})
    assert [(d.follows, len(d.packs)) for d in drafts if d.wave.kind == "evaluation"] == [(1, 5)] * 3


def test_short_stages_are_packed_and_wait_for_whole_tasks() -> None:
    drafts = drafts_of(fan(100, 1), {"prepare": 1.0, "synthesis": 60.0, "evaluation": 60.0})
    assert [(d.wave.kind, d.follows, len(d.packs)) for d in drafts] == [
        ("prepare", None, 1), ("synthesis", None, 10), ("evaluation", None, 10)
    ]  # fmt: skip


def test_a_launch_stays_within_its_calls_by_longer_packs() -> None:
    stages = fan(40, 1)
    long = {"prepare": 1.0, "synthesis": 3000.0, "evaluation": 3000.0}
    assert len(drafts_of(stages, long, limit=4)) == 21
    drafts = drafts_of(stages, long, limit=4, budget=9)
    assert len(drafts) <= 9
    assert max(len(p) for d in drafts for p in d.packs.values()) == 4


def test_inputs_that_other_inputs_need_are_not_waited_for() -> None:
    plan = diamond()
    ancestors = all_ancestors(plan.stages)
    full = plan.stages[-1]  # prepare, synthesis, relabel
    assert set(full.inputs) == {"prepare", "synthesis", "relabel"} and full.spec.student == NET  # type: ignore[union-attr]
    assert direct_inputs(full, ancestors) == {("relabel", full.inputs["relabel"])}
