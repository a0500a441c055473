"""Class-wise matching of BatchNorm statistics (WMDD, LPLD): value, gradient, zero, batches side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from suite.learn.matchers import class_bn_loss
from suite.learn.taps import Taps
from tests.learn.golden_nets import toy


def _class_loss(x: torch.Tensor, net: nn.Module, y: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    return class_bn_loss(Taps(net, per_image=True)(x)[1], y, moments)


@pytest.mark.parametrize("labels", [[0, 0, 2, 2], [2, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 0]])
def test_class_wise_matching_is_the_batch_norm_loss_of_each_class_alone(labels):
    """Value and gradient equal autograd's through each class's own images, in any order and any numbers."""
    net, x = toy()
    y, width = torch.tensor(labels), sum(p.channels for p in Taps(net)(x)[1].places)
    moments = torch.rand(3, 2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    ours = _class_loss(x, net, y, moments)
    traced = []
    for label in sorted(set(labels)):
        own = x[y == label]
        inputs = [net[:1](own), net[:4](own)]
        pairs = [torch.var_mean(u, (0, 2, 3), correction=0) for u in inputs]
        targets = moments[label].split([4, 5], dim=1)
        terms = [(m - t[0]).norm() + (v - t[1]).norm() for (v, m), t in zip(pairs, targets, strict=True)]
        traced.append(10 * terms[0] + terms[1])
    theirs = torch.stack(traced).mean()
    torch.testing.assert_close(ours, theirs)
    (gradient,), (expected,) = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x)
    torch.testing.assert_close(gradient, expected)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(_class_loss(x[order], net, y[order], moments), ours)


def test_class_wise_matching_is_zero_at_the_classes_own_moments():
    net, x = toy()
    y = torch.tensor([1, 0, 1, 0])
    own = [Taps(net)(x[y == c])[1].measured[0] for c in (0, 1)]
    x.requires_grad_()
    loss = _class_loss(x, net, y, torch.stack(own))
    assert loss < 1e-12
    assert _class_loss(x, net, 1 - y, torch.stack(own)) > 0.01


def test_class_wise_matching_of_several_batches_is_the_sum_of_theirs():
    net, x = toy()
    y, moments = torch.tensor([1, 0, 1, 1]), torch.rand(2, 2, 9, dtype=torch.float64)
    stats = Taps(net, per_image=True)(x)[1]
    parts = [_class_loss(part, net, labels, moments) for part, labels in zip(x.chunk(2), y.chunk(2), strict=True)]
    torch.testing.assert_close(class_bn_loss(stats, y, moments, groups=2), sum(parts))
