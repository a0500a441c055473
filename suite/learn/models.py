"""Networks by name, and the way between pixels and what networks see.

Initial weights come from torch's global generator: seed it around `build`. Pretrained weights come from the local
caches of torch hub and of timm; nothing is ever downloaded, since compute nodes are usually offline.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from suite.errors import DataError, UserError, did_you_mean
from suite.spec.archs import check_arch, parse_cifar_resnet, parse_convnet
from suite.spec.datasets import IMAGENET_MEAN, IMAGENET_STD

#: Side at which library classifiers work as they are; other sides are tried out.
NATIVE = 224
_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ConvNet(nn.Module):
    """The ConvNet of dataset distillation (Gidaris and Komodakis, CVPR 2018; Zhao et al., ICLR 2021).

    Blocks of 3x3 convolution with bias, normalisation, ReLU and 2x2 average pooling, then one linear layer on the
    flattened features.

    Args:
        classes: Outputs.
        size: Side of the images in pixels.
        depth: Blocks.
        width: Channels of every block.
        norm: `bn`, or `in`: instance norm as GroupNorm with one group a channel, affine.

    Raises:
        UserError: If pooling would leave nothing of the image.
    """

    def __init__(self, classes: int, size: int, depth: int = 3, width: int = 128, norm: str = "bn") -> None:
        super().__init__()
        if size >> depth < 1:
            raise UserError(
                f"a ConvNet of depth {depth} halves {size} pixels {depth} times",
                hint=f"at most depth {size.bit_length() - 1} is possible at {size} px",
            )
        layers: list[nn.Module] = []
        channels, side = 3, size
        for _ in range(depth):
            normalisation = nn.BatchNorm2d(width) if norm == "bn" else nn.GroupNorm(width, width)
            layers += [nn.Conv2d(channels, width, 3, padding=1), normalisation, nn.ReLU(inplace=True), nn.AvgPool2d(2)]
            channels, side = width, side // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * side * side, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of images [B, 3, size, size]."""
        return self.classifier(self.features(x).flatten(1))


def build(arch: str, classes: int, size: int, pretrained: str | None = None) -> nn.Module:
    """A network by its name in a grid (see `suite.spec.archs`).

    Args:
        arch: The name.
        classes: Outputs.
        size: Side of the images in pixels.
        pretrained: None, or the name of torchvision's weights (`IMAGENET1K_V1`); timm takes its default weights.

    Raises:
        UserError: If the name is unknown, the network cannot take such images, or such weights do not exist.
        DataError: If the weights are not in the local cache.
    """
    check_arch(arch)
    if conv := parse_convnet(arch):
        _only_scratch(arch, pretrained)
        depth, width, norm = conv
        return ConvNet(classes, size, depth, width, norm)
    if cifar := parse_cifar_resnet(arch):
        _only_scratch(arch, pretrained)
        return _cifar_resnet(*cifar, classes)
    if arch.startswith("timm."):
        model = _timm(arch.removeprefix("timm."), classes, size, pretrained)
    else:
        model = _torchvision(arch, classes, size, pretrained)
    if size != NATIVE:
        _try_out(arch, model, size)
    return model


def channels_last(model: nn.Module) -> nn.Module:
    """Lay a network's convolutions out channels-last, in place: a third less time a step on CPUs, tensor cores on GPUs.

    Activations follow the weights, so that inputs may have any layout. Networks with normalisation by groups stay as
    they are: torch's kernels for it are slower channels-last. So do those with a strided 1x1 convolution of fewer than
    8 channels: on CPUs without AVX-512, oneDNN (in torch 2.14) writes past the gradient of its weights.
    """
    modules = list(model.modules())
    grouped = any(isinstance(m, nn.GroupNorm | nn.InstanceNorm2d) for m in modules)
    narrow = any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 8
        for m in modules
    )
    return model if grouped or narrow else model.to(memory_format=torch.channels_last)


def _only_scratch(arch: str, pretrained: str | None) -> None:
    if pretrained is not None:
        raise UserError(f"no pretrained weights exist for {arch}", hint="use `teacher.weights: scratch` or `file`")


def _cifar_resnet(depth: int, width: int, classes: int) -> nn.Module:
    """A torchvision ResNet with a 3x3 stem of stride 1 and no max-pool; `width` channels in the first stage."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    block = BasicBlock if depth < 50 else Bottleneck
    model = ResNet(block, list(_BLOCKS[depth]), num_classes=classes)
    if width != 64:
        _scale_width(model, width, block.expansion, classes)
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()  # type: ignore[assignment]
    return model


def _scale_width(model: Any, width: int, expansion: int, classes: int) -> None:
    """Rebuild a ResNet's stages with `width` channels in the first one, with torchvision's own code."""
    blocks = [len(getattr(model, f"layer{i}")) for i in range(1, 5)]
    kind = type(model.layer1[0])
    model.bn1 = nn.BatchNorm2d(width)
    model.inplanes = width
    for i, count in enumerate(blocks):
        stage = model._make_layer(kind, width << i, count, stride=1 if i == 0 else 2)
        setattr(model, f"layer{i + 1}", stage)
    model.fc = nn.Linear((width << 3) * expansion, classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _torchvision(arch: str, classes: int, size: int, pretrained: str | None) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if arch in ("googlenet", "inception_v3"):
        options["aux_logits"] = False  # auxiliary heads change what forward returns in training
        if pretrained is None:
            options["init_weights"] = True
    if pretrained is not None:
        weights = _cached_weights(arch, pretrained, classes)
        if arch.startswith(("vit_", "maxvit")) and size != NATIVE:
            raise UserError(f"the weights of {arch} are for {NATIVE} px, not {size}", hint="choose another teacher")
        return get_model(arch, weights=weights, **options)
    if arch.startswith("vit_"):
        options["image_size"] = size
    if arch.startswith("maxvit"):
        options["input_size"] = (size, size)
    try:
        return get_model(arch, weights=None, num_classes=classes, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{arch} cannot be built for {size} px: {error}", hint="choose another network") from error


def _cached_weights(arch: str, name: str, classes: int) -> Any:
    """The weights entry of torchvision, once its file is known to be in the hub's cache."""
    from torchvision.models import get_model_weights

    entries = get_model_weights(arch)
    if name not in entries.__members__:
        raise UserError(f"{arch} has no weights {name!r}", hint=did_you_mean(name, entries.__members__))
    weights = entries[name]
    _same_classes(arch, len(weights.meta["categories"]), classes)
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not file.is_file():
        command = f"python -c \"import torchvision; torchvision.models.{arch}(weights='{name}')\""
        raise DataError(f"weights of {arch} are not in the cache", where=str(file), hint=f"on a login node: {command}")
    return weights


def _timm(name: str, classes: int, size: int, pretrained: str | None) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no classifier {name!r}", hint=did_you_mean(name, timm.list_models()))
    config = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if config is not None and config.fixed_input_size and config.input_size[1:] != (size, size):
        options["img_size"] = size
    if pretrained is not None:
        if config is None or not config.has_weights:
            raise UserError(f"timm has no weights for {name}", hint="use `teacher.weights: scratch` or `file`")
        _same_classes(f"timm.{name}", config.num_classes, classes)
        if (tuple(config.mean), tuple(config.std)) != (IMAGENET_MEAN, IMAGENET_STD):
            raise UserError(
                f"the weights of timm.{name} expect mean {config.mean} and std {config.std}",
                hint="choose weights that were trained with ImageNet's mean and standard deviation",
            )
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(_cached_timm(name, config))}}
    try:
        return timm.create_model(name, num_classes=classes, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"timm.{name} cannot be built for {size} px: {error}", hint="choose another one") from error


def _cached_timm(name: str, config: Any) -> Path:
    """The file of timm's default weights, in the cache of the Hugging Face hub or of torch hub."""
    if config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        for file in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(config.hf_hub_id, file) if file else None
            if isinstance(found, str | os.PathLike):
                return Path(found)
    if config.url:
        found_file = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2]
        if found_file.is_file():
            return found_file
    command = f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\""
    raise DataError(f"weights of timm.{name} are not in the cache", hint=f"on a login node: {command}")


def _same_classes(arch: str, has: int, classes: int) -> None:
    if has != classes:
        raise UserError(
            f"the pretrained weights of {arch} know {has} classes, the dataset has {classes}",
            hint="use `teacher.weights: scratch` or `file`",
        )


def _try_out(arch: str, model: nn.Module, size: int) -> None:
    """One black image through the network: some sides would break some networks in the middle of a run."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{arch} cannot take {size} px images: {error}", hint="choose another network") from error
    model.train(training)


@cache
def _channels(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not take part in autograd later
        return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """From pixels to what networks see: (x - mean) / std a channel.

    Args:
        images: [..., 3, H, W], uint8, or float in [0, 1].
        mean: Channel means in [0, 1].
        std: Channel standard deviations.

    Returns:
        Floats of the same shape: float32 for uint8, else of the images' dtype.
    """
    x = images if images.is_floating_point() else images.float().div_(255)
    return (x - _channels(tuple(mean), x.device, x.dtype)) / _channels(tuple(std), x.device, x.dtype)


def to_unit(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """From normalised images to floats in [0, 1]: x * std + mean, clamped."""
    m, s = _channels(tuple(mean), x.device, x.dtype), _channels(tuple(std), x.device, x.dtype)
    return (x * s + m).clamp(0, 1)


def denormalise(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """From normalised images to uint8 pixels: `to_unit`, times 255, truncated as the references do."""
    return (to_unit(x, mean, std) * 255).to(torch.uint8)


def pixel_range(
    mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised black and white, [3, 1, 1] each: the range to which a synthesis clamps its images."""
    m = torch.tensor(tuple(mean), dtype=torch.float64).view(-1, 1, 1)
    s = torch.tensor(tuple(std), dtype=torch.float64).view(-1, 1, 1)
    return (-m / s).to(device=device, dtype=dtype), ((1 - m) / s).to(device=device, dtype=dtype)


def clip(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Clamp normalised images [..., 3, H, W] to what pixels can show."""
    return torch.clamp(x, *pixel_range(mean, std, x.device, x.dtype))
