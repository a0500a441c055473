"""The grids that are shipped: they can be planned, and they hold what their tables need."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from suite.grid import Plan, load_plan
from suite.grid.schema import load_grid
from tests.helpers import ROOT

GRIDS = sorted((ROOT / "grids").glob("*.yaml"))
CASES = [(path, variant) for path in GRIDS for variant in (None, *load_grid(path)[0].variants)]


def names(plan: Plan) -> dict[str, int]:
    return dict(Counter(c.method for c in plan.cells))


def test_the_four_grids_are_there() -> None:
    assert {p.stem for p in GRIDS} >= {"quickstart", "cifar10", "paper_tables", "nightly"}


@pytest.mark.parametrize(("path", "variant"), CASES, ids=[f"{p.stem}.{v}" if v else p.stem for p, v in CASES])
def test_shipped_grids_can_be_planned_and_are_named_like_their_file(path: Path, variant: str | None) -> None:
    plan = load_plan(path, variant=variant)
    assert plan.cells and plan.name == (f"{path.stem}.{variant}" if variant else path.stem)


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_grids_hold_names_and_no_paths(path: Path) -> None:
    text = re.sub(r"#.*", "", path.read_text())
    assert not re.search(r"[/~$]|\.\.", text)


def test_quickstart_counts_agree_with_hand_count() -> None:
    plan = load_plan(ROOT / "grids" / "quickstart.yaml")
    # 5 methods x 2 IPCs x 2 students x 2 seeds.
    assert names(plan) == dict.fromkeys(["random", "random_soft", "rded", "sre2l", "e2d"], 8)
    # One dataset, one teacher, its statistics for e2d; 5 methods x 2 IPCs x 2 seeds; every cell.
    counts = Counter(s.kind for s in plan.stages)
    assert counts == {"prepare": 1, "teacher": 1, "statistics": 1, "synthesis": 20, "evaluation": 40}


def test_cifar10_counts_agree_with_hand_count() -> None:
    plan = load_plan(ROOT / "grids" / "cifar10.yaml")
    # 5 methods x 3 IPCs x 2 students x 2 protocols x 3 seeds; protocols share every synthesis.
    assert len(plan.cells) == 180
    counts = Counter(s.kind for s in plan.stages)
    assert counts["synthesis"] == 5 * 3 * 3
    two_cores = load_plan(ROOT / "grids" / "cifar10.yaml", variant="two_cores")
    assert len(two_cores.cells) == 5 * 2
    assert {(c.dataset, c.ipc, c.protocol, c.seed) for c in two_cores.cells} == {("cifar10", 10, "matched", 0)}


def test_paper_tables_counts_agree_with_hand_count() -> None:
    plan = load_plan(ROOT / "grids" / "paper_tables.yaml")
    # Cells of one seed, as (random, random_soft, rded, sre2l, e2d) by IPC x students:
    imagenet1k = {
        "random": 3 * 1,  # ResNet-18 only
        "random_soft": 3 * 4,
        "rded": 3 * 4,
        "sre2l": 4 + 4 + 2,  # IPC 50, 10, and at IPC 1 only ResNet-18 and ResNet-101
        "e2d": 2 * 1,  # IPC 10 and 50, ResNet-18
    }
    tiny = {"random": 3, "random_soft": 9, "rded": 9, "sre2l": 3 + 2 + 2}  # ResNet-50 for sre2l at IPC 50 only
    cifar = {"random": 2 * 3, "random_soft": 2 * 9, "rded": 2 * 9, "sre2l": 2 * 9}  # CIFAR-10 and CIFAR-100
    convnets = {"random": 3 * 3, "rded": 3 * 3}  # three datasets, one student
    total = Counter(imagenet1k) + Counter(tiny) + Counter(cifar) + Counter(convnets)
    seeds = 3
    assert names(plan) == {m: n * seeds for m, n in total.items()}
    assert len(plan.cells) == seeds * 145 == 435
    assert Counter(c.dataset for c in plan.cells) == {
        "imagenet1k": seeds * 39,
        "tinyimagenet": seeds * (28 + 6),
        "cifar10": seeds * (30 + 6),
        "cifar100": seeds * (30 + 6),
    }
    # The full products hold 60 + 36 + 72 + 12 + 6 cells a seed.
    assert len(plan.excluded) == seeds * (186 - 145)
    counts = Counter(s.kind for s in plan.stages)
    # ResNet-18 and E2D's four others on ImageNet-1K; two on each of the three small datasets.
    assert counts["teacher"] == 5 + 3 * 2
    assert counts["statistics"] == 5 and counts["prepare"] == 4
    # random and random_soft do not depend on the teacher, so the ConvNet rows share theirs.
    one_seed = (3 * 4 + 2) + 3 * 4 + 2 * 3 * 4 + 3 * 3  # ImageNet, Tiny, CIFAR; and RDED by three ConvNets
    assert counts["synthesis"] == seeds * one_seed == 177
    # ImageNet-1K only: sre2l at three IPCs and e2d at two.
    assert counts["relabel"] == seeds * (3 + 2)


def test_nightly_is_small() -> None:
    plan = load_plan(ROOT / "grids" / "nightly.yaml")
    assert len(plan.cells) == 3 * (5 * 2 * 2 + 4)
    assert {c.dataset for c in plan.cells} == {"digits", "imagenette-s160"}
