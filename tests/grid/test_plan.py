"""From cells to stages: what is shared, what is not, and what is in a key."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from suite.grid import Plan
from suite.grid.stage_maker import StageMaker
from suite.methods import METHODS
from suite.spec.keys import canonical, stage_key
from suite.spec.recipes import MATCHED, LabelRecipe, RelabelRecipe, StudentRecipe, TeacherRecipe
from suite.spec.stages import (
    KINDS,
    EvaluationSpec,
    PrepareSpec,
    RelabelSpec,
    Stage,
    StatisticsSpec,
    SynthesisSpec,
    TeacherSpec,
    input_kind,
    stage_from_json,
)
from tests.grid.conftest import SMALL, Planned, Refused
from tests.grid.test_overrides import TOY, specs


def counts(plan: Plan) -> dict[str, int]:
    return dict(Counter(s.kind for s in plan.stages))


def grid(**axes: object) -> str:
    values: dict[str, object] = {
        "method": "random",
        "dataset": "digits",
        "ipc": 1,
        "teacher": "convnet3",
        "student": "convnet2",
    }
    values |= {k: v for k, v in axes.items() if k in values}
    head = {k: v for k, v in axes.items() if k not in values}
    lines = ["name: x", *(f"{k}: {v}" for k, v in head.items()), "product:"]
    return "\n".join([*lines, *(f"  {k}: {v}" for k, v in values.items())]) + "\n"


def test_stages_are_unique_ordered_and_closed(planned: Planned) -> None:
    plan = planned(grid(method="[random, random_soft, rded, sre2l, e2d]", ipc="[1, 2]", protocol="[paper, matched]"))
    keys = [s.key for s in plan.stages]
    assert len(set(keys)) == len(keys)
    assert [KINDS.index(s.kind) for s in plan.stages] == sorted(KINDS.index(s.kind) for s in plan.stages)
    position = {s.key: i for i, s in enumerate(plan.stages)}
    for i, stage in enumerate(plan.stages):
        for role, key in stage.inputs.items():
            assert position[key] < i
            assert plan.stages[position[key]].kind == input_kind(role)
    needed = {key for s in plan.stages for key in s.inputs.values()} | set(plan.cell_keys)
    assert needed == set(keys)  # nothing is planned that nobody uses
    assert len(plan.cell_keys) == len(plan.cells) == len(set(plan.cell_keys))


def test_ipc_beyond_the_real_images_is_refused(planned: Planned, refused: Refused) -> None:
    message = str(refused(grid(method="random", ipc=500)))
    assert "IPC 500 of random needs more real images than digits has - 144 training images a class" in message
    assert planned(grid(method="sre2l", ipc=500)), "images from noise need no real ones"


def test_keys_are_those_of_the_specification(planned: Planned) -> None:
    plan = planned(grid(method="[random, random_soft, rded, sre2l, e2d]", protocol="[paper, matched]"))
    for stage in plan.stages:
        assert stage == Stage.make(stage.kind, stage.spec, stage.inputs)
        again = stage_from_json(stage.to_json())
        assert (again.key, again.to_json()) == (stage.key, stage.to_json())


def test_the_evaluation_of_a_cell_is_about_that_cell(planned: Planned) -> None:
    plan = planned(SMALL)
    by_key = {s.key: s.spec for s in plan.stages}
    for cell, key in zip(plan.cells, plan.cell_keys, strict=True):
        spec: Any = by_key[key]
        assert all(getattr(spec, f.name) == getattr(cell, f.name) for f in fields(cell))


def test_planning_twice_gives_the_same_plan(planned: Planned) -> None:
    assert planned(SMALL) == planned(SMALL)


def test_random_shares_its_synthesis_between_teachers_and_sre2l_does_not(planned: Planned) -> None:
    plan = planned(grid(method="[random, random_soft, sre2l]", teacher="[convnet3, convnet4]"))
    assert Counter(s.method for s in specs(plan, "synthesis")) == {"random": 1, "random_soft": 1, "sre2l": 2}
    assert specs(plan, "synthesis", method="random")[0].teachers == ()
    assert len(specs(plan, "evaluation")) == 6


def test_students_share_everything_but_their_evaluation(planned: Planned) -> None:
    one = counts(planned(grid(method="e2d", student="convnet2", protocol="matched")))
    many = counts(planned(grid(method="e2d", student="[convnet1, convnet2, convnet3, convnet4]", protocol="matched")))
    assert many == one | {"evaluation": 4}


def test_students_with_one_recipe_share_stored_labels(planned: Planned) -> None:
    plan = planned(grid(method="e2d", student="[convnet1, convnet2]", protocol="paper"))
    assert counts(plan)["relabel"] == 1 and counts(plan)["evaluation"] == 2


def test_seeds_share_teachers_and_statistics(planned: Planned) -> None:
    plan = planned(grid(method="e2d", seeds="[0, 1, 2]"))
    assert counts(plan) == {"prepare": 1, "teacher": 1, "statistics": 1, "synthesis": 3, "evaluation": 3}
    assert specs(plan, "teacher")[0].seed == 0


def test_matched_and_paper_share_a_synthesis_when_nothing_differs(planned: Planned) -> None:
    plan = planned(grid(method="[rded, sre2l]", protocol="[paper, matched]"))
    assert counts(plan)["synthesis"] == 2 and counts(plan)["evaluation"] == 4


def test_paper_teachers_make_a_synthesis_of_their_own(planned: Planned, toys: None) -> None:
    plan = planned(TOY)
    got = {(s.dataset, s.teachers) for s in specs(plan, "synthesis", method="toy", ipc=1)}
    assert got == {("digits", ("convnet3",)), ("cifar10", ("convnet3",)), ("cifar10", ("convnet4", "convnet5"))}
    (several,) = [s for s in plan.stages if s.kind == "synthesis" and len(getattr(s.spec, "teachers", ())) == 2][:1]
    assert set(several.inputs) == {"prepare", "teacher.0", "teacher.1", "statistics.0", "statistics.1"}
    assert {s.teachers for s in specs(plan, "relabel", dataset="cifar10")} == {("convnet4",)}


def test_stages_have_the_inputs_that_they_need_and_no_others(planned: Planned) -> None:
    plan = planned(grid(method="[random, random_soft, rded, sre2l, e2d]", protocol="[paper, matched]"))
    got = {
        (s.spec.method, s.spec.protocol): set(s.inputs)
        for s in plan.stages
        if s.kind == "evaluation" and isinstance(s.spec, EvaluationSpec)
    }
    hard = {"prepare", "synthesis"}
    online, stored = hard | {"teacher.0"}, hard | {"relabel"}
    assert got[("random", "paper")] == got[("random", "matched")] == hard
    assert got[("rded", "paper")] == got[("rded", "matched")] == got[("sre2l", "matched")] == online
    assert got[("sre2l", "paper")] == got[("e2d", "paper")] == stored
    inputs = {s.spec.method: set(s.inputs) for s in plan.stages if isinstance(s.spec, SynthesisSpec)}
    assert inputs == {
        "random": {"prepare"},
        "random_soft": {"prepare"},
        "rded": {"prepare", "teacher.0"},
        "sre2l": {"teacher.0"},
        "e2d": {"prepare", "teacher.0", "statistics.0"},
    }


def test_matched_gives_every_method_the_same_recipe(planned: Planned) -> None:
    plan = planned(grid(method="[random_soft, rded, sre2l, e2d]", dataset="imagenet1k", teacher="resnet18"))
    assert {s.recipe for s in specs(plan, "evaluation")} == {MATCHED}
    assert {s.labels for s in specs(plan, "evaluation")} == {"online"}


def test_the_papers_teacher_labels_what_it_made(planned: Planned) -> None:
    plan = planned(grid(method="sre2l", dataset="imagenet1k", teacher="resnet50", protocol="paper"))
    assert {s.teachers for s in specs(plan, "synthesis") + specs(plan, "relabel")} == {("resnet18",)}
    assert [s.arch for s in specs(plan, "teacher")] == ["resnet18"]


def test_pretrained_teachers_are_those_of_imagenet(planned: Planned) -> None:
    plan = planned(
        grid(method="random_soft", dataset="[imagenet1k, imagenet1k-c100, imagenette]", teacher="[resnet18, convnet4]")
    )
    got = {(s.dataset, s.arch): s.weights for s in specs(plan, "teacher")}
    assert got == {
        ("imagenet1k", "resnet18"): "pretrained",
        ("imagenet1k", "convnet4"): "scratch",
        ("imagenet1k-c100", "resnet18"): "scratch",  # the hub's network has a thousand outputs
        ("imagenet1k-c100", "convnet4"): "scratch",
        ("imagenette", "resnet18"): "scratch",
        ("imagenette", "convnet4"): "scratch",
    }
    for stage in plan.stages:
        if isinstance(stage.spec, TeacherSpec):
            scratch = stage.spec.weights == "scratch"
            assert (stage.spec.recipe is not None) == scratch == ("prepare" in stage.inputs)


def test_stored_labels_under_a_step_budget_cover_every_step(planned: Planned) -> None:
    rule = "override:\n  - {set: {student.steps: 25, labels: stored}}\n"
    plan = planned(grid(method="sre2l", ipc=1, protocol="paper") + rule)
    # 10 images in batches of 10: 25 steps are 25 epochs.
    assert specs(plan, "relabel")[0].recipe == RelabelRecipe(25, 10, (0.5, 1.0), False, True)
    plan = planned(grid(method="sre2l", ipc=5, protocol="paper") + rule)
    # 50 images in batches of 20 are 3 steps an epoch: 25 steps need 9 epochs.
    assert specs(plan, "relabel")[0].recipe.epochs == 9


def test_hard_labels_are_learnt_with_cross_entropy_whatever_the_protocol(planned: Planned) -> None:
    plan = planned(grid(method="random", protocol="[paper, matched]"))
    assert {(s.labels, s.recipe.loss) for s in specs(plan, "evaluation")} == {("hard", "ce")}


def test_the_loader_and_the_precision_are_in_the_key(planned: Planned) -> None:
    plain = planned(grid(method="rded"))
    loader = planned(grid(method="rded", loader="torchvision"))
    precision = planned(grid(method="rded", precision="bf16"))
    assert not {s.key for s in plain.stages} & {s.key for s in loader.stages}
    shared = {s.key for s in plain.stages} & {s.key for s in precision.stages}
    assert shared == {s.key for s in plain.stages if s.kind == "prepare"}
    assert {s.format for s in specs(loader, "prepare")} == {"folder"}


def test_resources_are_never_in_a_key() -> None:
    words = {
        "gpu",
        "gpus",
        "time",
        "memory",
        "mem",
        "cpus",
        "workers",
        "threads",
        "partition",
        "host",
        "path",
        "device",
    }
    for spec in (PrepareSpec, TeacherSpec, StatisticsSpec, SynthesisSpec, RelabelSpec, EvaluationSpec):
        assert not words & {f.name for f in fields(spec)}
    for recipe in (StudentRecipe, LabelRecipe, RelabelRecipe, TeacherRecipe):
        assert not words & {f.name for f in fields(recipe)}


def test_where_a_grid_stands_and_what_it_is_called_is_not_in_a_key(planned: Planned) -> None:
    assert {s.key for s in planned(SMALL).stages} == {s.key for s in planned(SMALL.replace("small", "other")).stages}


STUDENTS = st.builds(
    StudentRecipe,
    epochs=st.none() | st.integers(1, 1000),
    steps=st.none() | st.integers(1, 10**6),
    batch=st.integers(1, 4096),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    lr=st.floats(1e-6, 100),
    crop=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
    flip=st.booleans(),
)
LABELS = st.builds(
    LabelRecipe,
    ensemble=st.sampled_from(["mean", "norm", "weighted"]),
    weights=st.lists(st.floats(0, 1), max_size=5).map(tuple),
    part=st.integers(0, 64),
    prune=st.floats(0, 0.99),
    temperature=st.floats(0.01, 100),
)
WORD = st.from_regex(r"[a-z0-9._-]{1,12}", fullmatch=True)
EVALUATIONS = st.builds(
    EvaluationSpec,
    method=WORD,
    dataset=WORD,
    ipc=st.integers(1, 10_000),
    teacher=WORD,
    student=WORD,
    protocol=st.sampled_from(["paper", "matched"]),
    seed=st.integers(0, 2**31),
    labels=st.sampled_from(["hard", "vector", "online", "stored"]),
    label=LABELS,
    recipe=STUDENTS,
    loader=st.sampled_from(["ffcv", "torchvision"]),
    precision=st.sampled_from(["fp32", "bf16"]),
)
PARAMS = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    max_size=6,
)
INPUTS = st.dictionaries(WORD, st.from_regex(r"[0-9a-f]{16}", fullmatch=True), max_size=4)


@settings(max_examples=150, deadline=None)
@given(EVALUATIONS, INPUTS, PARAMS)
def test_the_fast_keys_are_the_plain_ones(spec: EvaluationSpec, inputs: dict[str, str], params: dict[str, Any]) -> None:
    maker = StageMaker()
    synthesis = SynthesisSpec("m", 1, params, "d", 1, ("a", "b"), 0, "ffcv", "fp32")
    for _ in range(2):  # the second time from what the maker remembers
        assert maker.make("evaluation", spec, inputs) == Stage.make("evaluation", spec, inputs)
        assert maker.make("synthesis", synthesis, inputs) == Stage.make("synthesis", synthesis, inputs)


@settings(max_examples=100, deadline=None)
@given(PARAMS, INPUTS, st.randoms())
def test_keys_do_not_depend_on_the_order_of_mappings(
    params: dict[str, Any], inputs: dict[str, str], random: Any
) -> None:
    def shuffled(mapping: dict[str, Any]) -> dict[str, Any]:
        items = list(mapping.items())
        random.shuffle(items)
        return dict(items)

    def key(p: dict[str, Any], i: dict[str, str]) -> str:
        return StageMaker().make("synthesis", SynthesisSpec("m", 1, p, "d", 1, (), 0, "ffcv", "fp32"), i).key

    assert key(params, inputs) == key(shuffled(params), shuffled(inputs))


@settings(max_examples=150, deadline=None)
@given(EVALUATIONS, EVALUATIONS)
def test_a_key_changes_with_every_field(a: EvaluationSpec, b: EvaluationSpec) -> None:
    maker = StageMaker()
    base = maker.make("evaluation", a, {}).key
    for f in fields(EvaluationSpec):
        changed = replace(a, **{f.name: getattr(b, f.name)})
        same = canonical(changed) == canonical(a)
        assert (maker.make("evaluation", changed, {}).key == base) == same
        assert same == (getattr(a, f.name) == getattr(b, f.name))


def test_a_key_changes_with_kind_version_and_inputs() -> None:
    keys = [
        stage_key("synthesis", 1, {"a": 1}, {}),
        stage_key("relabel", 1, {"a": 1}, {}),
        stage_key("synthesis", 2, {"a": 1}, {}),
        stage_key("synthesis", 1, {"a": 1}, {"teacher": "0" * 16}),
        stage_key("synthesis", 1, {"a": 1}, {"teacher.0": "0" * 16}),
        stage_key("synthesis", 1, {"a": True}, {}),
        stage_key("synthesis", 1, {"a": "1"}, {}),
    ]
    assert len(set(keys)) == len(keys)


def test_a_methods_version_is_in_the_key_of_its_synthesis(planned: Planned, toys: None) -> None:
    before = {s.key for s in planned(TOY).stages if s.kind == "synthesis" and getattr(s.spec, "method", "") == "toy"}
    METHODS["toy"].version += 1
    after = {s.key for s in planned(TOY).stages if s.kind == "synthesis" and getattr(s.spec, "method", "") == "toy"}
    assert len(before) == len(after) == 6 and not before & after
