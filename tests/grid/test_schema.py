"""What a grid may say, and how it is told what it may not."""

from __future__ import annotations

import pytest

from suite.grid.schema import check_grid
from suite.grid.yaml_strict import parse_yaml
from tests.grid.conftest import SMALL, Planned, Refused


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ipc: [1, 2]", "ipc: [1, 0]", "g.yaml:7:12: ipc: 0 is out of range - 1 to 10000 are allowed"),
        ("ipc: [1, 2]", "ipc: -1", "g.yaml:7:8: ipc: -1 is out of range"),
        ("ipc: [1, 2]", "ipc: 1000000000", "g.yaml:7:8: ipc: 1000000000 is out of range"),
        ("ipc: [1, 2]", "ipc: [true]", "g.yaml:7:9: ipc: true is not a whole number"),
        ("ipc: [1, 2]", "ipc: [1, 1.0]", "g.yaml:7:12: ipc: 1.0 is not a whole number"),
        ("ipc: [1, 2]", "ipc: ['1']", "g.yaml:7:9: ipc: '1' is not a whole number"),
        ("ipc: [1, 2]", "ipc: 1e1", "g.yaml:7:8: ipc: 10.0 is not a whole number"),
        ("ipc: [1, 2]", "ipc: []", "g.yaml:7:8: ipc is empty"),
        ("ipc: [1, 2]", "ipc:", "g.yaml:7:7: ipc has no value"),
        ("ipc: [1, 2]", "ipc: [null]", "g.yaml:7:9: ipc has no value"),
        ("ipc: [1, 2]", "ipc: {from: 1}", "g.yaml:7:8: ipc: a mapping is not a whole number"),
        ("ipc: [1, 2]", "icp: 1", "g.yaml:7:3: unknown key 'icp' - did you mean 'ipc'?"),
        ("  ipc: [1, 2]\n", "", "g.yaml:5:3: 'ipc' is missing"),
        ("ipc: [1, 2]", "ipc: [2, 1,\n    2]", "g.yaml:8:5: ipc: 2 is a duplicate of line 7"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "g.yaml:2:12: seeds: 0 is a duplicate of line 2"),
        ("seeds: [0, 1]", "seeds: [2147483649]", "g.yaml:2:9: seeds: 2147483649 is out of range"),
        ("seeds: [0, 1]", "seeds: false", "g.yaml:2:8: seeds: false is not a whole number"),
        ("seeds: [0, 1]", "seed: 0", "g.yaml:2:1: unknown key 'seed' - did you mean 'seeds'?"),
        ("[matched]", "[papr]", "g.yaml:3:12: protocol: 'papr' is not allowed - did you mean 'paper'?"),
        ("[matched]", "[matched]\nloader: fcv", "g.yaml:4:9: loader: 'fcv' is not allowed - did you mean 'ffcv'?"),
        ("[matched]", "[matched]\nprecision: fp16", "g.yaml:4:12: precision: 'fp16' is not allowed"),
        ("[matched]", "[matched]\noutput: ../../etc", "g.yaml:4:1: unknown key 'output'"),
        ("name: small", "name: ../../etc", "g.yaml:1:7: name: '../../etc' is not a name"),
        ("name: small", "name: /etc/passwd", "g.yaml:1:7: name: '/etc/passwd' is not a name"),
        ("name: small", "name: '~'", "g.yaml:1:7: name: '~' is not a name"),
        ("name: small", "name: $HOME", "g.yaml:1:7: name: '$HOME' is not a name"),
        ("name: small", "name: a/b", "g.yaml:1:7: name: 'a/b' is not a name"),
        ("name: small", "name: ..", "g.yaml:1:7: name: '..' is not a name"),
        ("name: small", 'name: "small\\n"', "g.yaml:1:7: name: 'small\\n' is not a name"),
        ("name: small", "name: " + "a" * 65, "g.yaml:1:7: name: 'aaa"),
        ("name: small", "name: 7", "g.yaml:1:7: name: 7 is not text"),
        ("name: small\n", "", "g.yaml:1:1: 'name' is missing"),
        ("dataset: digits", "dataset: [digits, 5]", "g.yaml:6:21: dataset: 5 is not text - quote it"),
        ("dataset: digits", "dataset: no", "g.yaml:6:12: unknown dataset 'no'"),
        ("dataset: digits", "dataset: dgits", "g.yaml:6:12: unknown dataset 'dgits' - did you mean 'digits'?"),
        ("dataset: digits", "dataset: digits-c99", "g.yaml:6:12: 'digits-c99' asks for 99 classes"),
        ("dataset: digits", "dataset: ../digits", "g.yaml:6:12: unknown dataset '../digits'"),
        ("sre2l]", "srel2]", "g.yaml:5:20: unknown method 'srel2' - did you mean 'sre2l'?"),
        ("[convnet3_w32]", "[convnet9]", "g.yaml:8:13: unknown architecture 'convnet9'"),
        ("[convnet3_w32]", "convnet3+convnet3", "g.yaml:8:12: teacher 'convnet3+convnet3' names an architecture twice"),
        ("convnet2]", "convnt2]", "g.yaml:9:27: unknown architecture 'convnt2'"),
        ("convnet2]", "convnet2+convnet3]", "g.yaml:9:27: unknown architecture 'convnet2+convnet3'"),
    ],
)
def test_schema_names_the_place_and_what_is_allowed(refused: Refused, old: str, new: str, message: str) -> None:
    assert old in SMALL
    assert refused(SMALL.replace(old, new)).startswith(message)


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("exclude:\n  - {method: random}\n", "g.yaml:11:5: 'why' is missing"),
        ("exclude:\n  - {why: x}\n", "g.yaml:11:5: exclude names no condition"),
        ("exclude:\n  - {methd: random, why: x}\n", "g.yaml:11:6: unknown key 'methd' - did you mean 'method'?"),
        ("exclude: {method: random, why: x}\n", "g.yaml:10:10: exclude: a mapping is not a list"),
        ("exclude:\n  - {ipc: 50, why: x}\n", "g.yaml:11:5: exclude matches no cell"),
        ("exclude:\n  - {dataset: digits, why: x}\n", "g.yaml:11:5: every cell of the grid is excluded"),
        ("exclude:\n  - {method: sre3l, why: x}\n", "g.yaml:11:14: unknown method 'sre3l'"),
        ("override:\n  - {when: {ipc: 1}}\n", "g.yaml:11:5: 'set' is missing"),
        ("override:\n  - {set: {}}\n", "g.yaml:11:11: set is empty"),
        ("override:\n  - {set: [a]}\n", "g.yaml:11:11: set: a list is not a mapping"),
        ("override:\n  - {whn: {}, set: {a: 1}}\n", "g.yaml:11:6: unknown key 'whn' - did you mean 'when'?"),
        ("variants: {small: {seed: [0]}}\n", "g.yaml:10:20: unknown key 'seed' - did you mean 'seeds'?"),
        ("variants: {a: {product: {icp: 1}}}\n", "g.yaml:10:26: unknown key 'icp' - did you mean 'ipc'?"),
        ("variants: {A b: {}}\n", "g.yaml:10:17: 'A b' is not a name"),
        ("variants: {a: {seeds: [3, 3]}}\n", "g.yaml:10:27: seeds: 3 is a duplicate"),
        ("cells: {method: random}\n", "g.yaml:10:8: cells: a mapping is not a list"),
        ("cells:\n  - {method: random}\n", "g.yaml:11:5: 'dataset' is missing"),
    ],
)
def test_sections_are_checked_like_the_rest(refused: Refused, addition: str, message: str) -> None:
    assert refused(SMALL + addition).startswith(message)


@pytest.mark.parametrize("text", ["- 1\n", "just words\n", "42\n"])
def test_a_grid_is_a_mapping(refused: Refused, text: str) -> None:
    assert refused(text).startswith("g.yaml:1:1: a grid is a mapping")


def test_a_grid_without_cells_is_refused(refused: Refused) -> None:
    assert refused("name: x\n").startswith("g.yaml:1:1: the grid has neither product nor cells")


def test_scalars_and_lists_mean_the_same(planned: Planned) -> None:
    listed = planned(SMALL.replace("[1, 2]", "[1]").replace("seeds: [0, 1]", "seeds: [0]"))
    scalar = planned(
        SMALL.replace("[1, 2]", "1")
        .replace("seeds: [0, 1]", "seeds: 0")
        .replace("[matched]", "matched")
        .replace("[convnet3_w32]", "convnet3_w32")
    )
    assert listed.cells == scalar.cells and listed.stages == scalar.stages


def test_defaults() -> None:
    grid = check_grid(parse_yaml(SMALL.replace("seeds: [0, 1]\nprotocol: [matched]\n", "").encode(), "g"))
    assert (grid.seeds, grid.protocol, grid.loader, grid.precision) == ((0,), ("matched",), "ffcv", "fp32")


def test_the_first_problem_in_the_file_is_reported(refused: Refused) -> None:
    text = SMALL.replace("[matched]", "[bad]").replace("ipc: [1, 2]", "ipc: 0")
    assert refused(text).startswith("g.yaml:3:12:")
