"""Class-wise and global statistics of a teacher's layer inputs over real images, in one pass (EDC, E2D, WMDD, LPLD)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from suite.data.tensors import save_tensors
from suite.errors import DataError
from suite.learn.checkpoint import Checkpoint, Never
from suite.learn.taps import BN, CONV, InputHooks, full_precision, patches, running_statistics

_FORMAT = "layer statistics 1"
_PATCHES = ("patch_mean", "patch_var", "class_patch_mean", "class_patch_var")
_AGAIN = "run the `statistics` stage again"


@dataclass(frozen=True)
class LayerTargets:
    """What one layer's statistics are matched against.

    Attributes:
        name: The module's name in the network.
        kind: `bn` or `conv`.
        mean: [C] global mean of the layer's input: a BatchNorm's running mean, or the average over real batches.
        var: [C] global variance, likewise.
        patch_mean: [U*V] of convolutions: mean of every cell of the patch grid, else None.
        patch_var: [U*V].
        class_mean: [K, C], for each class the average over its images of an image's own mean; None if unknown.
        class_var: [K, C], likewise of an image's own biased variance, which leaves out what lies between images.
        class_between: [K, C], what it leaves out: the biased variance of the images' means; of BatchNorm layers only.
        class_patch_mean: [K, U*V].
        class_patch_var: [K, U*V].
    """

    name: str
    kind: str
    mean: torch.Tensor
    var: torch.Tensor
    patch_mean: torch.Tensor | None = None
    patch_var: torch.Tensor | None = None
    class_mean: torch.Tensor | None = None
    class_var: torch.Tensor | None = None
    class_between: torch.Tensor | None = None
    class_patch_mean: torch.Tensor | None = None
    class_patch_var: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are present, by attribute."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), torch.Tensor)}


@dataclass(frozen=True)
class ClassStatistics:
    """Targets of all tapped layers of one teacher, in module order.

    Attributes:
        layers: One entry a layer.
        classes: Number of classes K; 0 without class-wise targets.
        patch: Side of the patches; None without patch statistics.
    """

    layers: list[LayerTargets]
    classes: int
    patch: int | None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which layers were tapped."""
        present = {layer.kind for layer in self.layers}
        return tuple(k for k in (BN, CONV) if k in present)

    @property
    def class_moments(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each BatchNorm layer, mean and biased variance [K, C] over all pixels of all images of a class.

        These are the moments of the class processed in one batch (WMDD, section 3.3; LPLD, section 3.2): images have as
        many pixels, so the variance is the mean of the images' variances plus the variance of their means.

        Raises:
            DataError: If the statistics do not hold them.
        """
        found = []
        for layer in (layer for layer in self.layers if layer.kind == BN):
            mean, within, between = layer.class_mean, layer.class_var, layer.class_between
            if mean is None or within is None or between is None:
                raise DataError(f"layer {layer.name} has no moments of classes", hint=_AGAIN)
            found.append((mean, within + between))
        return found

    def without_classes(self) -> ClassStatistics:
        """The global targets only (G-VBSM)."""
        class_wise = ("class_mean", "class_var", "class_between", "class_patch_mean", "class_patch_var")
        none: dict[str, Any] = dict.fromkeys(class_wise)
        return ClassStatistics([replace(layer, **none) for layer in self.layers], 0, self.patch)

    def save(self, path: Path) -> None:
        """Write one safetensors file; layer names and kinds are in its metadata, in order."""
        tensors = {
            f"{i}.{name}": t.detach().to("cpu").contiguous()
            for i, layer in enumerate(self.layers)
            for name, t in layer.tensors().items()
        }
        header = {
            "format": _FORMAT,
            "layers": [[layer.name, layer.kind] for layer in self.layers],
            "classes": self.classes,
            "patch": self.patch,
        }
        # One entry: safetensors writes several in an order that changes from process to process.
        save_tensors(path, tensors, {"statistics": json.dumps(header)})

    @staticmethod
    def load(path: Path) -> ClassStatistics:
        """Read what `save` wrote.

        Raises:
            DataError: If the file is something else.
        """
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("statistics", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not iterable itself
        except SafetensorError as error:
            raise DataError(f"unreadable: {error}", where=str(path), hint=_AGAIN) from error
        if header.get("format") != _FORMAT:
            raise DataError("not a statistics file", where=str(path), hint=_AGAIN)
        found: list[dict[str, Any]] = [{"name": n, "kind": k} for n, k in header["layers"]]
        for key, tensor in tensors.items():
            index, _, attribute = key.partition(".")
            found[int(index)][attribute] = tensor
        layers = [LayerTargets(**values) for values in found]
        return ClassStatistics(layers, header["classes"], header["patch"])


@dataclass(frozen=True)
class _PerImage:
    """Statistics of each image of a batch.

    [B, C] means and variances; of BatchNorm layers also the squared means, in float64, from which the variance between
    images follows; of convolutions with patches also two [B, U*V].
    """

    name: str
    kind: str
    vectors: list[torch.Tensor]


def _per_image(name: str, kind: str, x: torch.Tensor, patch: int | None) -> _PerImage:
    x = full_precision(x)
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    if kind == BN:
        return _PerImage(name, kind, [mean, var, mean.double().square()])
    if patch is None:
        return _PerImage(name, kind, [mean, var])
    patch_var, patch_mean = torch.var_mean(patches(x, patch), dim=(1, 3, 5), correction=0)
    return _PerImage(name, kind, [mean, var, patch_mean.flatten(1), patch_var.flatten(1)])


class _Sums:
    """Running sums over batches, in float64: one row a class, and one row over all images."""

    def __init__(self, classes: int, layers: list[_PerImage]) -> None:
        first = layers[0].vectors[0]
        self.layers = [(layer.name, layer.kind, [v.shape[1] for v in layer.vectors]) for layer in layers]
        self.dtype, width = first.dtype, sum(sum(widths) for _, _, widths in self.layers)
        self.by_class = torch.zeros(classes, width, dtype=torch.float64, device=first.device)
        self.counts = torch.zeros(classes, dtype=torch.float64, device=first.device)
        self.total = torch.zeros(width, dtype=torch.float64, device=first.device)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        sums = [self.by_class, self.counts, self.total]
        return {"layers": self.layers, "sums": sums, "one": torch.ones((), dtype=self.dtype)}

    @staticmethod
    def restored(state: dict[str, Any], device: torch.device) -> _Sums:
        """The sums of a `state`."""
        sums = _Sums.__new__(_Sums)
        sums.layers, sums.dtype = state["layers"], state["one"].dtype
        sums.by_class, sums.counts, sums.total = (t.to(device) for t in state["sums"])
        return sums

    def add(self, layers: list[_PerImage], labels: torch.Tensor) -> None:
        """Add one batch: its images to their classes, its own statistics, times its size, to the total."""
        rows = torch.cat([v for layer in layers for v in layer.vectors], dim=1).double()
        self.by_class.index_add_(0, labels, rows)
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        between, within = torch.var_mean(rows, dim=0, correction=0)
        # Variance of a batch = mean of the images' variances + variance of their means, as all have as many pixels.
        of_batch, at = [], 0
        for _, _, widths in self.layers:
            for i, width in enumerate(widths):
                part = within[at : at + width]
                of_batch.append(part + between[at - width : at] if i % 2 else part)
                at += width
        self.total += len(labels) * torch.cat(of_batch)


def compute_statistics(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    classes: int,
    patch: int | None,
    kinds: tuple[str, ...] = (BN, CONV),
    checkpoint: Checkpoint | None = None,
) -> ClassStatistics:
    """Statistics of a teacher over real images (EDC, section 3; E2D, section 3; global ones: G-VBSM, section 3.3).

    Global targets of BatchNorm layers are their running statistics; those of convolutions are averages over batches of
    the batch's statistics, weighted by batch size, so they depend a little on the batch size. Class-wise targets are
    averages over images. Sums are float64; results have the precision of the forward pass (float32).

    Args:
        model: The teacher, in eval mode.
        batches: Normalised views, float [B, 3, S, S], and labels, int64 [B], on the teacher's device.
        classes: Number of classes K.
        patch: Side of the patches of convolution statistics; None for none.
        kinds: Which layers, `bn` and `conv`.
        checkpoint: Where an interrupted computation goes on; `batches` are then those that are left.

    Raises:
        DataError: If there are no images, or a class has none.
        UserError: If the network has no such layers.
    """
    hooks = InputHooks(model, kinds, lambda name, kind, x: _per_image(name, kind, x, patch))
    checkpoint = checkpoint or Never()
    saved = checkpoint.load()
    sums = None if saved is None else _Sums.restored(saved, next(model.parameters()).device)
    try:
        with torch.no_grad():
            for x, labels in batches:
                with hooks.collecting() as collected:
                    model(x)
                layers = [s for s in collected if isinstance(s, _PerImage)]
                sums = sums or _Sums(classes, layers)
                sums.add(layers, labels)
                checkpoint.offer(sums.state)
    finally:
        hooks.close()
    if sums is None:
        raise DataError("no real images to compute statistics from", hint="run the `prepare` stage again")
    empty = (sums.counts == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"{len(empty)} of {classes} classes have no images, the first is {empty[0]}")
    running = {n: running_statistics(n, m) for n, (kind, m) in hooks.layers.items() if kind == BN}
    return ClassStatistics(_targets(sums, running), classes, patch)


def _targets(sums: _Sums, running: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> list[LayerTargets]:
    """Divide the sums and cut them into layers."""
    by_class = sums.by_class / sums.counts[:, None]
    total = (sums.total / sums.counts.sum()).to(sums.dtype)
    layers, at = [], 0
    for name, kind, widths in sums.layers:
        width = sum(widths)
        # Copies, so that a layer does not keep the whole table alive and files hold each tensor once.
        overall = [t.clone() for t in total[at : at + width].split(widths)]
        exact = by_class[:, at : at + width].split(widths, dim=1)
        per_class = [t.to(sums.dtype, copy=True) for t in exact]
        at += width
        mean, var = overall[:2]
        more: dict[str, torch.Tensor] = {}
        if kind == BN:
            mean, var = (t.detach().clone() for t in running[name])
            more["class_between"] = (exact[2] - exact[0].square()).clamp_min(0).to(sums.dtype)
        elif len(widths) == 4:
            more = dict(zip(_PATCHES, (*overall[2:], *per_class[2:]), strict=True))
        layers.append(LayerTargets(name, kind, mean, var, class_mean=per_class[0], class_var=per_class[1], **more))
    return layers
