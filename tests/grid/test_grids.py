"""The grids that are shipped: they can be planned, and they hold what their tables need."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from suite.grid import Plan, load_plan
from suite.grid.schema import load_grid
from suite.leaderboard.published import Published
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
    # Cells of one seed, as IPCs x students of each method:
    imagenet1k = {
        "random": 3 * 1,  # ResNet-18 only
        "random_soft": 3 * 4,
        "rded": 3 * 4 - 1,  # no MobileNetV2 at IPC 1
        "sre2l": 4 + 4 + 2,  # IPC 50, 10, and at IPC 1 only ResNet-18 and ResNet-101
        "e2d": 2 * 1,  # IPC 10 and 50, ResNet-18
        "edc": 3 * 4,
        "cvdd": 3 * 3,  # ResNets
        "sre2lpp": 3 * 3,
        "gvbsm": 2 * 3 + 1,  # ResNets, at IPC 1 only ResNet-18
        "wmdd": 2 * 3 + 1,
        "delt": 2 * 3,  # IPC 10 and 50, no ResNet-50
        "cda": 1 + 3,  # IPC 10 with ResNet-18, IPC 50 with all ResNets
        "lpld": 2 * 1,
        "label_worth": 3 * 2,  # ResNet-18 and ResNet-50
    }
    tiny = {
        "random": 3 - 1,  # ResNet-18, not at IPC 1
        "random_soft": 3 * 3,
        "rded": 3 * 3,
        "sre2l": 3 + 2 + 2,  # ResNet-50 at IPC 50 only
        "edc": 3 * 3,
        "cvdd": 3 * 3,
        "sre2lpp": 3 * 3,
        "delt": 3 * 2,  # no ResNet-50
        "cda": 1 + 1 + 3,  # larger ResNets at IPC 50 only
        "gvbsm": 1 + 1 + 3,
        "wmdd": 1 + 3 + 3,
        "lpld": 1,
    }
    shared = dict.fromkeys(["random_soft", "rded", "sre2l", "edc", "cvdd", "sre2lpp"], 3 * 3)
    cifar10 = shared | {"random": 3 - 1, "delt": 3 * 2, "gvbsm": 3 * 2}
    cifar100 = shared | {"random": 3 - 2, "cda": 3 * 1, "gvbsm": 3 * 2}
    imagenette = dict.fromkeys(["wmdd", "delt", "cvdd", "sre2lpp"], 3)
    imagewoof = {"cvdd": 3, "random": 2, "herding": 2, "kcenter": 2}
    every = {"random": 3, "rded": 3, "label_worth": 3}  # one ConvNet, three IPCs
    convnets10 = every | {"gvbsm": 3, "wmdd": 3, "kcenter": 3}
    convnets100 = every | {"gvbsm": 3, "wmdd": 3, "kcenter": 2, "herding": 3, "forgetting": 3}
    convnets_tiny = every | {"delt": 3, "kcenter": 3, "herding": 3, "forgetting": 3, "wmdd": 2}
    by_dataset = {
        "imagenet1k": Counter(imagenet1k),
        "tinyimagenet": Counter(tiny) + Counter(convnets_tiny),
        "cifar10": Counter(cifar10) + Counter(convnets10),
        "cifar100": Counter(cifar100) + Counter(convnets100),
        "imagenette": Counter(imagenette),
        "imagewoof": Counter(imagewoof),
    }
    seeds, total = 3, sum(by_dataset.values(), Counter[str]())
    assert names(plan) == {m: n * seeds for m, n in total.items()}
    sizes = {"imagenet1k": 100, "tinyimagenet": 78 + 23, "cifar10": 68 + 18, "cifar100": 64 + 23}
    sizes |= {"imagenette": 12, "imagewoof": 9}
    assert {d: c.total() for d, c in by_dataset.items()} == sizes
    assert Counter(c.dataset for c in plan.cells) == {d: seeds * n for d, n in sizes.items()}
    assert len(plan.cells) == seeds * 395 == 1185
    # Excluded of one seed: on ImageNet-1K e2d at IPC 1 or with larger students 12 - 2, sre2l 2, rded 1, random 9; on
    # Tiny-ImageNet sre2l 2, random 6 + 1; on CIFAR random 12 + 1 + 2.
    assert len(plan.excluded) == seeds * (10 + 2 + 1 + 9 + 2 + 7 + 15) == 138

    counts = Counter(s.kind for s in plan.stages)
    assert counts["prepare"] == 6
    # A set for every method, dataset and IPC, whatever the student. Where teachers are ConvNets: sets of their own, but
    # for random, which has no teacher, and gvbsm, whose paper names its teachers.
    sets = {
        "imagenet1k": 10 * 3 + 4 * 2,  # of 14 methods e2d, delt, cda and lpld have two IPCs
        # lpld has one; ConvNets: rded, delt, label_worth, kcenter, forgetting, and wmdd at two IPCs
        "tinyimagenet": 11 * 3 + 1 + 5 * 3 + 2,
        "cifar10": 9 * 3 + 4 * 3,  # ConvNets: rded, wmdd, label_worth, kcenter
        "cifar100": 9 * 3 + 4 * 3 + 2,  # ConvNets: rded, wmdd, label_worth, forgetting, and kcenter at two IPCs
        "imagenette": 4 * 3,
        "imagewoof": 3 + 2 * 2,
    }
    herded = 3 + 3 + 2  # nothing is drawn: all seeds share the sets of herding, on Tiny-ImageNet, CIFAR-100, Imagewoof
    assert counts["synthesis"] == seeds * sum(sets.values()) + herded == 572

    specs = [(s.kind, cast(Any, s.spec)) for s in plan.stages]
    # Labels on disk on ImageNet-1K, at three IPCs: sre2l, edc, cvdd, sre2lpp, gvbsm, wmdd, label_worth; at two: e2d,
    # cda, lpld.
    assert sum(k == "relabel" and s.dataset == "imagenet1k" for k, s in specs) == seeds * (7 * 3 + 3 * 2)
    # label_worth: one expert for each of four datasets and three IPCs, and one vector an image from each.
    assert sum(k == "teacher" and s.recipe is not None and s.recipe.stop is not None for k, s in specs) == 4 * 3
    assert sum(k == "relabel" and s.labels == "vector" for k, s in specs) == seeds * 4 * 3


def test_rows_of_the_papers_tables_stand_beside_published_numbers() -> None:
    """All but those of random_soft, a baseline of the suite: cells without a number are excluded by hand.

    Of 17 cells there are only numbers that others measured under one recipe for all.
    """
    plan, papers = load_plan(ROOT / "grids" / "paper_tables.yaml"), Published(ROOT / "results" / "published.csv")
    specs = [s.to_json()["spec"] for s in plan.stages if s.kind == "evaluation"]
    lines = [{**spec, "label_prune": spec["label"]["prune"], "overridden": False} for spec in specs]
    lines = [line for line in lines if line["method"] != "random_soft"]
    assert not [line for line in lines if not papers.accuracies(line)]
    assert sum(not papers.comparable(line) for line in lines) == 3 * 17


def test_nightly_is_small() -> None:
    plan = load_plan(ROOT / "grids" / "nightly.yaml")
    assert len(plan.cells) == 3 * (5 * 2 * 2 + 4)
    assert {c.dataset for c in plan.cells} == {"digits", "imagenette-s160"}
