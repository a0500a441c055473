from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from suite.errors import UserError
from suite.learn import views
from suite.learn.matchers import FeatureMatcher, bn_loss, bn_terms, dd_loss, segment_norms
from suite.learn.models import clip
from suite.learn.statistics import ClassStatistics, LayerTargets
from suite.learn.taps import BatchStats, Taps, patches
from suite.spec.datasets import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers import golden
from tests.learn.golden_nets import golden_net, golden_targets, toy, unswapped

GROUPS = {
    "gvbsm16": (24, 16, 0.4, 1.0, 0.0),
    "gvbsm4": (10, 4, 0.8, 1.0, 0.0),
    "e2d16": (24, 16, 0.8, 0.5, 0.5),
    "edc4": (10, 4, 0.8, 0.5, 0.5),
    "e2d16local": (24, 16, 0.8, 0.0, 1.0),
}
CASES = [(g, v) for g in GROUPS for v in ("", ".cleaninit", ".swapfixed")
         if v != ".swapfixed" or g in ("e2d16", "edc4")]  # fmt: skip


@pytest.mark.parametrize(("group", "variant"), CASES)
def test_feature_matching_equals_the_golden_losses_and_gradients(group, variant):
    g = golden("gvbsm_edc_e2d_stats")
    size, patch, ema, global_weight, class_weight = GROUPS[group]
    net = golden_net(g)
    targets = golden_targets(g, group, net, patch)
    swapped = group in ("e2d16", "edc4")
    matcher, per_layer = (
        FeatureMatcher(
            unswapped(targets) if swapped else targets,
            ema=ema,
            clean_init=variant == ".cleaninit",
            swap_class_patch=swapped and variant != ".swapfixed",
            global_weight=global_weight,
            class_weight=class_weight,
            dtype=torch.float64,
        )
        for _ in range(2)
    )
    taps = Taps(net, ("bn", "conv"), patch)
    assert taps.names == ["c1", "b1", "c2", "b2"]
    for i in range(3):
        x = g[f"s{size}.syn_x{i}"].clone().requires_grad_()
        _, stats = taps(x)
        total = matcher(stats, g["syn_y"])
        (gradient,) = torch.autograd.grad(total, x)
        name = f"{group}{variant}"
        torch.testing.assert_close(total.detach(), g[f"{name}.total_first10"][i], atol=1e-9, rtol=0)
        # The reference starts its average with statistics that still carry a gradient, so its first step doubles it.
        twice = 2 if variant == ".cleaninit" and i == 0 else 1
        torch.testing.assert_close(twice * gradient, g[f"{name}.grad"][i], atol=1e-9, rtol=0)
        terms = per_layer.per_layer(stats, g["syn_y"]).detach()
        torch.testing.assert_close(terms, g[f"{name}.per_hook"][i], atol=1e-9, rtol=0)
    of_kind = {"b": ("dd_mean", "dd_var"), "c": ("dd_mean", "dd_var", "patch_mean", "patch_var")}
    final = [g[f"{name}.ema_final.{layer}.{k}"] for layer in taps.names for k in of_kind[layer[0]]]
    average = [v for layer in BatchStats(matcher._average, stats.places).layers() for v in layer.vectors()]
    torch.testing.assert_close(torch.cat(average), torch.cat(final), atol=1e-9, rtol=0)


def test_bn_matching_equals_the_golden_losses_and_gradients():
    g = golden("bn_matching")
    taps = Taps(golden_net(g))
    x = g["x"].clone().requires_grad_()
    logits, stats = taps(x)
    torch.testing.assert_close(logits.detach(), g["logits"], atol=1e-9, rtol=0)
    terms = bn_terms(stats, taps.running)
    torch.testing.assert_close(terms.detach(), g["bn_per_layer"], atol=1e-9, rtol=0)
    total = bn_loss(stats, taps.running)
    torch.testing.assert_close(total.detach(), g["bn_total_first10"], atol=1e-9, rtol=0)
    ce = F.cross_entropy(logits, g["y"])
    torch.testing.assert_close((ce + 0.01 * total).detach(), g["loss_rbn001"], atol=1e-9, rtol=0)
    for loss, name in ((total, "bn_first10"), (bn_loss(stats, taps.running, first=1.0), "bn_first1"), (ce, "ce"),
                       (ce + 0.01 * total, "loss")):  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        torch.testing.assert_close(gradient, g[f"grad_{name}"], atol=1e-9, rtol=0)


def test_five_golden_steps_of_synthesis():
    g = golden("bn_matching")
    taps = Taps(golden_net(g))
    x = g["x"].clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.25, betas=(0.5, 0.9), eps=1e-8)
    for t in range(5):
        optimizer.param_groups[0]["lr"] = float(g["adam_lrs"][t])
        logits, stats = taps(x)
        loss = F.cross_entropy(logits, g["y"]) + 0.01 * bn_loss(stats, taps.running)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        x.data = clip(x.data, IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(loss.detach(), g["adam_losses"][t], atol=1e-9, rtol=0)
        torch.testing.assert_close(x.detach(), g["adam_x_after"][t], atol=1e-8, rtol=0)


def exact_targets(taps: Taps, x: torch.Tensor, shift: float = 0.0) -> ClassStatistics:
    """Global and class-wise targets that equal the statistics of x itself, or differ from them."""
    layers = []
    for s in taps(x)[1].layers():
        names = ["mean", "var", "patch_mean", "patch_var"][: len(s.vectors())]
        values = {n: v.detach() + shift for n, v in zip(names, s.vectors(), strict=True)}
        layers.append(
            LayerTargets(s.name, s.kind, **values, **{f"class_{n}": v.expand(3, -1) for n, v in values.items()})
        )
    return ClassStatistics(layers, 3, 4)


def test_bn_loss_is_zero_exactly_at_the_batchs_own_statistics_and_its_gradient_is_finite():
    net, x = toy()
    taps = Taps(net)
    for layer, s in zip((net[1], net[4]), taps(x)[1].layers(), strict=True):
        layer.running_mean.copy_(s.mean)
        layer.running_var.copy_(s.var)
    for layer, s in zip(
        (net[4],), taps(x)[1].layers()[1:], strict=True
    ):  # the second layer's input has changed with the first
        layer.running_mean.copy_(s.mean)
        layer.running_var.copy_(s.var)
    x.requires_grad_()
    loss = bn_loss(taps(x)[1], taps.running)
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, x)
    assert not gradient.any()


def test_torchs_running_variance_leaves_the_unbiased_factor():
    bn, x = nn.BatchNorm2d(4, momentum=1.0).double(), torch.randn(3, 4, 5, 5, dtype=torch.float64)
    bn(x)
    taps = Taps(nn.Sequential(bn.eval()))
    n = 3 * 5 * 5
    biased = x.var((0, 2, 3), correction=0)
    expected = torch.linalg.vector_norm(biased * (n / (n - 1) - 1))
    torch.testing.assert_close(bn_loss(taps(x)[1], taps.running, first=1.0), expected)


def test_weights_and_first_multiplier_act_linearly_on_the_gradient():
    net, x = toy()
    taps = Taps(net)
    x.requires_grad_()
    logits, stats = taps(x)
    ce = F.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))

    def gradient(weight: float, first: float) -> torch.Tensor:
        return torch.autograd.grad(ce + weight * bn_loss(stats, taps.running, first), x, retain_graph=True)[0]

    base = torch.autograd.grad(ce, x, retain_graph=True)[0]
    assert torch.equal(gradient(0.0, 10.0), base)
    torch.testing.assert_close(gradient(2.0, 10.0) - base, 2 * (gradient(1.0, 10.0) - base))
    first = torch.autograd.grad(bn_terms(stats, taps.running)[0], x, retain_graph=True)[0]
    torch.testing.assert_close(gradient(1.0, 10.0) - gradient(1.0, 1.0), 9 * first)


def test_matchers_pass_gradcheck():
    net, x = toy()
    taps = Taps(net, ("bn", "conv"), 4)
    bn = Taps(net)
    y = torch.tensor([0, 1, 2, 0])
    matcher = FeatureMatcher(exact_targets(taps, x, shift=0.3), ema=0.0, dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: bn_loss(bn(t)[1], bn.running), (x,))
    assert torch.autograd.gradcheck(lambda t: matcher(taps(t)[1], y), (x,))


def test_the_gradient_is_that_of_the_current_statistics_although_the_value_is_the_averages():
    net, x = toy()
    taps = Taps(net, ("bn", "conv"), 4)
    matcher = FeatureMatcher(exact_targets(taps, x, shift=0.5), ema=0.8, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    matcher(taps(x + 1)[1], y)
    x.requires_grad_()
    s = taps(x)[1].measured
    q = matcher._through_average(s)
    torch.testing.assert_close(q.detach(), matcher._average)
    assert not torch.allclose(q, s)
    weights = torch.randn_like(q)
    (through,) = torch.autograd.grad((q * weights).sum(), x, retain_graph=True)
    (direct,) = torch.autograd.grad((s * weights).sum(), x)
    torch.testing.assert_close(through, direct)


def test_feature_matching_is_zero_at_its_targets_and_ignores_the_order_of_the_batch():
    net, x = toy()
    taps = Taps(net, ("bn", "conv"), 4)
    bn, y, order = Taps(net), torch.tensor([0, 1, 2, 0]), torch.tensor([2, 0, 3, 1])
    at_target = FeatureMatcher(exact_targets(taps, x), dtype=torch.float64)
    assert at_target(taps(x)[1], y).item() == 0.0
    elsewhere = exact_targets(taps, x, shift=0.1)
    one = FeatureMatcher(elsewhere, dtype=torch.float64)(taps(x)[1], y)
    other = FeatureMatcher(elsewhere, dtype=torch.float64)(taps(x[order])[1], y[order])
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(bn_loss(bn(x)[1], bn.running), bn_loss(bn(x[order])[1], bn.running))
    assert one > 0


def test_class_targets_equal_to_the_global_ones_give_the_gvbsm_loss():
    net, x = toy()
    taps = Taps(net, ("bn", "conv"), 4)
    targets, y = exact_targets(taps, x, shift=0.2), torch.tensor([0, 1, 2, 0])
    stats = taps(x)[1]
    half = FeatureMatcher(targets, dtype=torch.float64)(stats, y)
    whole = FeatureMatcher(targets.without_classes(), global_weight=1.0, class_weight=0.0, dtype=torch.float64)
    torch.testing.assert_close(half, whole(stats, y))


def test_bn_only_matching_without_average_is_sre2l():
    net, x = toy()
    taps = Taps(net)
    layers = [
        LayerTargets(s.name, "bn", s_net.running_mean, s_net.running_var)
        for s, s_net in zip(taps(x)[1].places, (net[1], net[4]), strict=True)
    ]
    matcher = FeatureMatcher(ClassStatistics(layers, 0, None), ema=0.0, global_weight=1.0, class_weight=0.0,
                             dtype=torch.float64)  # fmt: skip
    for shift in (0.0, 1.0):
        stats = taps(x + shift)[1]
        torch.testing.assert_close(matcher(stats, torch.zeros(4, dtype=torch.long)), bn_loss(stats, taps.running))


def test_reset_forgets_the_average():
    net, x = toy()
    taps = Taps(net, ("bn", "conv"), 4)
    matcher = FeatureMatcher(exact_targets(taps, x, shift=0.2), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    first = matcher(taps(x)[1], y)
    assert matcher(taps(x + 1)[1], y) != first
    matcher.reset()
    assert torch.equal(matcher(taps(x)[1], y), first)


def test_mismatches_are_user_errors():
    net, x = toy()
    taps, y = Taps(net, ("bn", "conv"), 4), torch.tensor([0, 1, 2, 0])
    targets = exact_targets(taps, x)
    with pytest.raises(UserError, match="not those of the statistics"):
        FeatureMatcher(targets, dtype=torch.float64)(Taps(net)(x)[1], y)
    with pytest.raises(UserError, match="not those of the statistics"):
        FeatureMatcher(targets, dtype=torch.float64)(Taps(net, ("bn", "conv"), 2)(x)[1], y)
    with pytest.raises(UserError, match="no class-wise targets"):
        FeatureMatcher(targets.without_classes())
    with pytest.raises(UserError, match="both weights"):
        FeatureMatcher(targets, global_weight=0.0, class_weight=0.0)
    with pytest.raises(UserError, match="no statistics"):
        bn_loss(Taps(net, ())(x)[1], taps.running)


def test_segment_norms_are_the_norms_of_the_segments():
    x = torch.randn(2, 9, dtype=torch.float64)
    x[:, 2:5] = 0
    x.requires_grad_()
    norms = segment_norms(x, (2, 3, 4))
    torch.testing.assert_close(
        norms, torch.stack([x[:, :2].norm(dim=1), x[:, 2:5].norm(dim=1), x[:, 5:].norm(dim=1)], 1)
    )
    (gradient,) = torch.autograd.grad(norms.sum(), x)
    assert gradient.isfinite().all() and not gradient[:, 2:5].any()


@pytest.mark.parametrize("name", ["dd32", "dd48"])
def test_data_densification_equals_the_golden_values(name):
    g = golden("gvbsm_edc_e2d_stats")
    x = g[f"{name}.x"].double().requires_grad_()
    loss = dd_loss(x, g[f"{name}.y"])
    torch.testing.assert_close(loss.detach(), g[f"{name}.loss_f64"], atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradient, g[f"{name}.grad_f64"], atol=1e-9, rtol=0)
    single = dd_loss(x[:3], torch.tensor([0, 1, 2]))
    assert single.item() == 0.0
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dd_loss(x[order], g[f"{name}.y"][order]), loss)


class NothingReadBack(TorchDispatchMode):
    """Fails on operations that would make the host wait for a device."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"), name
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_a_synthesis_step_reads_nothing_back():
    net, x = toy()
    taps, bn = Taps(net, ("bn", "conv"), 4), Taps(net)
    matcher = FeatureMatcher(exact_targets(taps, x, shift=0.1), dtype=torch.float64)
    boxes, mask, y = (
        torch.tensor([[1, 2, 4, 3]] * 4),
        torch.tensor([True, False, True, True]),
        torch.tensor([0, 1, 2, 0]),
    )
    strips, offsets = torch.tensor([[1, 0]] * 4), torch.tensor([[0, 1]] * 4)
    x.requires_grad_()
    with NothingReadBack() as watch:
        view = views.roll(views.flip(views.crop_resize(x, boxes, 6), mask), 1, 2)
        view = views.cutmix(views.pad_crop(views.patch_shuffle(view, 2, strips, strips), 1, offsets), y, (1, 1, 3, 4))
        logits, stats = taps(view)
        loss = F.cross_entropy(logits, y) + matcher(stats, y) + bn_loss(bn(view)[1], bn.running)
        torch.autograd.grad(loss, x)
    assert watch.seen > 100


def test_injected_gradients_of_every_matcher_equal_traced_ones():
    """Through hooks and autograd's own formulas, as the references do it."""
    net, x = toy()
    y, names = torch.tensor([0, 1, 2, 0]), ("bn", "conv")
    targets = exact_targets(Taps(net, names, 4), x, shift=0.3)
    matcher = FeatureMatcher(targets, ema=0.0, dtype=torch.float64, weight=0.5)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(matcher(Taps(net, names, 4)(x)[1], y), x)
    loss, inputs = torch.zeros((), dtype=torch.float64), [x, net[:1](x), net[:3](x), net[:4](x)]
    for i, (layer, u) in enumerate(zip(targets.layers, inputs, strict=True)):
        found = list(torch.var_mean(u, (0, 2, 3), correction=0))[::-1]
        if layer.patch_mean is not None:
            pair = torch.var_mean(patches(u, 4), (0, 1, 3, 5), correction=0)
            found += [t.flatten() for t in pair][::-1]
        wanted = [layer.mean, layer.var, layer.patch_mean, layer.patch_var][: len(found)]
        distance = sum((t - f).norm() for t, f in zip(wanted, found, strict=True))
        loss = loss + 0.5 * (10 if i == 0 else 1) * distance
    (theirs,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(ours, theirs)


def test_dropped_convolutions_add_nothing_and_their_averages_rest():
    net, x = toy()
    taps, y = Taps(net, ("bn", "conv"), 4), torch.tensor([0, 1, 2, 0])

    def matcher(rate: float) -> FeatureMatcher:
        draws = lambda batch: torch.Generator().manual_seed(batch)  # noqa: E731
        return FeatureMatcher(exact_targets(taps, x, shift=0.3), drop_rate=rate, draws=draws, dtype=torch.float64)

    always, never = matcher(1.0), matcher(0.0)
    whole = never.per_layer(taps(x)[1], y)
    torch.testing.assert_close(always.per_layer(taps(x)[1], y), whole * torch.tensor([0.0, 1, 0, 1]).double())
    before = always._average.clone()
    always(taps(x + 1)[1], y)
    conv = torch.tensor([layer.kind == "conv" for layer in taps(x)[1].places])[always._entry_owners]
    assert torch.equal(always._average[..., conv], before[..., conv])
    assert not torch.equal(always._average[..., ~conv], before[..., ~conv])
    some = matcher(0.5)
    counted = [int((some.per_layer(taps(x)[1], y) > 0).sum()) for _ in range(300)]
    assert set(counted) == {2, 3, 4}
    assert 2.8 < sum(counted) / 300 < 3.2
