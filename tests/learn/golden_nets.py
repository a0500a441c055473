"""The small networks and the targets of the golden vectors, for tests of matchers and statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from suite.learn.statistics import ClassStatistics, LayerTargets

EDC_NAMES = {
    "mean": "running_dd_mean",
    "var": "running_dd_var",
    "patch_mean": "running_patch_mean",
    "patch_var": "running_patch_var",
    "class_mean": "category_running_dd_mean_list",
    "class_var": "category_running_dd_var_list",
    "class_patch_mean": "category_running_patch_mean_list",
    "class_patch_var": "category_running_patch_var_list",
}


class Net(nn.Module):
    """The golden networks: 3x3 convolutions c1, c2, ..., each followed by batch norm and ReLU; mean; linear."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.depth = sum(k.startswith("c") and k.endswith("weight") for k in weights)
        for i in range(1, self.depth + 1):
            w = weights[f"c{i}.weight"]
            conv = nn.Conv2d(w.shape[1], w.shape[0], 3, 1 if i == 1 else 2, 1, bias=f"c{i}.bias" in weights)
            self.add_module(f"c{i}", conv)
            self.add_module(f"b{i}", nn.BatchNorm2d(w.shape[0]))
        self.fc = nn.Linear(*reversed(weights["fc.weight"].shape))
        missing = self.double().load_state_dict(weights, strict=False)
        assert not missing.unexpected_keys and all(k.endswith("num_batches_tracked") for k in missing.missing_keys)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(1, self.depth + 1):
            x = F.relu(self.get_submodule(f"b{i}")(self.get_submodule(f"c{i}")(x)))
        return self.fc(x.mean((2, 3)))


def golden_net(g: dict[str, Any]) -> Net:
    return Net({k.removeprefix("net."): v for k, v in g.items() if k.startswith("net.")})


def golden_targets(g: dict[str, Any], group: str, net: Net, patch: int) -> ClassStatistics:
    """The stored targets, as the reference uses them: its class-wise patch tensors are under each other's names."""
    layers = []
    for name in ("c1", "b1", "c2", "b2"):
        found = {a: g.get(f"{group}.target.{name}.{k}") for a, k in EDC_NAMES.items()}
        if name.startswith("b"):
            bn = net.get_submodule(name)
            found["mean"], found["var"] = bn.running_mean, bn.running_var
        if group.endswith("local"):  # no global targets, one vector for all classes
            found |= {a: v[None].expand(4, -1) for a, v in found.items() if a.startswith("class") and v is not None}
            for a in ("mean", "var") if name.startswith("b") else ("mean", "var", "patch_mean", "patch_var"):
                found[a] = torch.zeros_like(found[f"class_{a}"][0])
        layers.append(LayerTargets(name, "bn" if name.startswith("b") else "conv", **found))
    return ClassStatistics(layers, 4 if layers[0].class_mean is not None else 0, patch)


def unswapped(targets: ClassStatistics) -> ClassStatistics:
    """What the reference computed before its saving code exchanged the two."""
    layers = []
    for layer in targets.layers:
        values = layer.tensors()
        if "class_patch_mean" in values:
            values["class_patch_mean"], values["class_patch_var"] = (
                values["class_patch_var"],
                values["class_patch_mean"],
            )
        layers.append(LayerTargets(layer.name, layer.kind, **values))
    return ClassStatistics(layers, targets.classes, targets.patch)


def toy(seed: int = 0) -> tuple[nn.Sequential, torch.Tensor]:
    """A smooth network in float64, and four images for it."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus(), nn.Conv2d(4, 5, 3, 2, 1), nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).double().eval().requires_grad_(False)  # fmt: skip
    return net, torch.randn(4, 3, 6, 6, dtype=torch.float64)
