"""Images out of a prepared folder through torchvision's ImageFolder and torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from suite.errors import DataError, InfraError


def _to_tensors(samples: list[tuple[np.ndarray, int]]) -> torch.Tensor:
    """Stack HxWx3 arrays as uint8 [b, 3, H, W]."""
    return torch.from_numpy(np.stack([image for image, _ in samples])).permute(0, 3, 1, 2).contiguous()


class FolderStream:
    """A folder of classes, decoded by PIL.

    Args:
        folder: Holds one directory a class.
        classes: Their names, in the order of labels.
        stored: Side R that every image must have.
        name: Dataset and split, for messages.
        timeout: Seconds without a batch after which the loader counts as stalled.
        workers: Decoding processes; None takes the cores at hand, at most 8.

    Attributes:
        labels: int64 [N].
    """

    def __init__(
        self, folder: Path, classes: list[str], stored: int, name: str, timeout: float, workers: int | None
    ) -> None:
        from torchvision.datasets import ImageFolder

        from suite.data.ffcv_stream import default_workers

        try:
            self._images: Dataset = ImageFolder(str(folder), transform=np.asarray)
        except (OSError, FileNotFoundError) as error:
            raise DataError(f"cannot be read: {error}", where=name, hint="prepare the dataset again") from error
        if self._images.classes != classes:  # type: ignore[attr-defined]
            raise DataError("folders are not the classes of dataset.json", where=name)
        self.labels = np.asarray(self._images.targets, dtype=np.int64)  # type: ignore[attr-defined]
        self.stored, self.name, self.timeout = stored, name, timeout
        self.workers = workers or default_workers()

    def read(self, order: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
        """Yield the images with the given indices, in the given order: uint8 [b, 3, R, R].

        Raises:
            InfraError: If a worker dies or stalls for `timeout` seconds.
            DataError: If an image is not a square of side R.
        """
        if len(order) == 0:
            return
        loader: DataLoader = DataLoader(
            Subset(self._images, order.tolist()),
            batch_size=batch,
            num_workers=self.workers,
            timeout=self.timeout,
            collate_fn=_to_tensors,
        )
        done = 0
        batches = iter(loader)
        while done < len(order):
            span = f"samples {done} to {min(done + batch, len(order)) - 1}"
            try:
                images = next(batches)
            except (RuntimeError, OSError) as error:
                what = " ".join(str(error).split())
                raise InfraError(f"torchvision's loader failed at {span}: {what}", where=self.name) from error
            except ValueError as error:  # arrays of several sizes
                raise DataError(f"images of several sizes at {span}", where=self.name) from error
            if images.shape[1:] != (3, self.stored, self.stored):
                raise DataError(f"{tuple(images.shape[1:])} instead of {self.stored}x{self.stored}", where=self.name)
            done += len(images)
            yield images
