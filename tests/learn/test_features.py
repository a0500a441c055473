"""Penultimate features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from suite.errors import NumericError, UserError
from suite.learn import features
from suite.learn.features import image_features, last_linear, real_features
from suite.learn.models import build
from suite.learn.teachers import Teacher
from tests.learn.synthesis_parts import DigitImages, small_teacher, tiny_job


def test_the_last_linear_layer_maps_the_features_to_the_logits() -> None:
    teacher = small_teacher()
    found, logits = image_features(teacher, DigitImages().images[:50])
    assert found.shape == (50, 16) and found.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(last_linear(teacher)(found), logits)
    assert found.min() >= 0 and not found.requires_grad  # what leaves ReLU and pooling


def test_features_are_those_of_validation_images_in_the_order_asked_for() -> None:
    job = tiny_job(real=DigitImages(stored=20))
    indices = torch.tensor([7, 3, 900, 3])
    found, logits = real_features(job, indices)
    expected, scores = image_features(job.teachers[0], DigitImages(stored=20).images[indices][:, :, 2:18, 2:18])
    assert torch.equal(found, expected) and torch.equal(logits, scores)
    assert torch.equal(found[1], found[3])
    assert job.counters.forward_images == 4


def test_features_depend_neither_on_batches_nor_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = torch.arange(100)
    expected = real_features(tiny_job(), indices)[0]
    monkeypatch.setattr(features, "CHUNK_BYTES", 3 * 16**2 * 7)
    torch.testing.assert_close(real_features(tiny_job(), indices, batch=3)[0], expected)


def test_features_leave_no_hook_behind_even_after_an_error() -> None:
    teacher = small_teacher()
    with pytest.raises(RuntimeError):
        image_features(teacher, torch.zeros(1, 5, 8, 8))
    assert not any(m._forward_pre_hooks for m in teacher.modules())


@pytest.mark.parametrize(
    ("arch", "size", "width"), [("convnet2_w8", 16, 8 * 4 * 4), ("resnet18_cifar", 32, 512), ("mobilenet_v2", 64, 1280)]
)
def test_features_of_the_suites_networks(arch: str, size: int, width: int) -> None:
    teacher = Teacher(arch, build(arch, 5, size), (0.5,) * 3, (0.5,) * 3)
    assert image_features(teacher, torch.zeros(2, 3, size, size))[0].shape == (2, width)


def test_a_network_without_linear_layer_is_refused() -> None:
    with pytest.raises(UserError, match="no linear layer"):
        last_linear(nn.Sequential(nn.Conv2d(3, 10, 1), nn.Flatten()))


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NumericError, match="features"):
        image_features(small_teacher(), torch.full((1, 3, 16, 16), torch.nan))
