"""The economy benchmark: what it runs, and one small run from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from suite import bench
from suite.benchmarks.economy import VARIANTS, _with_precision
from suite.errors import UserError
from suite.methods import get
from suite.spec.stages import stage_from_json


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["suite.bench", "economy", *map(str, words)])
    return bench.main()


def test_variants_are_methods_with_values_that_they_have() -> None:
    for variant in VARIANTS:
        get(variant.method).for_dataset("imagenet1k", 10, variant.values)
    assert len({v.name for v in VARIANTS}) == len(VARIANTS)
    judged = {v.name for v in VARIANTS if v.judged}
    assert {"edc", "e2d", "e2d + patience", "e2d + continuous", "e2d_adaptive"} == judged


@pytest.mark.parametrize("words", [("--only", "nothing"), ("--seeds", 0), ("--divide", 0)])
def test_impossible_settings_are_refused(monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]) -> None:
    with pytest.raises(UserError, match=r"variant 'nothing'|at least 1"):
        run_main(monkeypatch, *words)


def test_a_small_run_measures_counts_and_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "economy.json"
    words = ["--dataset", "digits", "--ipc", 1, "--teacher", "convnet2_w8", "--student", "convnet2_w8", "--seeds", 2]
    words += [
        "--teacher-epochs",
        1,
        "--student-steps",
        4,
        "--per-class",
        20,
        "--divide",
        400,
        "--loader",
        "torchvision",
    ]
    words += ["--only", "sre2l; e2d; e2d, bf16; e2d_adaptive", "--patience", 3, "--store", tmp_path / "store"]
    assert run_main(monkeypatch, *words, "--json", out) == 0
    value = json.loads(out.read_text())
    results = value["results"]
    assert set(results) == {"sre2l", "e2d", "e2d, bf16", "e2d_adaptive"}
    assert results["sre2l"]["passes_per_image"] == 4000 and results["sre2l"]["scaled_by"] == 400
    assert 141 <= results["e2d"]["iterations_per_image"] <= 200
    assert results["e2d_adaptive"]["passes_per_image"] <= results["e2d"]["passes_per_image"]
    assert results["e2d_adaptive"]["values"] == {"patience": 3}
    assert [len(results[n]["runs"]) for n in ("sre2l", "e2d", "e2d, bf16", "e2d_adaptive")] == [1, 2, 1, 2]
    assert 0 <= results["e2d"]["accuracy"] <= 100 and "accuracy" not in results["sre2l"]
    assert value["device"]["threads"] == 1 and value["provenance"]["commit"]
    assert len(list((tmp_path / "store" / "teacher").glob("*/*/out"))) == 1, "precisions share the teacher"


def test_another_precision_of_a_synthesis_is_followed_by_what_depends_on_it(tmp_path: Path) -> None:
    from suite.grid import load_plan
    from tests.tiny import write_grid

    stages = load_plan(write_grid(tmp_path)).stages
    assert _with_precision(stages, "fp32") == stages
    other = _with_precision(stages, "bf16")
    for one, two in zip(stages, other, strict=True):
        assert (one.key != two.key) == (one.kind in ("synthesis", "relabel", "evaluation"))
        assert stage_from_json(two.to_json()).key == two.key
