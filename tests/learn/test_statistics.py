from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from suite.errors import DataError, UserError
from suite.learn.models import build
from suite.learn.statistics import ClassStatistics, compute_statistics
from suite.learn.taps import Taps, patches
from tests.helpers import golden
from tests.learn.golden_nets import golden_net, golden_targets, unswapped


@pytest.mark.parametrize(("group", "size", "patch"), [("e2d16", 24, 16), ("edc4", 10, 4), ("gvbsm16", 24, 16),
                                                      ("gvbsm4", 10, 4)])  # fmt: skip
def test_statistics_equal_the_golden_targets(group, size, patch):
    g = golden("gvbsm_edc_e2d_stats")
    net = golden_net(g)
    batches = [(g[f"s{size}.real_x{i}"], g[f"real_y{i}"]) for i in range(3)]
    ours = compute_statistics(net, batches, 4, patch)
    stored = unswapped(golden_targets(g, group, net, patch))
    assert [(layer.name, layer.kind) for layer in ours.layers] == [(layer.name, layer.kind) for layer in stored.layers]
    assert ours.kinds == ("bn", "conv")
    compared = 0
    for layer, expected in zip(ours.layers, stored.layers, strict=True):
        for name, tensor in expected.tensors().items():
            torch.testing.assert_close(layer.tensors()[name], tensor, atol=1e-9, rtol=0)
            compared += 1
    assert compared == (24 if stored.classes else 12)


def test_local_targets_are_the_statistics_of_all_real_images_together():
    g = golden("gvbsm_edc_e2d_stats")
    net = golden_net(g)
    stats = Taps(net, ("bn", "conv"), 16)(torch.cat([g[f"s24.real_x{i}"] for i in range(3)]))[1]
    for s, target in zip(stats.layers(), golden_targets(g, "e2d16local", net, 16).layers, strict=True):
        stored = [target.class_mean, target.class_var, target.class_patch_mean, target.class_patch_var]
        for ours, expected in zip(s.vectors(), stored, strict=False):
            torch.testing.assert_close(ours, expected[0], atol=1e-9, rtol=0)


def toy() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.BatchNorm2d(5)
    )
    return net.eval(), torch.randn(30, 3, 9, 9), torch.arange(30) % 5


def test_class_targets_are_averages_over_images_whatever_the_batches():
    net, x, y = toy()
    one = compute_statistics(net, [(x, y)], 5, 4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    batched = compute_statistics(net, zip(x[order].split(7), y[order].split(7), strict=True), 5, 4)
    with torch.no_grad():
        feature = net[:3](x)  # input of the second convolution
    for statistics in (one, batched):
        layer = statistics.layers[2]
        assert layer.name == "3" and layer.class_mean.dtype == torch.float32
        for c in range(5):
            mine = feature[y == c]
            torch.testing.assert_close(layer.class_mean[c], mine.mean((2, 3)).mean(0))
            torch.testing.assert_close(layer.class_var[c], mine.var((2, 3), correction=0).mean(0))
            cells = patches(mine, 4)
            torch.testing.assert_close(layer.class_patch_mean[c], cells.mean((1, 3, 5)).mean(0).flatten())
            own = cells.var((1, 3, 5), correction=0).mean(0).flatten()
            torch.testing.assert_close(layer.class_patch_var[c], own)
    torch.testing.assert_close(one.layers[2].var, feature.var((0, 2, 3), correction=0))


def test_global_targets_of_batch_norms_are_the_running_statistics():
    net, x, y = toy()
    net.train()(x)
    statistics = compute_statistics(net.eval(), [(x, y)], 5, None, kinds=("bn",))
    assert [layer.name for layer in statistics.layers] == ["1", "4"] and statistics.kinds == ("bn",)
    assert torch.equal(statistics.layers[1].var, net[4].running_var)
    assert statistics.layers[1].var.data_ptr() != net[4].running_var.data_ptr()


def test_class_moments_are_those_of_the_class_in_one_batch():
    net, x, y = toy()
    with torch.no_grad():
        net.double()
        inputs = [net[:1](x.double()), net[:4](x.double())]
    pooled = net.float()
    batched = compute_statistics(pooled, zip(x.split(7), y.split(7), strict=True), 5, 4)
    assert all(layer.class_between is None for layer in batched.layers if layer.kind == "conv")
    for (mean, var), u in zip(batched.class_moments, inputs, strict=True):
        assert mean.dtype == var.dtype == torch.float32
        for c in range(5):
            exact_var, exact_mean = torch.var_mean(u[y == c], dim=(0, 2, 3), correction=0)
            torch.testing.assert_close(mean[c].double(), exact_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(var[c].double(), exact_var, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="layer 1 has no moments of classes"):
        _ = batched.without_classes().class_moments


def test_class_moments_are_exact_where_lpld_averages_its_last_batches():
    """Default: the true moments. The reference's running average (decay 0.9 from mean 0, var 1) is another number."""
    g = golden("lpld")
    batches = [(g[f"classbn.x{i}"], g[f"classbn.y{i}"]) for i in range(3)]
    bn = nn.Sequential(nn.BatchNorm2d(5)).double().eval()
    ((mean, var),) = compute_statistics(bn, batches, 4, None).class_moments
    torch.testing.assert_close(mean, g["classbn.exact_mean"], atol=1e-10, rtol=0)
    torch.testing.assert_close(var, g["classbn.exact_var"], atol=1e-10, rtol=0)
    # The reference's number follows from the moments of every class in every batch.
    average = [torch.zeros(4, 5).double(), torch.ones(4, 5).double()]
    for i, (x, y) in enumerate(batches):
        for c in y.unique():
            ((m, v),) = compute_statistics(bn, [(x[y == c], torch.zeros_like(y[y == c]))], 1, None).class_moments
            for table, moment in zip(average, (m, v), strict=True):
                table[c] = 0.9 * table[c] + 0.1 * moment[0]
        torch.testing.assert_close(average[0], g[f"classbn.mean_after{i}"], atol=1e-10, rtol=0)
        torch.testing.assert_close(average[1], g[f"classbn.var_after{i}"], atol=1e-10, rtol=0)
    assert (average[1] - var).abs().max() > 0.1


def test_wmdd_averages_the_moments_of_batches():
    """Its class variance is the mean of the variances within batches: less than the exact one where a class has two."""
    g = golden("wmdd")
    net = golden_net(g)
    for c in range(4):
        batches = [g[k] for k in (f"real.c{c}.batch0", f"real.c{c}.batch1") if k in g]
        parts = [compute_statistics(net, [(x, torch.zeros(len(x)).long())], 1, None, ("bn",)).class_moments
                 for x in batches]  # fmt: skip
        whole = compute_statistics(net, [(x, torch.zeros(len(x)).long()) for x in batches], 1, None, ("bn",))
        share = [len(x) / sum(map(len, batches)) for x in batches]
        for i, (name, exact) in enumerate(zip(("b1", "b2"), whole.class_moments, strict=True)):
            mean, var = (sum(w * p[i][j][0] for w, p in zip(share, parts, strict=True)) for j in (0, 1))
            torch.testing.assert_close(mean, g[f"target.{name}.mean"][c], atol=1e-9, rtol=0)
            torch.testing.assert_close(var, g[f"target.{name}.var"][c], atol=1e-9, rtol=0)
            torch.testing.assert_close(mean, exact[0][0], atol=1e-9, rtol=0)
            assert bool((exact[1][0] >= var - 1e-12).all())
            assert len(batches) == 1 or bool((exact[1][0] > var).any())


def test_computing_leaves_the_network_without_hooks_or_gradients():
    net, x, y = toy()
    compute_statistics(net, [(x, y)], 5, 4)
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_saved_statistics_come_back_in_module_order(tmp_path):
    net = build("resnet10_cifar_w8", 4, 32).eval()  # more than ten layers: their order must not be alphabetical
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    statistics = compute_statistics(net, [(x, y)], 4, 4)
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    loaded = ClassStatistics.load(path)
    assert [layer.name for layer in loaded.layers] == Taps(net, ("bn", "conv")).names
    assert (loaded.classes, loaded.patch, len(loaded.layers)) == (4, 4, 24)
    for a, b in zip(statistics.layers, loaded.layers, strict=True):
        assert a.kind == b.kind and a.tensors().keys() == b.tensors().keys()
        assert all(torch.equal(t, b.tensors()[k]) for k, t in a.tensors().items())
    assert len(loaded.layers[1].tensors()) == 5 and len(loaded.layers[0].tensors()) == 8
    bare = loaded.without_classes().layers
    assert bare[0].class_mean is None and bare[1].tensors().keys() == {"mean", "var"}


def test_other_files_are_data_errors(tmp_path):
    path = tmp_path / "statistics.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="not a statistics file"):
        ClassStatistics.load(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="unreadable"):
        ClassStatistics.load(path)


def test_missing_images_are_data_errors():
    net, x, y = toy()
    with pytest.raises(DataError, match="1 of 6 classes have no images, the first is 5"):
        compute_statistics(net, [(x, y)], 6, 4)
    with pytest.raises(DataError, match="no real images"):
        compute_statistics(net, [], 5, 4)
    with pytest.raises(UserError, match="BatchNorm2d"):
        compute_statistics(nn.Linear(2, 2), [(x, y)], 5, 4)
