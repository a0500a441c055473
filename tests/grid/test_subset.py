"""`--only`: the cells that conditions select, and exactly the stages that these need."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.errors import UserError
from suite.grid import Plan, load_plan
from suite.grid.schema import CONDITIONS
from suite.grid.subset import needed, parse_only, subset
from suite.spec.stages import input_kind

GRID = """\
name: parts
seeds: [0, 1]
protocol: [paper, matched]
product:
  method: [random, rded, sre2l]
  dataset: [digits]
  ipc: [1, 10]
  teacher: [convnet2_w8]
  student: [convnet2_w8, convnet3_w16]
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("only") / "parts.yaml"
    path.write_text(GRID)
    return load_plan(path)


def test_conditions_of_one_flag_are_all_met_and_keys_do_not_change(plan: Plan) -> None:
    part = subset(plan, ["method=rded,ipc=10,seed=1"])
    assert len(part.cells) == 4
    assert {(c.method, c.ipc, c.seed) for c in part.cells} == {("rded", 10, 1)}
    assert part.name == plan.name
    whole = {s.key: s for s in plan.stages}
    assert all(whole[s.key] is s for s in part.stages)
    assert {s.kind for s in part.stages} == {"prepare", "teacher", "synthesis", "evaluation"}


def test_an_axis_named_twice_and_flags_named_twice_are_alternatives(plan: Plan) -> None:
    either = subset(plan, ["method=rded,method=sre2l,ipc=1"])
    assert {c.method for c in either.cells} == {"rded", "sre2l"} and {c.ipc for c in either.cells} == {1}
    both = subset(plan, ["method=random,ipc=1", "method=sre2l,ipc=10"])
    assert {(c.method, c.ipc) for c in both.cells} == {("random", 1), ("sre2l", 10)}


@given(data=st.data())
def test_a_part_holds_its_cells_and_their_closure_and_nothing_else(plan: Plan, data: st.DataObject) -> None:
    cell = data.draw(st.sampled_from(plan.cells))
    axes = data.draw(st.lists(st.sampled_from(CONDITIONS), min_size=1, unique=True))
    part = subset(plan, [",".join(f"{a}={getattr(cell, a)}" for a in axes)])
    expected = [c for c in plan.cells if all(getattr(c, a) == getattr(cell, a) for a in axes)]
    assert part.cells == expected
    there = {(s.kind, s.key) for s in part.stages}
    used = {(input_kind(r), k) for s in part.stages for r, k in s.inputs.items()}
    assert used <= there, "every input is in the part"
    assert there - used == {("evaluation", k) for k in part.cell_keys}, "nothing is there that nobody needs"
    assert part.stages == [s for s in plan.stages if (s.kind, s.key) in there], "in the plan's order"


def test_no_condition_is_the_plan_itself(plan: Plan) -> None:
    assert subset(plan, []) is plan
    assert needed(plan.stages, set(plan.cell_keys)) == plan.stages


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method=rdde", ["method rdde", "did you mean 'rded'"]),
        ("metod=rded", ["no axis 'metod'", "did you mean 'method'"]),
        ("ipc=ten", ["whole number", "'ten'"]),
        ("ipc=5", ["ipc 5", "1, 10"]),
        ("rded", ["'rded' is not axis=value", "e.g. method=e2d,ipc=10"]),
        ("", ["is not axis=value"]),
        ("method=", ["is not axis=value"]),
        ("method=rded,,ipc=1", ["'' is not axis=value"]),
        ("seed=-1", ["whole number"]),
    ],
)
def test_what_selects_nothing_is_refused_with_a_hint(plan: Plan, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        subset(plan, [text])
    assert caught.value.exit_code == 2 and caught.value.hint
    assert all(word in caught.value.line() for word in words), caught.value.line()


def test_values_that_no_cell_has_together_are_an_empty_selection(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(GRID + "exclude:\n  - {method: rded, ipc: 1, why: too few}\n")
    with pytest.raises(UserError, match="no cell of parts meets method=rded,ipc=1"):
        subset(load_plan(path), ["method=rded,ipc=1"])


@given(st.text(max_size=30))
def test_any_text_is_conditions_or_one_line(text: str) -> None:
    try:
        assert parse_only([text])[0]
    except UserError as error:
        assert "\n" not in error.line() and error.hint
