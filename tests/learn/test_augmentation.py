"""RandAugment on tensors: equal to timm's operations on Pillow images, drawn as timm draws, fixed by its draws."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm

from suite.errors import DataError
from suite.learn import augmentation
from suite.learn.augmentation import OPERATIONS, RandomOperations, apply, draw
from suite.learn.label_stream import LabelStream, write_stream
from suite.learn.models import normalise
from suite.learn.soft_labels import HardLabels, StoredLabels
from suite.learn.view_plans import DrawnViews, Renderer
from suite.spec.recipes import Augment, RelabelRecipe, StudentRecipe
from tests.learn.training import CPU, DIGITS, linear_teacher, some_digits, train_on_digits

#: Timm's names of our operations, in our order.
TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
    "colour": "Color",
    "sharpness": "Sharpness",
}
FILL = (124, 116, 104)
LEVELS = (0.0, 0.3, 1.7, 3.33, 5.0, 6.0, 7.7, 9.99, 10.0)
RECIPE = StudentRecipe(epochs=2, batch=16, crop=(1.0, 1.0), flip=False, cutmix=False, augment="randaugment")


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth colours, a constant image and a grey one, not square; uint8 [12, 3, 24, 32]."""
    coarse = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(coarse, size=(24, 32), mode="bilinear").mul(300).sub(20)
    x = x.clamp(0, 255).to(torch.uint8)
    x[0], x[1] = 7, x[1, :1]
    return x


def single(name: str, n: int, level: float, sign: float = 1.0) -> RandomOperations:
    shape = (n, 1)
    return RandomOperations(
        torch.full(shape, OPERATIONS.index(name)), torch.full(shape, level), torch.full(shape, sign)
    )


def by_pillow(x: torch.Tensor, name: str, level: float, sign: float) -> torch.Tensor:
    to_arguments = timm.LEVEL_TO_ARG[TIMM[name]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "_randomly_negate", lambda value: value * sign)
        arguments = to_arguments(level, timm._HPARAMS_DEFAULT) if to_arguments else ()
    operation: Callable[..., Image.Image] = timm.NAME_TO_OP[TIMM[name]]
    options: dict[str, Any] = {"fillcolor": FILL, "resample": Image.Resampling.BILINEAR}
    changed = [operation(Image.fromarray(i.permute(1, 2, 0).numpy()), *arguments, **options) for i in x]
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in changed])


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_timm_on_pillow_images(name: str, images: torch.Tensor) -> None:
    exact = name in ("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add", "sharpness")
    moved = False
    for level in LEVELS if name != "posterize" else LEVELS[3:]:
        for sign in (1.0, -1.0):
            ours = apply(images, single(name, 12, level, sign), FILL)
            difference = (ours.int() - by_pillow(images, name, level, sign).int()).abs()
            assert int(difference.max()) <= (0 if exact else 1), f"level {level}"
            moved |= not torch.equal(ours, images)
    assert moved


def test_posterizing_to_no_bits_leaves_black(images: torch.Tensor) -> None:
    assert not apply(images, single("posterize", 12, 2.4), FILL).any()


def test_the_operations_are_those_that_timm_chooses_from() -> None:
    assert tuple(TIMM) == OPERATIONS and sorted(TIMM.values()) == sorted(timm._RAND_TRANSFORMS)


def test_every_image_has_its_own_operations_in_order(images: torch.Tensor) -> None:
    draws = draw(12, 6.0, torch.Generator().manual_seed(3))
    whole = apply(images, draws, FILL)
    for i in range(12):
        x = images[i : i + 1]
        for layer in range(augmentation.LAYERS):
            if (k := int(draws.operation[i, layer])) >= 0:
                x = apply(x, single(OPERATIONS[k], 1, float(draws.level[i, layer]), float(draws.sign[i, layer])), FILL)
        assert torch.equal(x[0], whole[i])


def test_images_without_an_operation_stay_as_they_are(images: torch.Tensor) -> None:
    before = images.clone()
    draws = draw(12, 6.0, torch.Generator().manual_seed(3))
    left_out = replace(draws, operation=torch.full_like(draws.operation, -1))
    assert torch.equal(apply(images, left_out, FILL), before)
    apply(images, draws, FILL)
    assert torch.equal(images, before), "the distilled images themselves never change"


def test_draws_are_distributed_as_timm_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = draw(40_000, 6.0, torch.Generator().manual_seed(0))
    applied = draws.operation >= 0
    assert float(applied.float().mean()) == pytest.approx(0.5, abs=0.01)
    counts = draws.operation[applied].bincount(minlength=15)
    assert len(counts) == 15 and float((counts / counts.sum()).sub(1 / 15).abs().max()) < 0.005
    assert float(draws.sign.mean()) == pytest.approx(0, abs=0.02)
    seen: list[float] = []
    monkeypatch.setitem(timm.LEVEL_TO_ARG, "Invert", lambda level, _: (seen.append(level), (0,))[1])
    random.seed(0)
    policy = timm.rand_augment_transform("rand-m6-n2-mstd1.0", {"img_mean": FILL})
    operation = next(o for o in policy.ops if o.name == "Invert")
    operation.aug_fn = lambda image, *_, **__: image
    for _ in range(20_000):
        operation(None)
    assert len(seen) / 20_000 == pytest.approx(0.5, abs=0.02), "timm applies an operation half of the time, too"
    theirs, quantiles = torch.tensor(seen), torch.linspace(0.05, 0.95, 10)
    torch.testing.assert_close(draws.level.flatten().quantile(quantiles), theirs.quantile(quantiles), atol=0.05, rtol=0)
    assert float(draw(1000, 0.0, torch.Generator().manual_seed(0)).level.min()) == 0
    assert float(draw(1000, 10.0, torch.Generator().manual_seed(0)).level.max()) == 10


def test_draws_are_part_of_the_plan_and_rendered_before_all_else() -> None:
    distilled = some_digits(4)
    plans = [DrawnViews(RECIPE, 40, 16, seed) for seed in (1, 1, 2)]
    render = Renderer(distilled.images, DIGITS, CPU)
    first, again, other = (render(planner.plan(1, 2)) for planner in plans)
    assert torch.equal(first, again) and not torch.equal(first, other)
    plan = plans[0].plan(1, 2)
    assert plan.operations is not None
    fill = [round(255 * mean) for mean in DIGITS.mean]
    changed = apply(distilled.images[plan.index], plan.operations, fill)
    assert torch.equal(first, normalise(changed.float() / 255, DIGITS.mean, DIGITS.std))


def test_other_draws_do_not_depend_on_the_augmentation() -> None:
    full = replace(RECIPE, crop=(0.5, 1.0), flip=True, cutmix=True)
    plain, augmented = (DrawnViews(replace(full, augment=a), 40, 16, 0).plan(0, 0) for a in ("none", "randaugment"))
    assert plain.boxes is not None and plain.flips is not None and plain.cutmix is not None
    assert augmented.boxes is not None and augmented.flips is not None and augmented.cutmix is not None
    assert torch.equal(plain.boxes, augmented.boxes) and torch.equal(plain.flips, augmented.flips)
    assert plain.cutmix.box == augmented.cutmix.box and plain.operations is None


def test_siamese_augmentation_is_one_operation_on_the_normalised_views_of_a_batch() -> None:
    from suite.learn import dsa

    recipe, distilled = replace(RECIPE, augment="dsa", flip=True), some_digits(4)
    planner, render = DrawnViews(recipe, 40, 16, 0), Renderer(distilled.images, DIGITS, CPU)
    drawn = set()
    for epoch in range(30):
        plan = planner.plan(epoch, 0)
        assert plan.dsa is not None and plan.flips is None and plan.operations is None
        x = normalise(distilled.images[plan.index].float() / 255, DIGITS.mean, DIGITS.std)
        assert torch.equal(render(plan), dsa.apply(x, plan.dsa))
        drawn.add(plan.dsa.operation)
    assert drawn == set(dsa.OPERATIONS)


def test_recipes_without_flips_have_none_among_the_operations() -> None:
    planner = DrawnViews(replace(RECIPE, augment="dsa"), 40, 16, 0)
    names = {plan.dsa.operation for epoch in range(60) if (plan := planner.plan(epoch, 0)).dsa is not None}
    assert names == {"color", "crop", "cutout", "scale", "rotate"}


@pytest.mark.parametrize("augment", ["randaugment", "dsa"])
def test_stored_labels_belong_to_views_without_augmentation(augment: Augment, tmp_path: Path) -> None:
    relabel = RelabelRecipe(1, 16, crop=(1.0, 1.0), flip=False, cutmix=False)
    write_stream(tmp_path / "labels", some_digits(4), [linear_teacher()], relabel, 0, DIGITS, CPU)
    labels = StoredLabels(LabelStream(tmp_path / "labels"))
    labels.planner(DrawnViews(replace(RECIPE, augment="none"), 40, 16, 0))
    with pytest.raises(DataError, match=f"augment none where {augment} is needed"):
        labels.planner(DrawnViews(replace(RECIPE, augment=augment), 40, 16, 0))


@pytest.mark.parametrize("augment", ["randaugment", "dsa"])
def test_a_student_learns_from_augmented_digits(augment: Augment) -> None:
    recipe = replace(RECIPE, epochs=20, batch=50, augment=augment, magnitude=3.0, evaluations=1)
    arguments: dict[str, Any] = {"arch": "convnet3_w32", "distilled": some_digits(10), "labels": HardLabels(10, 100)}
    numbers = train_on_digits(recipe, **arguments)
    assert numbers["accuracy_last"] > 60 and numbers == train_on_digits(recipe, **arguments)
