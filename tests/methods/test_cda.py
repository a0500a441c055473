"""CDA (arXiv:2311.18838): its curriculum, its values, and SRe2L as the case without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.errors import UserError
from suite.learn import synthesis
from suite.learn.recovery import Shape, shrinking, smallest_area
from suite.learn.view_policies import RandomViews
from suite.methods import get
from suite.spec.datasets import REGISTRY
from tests.helpers import golden
from tests.learn.synthesis_parts import tiny_job
from tests.methods.contract import job_for

SHORT: dict[str, Any] = {"iterations": 6, "batch": 4, "roll": (0, 2)}


def test_cda_with_curriculum_0_equals_sre2l_bit_for_bit() -> None:
    jobs = [job_for(get(name)) for name in ("sre2l", "cda", "cda")]
    plain = get("sre2l")(**SHORT).synthesize(jobs[0])
    same = get("cda")(curriculum=0.0, **SHORT).synthesize(jobs[1])
    assert torch.equal(plain.images, same.images) and jobs[0].counters == jobs[1].counters
    other = get("cda")(curriculum=1.0, **SHORT).synthesize(jobs[2])
    assert not torch.equal(plain.images, other.images)


@pytest.mark.parametrize("shape", ["step", "linear", "cosine"])
@pytest.mark.parametrize(("milestone", "tag"), [(0.0, "0p0"), (0.5, "0p5"), (1.0, "1p0")])
def test_smallest_areas_are_the_references(shape: Shape, milestone: float, tag: str) -> None:
    data = golden("bn_matching")
    for t, expected in zip(data["cda_iters"].tolist(), data[f"cda_smin_{shape}_ms{tag}"].tolist(), strict=True):
        assert smallest_area(t, 4000, (0.08, 1.0), milestone, shape) == pytest.approx(expected, abs=1e-9)


def test_smallest_area_falls_from_1_over_0_54_to_0_08() -> None:
    areas = [smallest_area(t, 4000, (0.08, 1.0), 1.0, "cosine") for t in range(4000)]
    assert areas[0] == 1 and areas[2000] == pytest.approx(0.54) and areas[-1] == pytest.approx(0.08, abs=1e-6)
    assert areas == sorted(areas, reverse=True)


def test_every_box_covers_the_smallest_area_of_its_iteration() -> None:
    job, iterations = tiny_job(), 400
    crop = shrinking((0.08, 1.0), 1.0, "cosine", iterations)
    policy = RandomViews(job, 0, 4, iterations, crop=crop)
    for t in range(iterations):
        box = policy.box(t)
        assert box is not None
        height, width = (int(v) for v in box.flatten()[2:])
        area = smallest_area(t, iterations, (0.08, 1.0), 1.0, "cosine")
        assert (height + 0.5) * (width + 0.5) >= area * 16 * 16, "beyond rounding to whole pixels"
    first = policy.box(0)
    assert first is not None and first.flatten().tolist() == [0, 0, 16, 16]


def test_imagenet21k_pixels_stay_between_0_and_1_and_start_from_normal_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    method = get("cda").for_dataset("imagenet21k", 10, {"iterations": 1, "batch": 10})
    seen: list[synthesis.Composition] = []
    original = synthesis.distill
    monkeypatch.setattr(synthesis, "distill", lambda job, plan: (seen.append(plan), original(job, plan))[1])
    made = method.synthesize(tiny_job(ipc=1))
    (plan,) = seen
    assert plan.pixels
    start = plan.start(0, plan.partition[0])
    assert abs(start.mean()) < 0.05 and abs(start.std() - 1) < 0.05
    black = (made.images == 0).float().mean()
    assert 0.4 < black < 0.6, "the clamp after the first step zeroes about half of the pixels"


def test_values_are_those_of_the_commands() -> None:
    full, tiny, many = (get("cda").for_dataset(b, 10) for b in ("imagenet1k", "tinyimagenet", "imagenet21k"))
    assert (full.iterations, full.lr, full.bn_weight, full.roll, full.pixels) == (4000, 0.25, 0.01, (0, 32), False)
    assert (tiny.iterations, tiny.lr, tiny.bn_weight, tiny.roll, tiny.pixels) == (4000, 0.4, 0.05, (0, 4), False)
    assert (many.iterations, many.lr, many.bn_weight, many.roll, many.pixels) == (2000, 0.05, 0.25, (0, 32), True)
    assert all((m.curriculum, m.shape, m.first, m.batch) == (1.0, "cosine", 10.0, 100) for m in (full, tiny, many))


def test_students_learn_in_batches_of_128_on_imagenet_and_as_sre2ls_elsewhere() -> None:
    recipes = {b: get("cda")().recipe(b, d.classes, 10, "resnet18") for b, d in REGISTRY.items()}
    assert recipes["imagenet1k"].batch == 128 and recipes["imagenette"].batch == 100
    assert recipes["tinyimagenet"] == get("sre2l")().recipe("tinyimagenet", 200, 10, "resnet18")
    assert get("cda").label_policy("imagenet21k", "paper") == "online"
    assert get("cda").label_policy("imagenet1k", "paper") == "stored"


def test_a_curriculum_beyond_the_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"cda: out of range: curriculum = 1\.5"):
        get("cda").for_dataset("imagenet1k", 10, {"curriculum": 1.5})


def test_sre2l_partition_by_class_is_another_objective() -> None:
    """The reference's multi-GPU script: a batch holds several images of few classes."""
    job = job_for(get("sre2l"), ipc=3)
    seen: list[synthesis.Composition] = []
    with pytest.MonkeyPatch.context() as patch:
        original = synthesis.distill
        patch.setattr(synthesis, "distill", lambda job, plan: (seen.append(plan), original(job, plan))[1])
        made = get("sre2l")(**SHORT, partition="class").synthesize(job)
    assert [s.tolist() for s in seen[0].partition[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    slots = get("sre2l")(**SHORT).synthesize(job_for(get("sre2l"), ipc=3))
    assert not torch.equal(made.images, slots.images)


def test_sre2l_quirk_labels_cifar_in_training_mode() -> None:
    for quirks, part in ((False, 0), (True, 128)):
        method = get("sre2l").for_dataset("cifar100", 10, {"reference_quirks": quirks})
        assert method.label_recipe("cifar100", 100, 10).part == part
        assert method.recipe("cifar100", 100, 10, "resnet18_cifar").batch == 128
        assert method.label_recipe("imagenet1k", 1000, 10).part == 0
