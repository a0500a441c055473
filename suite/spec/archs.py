"""Architecture names, checked without importing torch.

- `convnet3` ... `convnet6`, optionally `_wWIDTH` and `_in` / `_bn` (`convnet3_w32`, `convnet4_bn`): the field's
  ConvNet, depth blocks of 3x3 convolution, normalisation (batch norm unless said otherwise), ReLU, 2x2 average pooling;
  width 128.
- `resnet10_cifar`, `resnet18_cifar`, `resnet34_cifar`, `resnet50_cifar`, `resnet101_cifar`, optionally `_wWIDTH`:
  torchvision ResNets with a 3x3 stride-1 stem and no max-pool (`resnet18_modified` in some papers).
- any torchvision classifier (`resnet18`, `mobilenet_v2`, ...), and any timm classifier as `timm.NAME`.
"""

from __future__ import annotations

import re

from suite.errors import UserError, did_you_mean

_CONVNET = re.compile(r"convnet([1-6])(?:_w([1-9]\d{0,3}))?(?:_(in|bn))?")
_CIFAR = re.compile(r"resnet(10|18|34|50|101)_cifar(?:_w([1-9]\d{0,3}))?")
_TIMM = re.compile(r"timm\.[a-z0-9_.]{1,64}")

#: Forward GFLOPs (multiply-accumulates) of torchvision classifiers at 224 px, for estimates.
TORCHVISION_GMACS: dict[str, float] = {
    "alexnet": 0.71, "convnext_base": 15.36, "convnext_large": 34.36, "convnext_small": 8.68, "convnext_tiny": 4.46,
    "densenet121": 2.83, "densenet161": 7.73, "densenet169": 3.36, "densenet201": 4.29,
    "efficientnet_b0": 0.39, "efficientnet_b1": 0.69, "efficientnet_b2": 1.09, "efficientnet_b3": 1.83,
    "efficientnet_b4": 4.39, "efficientnet_b5": 10.27, "efficientnet_b6": 19.07, "efficientnet_b7": 37.75,
    "efficientnet_v2_s": 8.37, "efficientnet_v2_m": 24.58, "efficientnet_v2_l": 56.08, "googlenet": 1.50,
    "inception_v3": 5.71, "maxvit_t": 5.56, "mnasnet0_5": 0.10, "mnasnet0_75": 0.21, "mnasnet1_0": 0.31,
    "mnasnet1_3": 0.53, "mobilenet_v2": 0.30, "mobilenet_v3_large": 0.22, "mobilenet_v3_small": 0.06,
    "regnet_x_16gf": 15.94, "regnet_x_1_6gf": 1.60, "regnet_x_32gf": 31.74, "regnet_x_3_2gf": 3.18,
    "regnet_x_400mf": 0.41, "regnet_x_800mf": 0.80, "regnet_x_8gf": 8.00, "regnet_y_128gf": 127.52,
    "regnet_y_16gf": 15.91, "regnet_y_1_6gf": 1.61, "regnet_y_32gf": 32.28, "regnet_y_3_2gf": 3.18,
    "regnet_y_400mf": 0.40, "regnet_y_800mf": 0.83, "regnet_y_8gf": 8.47, "resnet101": 7.80, "resnet152": 11.51,
    "resnet18": 1.81, "resnet34": 3.66, "resnet50": 4.09, "resnext101_32x8d": 16.41, "resnext101_64x4d": 15.46,
    "resnext50_32x4d": 4.23, "shufflenet_v2_x0_5": 0.04, "shufflenet_v2_x1_0": 0.14, "shufflenet_v2_x1_5": 0.30,
    "shufflenet_v2_x2_0": 0.58, "squeezenet1_0": 0.82, "squeezenet1_1": 0.35, "swin_b": 15.43, "swin_s": 8.74,
    "swin_t": 4.49, "swin_v2_b": 20.32, "swin_v2_s": 11.55, "swin_v2_t": 5.94, "vgg11": 7.61, "vgg11_bn": 7.61,
    "vgg13": 11.31, "vgg13_bn": 11.31, "vgg16": 15.47, "vgg16_bn": 15.47, "vgg19": 19.63, "vgg19_bn": 19.63,
    "vit_b_16": 17.56, "vit_b_32": 4.41, "vit_h_14": 167.29, "vit_l_16": 61.55, "vit_l_32": 15.38,
    "wide_resnet101_2": 22.75, "wide_resnet50_2": 11.40,
}  # fmt: skip
_CIFAR_GMACS = {10: 0.255, 18: 0.56, 34: 1.16, 50: 1.30, 101: 2.52}  # at 32 px, width 64
_FAMILIES = ["convnet3", "convnet4", "convnet5", "convnet6", "resnet18_cifar", "resnet50_cifar", "resnet101_cifar"]


def check_arch(name: str, where: str = "") -> str:
    """Return the name if it can be an architecture.

    Raises:
        UserError: If no family knows it. `timm.NAME` is checked against timm itself when a network is built.
    """
    if _CONVNET.fullmatch(name) or _CIFAR.fullmatch(name) or _TIMM.fullmatch(name) or name in TORCHVISION_GMACS:
        return name
    raise UserError(
        f"unknown architecture {name!r}", where=where, hint=did_you_mean(name, [*_FAMILIES, *TORCHVISION_GMACS])
    )


def parse_convnet(name: str) -> tuple[int, int, str] | None:
    """Depth, width and normalisation (`bn` or `in`) of a ConvNet name; None for other names."""
    m = _CONVNET.fullmatch(name)
    return (int(m[1]), int(m[2] or 128), m[3] or "bn") if m else None


def parse_cifar_resnet(name: str) -> tuple[int, int] | None:
    """Depth and width of a CIFAR-stem ResNet name; None for other names."""
    m = _CIFAR.fullmatch(name)
    return (int(m[1]), int(m[2] or 64)) if m else None


def gmacs(name: str, size: int) -> float:
    """Multiply-accumulates (in 1e9) of one forward pass on one image of `size` pixels; an estimate for planning."""
    if conv := parse_convnet(name):
        depth, width, _ = conv
        macs, side, channels = 0.0, size, 3
        for _ in range(depth):
            macs += 9 * channels * width * side * side
            channels, side = width, side // 2
        return macs / 1e9
    if resnet := parse_cifar_resnet(name):
        depth, width = resnet
        return _CIFAR_GMACS[depth] * (width / 64) ** 2 * (size / 32) ** 2
    return TORCHVISION_GMACS.get(name, 4.0) * (size / 224) ** 2
