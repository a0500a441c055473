"""Diversity: mean cosine similarity within classes, from features to the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.bench import main
from suite.benchmarks.diversity import measure
from suite.data.distilled import DistilledSet
from suite.errors import DataError, UserError
from suite.grid import Plan, load_plan
from suite.leaderboard.similarity import read_similarities
from suite.learn.diversity import class_similarities, similarity
from suite.store import Store
from tests.learn.synthesis_parts import DigitImages, small_teacher
from tests.tiny import write_grid, write_run

GRID = """\
name: tiny
loader: torchvision
seeds: [0, 1]
protocol: [matched]
product:
  - {method: [random, delt], dataset: [digits], ipc: [1, 2], teacher: [convnet2_w8], student: [convnet2_w8]}
override:
  - {when: {dataset: digits}, set: {student.steps: 6, teacher.epochs: 1}}
  - {when: {method: delt}, set: {iterations: 4, rounds: 2}}
"""


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_similarity_is_the_mean_over_all_pairs_of_a_class(seed: int, classes: int, ipc: int) -> None:
    features = torch.randn(classes * ipc, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(ipc)
    for c, found in enumerate(class_similarities(features, labels).tolist()):
        own = features[labels == c]
        pairs = [F.cosine_similarity(own[i], own[j], 0) for i in range(ipc) for j in range(i)]
        assert found == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-9)


def test_equal_images_have_similarity_1_and_opposite_features_less_than_0() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    same = torch.tensor([[1.0, 2.0], [3.0, 6.0], [1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(class_similarities(same, labels), torch.tensor([1.0, -1.0], dtype=torch.float64))
    image = DigitImages().images[:1].repeat(20, 1, 1, 1)
    equal = DistilledSet(image, torch.arange(10).repeat_interleave(2))
    assert similarity(small_teacher(), equal) == pytest.approx(1.0, abs=1e-6)


def test_classes_of_one_image_have_no_similarity() -> None:
    with pytest.raises(DataError, match=r"classes without a pair of images: \[1\]"):
        class_similarities(torch.randn(3, 4), torch.tensor([0, 0, 1]))


def test_images_of_one_class_are_more_alike_than_mixed_ones() -> None:
    """The network knows digits: classes shuffled over the images are more diverse."""
    real = DigitImages()
    order = torch.cat([torch.nonzero(real.labels == c).flatten()[:20] for c in range(10)])
    labels = torch.arange(10).repeat_interleave(20)
    images = real.images[order]
    mixed = images[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert similarity(small_teacher(), DistilledSet(images, labels)) > 0.05 + similarity(
        small_teacher(), DistilledSet(mixed, labels)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, Store]:
    """A grid whose distilled sets are made, but for the last one of IPC 2."""
    from suite.work import run_pack

    folder = tmp_path_factory.mktemp("diversity")
    grid = write_grid(folder, GRID)
    plan, store = load_plan(grid), Store(folder / "store")
    run = write_run(plan, store)
    wanted = [i for i, s in enumerate(plan.stages) if s.kind in ("prepare", "teacher", "synthesis")]
    *most, last = (i for i in wanted if getattr(plan.stages[i].spec, "ipc", 2) == 2)
    assert plan.stages[last].kind == "synthesis"
    assert run_pack(str(run), most) == 0
    return grid, plan, store


def test_published_sets_of_a_grid_become_one_table_a_dataset_and_ipc(made: tuple[Path, Plan, Store]) -> None:
    _, plan, store = made
    tables, sets, missing = measure(plan, store, "convnet2_w8", torch.device("cpu"))
    assert list(tables) == [("digits", 2)], "IPC 1 has no pairs"
    rows = {row.method: row for row in tables["digits", 2]}
    assert set(rows) == {"random", "delt"} and missing == 1
    assert sorted(row.n for row in rows.values()) == [1, 2] and rows["random"].images == 20
    assert all(-1 <= row.similarity <= 1 for row in rows.values())
    assert (rows["delt"].teachers, rows["random"].teachers) == ("convnet2_w8", "")
    similarities = [row.similarity for row in tables["digits", 2]]
    assert similarities == sorted(similarities)
    assert set(sets) == {s.key for s in plan.stages if s.kind == "synthesis"} & store.published("synthesis")


def test_bench_prints_and_writes_the_table(
    made: tuple[Path, Plan, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, _, store = made
    out = tmp_path / "diversity.json"
    words = ["bench", "diversity", grid, "--network", "convnet2_w8", "--store", store.root, "--json", out]
    monkeypatch.setattr(sys, "argv", [str(w) for w in words])
    assert main() == 0
    text = capsys.readouterr().out
    assert "digits, IPC 2" in text and "delt" in text and "1 distilled sets of the grid are not in the store" in text
    (table,) = json.loads(out.read_text())["results"]
    (network,) = read_similarities([out])
    assert network == "convnet2_w8" and len(read_similarities([out])[network]) == 3
    assert {row["method"] for row in table["rows"]} == {"random", "delt"}


def test_a_network_that_is_no_teacher_of_the_grid_is_refused(made: tuple[Path, Plan, Store]) -> None:
    _, plan, store = made
    with pytest.raises(UserError, match="tiny has no teacher resnet18 on digits"):
        measure(plan, store, "resnet18", torch.device("cpu"))


def test_an_empty_store_is_an_error_with_the_command_to_run(
    made: tuple[Path, Plan, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bench", "diversity", made[0], "--network", "convnet2_w8", "--store", tmp_path / "none"]
    monkeypatch.setattr(sys, "argv", [str(w) for w in words])
    with pytest.raises(UserError, match="no distilled set of tiny"):
        main()
