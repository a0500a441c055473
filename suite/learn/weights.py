"""Weight files: state dicts read without running code from them, and put into networks strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from suite.errors import DataError


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from `.safetensors`, or from a `.pth` that holds one, bare or below `state_dict` or `model`.

    Raises:
        DataError: If the file cannot be read without running code from it, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors each raise kinds of their own
        kind = "unreadable" if isinstance(error, OSError | SafetensorError) else "refused or damaged"
        raise DataError(f"{kind} weights ({type(error).__name__})", where=str(path)) from error
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise DataError("not a state dict", where=str(path), hint="tensors by name, or below `state_dict` or `model`")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy a state dict into a network, strictly; only BatchNorm's step counters may be absent.

    Raises:
        DataError: If tensors are missing, left over or of another shape, naming the first three of them.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    shapes = [f"{k} {tuple(state[k].shape)}" for k in own if k in state and state[k].shape != own[k].shape]
    for what, names in (("missing", missing), ("unexpected", extra), ("of another shape (classes?)", shapes)):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise DataError(f"weights do not fit: {len(names)} tensors {what}: {shown}", where=where)
    model.load_state_dict(dict(state), strict=False)
