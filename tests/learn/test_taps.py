from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from suite.errors import UserError
from suite.learn.models import build
from suite.learn.taps import Taps, moments, patches


class CountVarMean(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.overloadpacket is torch.ops.aten.var_mean
        return func(*args, **(kwargs or {}))


class CountFullMaps(TorchDispatchMode):
    """Counts operations whose result is as large as a feature map."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.calls = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += isinstance(out, torch.Tensor) and out.numel() >= self.size and not out._is_view()
        return out


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2, 1),
        nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def test_statistics_are_those_of_the_inputs_in_module_order():
    model, x = net().double(), torch.randn(5, 3, 10, 10, dtype=torch.float64)
    logits, stats = Taps(model, ("bn", "conv"), patch=4)(x)
    inputs = [x, model[:1](x), model[:3](x), model[:4](x)]
    assert [(s.name, s.kind) for s in stats] == [("0", "conv"), ("1", "bn"), ("3", "conv"), ("4", "bn")]
    for s, u in zip(stats, inputs, strict=True):
        flat = u.transpose(0, 1).flatten(1)
        torch.testing.assert_close(s.mean, flat.mean(1))
        torch.testing.assert_close(s.var, flat.var(1, correction=0))
        assert (s.patch_mean is None) == (s.kind == "bn")
        assert len(s.vectors()) == (2 if s.kind == "bn" else 4)
    torch.testing.assert_close(logits, model(x))


@pytest.mark.parametrize("kinds", [("bn",), ("bn", "conv")])
def test_one_var_mean_per_tapped_layer_and_forward(kinds):
    model = build("resnet18_cifar_w16", 10, 32).eval()
    taps = Taps(model, kinds)
    with CountVarMean() as count:
        _, stats = taps(torch.randn(2, 3, 32, 32))
    assert count.calls == len(stats) == len(taps.names) == (20 if kinds == ("bn",) else 40)
    with CountVarMean() as count:
        model(torch.randn(2, 3, 32, 32))
    assert count.calls == 0


def test_taps_leave_the_network_as_it_is():
    model = net()
    before, x = {k: v.clone() for k, v in model.state_dict().items()}, torch.randn(2, 3, 8, 8)
    taps = Taps(model, ("bn", "conv"), 4)
    taps(x)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    taps.close()
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert taps(x)[1] == []


def test_a_failing_forward_does_not_spoil_the_next_one():
    taps = Taps(net())
    with pytest.raises(RuntimeError):
        taps(torch.randn(2, 5, 8, 8))
    assert len(taps(torch.randn(2, 3, 8, 8))[1]) == 2


def test_two_taps_on_one_network_do_not_mix():
    model, x = net(), torch.randn(2, 3, 8, 8)
    first, second = Taps(model), Taps(model, ("conv",))
    assert [s.name for s in first(x)[1]] == ["1", "4"]
    assert [s.name for s in second(x)[1]] == ["0", "3"]


def test_statistics_stay_float32_under_autocast():
    taps, x = Taps(net(), ("bn", "conv"), 4), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, stats = taps(x)
    assert logits.dtype == torch.bfloat16
    assert all(v.dtype == torch.float32 for s in stats for v in s.vectors())


def test_statistics_are_differentiable():
    taps = Taps(net().double(), ("bn", "conv"), 4)
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    def statistics(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([v for s in taps(x)[1] for v in s.vectors()])

    assert torch.autograd.gradcheck(statistics, (x,))


@pytest.mark.parametrize(
    ("side", "patch", "cells"), [(224, 16, 196), (56, 16, 16), (28, 16, 4), (7, 16, 1), (10, 4, 9)]
)
def test_patch_grids_round_the_map_up(side, patch, cells):
    cut = patches(torch.full((2, 3, side, side), 1.25), patch)
    assert cut.shape[2] * cut.shape[4] == cells and cut.shape[3] == cut.shape[5] == patch
    var, mean = torch.var_mean(cut, dim=(0, 1, 3, 5), correction=0)
    torch.testing.assert_close(mean, torch.full_like(mean, 1.25))
    assert var.max() < 1e-12


def test_running_statistics_are_the_buffers_of_the_bn_layers_in_order():
    model = net()
    running = Taps(model, ("bn", "conv")).running
    assert running[0][0] is model[1].running_mean and running[1][1] is model[4].running_var


def test_a_network_without_batch_norm_is_a_user_error():
    with pytest.raises(UserError, match="no BatchNorm2d"):
        Taps(build("convnet3_w8_in", 10, 32))
    with pytest.raises(UserError, match="keeps no running"):
        _ = Taps(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))).running


def test_gradients_equal_autograds_and_keep_the_memory_format():
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(2, 6, dtype=torch.float64)
    mean, var = moments(x, (0, 2, 3))
    (ours,) = torch.autograd.grad((weights[0] * mean + weights[1] * var).sum(), x)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    (autograd,) = torch.autograd.grad((weights[0] * mean + weights[1] * var).sum(), x)
    torch.testing.assert_close(ours, autograd)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_the_backward_pass_touches_each_map_once_a_layer():
    x = torch.randn(8, 4, 16, 16, requires_grad=True)
    mean, var = moments(x, (0, 2, 3))
    with CountFullMaps(x.numel()) as count:
        torch.autograd.grad((mean + var).sum(), x)
    assert count.calls == 1
