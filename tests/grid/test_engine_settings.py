"""`synthesis.stack` and `synthesis.compile`: roundings are part of a key, and keys of before are what they were."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from suite.errors import UserError
from suite.grid import Plan, load_plan
from suite.grid.stage_maker import StageMaker
from suite.spec.keys import canonical, plain, stage_key
from suite.spec.stages import VERSIONS, Stage, SynthesisSpec, stage_from_json

GRID = """\
name: rounded
seeds: [0]
protocol: [matched]
product: {{method: [{methods}], dataset: [digits], ipc: [2], teacher: [convnet2_w8], student: [convnet2_w8]}}
override:
  - {{set: {{student.steps: 5}}}}
{rules}
"""


def syntheses(folder: Path, methods: str, *rules: str) -> dict[str, Stage]:
    path = folder / "g.yaml"
    path.write_text(GRID.format(methods=methods, rules="\n".join(f"  - {rule}" for rule in rules)))
    plan: Plan = load_plan(path)
    return {s.spec.method: s for s in plan.stages if s.kind == "synthesis"}  # type: ignore[union-attr]


def test_the_key_of_a_synthesis_without_them_is_what_it_was(tmp_path: Path) -> None:
    stage = syntheses(tmp_path, "sre2l")["sre2l"]
    old: dict[str, Any] = {
        f.name: getattr(stage.spec, f.name) for f in fields(SynthesisSpec) if f.name not in ("stack", "compile")
    }
    assert stage.key == stage_key("synthesis", VERSIONS["synthesis"], old, stage.inputs)
    assert set(plain(stage.spec)) == set(old)


def test_each_value_has_a_key_of_its_own_and_survives_the_run_directory(tmp_path: Path) -> None:
    found = [
        syntheses(tmp_path, "sre2l", *rules)["sre2l"]
        for rules in ([], ["{set: {synthesis.stack: 20}}"], ["{set: {synthesis.compile: true}}"])
    ]
    assert len({stage.key for stage in found}) == 3
    assert [(s.spec.stack, s.spec.compile) for s in found] == [(1, False), (20, False), (1, True)]  # type: ignore[union-attr]
    for stage in found:
        assert stage_from_json(stage.to_json()).key == stage.key
        assert StageMaker().make("synthesis", stage.spec, stage.inputs).key == stage.key
        assert canonical(stage.spec) == canonical(plain(stage.spec))


def test_methods_that_have_no_such_loop_keep_their_keys(tmp_path: Path) -> None:
    methods = "random, rded, sre2l, e2d_adaptive"
    before = syntheses(tmp_path, methods)
    after = syntheses(tmp_path, methods, "{set: {synthesis.stack: 20, synthesis.compile: true}}")
    assert {m for m in before if before[m].key != after[m].key} == {"sre2l", "e2d_adaptive"}
    assert after["e2d_adaptive"].spec.stack == 1, "images with clocks of their own are not stacked"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("{set: {synthesis.stack: 0}}", "synthesis.stack: 0 is out of range - at least 1"),
        ("{set: {synthesis.stack: true}}", "not a whole number"),
        ("{set: {synthesis.stuck: 2}}", "synthesis has no 'stuck' - did you mean 'stack'"),
        ("{when: {method: random}, set: {synthesis.compile: true}}", "synthesis.compile has no effect"),
        ("{when: {method: e2d_adaptive}, set: {synthesis.stack: 2}}", "synthesis.stack has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, rule: str, text: str) -> None:
    with pytest.raises(UserError) as refused:
        syntheses(tmp_path, "random, sre2l, e2d_adaptive", rule)
    assert text in refused.value.line() and "g.yaml:7:" in refused.value.line()
