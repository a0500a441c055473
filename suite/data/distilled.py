"""The distilled set: what a synthesis stage makes and a student learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from suite.data.tensors import save_tensors
from suite.errors import DataError


@dataclass(frozen=True)
class DistilledSet:
    """Distilled images and their classes, class-major.

    Attributes:
        images: uint8 [C*IPC, 3, S, S], RGB.
        labels: int64 [C*IPC], IPC times 0, then IPC times 1, ...
    """

    images: torch.Tensor
    labels: torch.Tensor

    def check(self, classes: int, ipc: int, size: int) -> DistilledSet:
        """Return self if it keeps the contract that every method has with the suite.

        Raises:
            DataError: If shapes, dtypes or the order of classes differ.
        """
        for name, value in (("images", self.images), ("labels", self.labels)):
            if not isinstance(value, torch.Tensor):
                raise DataError(f"distilled {name} are {type(value).__name__}", hint="a tensor is the contract")
        expected = torch.arange(classes).repeat_interleave(ipc)
        if self.images.dtype != torch.uint8 or self.images.shape != (classes * ipc, 3, size, size):
            raise DataError(
                f"distilled images are {self.images.dtype} {tuple(self.images.shape)}",
                hint=f"uint8 {(classes * ipc, 3, size, size)} is the contract",
            )
        if self.labels.dtype != torch.int64 or not torch.equal(self.labels.cpu(), expected):
            raise DataError("distilled labels are not class-major int64", hint=f"{ipc} images for each of {classes}")
        return self

    def save(self, path: Path) -> None:
        """Write one safetensors file; classes take the whole bytes that they need, as storage counts them."""
        last = int(self.labels.max())
        dtype = next(d for d in (torch.uint8, torch.int16, torch.int32) if last <= torch.iinfo(d).max)
        save_tensors(path, {"images": self.images.cpu().contiguous(), "labels": self.labels.cpu().to(dtype)})

    @staticmethod
    def load(path: Path) -> DistilledSet:
        """Read what `save` wrote."""
        tensors = load_file(path)
        return DistilledSet(tensors["images"], tensors["labels"].long())
