"""Overrides: names and types are checked against what runs, and shared stages cannot differ by accident."""

from __future__ import annotations

from typing import Any

import pytest

from suite.grid import Plan
from tests.grid.conftest import SMALL, Planned, Refused

TOY = """\
name: toys
seeds: [0]
protocol: [paper, matched]
product:
  method: [toy, toy_free]
  dataset: [digits, cifar10]
  ipc: [1, 10]
  teacher: [convnet3]
  student: [convnet2]
"""


def specs(plan: Plan, kind: str, **where: Any) -> list[Any]:
    found = [s.spec for s in plan.stages if s.kind == kind]
    return [s for s in found if all(getattr(s, k) == v for k, v in where.items())]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "{when: {method: sre2l}, set: {itertions: 5}}",
            "35: method 'sre2l' has no hyper-parameter 'itertions' - did you mean 'iterations'?",
        ),
        ("{set: {iterations: 5}}", "12: method 'random' has no hyper-parameter 'iterations' - add method to when"),
        ("{when: {method: sre2l}, set: {iterations: 1.5}}", "47: iterations: 1.5 is not a whole number"),
        ("{when: {method: sre2l}, set: {iterations: true}}", "47: iterations: true is not a whole number"),
        ("{when: {method: sre2l}, set: {iterations: '5'}}", "47: iterations: '5' is not a whole number"),
        ("{when: {method: sre2l}, set: {iterations: null}}", "47: iterations: nothing is not a whole number"),
        ("{when: {method: sre2l}, set: {lr: fast}}", "39: lr: 'fast' is not a number"),
        ("{when: {method: sre2l}, set: {flip: 1}}", "41: flip: 1 is not true or false"),
        ("{when: {method: sre2l}, set: {flip: yes}}", "41: flip: 'yes' is not true or false"),
        ("{when: {method: sre2l}, set: {crop: [0.1]}}", "41: crop: a list is not a list of 2 numbers"),
        ("{when: {method: sre2l}, set: {name: x}}", "35: method 'sre2l' has no hyper-parameter 'name'"),
        (
            "{when: {method: sre2l}, set: {labels: soft}}",
            "43: labels: 'soft' is not allowed - allowed: hard, online, stored",
        ),
        ("{set: {student.stps: 5}}", "12: student has no 'stps' - did you mean 'steps'?"),
        ("{set: {student.steps: 0}}", "27: student.steps: 0 is out of range - at least 1"),
        ("{set: {student.steps: null}}", "27: student.steps: nothing is not a whole number"),
        ("{set: {student.batch: -4}}", "27: student.batch: -4 is out of range"),
        ("{set: {student.lr: 0}}", "24: student.lr: 0.0 is out of range - more than 0"),
        ("{set: {student.ema: 1.0}}", "25: student.ema: 1.0 is out of range"),
        ("{set: {student.crop: [0.5, 0.1]}}", "26: student.crop: [0.5, 0.1] is out of range"),
        ("{set: {student.optimizer: adam}}", "31: student.optimizer: 'adam' is not allowed - did you mean 'adamw'?"),
        ("{set: {student.steps: 5, student.epochs: 5}}", "12: student.epochs and student.steps are both set"),
        ("{set: {teacher.width: 5}}", "12: teacher has no 'width'"),
        (
            "{set: {teacher.weights: imagenet}}",
            "29: teacher.weights: 'imagenet' is not allowed - allowed: file, pretrained, scratch",
        ),
        ("{set: {teacher.weights: pretrained}}", "5: there are no pretrained weights of convnet3_w32 for digits"),
        ("{set: {teacher.weights: file, teacher.epochs: 3}}", "5: teacher.epochs has no effect"),
        ("{set: {teacher.seed: -1}}", "26: teacher.seed: -1 is out of range"),
        ("{set: {statistics.dataset: x}}", "12: statistics has no 'dataset'"),
        (
            "{when: {method: sre2l}, set: {teacher.epochs: 5}}",
            "13: teacher.epochs depends on method, but teachers are shared",
        ),
        ("{when: {ipc: 1}, set: {teacher.epochs: 5}}", "13: teacher.epochs depends on ipc"),
        ("{when: {seed: 1}, set: {teacher.seed: 1}}", "13: teacher.seed depends on seed"),
        (
            "{when: {protocol: matched}, set: {statistics.batch: 5}}",
            "13: statistics.batch depends on protocol, but statistics are shared",
        ),
        (
            "{when: {teacher: convnet3+convnet4}, set: {teacher.epochs: 5}}",
            "22: teacher.epochs is set for 'convnet3+convnet4', which is several teachers",
        ),
        ("{when: {ipc: 7}, set: {student.steps: 5}}", "5: override matches no cell"),
        ("{when: {method: rded}, set: {candidates: 5}}", "5: override matches no cell"),
        ("{when: {teacher: convnet4}, set: {teacher.epochs: 5}}", "5: override matches no cell"),
        ("{when: {method: rdde}, set: {factor: 5}}", "21: unknown method 'rdde' - did you mean 'rded'?"),
        ("{when: {student: convnet33}, set: {student.steps: 5}}", "22: unknown architecture"),
        ("{when: {protocol: ppaer}, set: {student.steps: 5}}", "23: protocol: 'ppaer' is not allowed"),
        (
            "{when: {method: random}, set: {labels: online, student.loss: ce}}",
            "5: online labels cannot be learnt with loss ce",
        ),
        ("{when: {method: random}, set: {student.loss: kl}}", "5: student.loss kl needs soft labels"),
        (
            "{when: {method: sre2l}, set: {labels: stored, student.pad: 4}}",
            "5: stored labels replay crops, flips and CutMix, but the recipe has pad",
        ),
        ("{when: {method: sre2l}, set: {labels: stored, student.patch_shuffle: 2}}", "5: stored labels replay"),
        (
            "{when: {method: sre2l}, set: {student.epochs: 5}}",
            "5: student.epochs depends on method, but protocol matched is one recipe for all",
        ),
    ],
)
def test_override_is_refused_with_place_and_hint(refused: Refused, rule: str, message: str) -> None:
    assert refused(f"{SMALL}override:\n  - {rule}\n").startswith(f"g.yaml:11:{message}")


def test_later_overrides_win_and_earlier_ones_stay_elsewhere(planned: Planned) -> None:
    plan = planned(
        SMALL
        + """\
override:
  - {when: {method: sre2l}, set: {iterations: 10, lr: 1}}
  - {when: {method: sre2l, ipc: 2}, set: {iterations: 20}}
"""
    )
    got = {(s.ipc, s.params["iterations"], s.params["lr"]) for s in specs(plan, "synthesis", method="sre2l")}
    assert got == {(1, 10, 1.0), (2, 20, 1.0)}


def test_values_become_the_types_of_the_method(planned: Planned, toys: None) -> None:
    plan = planned(
        TOY
        + "override:\n  - when: {method: toy}\n"
        + "    set: {count: 9, rate: 2, flag: false, mode: fast, area: [0, 1], cap: 4}\n"
    )
    params = specs(plan, "synthesis", method="toy")[0].params
    assert params == {"count": 9, "rate": 2.0, "flag": False, "mode": "fast", "area": (0.0, 1.0), "cap": 4}
    assert isinstance(params["rate"], float) and isinstance(params["area"], tuple)


def test_overrides_come_after_the_papers_values(planned: Planned, toys: None) -> None:
    counts = {(s.dataset, s.ipc): s.params["count"] for s in specs(planned(TOY), "synthesis", method="toy")}
    assert counts == {("digits", 1): 3, ("digits", 10): 3, ("cifar10", 1): 3, ("cifar10", 10): 7}
    plan = planned(TOY + "override:\n  - {when: {method: toy, dataset: cifar10}, set: {count: 5}}\n")
    assert {s.params["count"] for s in specs(plan, "synthesis", method="toy", dataset="cifar10")} == {5}


def test_a_value_that_the_method_itself_refuses_is_an_error_of_the_grid(refused: Refused, toys: None) -> None:
    message = refused(TOY + "override:\n  - {when: {method: toy}, set: {count: 101}}\n")
    assert message == "g.yaml:11:5: count 101 is more than 100 - correct the override"


def test_a_literal_is_checked(refused: Refused, toys: None) -> None:
    message = refused(TOY + "override:\n  - {when: {method: toy}, set: {mode: fats}}\n")
    assert message == "g.yaml:11:39: mode: 'fats' is not allowed - did you mean 'fast'?"


def test_a_bare_name_must_belong_to_every_method_that_it_can_concern(refused: Refused, toys: None) -> None:
    message = refused(TOY + "override:\n  - {when: {dataset: digits}, set: {count: 5}}\n")
    assert message.startswith("g.yaml:11:37: method 'toy_free' has no hyper-parameter 'count' - add method to when")


def test_a_budget_in_steps_clears_the_one_in_epochs_and_the_reverse(planned: Planned) -> None:
    text = SMALL.replace("[matched]", "[paper, matched]")
    steps = specs(planned(text + "override:\n  - {set: {student.steps: 50}}\n"), "evaluation")
    assert {(s.recipe.steps, s.recipe.epochs) for s in steps} == {(50, None)}
    epochs = specs(planned(text + "override:\n  - {set: {student.epochs: 4}}\n"), "evaluation")
    assert {(s.recipe.steps, s.recipe.epochs) for s in epochs} == {(None, 4)}
    both = "override:\n  - {set: {student.epochs: 4}}\n  - {when: {ipc: 1}, set: {student.steps: 7}}\n"
    mixed = {(s.ipc, s.recipe.steps, s.recipe.epochs) for s in specs(planned(text + both), "evaluation")}
    assert mixed == {(1, 7, None), (2, None, 4)}


def test_a_teacher_is_the_same_alone_and_in_an_ensemble(planned: Planned) -> None:
    text = SMALL.replace("[convnet3_w32]", "[convnet3, convnet3+convnet4]").replace("[random, sre2l]", "[sre2l]")
    plan = planned(text + "override:\n  - {when: {teacher: convnet3}, set: {teacher.epochs: 2, teacher.seed: 8}}\n")
    teachers = {s.arch: (s.recipe.epochs, s.seed) for s in specs(plan, "teacher")}
    assert len(specs(plan, "teacher")) == 2
    assert teachers == {"convnet3": (2, 8), "convnet4": (12, 0)}


def test_students_of_one_method_may_differ_under_protocol_paper(planned: Planned) -> None:
    text = SMALL.replace("[matched]", "[paper, matched]")
    rule = "override:\n  - {when: {method: sre2l, protocol: paper}, set: {student.epochs: 5}}\n"
    recipes = {(s.protocol, s.method): s.recipe for s in specs(planned(text + rule), "evaluation")}
    assert recipes["paper", "sre2l"].epochs == 5
    assert recipes["matched", "sre2l"].steps == recipes["matched", "random"].steps == 600


def test_statistics_take_their_overrides(planned: Planned) -> None:
    text = SMALL.replace("[random, sre2l]", "[e2d]")
    (plain,) = specs(planned(text), "statistics")
    assert (plain.per_class, plain.crop, plain.flip, plain.patch, plain.batch) == (None, (1.0, 1.0), False, 4, 256)
    rule = "override:\n  - {when: {dataset: digits}, set: {statistics.per_class: 20, statistics.crop: [0.5, 1]}}\n"
    (changed,) = specs(planned(text + rule), "statistics")
    assert (changed.per_class, changed.crop) == (20, (0.5, 1.0))


def test_a_recipe_override_may_leave_pretrained_teachers_alone(planned: Planned) -> None:
    text = SMALL.replace("dataset: digits", "dataset: [imagenet1k, imagenette]").replace("[convnet3_w32]", "resnet18")
    text = text.replace("[convnet3_w32, convnet2]", "resnet18")
    plan = planned(text + "override:\n  - {set: {teacher.epochs: 3}}\n")
    assert {(s.dataset, s.weights, s.recipe and s.recipe.epochs) for s in specs(plan, "teacher")} == {
        ("imagenet1k", "pretrained", None),
        ("imagenette", "scratch", 3),
    }


def test_labels_can_be_overridden(planned: Planned) -> None:
    plan = planned(SMALL + "override:\n  - {when: {method: sre2l, ipc: 1}, set: {labels: stored}}\n")
    assert {(s.method, s.ipc, s.labels) for s in specs(plan, "evaluation")} == {
        ("random", 1, "hard"),
        ("random", 2, "hard"),
        ("sre2l", 1, "stored"),
        ("sre2l", 2, "online"),
    }
    assert {s.ipc for s in specs(plan, "relabel")} == {1}
