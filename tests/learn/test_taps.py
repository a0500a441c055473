from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from suite.errors import UserError
from suite.learn.assembly import assemble
from suite.learn.models import build
from suite.learn.moments import TapBatchNorm, TapInput, channel_moments
from suite.learn.taps import Taps, patches


class CountStatistics(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        measures = func.overloadpacket in (torch.ops.aten.var_mean, torch.ops.aten.batch_norm_update_stats)
        small = func.overloadpacket is torch.ops.aten.var_mean and args[0].dim() == 2  # moments of columns' moments
        self.calls += measures and not small
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
    logits, found = Taps(model, ("bn", "conv"), patch=4)(x)
    stats = found.layers()
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
def test_one_pass_of_statistics_per_input_and_forward(kinds):
    """ResNet-18's three shortcut convolutions share the input of their block's first one."""
    model = build("resnet18_cifar_w16", 10, 32).eval()
    taps = Taps(model, kinds)
    with CountStatistics() as count:
        _, stats = taps(torch.randn(2, 3, 32, 32))
    assert len(stats.places) == len(taps.names) == (20 if kinds == ("bn",) else 40)
    assert count.calls == (20 if kinds == ("bn",) else 37)
    with CountStatistics() as count:
        model(torch.randn(2, 3, 32, 32))
    assert count.calls == 0


def test_taps_leave_the_network_as_it_is():
    model = net()
    before, x = {k: v.clone() for k, v in model.state_dict().items()}, torch.randn(2, 3, 8, 8)
    taps = Taps(model, ("bn", "conv"), 4)
    taps(x)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert [type(m) for m in model] == [type(m) for m in net()]
    assert model[0].weight.is_contiguous()


def test_a_failing_forward_does_not_spoil_the_next_one():
    taps = Taps(net())
    with pytest.raises(RuntimeError):
        taps(torch.randn(2, 5, 8, 8))
    assert len(taps(torch.randn(2, 3, 8, 8))[1].places) == 2


def test_two_taps_on_one_network_do_not_mix():
    model, x = net(), torch.randn(2, 3, 8, 8)
    first, second = Taps(model), Taps(model, ("conv",))
    assert [s.name for s in first(x)[1].places] == ["1", "4"]
    assert [s.name for s in second(x)[1].places] == ["0", "3"]


def test_statistics_stay_float32_under_autocast():
    taps, x = Taps(net(), ("bn", "conv"), 4), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, stats = taps(x)
    assert logits.dtype == torch.bfloat16
    assert stats.measured.dtype == torch.float32


def test_statistics_are_differentiable():
    taps = Taps(net().double(), ("bn", "conv"), 4)
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    for groups in (1, 3):
        values = taps(x, groups)[1].measured
        weights, direction, step = torch.randn_like(values), torch.randn_like(x), 1e-6
        (ours,) = torch.autograd.grad((weights * values).sum(), x)
        with torch.no_grad():
            ahead, behind = (taps(x + sign * step * direction, groups)[1].measured for sign in (1, -1))
        slope = (weights * (ahead - behind)).sum() / (2 * step)
        torch.testing.assert_close((ours * direction).sum(), slope, rtol=1e-6, atol=1e-7)


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


def _traced(x: torch.Tensor, patch: int) -> torch.Tensor:
    """What one tapped convolution measures, by autograd's own operations: [2, C + cells]."""
    cut = patches(x, patch)
    pairs = [torch.var_mean(x, (0, 2, 3), correction=0), torch.var_mean(cut, (0, 1, 3, 5), correction=0)]
    return torch.stack([torch.cat([pair[i].flatten() for pair in pairs]) for i in (1, 0)])


@pytest.mark.parametrize("side", [8, 6])
def test_injected_gradients_equal_traced_ones_and_keep_the_memory_format(side):
    x = torch.randn(4, 6, side, side, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    y, raw = TapInput.measure(x, 1, 4)
    values = assemble([raw], len(x))[0]
    traced = _traced(x, 4)
    torch.testing.assert_close(values, traced)
    weights, rest = torch.randn_like(traced), torch.randn_like(x)
    (ours,) = torch.autograd.grad((weights * values).sum() + (rest * y).sum(), x)
    (autograd,) = torch.autograd.grad((weights * traced).sum() + (rest * x).sum(), x)
    torch.testing.assert_close(ours, autograd)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_layers_that_share_an_input_share_its_gradient():
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    y, raw = TapInput.measure(x, 2, 4)
    twice = assemble([raw, raw], len(x))
    weights, half = torch.randn_like(twice), twice.shape[2] // 2
    (ours,) = torch.autograd.grad((weights * twice).sum() + y.sum(), x)
    traced = torch.stack([_traced(part, 4) for part in x.chunk(2)])
    folded = weights[..., :half] + weights[..., half:]
    (autograd,) = torch.autograd.grad((folded * traced).sum() + x.sum(), x)
    torch.testing.assert_close(ours, autograd)


def test_measured_batch_norm_equals_batch_norm():
    bn = nn.BatchNorm2d(5).double().eval()
    for t in (bn.weight.data, bn.bias.data, bn.running_mean):
        t.normal_()
    bn.running_var.uniform_(0.5, 2)
    model = nn.Sequential(bn).requires_grad_(False)
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    rest = torch.randn_like(x)
    y, stats = Taps(model)(x)
    torch.testing.assert_close(y, bn(x))
    weights = torch.randn_like(stats.measured)
    (ours,) = torch.autograd.grad((weights * stats.measured).sum() + (rest * y).sum(), x)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    (autograd,) = torch.autograd.grad((weights * torch.stack((mean, var))).sum() + (rest * bn(x)).sum(), x)
    torch.testing.assert_close(ours, autograd)
    (plain,) = torch.autograd.grad((rest * Taps(model)(x)[0]).sum(), x)  # nobody asks for the statistics
    torch.testing.assert_close(plain, torch.autograd.grad((rest * bn(x)).sum(), x)[0])


@pytest.mark.parametrize("used", ["both", "map", "statistics"])
def test_a_relu_that_joins_the_batch_normalisation_before_it_changes_no_value_and_no_gradient(used):
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
    bn.running_mean.normal_()
    model = nn.Sequential(conv, bn, nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3)).double().eval().requires_grad_(False)
    apart = nn.Sequential(*model[:2], nn.ReLU(), model[3])
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for network in (model, apart):
        for groups in (1, 2):
            y, stats = Taps(network, ("bn", "conv"), 4)(x, groups)
            generator = torch.Generator().manual_seed(1)
            by_y = torch.randn(y.shape, dtype=torch.float64, generator=generator) * (used != "statistics")
            by_stats = torch.randn(stats.measured.shape, dtype=torch.float64, generator=generator) * (used != "map")
            loss = (by_y * y).sum() if used == "map" else (by_y * y).sum() + (by_stats * stats.measured).sum()
            names = set()
            todo = [loss.grad_fn]
            while todo:
                node = todo.pop()
                names.add(node.name())
                todo += [n for n, _ in node.next_functions if n is not None]
            assert ("TapRectifiedBackward" in names) == (network is model)
            found.append((y.detach(), stats.measured.detach(), torch.autograd.grad(loss, x)[0]))
    for joined, alone in zip(found[:2], found[2:], strict=True):
        for ours, expected in zip(joined, alone, strict=True):
            torch.testing.assert_close(ours, expected)


def test_a_map_that_others_use_too_is_not_joined_with_a_relu():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.bn(x)
            return self.relu(y + 0) + self.relu(y.mul_(2))

    model = Twice().double().eval().requires_grad_(False)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    y, stats = Taps(model, ("bn",))(x)
    torch.testing.assert_close(y, model(x))
    (ours,) = torch.autograd.grad(y.sum() + stats.measured.sum(), x)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(ours, torch.autograd.grad(model(x).sum() + mean.sum() + var.sum(), x)[0])


def test_moments_of_few_channels_are_those_of_all_their_pixels():
    for dtype in (torch.float32, torch.float64):
        for layout in (torch.channels_last, torch.contiguous_format):
            x = (torch.randn(6, 3, 10, 14, dtype=dtype) * 2 + 3).to(memory_format=layout)
            mean, var = channel_moments(x, 1)
            expected = torch.var_mean(x, (0, 2, 3), correction=0)
            torch.testing.assert_close((var[0], mean[0]), expected)


def test_the_backward_pass_touches_each_map_twice_a_layer():
    """Once for a + b x, once for the layer's own gradient: no map for the mean, the variance, or their difference."""
    x = torch.randn(8, 4, 16, 16, requires_grad=True)
    one, zero = torch.ones(4), torch.zeros(4)
    for tap in (
        lambda: TapInput.measure(x, 1, 0),
        lambda: TapBatchNorm.measure(x, 1, one[:, None, None], one, zero, zero, one, 0.0),
    ):
        y, raw = tap()
        values = assemble([raw], len(x))
        rest, weights = torch.randn_like(y), torch.randn_like(values)
        with CountFullMaps(x.numel()) as count:
            torch.autograd.grad((y, values), x, (rest, weights))
        assert count.calls == 2


def test_parts_of_a_batch_are_measured_as_if_alone():
    for device_groups in (1, 2, 3, 6):
        model, x = net().double(), torch.randn(6, 3, 10, 10, dtype=torch.float64)
        taps = Taps(model, ("bn", "conv"), patch=4)
        _, stats = taps(x, device_groups)
        for part, alone in zip(stats.split(device_groups), x.chunk(device_groups), strict=True):
            torch.testing.assert_close(part.measured, taps(alone)[1].measured)
            torch.testing.assert_close(part.features, taps(alone)[1].features)
    _, each = Taps(model, per_image=True)(x)
    torch.testing.assert_close(each.measured, Taps(model)(x, 6)[1].measured)


def test_features_are_the_input_of_the_last_linear_layer():
    model, x = net().double(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    logits, stats = Taps(model, ())(x)
    torch.testing.assert_close(stats.features, model[:7](x))
    torch.testing.assert_close(logits, model[7](stats.features))
    assert stats.values is None
    with pytest.raises(UserError, match="no statistics"):
        _ = stats.measured


def test_weights_are_cast_once_and_not_in_every_call():
    class CountCasts(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.calls += func.overloadpacket is torch.ops.aten._to_copy
            return out

    taps, x = Taps(net(), ()), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = taps(x)[0]
        with CountCasts() as count:
            again = taps(x)[0]
        expected = net()(x)
    assert torch.equal(first, again) and torch.equal(first, expected)
    assert count.calls == 1  # the images


@pytest.mark.parametrize(
    "batches",
    [
        [(4, 1)],
        # A compiler that has seen two sizes takes all further ones as unknown.
        pytest.param([(4, 1), (6, 2), (9, 3)], marks=pytest.mark.slow),
    ],
    ids=["one size", "several sizes"],
)
def test_compiled_taps_give_the_same_statistics_and_gradients(batches: list[tuple[int, int]]):
    """With the eager back end: what a compiler sees is one graph, and the gradients go through it."""
    model = nn.Sequential(*net()[:5], nn.Conv2d(8, 8, 3, padding=1), *net()[5:]).double().eval()
    images = torch.randn(9, 3, 12, 12, dtype=torch.float64, requires_grad=True)  # patches fit 12 pixels, and not 6
    eager, compiled = (Taps(model, ("bn", "conv"), 4, compiled=how) for how in (False, "aot_eager"))
    for batch, groups in batches:
        found = []
        for taps in (eager, compiled):
            logits, stats = taps(images[:batch], groups)
            weights = torch.linspace(0, 1, stats.measured.numel(), dtype=torch.float64).view_as(stats.measured)
            loss = (weights * stats.measured).sum() + logits.sum()
            found.append((logits, stats.measured, *torch.autograd.grad(loss, images)))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_synthesis_compiles_as_many_teachers_as_it_has_once_each():
    """Compilers allow 8 networks a function: 5 teachers with two sizes of batches would be more."""
    x, kept, graphs = torch.randn(2, 3, 8, 8), [], counters["stats"]
    before = graphs["unique_graphs"]
    for deeper in range(9):
        model = nn.Sequential(*net()[:3], *(nn.Conv2d(6, 6, 1) for _ in range(deeper)), *net()[3:]).eval()
        kept.append(Taps(model, compiled="eager"))
        for _ in range(2):
            assert torch.equal(kept[-1](x)[0], Taps(model)(x)[0])
    assert graphs["unique_graphs"] == before + 9
