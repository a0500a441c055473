"""Cells: their order, their number, exclusions, duplicates and variants."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from suite.errors import UserError
from suite.grid import Cell, load_plan
from tests.grid.conftest import SMALL, Planned, Refused


def test_the_last_axis_runs_fastest(planned: Planned) -> None:
    cells = planned(SMALL).cells
    assert len(cells) == 2 * 2 * 2 * 2
    assert cells[:5] == [
        Cell("random", "digits", 1, "convnet3_w32", "convnet3_w32", "matched", 0),
        Cell("random", "digits", 1, "convnet3_w32", "convnet3_w32", "matched", 1),
        Cell("random", "digits", 1, "convnet3_w32", "convnet2", "matched", 0),
        Cell("random", "digits", 1, "convnet3_w32", "convnet2", "matched", 1),
        Cell("random", "digits", 2, "convnet3_w32", "convnet3_w32", "matched", 0),
    ]
    assert planned(SMALL).cells == cells


def test_ten_to_the_tenth_cells_are_refused_in_milliseconds(tmp_path: Path) -> None:
    # Five axes of 25 values, 32 seeds and both protocols: 25^5 x 64 = 625,000,000; then ten times ten.
    values = ", ".join(f"v{i}" for i in range(100))
    text = (
        f"name: big\nseeds: [{', '.join(map(str, range(50)))}]\nprotocol: [paper, matched]\nproduct:\n"
        f"  method: [{values}]\n  dataset: [{values}]\n  ipc: [{', '.join(map(str, range(1, 101)))}]\n"
        f"  teacher: [{values}]\n  student: [v]\n"
    )
    path = tmp_path / "g.yaml"
    path.write_text(text)
    best = 1e9
    for _ in range(5):
        begin = time.perf_counter()
        with pytest.raises(UserError) as caught:
            load_plan(path)
        best = min(best, time.perf_counter() - begin)
    assert "the grid has 10,000,000,000 cells, more than 100,000" in caught.value.what
    assert "--max-cells" in caught.value.hint
    assert caught.value.where == f"{path}:5:3"
    print(f"refused in {best * 1e3:.1f} ms")
    assert best < 0.05  # 4 ms on an idle core, most of it reading the file


def test_the_cap_can_be_raised_and_lowered(planned: Planned, refused: Refused) -> None:
    assert len(planned(SMALL, max_cells=16).cells) == 16
    assert "16 cells, more than 15" in refused(SMALL, max_cells=15)


def test_excluded_cells_keep_their_reason(planned: Planned) -> None:
    plan = planned(SMALL + 'exclude:\n  - {method: sre2l, ipc: [1], seed: 1, why: "too slow"}\n')
    assert len(plan.cells) == 14
    assert [(c.method, c.ipc, c.seed, why) for c, why in plan.excluded] == [("sre2l", 1, 1, "too slow")] * 2
    assert not {c for c, _ in plan.excluded} & set(plan.cells)


CELL = "{method: random, dataset: digits, ipc: 5, teacher: convnet3, student: convnet3"


def test_explicit_cells_take_the_grids_protocols_and_seeds_unless_they_have_their_own(planned: Planned) -> None:
    plan = planned(SMALL + f"cells:\n  - {CELL}}}\n  - {CELL}, seed: 9, protocol: paper}}\n")
    extra = plan.cells[16:]
    assert [(c.protocol, c.seed) for c in extra] == [("matched", 0), ("matched", 1), ("paper", 9)]


def test_a_cell_that_repeats_the_product_is_refused_with_both_lines(refused: Refused) -> None:
    text = SMALL + "cells:\n  - {method: random, dataset: digits, ipc: 1, teacher: convnet3_w32, student: convnet2}\n"
    message = refused(text)
    assert message.startswith("g.yaml:11:5: cell random digits ipc1 convnet3_w32 -> convnet2 matched seed0")
    assert "is a duplicate of line 5" in message


def test_a_cell_listed_twice_is_refused_with_both_lines(refused: Refused) -> None:
    message = refused(f"name: x\ncells:\n  - {CELL}}}\n\n  - {CELL}}}\n")
    assert message.startswith("g.yaml:5:5:") and "is a duplicate of line 3" in message


TWO = """\
name: two
product:
  - {method: random, dataset: digits, ipc: [1, 2], teacher: convnet3, student: convnet3}
  - {method: sre2l, dataset: digits, ipc: 1, teacher: convnet3, student: convnet3}
"""


def test_several_products_are_concatenated(planned: Planned, refused: Refused) -> None:
    assert [(c.method, c.ipc) for c in planned(TWO).cells] == [("random", 1), ("random", 2), ("sre2l", 1)]
    overlapping = TWO.replace("method: sre2l", "method: [sre2l, random]")
    assert refused(overlapping).startswith("g.yaml:4:5: cell random digits ipc1")
    assert "is a duplicate of line 3" in refused(overlapping)


VARIANT = (
    SMALL
    + """\
exclude:
  - {method: sre2l, ipc: 2, why: "big"}
variants:
  tiny:
    seeds: [5]
    protocol: [paper]
    product: {ipc: 1, student: convnet2}
    override:
      - {when: {method: sre2l}, set: {iterations: 7}}
  more:
    exclude:
      - {seed: 1, why: "one is enough"}
"""
)


def test_a_variant_replaces_axes_and_appends_rules(planned: Planned) -> None:
    plan = planned(VARIANT, variant="tiny")
    assert plan.name == "small.tiny"
    assert plan.cells == [
        Cell("random", "digits", 1, "convnet3_w32", "convnet2", "paper", 5),
        Cell("sre2l", "digits", 1, "convnet3_w32", "convnet2", "paper", 5),
    ]
    assert [s.spec.params["iterations"] for s in plan.stages if s.kind == "synthesis" and s.spec.params] == [7]
    assert len(planned(VARIANT).cells) == 12
    more = planned(VARIANT, variant="more")
    assert len(more.cells) == 6 and {why for _, why in more.excluded} == {"big", "one is enough"}


def test_a_variants_own_rules_must_match_but_the_grids_need_not(planned: Planned, refused: Refused) -> None:
    assert planned(VARIANT, variant="tiny").excluded == []  # the grid's exclusion of ipc 2 has nothing to do here
    wrong = VARIANT.replace("{seed: 1, why", "{seed: 3, why")
    assert refused(wrong, variant="more").startswith("g.yaml:21:9: exclude matches no cell")


def test_an_unknown_variant_is_refused(refused: Refused) -> None:
    assert "unknown variant 'tny' - did you mean 'tiny'?" in refused(VARIANT, variant="tny")
    assert "this grid has no variants" in refused(SMALL, variant="tiny")


def test_a_variant_of_several_products_names_all_axes(planned: Planned, refused: Refused) -> None:
    message = refused(TWO + "variants:\n  v:\n    product: {ipc: 3}\n", variant="v")
    assert message.startswith("g.yaml:7:14: product of a variant lacks method, dataset, teacher, student")
    whole = "{method: random, dataset: digits, ipc: 3, teacher: convnet3, student: convnet3}"
    assert len(planned(TWO + f"variants:\n  v:\n    product: {whole}\n", variant="v").cells) == 1
