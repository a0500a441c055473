"""Writing tensors: one safetensors file, or an error that names it and its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from suite.errors import InfraError


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors of the CPU.

    Raises:
        InfraError: If the file system refuses.
    """
    try:
        save_file(dict(tensors), path, metadata)
    except (OSError, SafetensorError) as error:
        size = sum(t.nbytes for t in tensors.values())
        raise InfraError(f"cannot write {size} bytes: {error}", where=str(path)) from error
