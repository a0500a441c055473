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
    for s, target in zip(stats, golden_targets(g, "e2d16local", net, 16).layers, strict=True):
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
    assert len(loaded.layers[1].tensors()) == 4 and len(loaded.layers[0].tensors()) == 8
    assert loaded.without_classes().layers[0].class_mean is None


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
