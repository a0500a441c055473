"""Waves and packs: every stage once, inputs first, bounded processes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from suite.cluster.profile import Profile, Resources
from suite.cluster.waves import OVERHEAD, durations, make_waves
from suite.spec.stages import KINDS, Stage
from tests.cluster.toys import diamond, evaluation, prepare, synthesis

PROFILE = Profile(cluster="slurm")


def many(count: int, datasets: tuple[str, ...] = ("digits", "digits-c5")) -> list[Stage]:
    """Evaluations of several datasets, mixed."""
    stages = []
    for seed in range(count):
        name = datasets[seed % len(datasets)]
        p = prepare(name)
        s = synthesis("random", {"prepare": p.key}, (), name)
        stages.append(evaluation("random", {"prepare": p.key, "synthesis": s.key}, name, seed))
    return stages


@settings(max_examples=200, deadline=None)
@given(
    seconds=st.lists(st.floats(0.1, 5000), min_size=1, max_size=60),
    slots=st.integers(1, 9),
    cluster=st.sampled_from(["local", "slurm"]),
    pack=st.integers(1, 60),
)
def test_every_stage_is_in_exactly_one_pack(seconds: list[float], slots: int, cluster: str, pack: int) -> None:
    profile = Profile(cluster=cluster, slots=slots, pack_minutes=pack)
    (wave,) = make_waves(many(len(seconds)), profile, seconds)
    assert sorted(wave.stages) == list(range(len(seconds)))
    assert all(wave.packs)
    if cluster == "local":
        assert len(wave.packs) == min(slots, len(seconds))
        # Contiguous runs of neighbours: none is longer than its share and one stage more.
        assert max(sum(seconds[i] for i in p) for p in wave.packs) <= sum(seconds) / slots + max(seconds) * 2 + 1e-6
    else:
        assert all(len(p) == 1 or sum(seconds[i] for i in p) <= pack * 60 + 1e-6 for p in wave.packs)


def test_waves_follow_the_order_of_kinds() -> None:
    plan = diamond()
    waves = make_waves(list(reversed(plan.stages)), PROFILE)
    order = [KINDS.index(w.kind) for w in waves]
    assert order == sorted(order)


def test_neighbours_share_a_dataset() -> None:
    stages = many(20)
    (wave,) = make_waves(stages, Profile(cluster="local", slots=2), [1.0] * 20)
    assert [{stages[i].spec.dataset for i in p} for p in wave.packs] == [{"digits"}, {"digits-c5"}]


def test_prepare_and_teacher_have_a_task_of_their_own_on_slurm() -> None:
    stages = [prepare("digits"), prepare("digits-c5"), prepare("digits-c4")]
    (wave,) = make_waves(stages, PROFILE, [1.0] * 3)
    assert [len(p) for p in wave.packs] == [1, 1, 1]


def test_resource_classes_are_waves_of_their_own() -> None:
    profile = Profile(cluster="slurm", stages={"evaluation:cifar10": Resources(mem="64G")})
    waves = make_waves(many(10, ("digits", "cifar10")), profile, [1.0] * 10)
    assert sorted((w.resources.mem or "", len(w.stages)) for w in waves) == [("", 5), ("64G", 5)]


def test_a_pack_stays_well_below_its_time_limit() -> None:
    profile = Profile.model_validate({"cluster": "slurm", "pack_minutes": 600, "time": "1h"})
    (wave,) = make_waves(many(40), profile, [300.0] * 40)
    assert max(len(p) for p in wave.packs) == 3  # a quarter of an hour


def test_durations_grow_with_steps_and_are_never_nothing() -> None:
    stages = diamond().stages
    seconds = durations(stages)
    assert all(s >= OVERHEAD for s in seconds)
    long = evaluation("random", stages[-1].inputs)
    object.__setattr__(long, "spec", type(long.spec)(**{
        **{n: getattr(long.spec, n) for n in long.spec.__slots__},
        "recipe": type(long.spec.recipe)(epochs=None, steps=100_000),
    }))  # fmt: skip
    assert durations([long])[0] > 100 * OVERHEAD
