"""CV-DD and SRe2L++ (arXiv:2501.07575): committees, weights, patches, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from suite.errors import DataError, UserError
from suite.learn import synthesis
from suite.learn.committee import committees
from suite.learn.critics import bn_critic
from suite.learn.initial import noise
from suite.learn.job import Job
from suite.learn.patches import PatchStart
from suite.learn.teachers import Teacher
from suite.methods import get
from suite.methods.cvdd import LABEL_TEMPERATURE, POOL, PRIORS, SMALL_POOL, family, priors, softmax
from suite.spec.datasets import REGISTRY
from tests.helpers import golden
from tests.learn.synthesis_parts import small_teacher, tiny_job
from tests.methods.contract import job_for

SHORT: dict[str, Any] = {
    "iterations": 4, "batch": 4, "candidates": 12, "crops": 2, "crop": (0.5, 1.0), "flip": False, "roll": (0, 1),
}  # fmt: skip
SETS = {"cifar10": "cifar10", "cifar100": "cifar100", "tinyimagenet": "tiny", "imagenette": "imagenette",
        "imagenet1k": "imagenet1k"}  # fmt: skip
Votes = list[list[tuple[int, float]]]


def named_job(archs: Sequence[str], base: str = "digits", **changes: Any) -> Job:
    """Small networks under the names of others."""
    from dataclasses import replace

    job = tiny_job(teachers=len(archs), **changes)
    job.dataset = replace(job.dataset, base=base)
    job.teachers = [
        Teacher(a, small_teacher(i).model, t.mean, t.std)
        for i, (a, t) in enumerate(zip(archs, job.teachers, strict=True))
    ]
    return job


def votes(monkeypatch: pytest.MonkeyPatch, job: Job, **values: Any) -> Votes:
    """Who judges every batch of a CV-DD synthesis, and with which weights."""
    found: Votes = []

    def plan(job: Job, composition: synthesis.Composition) -> None:
        found.extend(list(composition.select(0, n)) for n in range(len(composition.partition)))

    monkeypatch.setattr(synthesis, "distill", plan)
    get("cvdd").for_dataset(job.dataset.base, job.ipc, SHORT | values).synthesize(job)
    monkeypatch.undo()
    return found


def test_priors_are_the_papers() -> None:
    data = golden("cvdd")
    for base, name in SETS.items():
        assert torch.equal(torch.tensor(PRIORS[base], dtype=torch.float64), data[f"prior.{name}"])


def test_weights_of_pairs_and_labels_are_the_references() -> None:
    data = golden("cvdd")
    pairs = data["pair_order"].tolist()
    for base, name in SETS.items():
        ours = [softmax([PRIORS[base][k] for k in pair], get("cvdd")().temperature) for pair in pairs]  # type: ignore[attr-defined]
        torch.testing.assert_close(
            torch.tensor(ours, dtype=torch.float64), data[f"recover_pair_weights.{name}"], atol=1e-9, rtol=0
        )
        label = torch.tensor(softmax(PRIORS[base], LABEL_TEMPERATURE), dtype=torch.float64)
        torch.testing.assert_close(label, data[f"relabel_weights.{name}"], atol=1e-9, rtol=0)
        assert label.sum() == pytest.approx(1)
    recipe = get("cvdd")().label_recipe("imagenet1k", 1000, 10)
    torch.testing.assert_close(
        torch.tensor(recipe.weights, dtype=torch.float64), data["relabel_weights.imagenet1k"], atol=1e-9, rtol=0
    )


def test_equal_priors_give_halves() -> None:
    assert softmax((50.0, 50.0), 5.0) == (0.5, 0.5) and softmax((42.0,), 5.0) == (1.0,)


class Voter(nn.Module):
    """A network of the golden vectors: convolution, BatchNorm, ReLU, mean, linear layer."""

    def __init__(self, data: dict[str, torch.Tensor], number: int) -> None:
        super().__init__()
        weights = {k.removeprefix(f"bssl.net{number}."): v for k, v in data.items() if f"bssl.net{number}." in k}
        weights |= {k.removeprefix(f"recover.net{number}."): v for k, v in data.items() if f"recover.net{number}." in k}
        out, classes = len(weights["b.bias"]), len(weights["f.bias"])
        self.c, self.b, self.f = (
            nn.Conv2d(3, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.Linear(out, classes),
        )
        self.double().load_state_dict({"b.num_batches_tracked": torch.tensor(0), **weights})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(torch.relu(self.b(self.c(x))).mean((2, 3)))


def test_weighted_losses_and_their_gradient_are_the_references() -> None:
    data = golden("cvdd")
    x, y, shares = data["recover.x"].requires_grad_(), data["recover.y"], data["recover.weights"]
    total = torch.zeros((), dtype=torch.float64)
    for k, share in enumerate(shares):
        critic = bn_critic(Teacher("net", Voter(data, k), (0.0,) * 3, (1.0,) * 3), 0.01, 10.0)
        ce, term = critic.judge(x, y, torch.arange(len(x)), "fp32")
        critic.close()
        torch.testing.assert_close(ce.mean(), data["recover.ce"][k], atol=1e-9, rtol=0)
        torch.testing.assert_close(term, 0.01 * data["recover.bn_x10"][k], atol=1e-9, rtol=0)
        total = total + share * (ce.mean() + term)
    torch.testing.assert_close(total, data["recover.loss"], atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(gradient, data["recover.grad"], atol=1e-9, rtol=0)


def test_at_ipc_10_every_unordered_pair_serves_once_in_the_papers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    job = named_job(POOL, ipc=10)
    pairs = committees(job, "each", 2, [0.0] * 5)
    assert torch.equal(torch.tensor(pairs), golden("cvdd")["pair_order"])
    assert set(Counter(k for pair in pairs for k in pair).values()) == {4}, "each teacher serves 4 of 10 images"
    found = votes(monkeypatch, job)
    assert [tuple(k for k, _ in vote) for vote in found] == [p for p in pairs for _ in range(3)], "3 batches a slot"


def test_at_ipc_50_pairs_are_drawn_by_the_seed_without_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = committees(named_job(POOL, ipc=2000), "random", 2, [0.0] * 5)
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = Counter(drawn)
    assert len(counts) == 10 and max(counts.values()) < 260 and min(counts.values()) > 140
    assert drawn == committees(named_job(POOL, ipc=2000), "random", 2, [0.0] * 5)
    assert drawn != committees(named_job(POOL, ipc=2000, seed=1), "random", 2, [0.0] * 5)
    assert get("cvdd").for_dataset("imagenet1k", 50).voting == "random"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("base", "pair"),
    [
        ("cifar10", (3, 4)),
        ("imagenette", (3, 4)),
        ("cifar100", (2, 3)),
        ("tinyimagenet", (0, 3)),
        ("imagenet1k", (0, 2)),
    ],
)
def test_at_ipc_1_the_papers_two_serve(base: str, pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *rest) = votes(monkeypatch, named_job(POOL, base, ipc=1))
    assert tuple(k for k, _ in first) == pair and all(vote == first for vote in rest)
    weights = softmax([PRIORS[base][k] for k in pair], 5.0)
    assert tuple(w for _, w in first) == weights


def test_at_ipc_1_other_committees_take_the_highest_priors(monkeypatch: pytest.MonkeyPatch) -> None:
    found = votes(monkeypatch, named_job(("densenet121", "resnet50_cifar", "resnet18_cifar"), "cifar10", ipc=1))
    assert [k for k, _ in found[0]] == [0, 1]


def test_stems_and_widths_of_small_sets_have_the_familys_priors_and_others_weigh_equally(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [family(a) for a in SMALL_POOL] == list(POOL)
    assert priors("cifar10", SMALL_POOL) == PRIORS["cifar10"]
    assert priors("cifar10", ("resnet18_cifar", "convnet3")) == priors("digits", POOL[:2]) == (0.0, 0.0)
    assert family("resnet18_cifar_w16") is None and family("resnet101") is None
    found = votes(monkeypatch, named_job(("convnet3", "resnet18_cifar"), "cifar10", ipc=10))
    assert all(vote == [(0, 0.5), (1, 0.5)] for vote in found)


def test_the_papers_five_teachers_recover_and_label_on_each_of_its_datasets() -> None:
    method = get("cvdd")
    for base, scores in PRIORS.items():
        archs = method.paper_teachers[base]
        assert archs == method.paper_label_teachers[base] and priors(base, archs) == scores
        label = method.for_dataset(base, 10).label_recipe(base, REGISTRY[base].classes, 10)
        assert (label.ensemble, label.weights) == ("weighted", softmax(scores, LABEL_TEMPERATURE))
        assert family(get("sre2lpp").paper_teachers[base][0]) == "resnet18" == family(archs[0])
    woof = method.for_dataset("imagewoof", 10).label_recipe("imagewoof", 10, 10)
    assert method.paper_teachers["imagewoof"] == POOL and woof.ensemble == "mean", "no priors, equal weights"
    single = method.for_dataset("cifar10", 10, {"voting": "single"}).label_recipe("cifar10", 10, 10)
    assert single.weights == (1.0, 0.0, 0.0, 0.0, 0.0), "SRe2L++: ResNet-18 alone"


def test_cvdd_of_one_teacher_or_with_single_voting_equals_sre2lpp() -> None:
    jobs = [job_for(get("cvdd"), teachers=n) for n in (1, 1, 3)]
    plain = get("sre2lpp")(**SHORT).synthesize(jobs[0])
    alone = get("cvdd")(**SHORT, voting="random").synthesize(jobs[1])
    single = get("cvdd")(**SHORT, voting="single").synthesize(jobs[2])
    assert torch.equal(plain.images, alone.images) and torch.equal(plain.images, single.images)
    assert jobs[0].counters == jobs[1].counters == jobs[2].counters
    vote = get("cvdd")(**SHORT, voting="random").synthesize(job_for(get("cvdd"), teachers=3))
    assert not torch.equal(plain.images, vote.images)
    for base, facts in REGISTRY.items():
        ours, theirs = (
            get(n).for_dataset(base, 10).recipe(base, facts.classes, 10, "resnet50") for n in ("cvdd", "sre2lpp")
        )
        assert ours == theirs


def test_sre2lpp_from_noise_equals_sre2l(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting 0 has SRe2L's loss: only the start differs."""
    from suite.learn import patches

    monkeypatch.setattr(patches, "PatchStart", lambda job, *_: lambda batch, slots: noise(job, batch, slots))
    values = {k: v for k, v in SHORT.items() if k not in ("candidates", "crops")}
    plus = get("sre2lpp")(**SHORT).synthesize(job_for(get("sre2lpp")))
    assert torch.equal(plus.images, get("sre2l")(**values).synthesize(job_for(get("sre2l"))).images)


def test_every_member_of_a_committee_sees_every_iteration() -> None:
    job = job_for(get("cvdd"), teachers=3, ipc=1)
    start = PatchStart(job, 12, 2, (0.5, 1.0))
    scored = job.counters.forward_images
    get("cvdd")(**SHORT, voting="each", members=3).synthesize(job)
    assert job.counters.image_iterations == 10 * 4 and start.images.shape == (10, 3, 16, 16)
    assert job.counters.forward_images == 2 * scored + 3 * 10 * 4


def test_patches_are_of_medium_difficulty_and_rank_0_is_the_median() -> None:
    job = tiny_job(ipc=3)
    start = PatchStart(job, 40, 3, (0.5, 1.0))
    assert start.images.dtype == torch.uint8 and torch.equal(
        start.images, PatchStart(tiny_job(ipc=3), 40, 3, (0.5, 1.0)).images
    )
    from suite.learn.mosaics import Mosaics

    _, ce = Mosaics(job, 40, 3, 1, (0.5, 1.0)).scored(4, kept=1)
    x = start(0, torch.tensor([12, 13, 14]))
    with torch.no_grad():
        ours = torch.nn.functional.cross_entropy(job.teachers[0](x), torch.full((3,), 4), reduction="none")
    descending = ce.flatten().sort(descending=True).values  # most uncertain first: ascending probability
    torch.testing.assert_close(ours, descending[[20, 21, 19]], atol=0.1, rtol=0.1)  # truncation to uint8
    shown = x * job.dataset.std[0] + job.dataset.mean[0]
    torch.testing.assert_close(shown, start.images[12:15].float() / 255, atol=1e-6, rtol=0)


def test_patches_beyond_the_candidates_take_more_crops_of_each() -> None:
    start = PatchStart(tiny_job(ipc=5), 3, 2, (0.1, 1.0))
    assert len(start.images.flatten(1).unique(dim=0)) > 40
    with pytest.raises(DataError, match="3 images are ranked, 5 are wanted"):
        PatchStart(tiny_job(ipc=5), 3, 1, (0.1, 1.0))


def test_sub_batches_of_students_are_the_halves_that_labels_were_made_for() -> None:
    for base, facts in REGISTRY.items():
        for ipc in (1, 10, 50):
            method = get("cvdd").for_dataset(base, ipc)
            recipe = method.recipe(base, facts.classes, ipc, "resnet18")
            label = method.label_recipe(base, facts.classes, ipc)
            assert recipe.batch == 2 * label.part and recipe.accumulate == 2
    assert get("sre2lpp")().recipe("imagenet1k", 1000, 10, "resnet18").batch == 16
    assert get("sre2lpp")().label_recipe("imagenet1k", 1000, 10).part == 8
    assert [get("sre2lpp")().recipe("cifar10", 10, i, "resnet18").batch for i in (1, 10, 50)] == [10, 16, 16]
    assert get("sre2lpp")().recipe("imagenette", 10, 50, "resnet18").batch == 10


@pytest.mark.parametrize(
    ("base", "student", "expected"),
    [
        ("cifar10", "resnet18_cifar", [(1e-3, 1), (1e-3, 1), (1e-3, 1)]),
        ("cifar10", "resnet101_cifar", [(5e-4, 1), (5e-4, 1), (5e-4, 1)]),
        ("cifar100", "resnet50_cifar", [(1e-3, 1), (1e-3, 2), (1e-3, 1)]),
        ("tinyimagenet", "resnet18_cifar", [(1e-3, 2), (1e-3, 1), (1e-3, 2)]),
        ("tinyimagenet", "resnet50_cifar", [(1e-3, 1), (1e-3, 1), (1e-3, 1)]),
        ("imagenette", "resnet18", [(5e-4, 2), (5e-4, 1), (5e-4, 2)]),
        ("imagenette", "resnet50", [(5e-4, 2), (1e-3, 1), (5e-4, 1)]),
        ("imagenette", "resnet101", [(5e-4, 2), (5e-4, 2), (1e-3, 2)]),
        ("imagenet1k", "resnet18", [(1e-3, 2), (1e-3, 2), (1e-3, 1)]),
        ("imagenet1k", "resnet101", [(1e-3, 2), (1e-3, 2), (5e-4, 2)]),
    ],
)
def test_rates_and_tails_are_the_sheets(base: str, student: str, expected: list[tuple[float, int]]) -> None:
    for ipc, (lr, eta) in zip((1, 10, 50), expected, strict=True):
        recipe = get("cvdd")().recipe(base, 1000, ipc, student)
        assert (recipe.lr, recipe.schedule) == (lr, "cosine_half" if eta == 2 else "cosine")


def test_fields_without_sense_are_refused() -> None:
    for name, value in (("patch", (0.0, 1.0)), ("members", 0), ("temperature", 0.0), ("pair", ("vgg11",))):
        with pytest.raises(UserError, match=f"cvdd: out of range: {name} = "):
            get("cvdd").for_dataset("imagenet1k", 10, {name: value})
