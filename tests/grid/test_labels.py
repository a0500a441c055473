"""Labels in a plan: what overrides may say about them, whose teachers make them, and what is in their keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.grid import Plan
from suite.grid.student import used
from suite.methods import METHODS, Method, discover, method
from suite.spec.recipes import LabelRecipe, RelabelRecipe, StudentRecipe
from suite.spec.stages import input_kind
from tests.grid.conftest import SMALL, Planned, Refused
from tests.grid.test_overrides import specs
from tests.grid.test_plan import LABELS, grid

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job

PAPER = SMALL.replace("[matched]", "[paper]")
BOTH = SMALL.replace("[matched]", "[paper, matched]")


def rules(*lines: str) -> str:
    return "override:\n" + "".join(f"  - {line}\n" for line in lines)


@pytest.fixture
def committee() -> Iterator[None]:
    """A method with weighted, early-stopped label teachers on CIFAR-10, as papers have them."""
    discover()

    @method(name="committee", paper="test", version=1, needs=("teacher",), labels="stored")
    @dataclass(frozen=True)
    class Committee(Method):
        stop: int = 5
        deterministic: ClassVar[bool] = True
        paper_teachers: ClassVar[dict] = {"cifar10": ("convnet4", "convnet5")}
        paper_label_teachers: ClassVar[dict] = {"cifar10": ("convnet4", "convnet5")}

        def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
            return StudentRecipe(epochs=3, batch=8)

        def label_recipe(self, base: str, classes: int, ipc: int) -> LabelRecipe:
            return LabelRecipe("weighted", (0.75, 0.25), part=4)

        def label_teacher(self, base: str, ipc: int) -> dict[str, Any]:
            return {"stop": self.stop} if base == "cifar10" else {}

        def synthesize(self, job: Job) -> DistilledSet:
            raise AssertionError("planning never runs a method")

    yield
    del METHODS["committee"]


COMMITTEE = grid(method="committee", dataset="cifar10", protocol="paper")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{set: {label.ensembel: norm}}", "12: label has no 'ensembel' - did you mean 'ensemble'?"),
        ("{set: {label.ensemble: median}}", "28: label.ensemble: 'median' is not allowed - did you mean 'mean'?"),
        ("{set: {label.weights: 0.5}}", "27: label.weights: 0.5 is not a list of numbers"),
        ("{set: {label.weights: []}}", "27: label.weights: [] is out of range - one number a teacher"),
        ("{set: {label.weights: [0.5, 0.6]}}", "27: label.weights: [0.5, 0.6] is out of range"),
        ("{set: {label.weights: [1.5, -0.5]}}", "27: label.weights: [1.5, -0.5] is out of range"),
        ("{set: {label.part: 1}}", "24: label.part: 1 is out of range - 0 for none, or at least 2"),
        ("{set: {label.part: 2.5}}", "24: label.part: 2.5 is not a whole number"),
        ("{set: {label.prune: 1.0}}", "25: label.prune: 1.0 is out of range"),
        ("{set: {label.temperature: 0}}", "31: label.temperature: 0.0 is out of range"),
        ("{set: {teachers: mine}}", "22: teachers: 'mine' is not allowed - allowed: grid, paper"),
        (
            "{set: {teachers: grid}}",
            "5: teachers: grid has no effect: no cell that it matches has teachers of its paper",
        ),
        ("{set: {label.ensemble: norm}}", "5: label.ensemble has no effect on hard labels (random, protocol matched)"),
        ("{set: {labels: online, label.prune: 0.5}}", "5: label.prune has no effect on online labels"),
        ("{set: {labels: vector, label.prune: 0.5}}", "5: label.prune has no effect on vector labels"),
        ("{set: {labels: stored, label.temperature: 2}}", "5: label.temperature has no effect on stored labels"),
        ("{set: {labels: online, label.weights: [1]}}", "5: label.weights has no effect on label.ensemble mean"),
        (
            "{set: {labels: online, label.ensemble: weighted, label.weights: [0.5, 0.5]}}",
            "5: 2 label weights for 1 teachers (convnet3_w32)",
        ),
        ("{set: {labels: online, label.part: 101}}", "5: label.part 101 is more than the 10 images of a batch"),
        ("{set: {labels: vector, label.part: 11}}", "5: label.part 11 is more than the 10 images of a batch"),
        ("{set: {labels: vector, student.loss: kl}}", "5: student.loss kl needs logits"),
        (
            "{set: {labels: stored, label.prune: 0.99, student.steps: 3}}",
            "5: label.prune 0.99 leaves no batch of 3 epochs with 1 of them each",
        ),
        (
            "{when: {method: sre2l}, set: {label.ensemble: norm}}",
            "5: label.ensemble depends on method, but protocol matched is one recipe for all",
        ),
        ("{set: {labels: stored, student.augment: dsa}}", "5: stored labels replay crops, flips and CutMix"),
        ("{set: {student.milestones: [0.5, 0.5]}}", "32: student.milestones: [0.5, 0.5] is out of range"),
        ("{set: {student.magnitude: 11}}", "31: student.magnitude: 11.0 is out of range"),
        ("{set: {student.accumulate: 0}}", "32: student.accumulate: 0 is out of range"),
        ("{set: {student.accumulate: 11}}", "5: a batch of 10 images cannot be cut into 11 parts"),
        ("{set: {student.warmup: 600}}", "5: a warm-up of 600 steps leaves nothing of 600"),
        ("{set: {student.warmup: 5, student.epochs: 5}}", "5: a warm-up of 5 epochs leaves nothing of 5"),
        ("{set: {student.schedule: step}}", "5: schedule step has no milestones"),
        ("{set: {student.milestones: [0.5]}}", "5: student.milestones has no effect on schedule cosine"),
        ("{set: {student.gamma: 0.5}}", "5: student.gamma has no effect on schedule cosine"),
        ("{set: {student.magnitude: 5}}", "5: student.magnitude has no effect on augment none"),
        ("{set: {teacher.stop: 0}}", "26: teacher.stop: 0 is out of range"),
        ("{set: {teacher.warmup: 12}}", "5: a teacher on digits warms up for 12 epochs, but trains for 12"),
        ("{set: {teacher.stop: 13}}", "5: a teacher on digits stops after epoch 13, but trains for 12"),
    ],
)
def test_nonsense_is_refused_with_place_and_hint(refused: Refused, rule: str, message: str) -> None:
    found = refused(SMALL + rules(rule))
    assert found.startswith(f"g.yaml:11:{message}"), found
    assert " - " in found, "a hint says what to do"


def test_label_overrides_are_in_the_keys_of_what_they_change_and_of_nothing_else(planned: Planned) -> None:
    """Online labels are made while a student learns, stored ones before."""

    def keys(kind: str, *lines: str) -> set[str]:
        return {
            s.key for s in planned(PAPER.replace("random, sre2l", "sre2l") + rules(*lines)).stages if s.kind == kind
        }

    stored = ("{set: {student.epochs: 40, student.batch: 4}}",)
    changes = ["label.part: 4", "label.prune: 0.5"]
    for change in changes:
        for kind, differs in (("relabel", True), ("evaluation", True), ("synthesis", False), ("teacher", False)):
            before, after = keys(kind, *stored), keys(kind, *stored, f"{{set: {{{change}}}}}")
            assert before and (not before & after) == differs, (change, kind)


def test_values_that_labels_do_not_use_split_no_keys(planned: Planned) -> None:
    """One teacher needs no ensemble; explicit defaults are defaults."""
    text = PAPER.replace("random, sre2l", "sre2l")
    plain = {s.key for s in planned(text).stages}
    for change in (
        "label.ensemble: norm", "label.ensemble: weighted, label.weights: [1.0]", "label.prune: 0.0",
        "label.temperature: 1", "teachers: grid", "teachers: paper",
    ):  # fmt: skip
        assert {s.key for s in planned(text + rules(f"{{set: {{{change}}}}}")).stages} == plain, change


def test_values_that_a_student_does_not_use_split_no_keys(planned: Planned) -> None:
    """Losses differ by labels and grids set values of all of them: what a cell's loss ignores is not in its key."""
    text = PAPER.replace("random, sre2l", "random")
    plain = planned(text + rules("{set: {student.optimizer: adamw, student.schedule: cosine}}")).cell_keys
    for change in ("temperature: 3", "squared: true", "ce_weight: 0.5", "momentum: 0.5"):
        rule = f"{{set: {{student.optimizer: adamw, student.schedule: cosine, student.{change}}}}}"
        assert planned(text + rules(rule)).cell_keys == plain, change
        used_there = rules("{set: {student.optimizer: sgd, labels: online, student.loss: mse_gt}}")
        assert ("momentum" in change or "ce_weight" in change) == (
            planned(text + used_there + f"  - {{set: {{student.{change}}}}}\n").cell_keys
            != planned(text + used_there).cell_keys
        )


@given(LABELS, st.sampled_from(["hard", "vector", "online", "stored"]), st.integers(1, 3))
def test_used_values_stay_and_others_are_defaults(label: LabelRecipe, labels: Any, teachers: int) -> None:
    found, plain = used(label, labels, teachers), LabelRecipe()
    assert used(found, labels, teachers) == found
    assert (found.prune == label.prune) or labels != "stored"
    assert (found.prune == plain.prune) or labels == "stored"
    assert (found.temperature == plain.temperature) or labels == "vector"
    assert (found.weights == label.weights) if found.ensemble == "weighted" else found.weights == ()
    assert found.ensemble == ("mean" if teachers == 1 or labels == "hard" else label.ensemble)
    assert found.part == (0 if labels == "hard" else label.part)


def test_ensembles_are_planned_for_online_stored_and_vector_labels(planned: Planned) -> None:
    text = PAPER.replace("[convnet3_w32]\n", "[convnet3+convnet4]\n", 1).replace("random, sre2l", "sre2l")
    wanted = "label.ensemble: weighted, label.weights: [0.25, 0.75], label.part: 2"
    for labels in ("online", "stored", "vector"):
        plan = planned(text + rules(f"{{set: {{labels: {labels}, {wanted}}}}}"))
        expected = LabelRecipe("weighted", (0.25, 0.75), 2)
        assert {s.label for s in specs(plan, "evaluation")} == {expected}
        assert {s.recipe.label for s in specs(plan, "relabel")} == ({expected} if labels != "online" else set())
        roles = {s.kind: {input_kind(r) for r in s.inputs} for s in plan.stages}
        assert ("teacher" in roles["evaluation"]) == (labels == "online")
        assert ("relabel" in roles["evaluation"]) == (labels != "online")


def test_vectors_are_learnt_with_cross_entropy_and_any_views(planned: Planned) -> None:
    rule = "{set: {labels: vector, label.temperature: 2, student.pad: 2, student.patch_shuffle: 2}}"
    plan = planned(BOTH + rules(rule))
    assert {(s.labels, s.recipe.loss, s.label) for s in specs(plan, "evaluation")} == {
        ("vector", "ce", LabelRecipe(temperature=2.0))
    }
    (made,) = {s.recipe for s in specs(plan, "relabel", ipc=1)}
    assert made == RelabelRecipe(1, 10, (1.0, 1.0), False, False, LabelRecipe(temperature=2.0))


def test_matched_labels_may_differ_from_the_default_but_not_between_methods(planned: Planned) -> None:
    text = SMALL.replace("[convnet3_w32]\n", "[convnet3+convnet4]\n", 1).replace(
        "[random, sre2l]", "[random_soft, sre2l]"
    )
    plan = planned(text + rules("{set: {label.ensemble: norm}}"))
    assert {(s.method, s.label.ensemble) for s in specs(plan, "evaluation")} == {
        ("random_soft", "norm"),
        ("sre2l", "norm"),
    }


def test_pruned_streams_last_as_long_as_the_student(planned: Planned) -> None:
    text = PAPER.replace("random, sre2l", "sre2l").replace("[1, 2]", "[5]")
    plan = planned(text + rules("{set: {label.prune: 0.5, student.steps: 50, student.batch: 20}}"))
    # 50 images in batches of 20 are 2 full ones: 50 steps are 25 epochs.
    assert {s.recipe.epochs for s in specs(plan, "relabel")} == {25}


def test_papers_weights_and_stops_are_planned(planned: Planned, committee: None) -> None:
    plan = planned(COMMITTEE)
    (relabel,) = specs(plan, "relabel")
    assert relabel.teachers == ("convnet4", "convnet5")
    assert relabel.recipe.label == LabelRecipe("weighted", (0.75, 0.25), 4)
    stops = {(s.arch, s.recipe.stop, s.recipe.epochs) for s in specs(plan, "teacher")}
    # The same two networks twice: whole for synthesis, stopped early for labels.
    assert stops == {(a, stop, 200) for a in ("convnet4", "convnet5") for stop in (None, 5)}
    by_key = {s.key: s.spec for s in plan.stages}
    for stage in plan.stages:
        used_stops = {by_key[k].recipe.stop for r, k in stage.inputs.items() if input_kind(r) == "teacher"}  # type: ignore[union-attr]
        assert used_stops == {"synthesis": {None}, "relabel": {5}}.get(stage.kind, set())


def test_early_stopped_teachers_are_shared_by_those_who_ask_for_the_same(planned: Planned, committee: None) -> None:
    text = grid(method="committee", dataset="cifar10", ipc="[1, 2]", protocol="paper", seeds="[0, 1]")
    assert len(specs(planned(text), "teacher")) == 4
    plan = planned(text + rules("{when: {ipc: 2}, set: {stop: 7}}"))
    assert {s.recipe.stop for s in specs(plan, "teacher")} == {None, 5, 7}


def test_matched_uses_whole_teachers_and_plain_labels(planned: Planned, committee: None) -> None:
    plan = planned(grid(method="committee", dataset="cifar10", protocol="matched"))
    assert {s.recipe.stop for s in specs(plan, "teacher")} == {None}
    assert {s.label for s in specs(plan, "evaluation")} == {LabelRecipe()}


def test_teachers_of_the_grid_replace_those_of_the_paper(planned: Planned, committee: None) -> None:
    text = grid(method="committee", dataset="cifar10", teacher="convnet3", protocol="paper")
    plan = planned(text + rules("{set: {teachers: grid}}"))
    assert {s.teachers for s in (*specs(plan, "synthesis"), *specs(plan, "relabel"))} == {("convnet3",)}
    # One teacher needs no weights; it still stops early for labels, which is the method's own choice.
    assert specs(plan, "relabel")[0].recipe.label == LabelRecipe(part=4)
    assert {(s.arch, s.recipe.stop) for s in specs(plan, "teacher")} == {("convnet3", None), ("convnet3", 5)}
    later = rules("{set: {teachers: grid}}", "{when: {method: committee}, set: {teachers: paper}}")
    assert planned(text + later).cell_keys == planned(text).cell_keys, "later overrides win"


def test_teachers_of_the_grid_change_nothing_under_matched(planned: Planned, committee: None) -> None:
    text = grid(method="committee", dataset="cifar10", teacher="convnet3", protocol="[paper, matched]")
    plain, changed = planned(text), planned(text + rules("{set: {teachers: grid}}"))
    same = [a == b for a, b in zip(plain.cell_keys, changed.cell_keys, strict=True)]
    assert [c.protocol for c in plain.cells] == ["paper", "matched"] and same == [False, True]


def test_a_papers_weights_are_not_given_to_other_teachers(planned: Planned, refused: Refused, committee: None) -> None:
    text = grid(method="committee", dataset="cifar10", teacher="convnet2+convnet3", protocol="paper")
    message = refused(text + rules("{set: {teachers: grid}}"))
    assert "committee has label weights for its paper's teachers only, not for convnet2+convnet3" in message
    assert "set label.ensemble: mean" in message
    for change, expected in (
        ("label.ensemble: mean", LabelRecipe(part=4)),
        ("label.weights: [0.9, 0.1]", LabelRecipe("weighted", (0.9, 0.1), 4)),
    ):
        plan = planned(text + rules(f"{{set: {{teachers: grid, {change}}}}}"))
        assert specs(plan, "relabel")[0].recipe.label == expected


def test_a_batch_smaller_than_a_papers_part_is_refused_where_it_is_set(refused: Refused, committee: None) -> None:
    message = refused(COMMITTEE + rules("{set: {student.batch: 3}}"))
    assert message.startswith(f"g.yaml:{len(COMMITTEE.splitlines()) + 2}:5: label.part 4 is more than the 3 images")


def test_early_stopped_teachers_are_trained_and_not_loaded(refused: Refused, committee: None) -> None:
    message = refused(COMMITTEE + rules("{set: {teacher.weights: file}}"))
    assert "label teachers with stop 5 are trained, but teacher.weights is file" in message
    message = refused(COMMITTEE + rules("{set: {teacher.epochs: 4}}"))
    assert "a teacher on cifar10 stops after epoch 5, but trains for 4" in message


def test_seeds_share_a_set_that_draws_nothing(planned: Planned, committee: None) -> None:
    plan = planned(grid(method="[committee, sre2l]", dataset="cifar10", protocol="paper", seeds="[3, 4]"))
    assert [s.seed for s in specs(plan, "synthesis", method="committee")] == [0]
    assert [s.seed for s in specs(plan, "synthesis", method="sre2l")] == [3, 4]
    assert [s.seed for s in specs(plan, "relabel")] == [3, 4], "views are drawn for every seed"


def test_seeds_share_vectors_of_a_set_that_draws_nothing(planned: Planned, committee: None) -> None:
    text = grid(method="[committee, sre2l]", dataset="cifar10", protocol="paper", seeds="[3, 4]")
    plan = planned(text + rules("{set: {labels: vector}}"))
    assert [s.seed for s in specs(plan, "relabel")] == [0, 0, 0]
    assert len({s.inputs["synthesis"] for s in plan.stages if s.kind == "relabel"}) == 3


def test_pruning_only_what_is_stored(planned: Planned) -> None:
    """A method's own pruning goes with its stream: other label policies have nothing to prune."""
    label = LabelRecipe(prune=0.9)
    assert used(label, "online", 1) == LabelRecipe() and used(label, "stored", 1) == label
    assert used(replace(label, temperature=3), "vector", 1) == LabelRecipe(temperature=3)


def test_plans_say_the_same_twice(planned: Planned, committee: None) -> None:
    text = COMMITTEE + rules("{set: {label.part: 3}}")
    first: Plan = planned(text)
    assert first == planned(text)
