"""Accuracy on the full validation split: every image once, at its centre, and only finite logits count."""

from __future__ import annotations

import pytest
import torch

from suite.errors import DataError, NumericError
from suite.learn import models
from suite.learn.validation import Validation, centre
from tests.learn.training import CPU, DIGITS, Linear, MemoryImages, digits


def test_logits_that_are_not_finite_are_no_accuracy() -> None:
    model = Linear(10, 16)
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(NumericError, match="finite"):
        Validation(digits("val"), DIGITS, CPU).score(model)


def test_validation_sees_the_centre_of_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms.functional import center_crop

    images = torch.randint(0, 256, (300, 3, 18, 18), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    val = MemoryImages(images, torch.arange(300) % 10)
    assert torch.equal(centre(images, 16), center_crop(images, [16, 16]))
    assert torch.equal(centre(images, 13), center_crop(images, [13, 13]))
    model = Linear(10, 16)
    resident = Validation(val, DIGITS, CPU, batch=128).score(model)
    monkeypatch.setattr("suite.learn.validation.RESIDENT_BYTES", 0)
    val.given.zero_()
    streamed = Validation(val, DIGITS, CPU, batch=128).score(model)
    assert resident == streamed and streamed.images == 300 and (val.given == 1).all()
    assert model.calls == 6 and model.training
    expected = models.normalise(center_crop(images, [16, 16]), DIGITS.mean, DIGITS.std)
    torch.testing.assert_close(torch.cat(model.seen[3:]), expected)
    hits = (torch.cat([model(x) for x in expected.split(128)]).argmax(1) == val.labels).sum()
    assert streamed.accuracy == pytest.approx(100 * int(hits) / 300)


def test_validation_that_loses_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.learn.validation.RESIDENT_BYTES", 0)
    val = digits("val")
    monkeypatch.setattr(val, "batches", lambda batch, rows: iter([(val.images[:300], val.labels[:300])]))
    with pytest.raises(DataError, match="300 images of 359"):
        Validation(val, DIGITS, CPU).score(Linear(10, 16))


def test_a_network_that_always_says_the_same_is_flagged() -> None:
    model = Linear(10, 16)
    model.head.weight.data.zero_()
    score = Validation(digits("val"), DIGITS, CPU).score(model)
    assert score.constant and 5 < score.accuracy < 15
