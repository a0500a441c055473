"""Label vectors: one vector of class probabilities an image, from one look of the teachers at each whole image.

"A Label is Worth a Thousand Images" (arXiv 2406.10485, section 3): y = softmax(logits / temperature), kept for all of
the student's views. The file is safetensors with `labels` float16 [N, C]: 2 N C bytes and a header of some 100 bytes.
Rounding to fp16 moves a probability by 0.05 % of itself at most (3e-8 below 6e-5); the paper's code keeps fp32, twice
the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from suite.data.distilled import DistilledSet
from suite.data.tensors import save_tensors
from suite.errors import DataError, NumericError
from suite.learn.ensembles import label_logits
from suite.learn.teachers import Teacher
from suite.learn.view_plans import Renderer, ViewPlan
from suite.spec.datasets import Dataset
from suite.spec.recipes import RelabelRecipe

FORMAT = "label-vectors-1"


def write_vectors(
    path: Path,
    distilled: DistilledSet,
    teachers: Sequence[Teacher],
    recipe: RelabelRecipe,
    dataset: Dataset,
    device: torch.device,
    precision: str = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Ask the teachers about every distilled image once, whole, in class-major batches.

    Args:
        path: The file to write.
        distilled: The distilled set of N images.
        teachers: At least one.
        recipe: Batch, and how labels follow from logits; its views are not used.
        dataset: For mean and standard deviation.
        device: Where teachers run.
        precision: Of their forward passes.
        progress: Called with (images done, all images).

    Returns:
        Images that went through a teacher.

    Raises:
        NumericError: If a logit is not finite.
        InfraError: If the file system refuses.
    """
    render, images = Renderer(distilled.images, dataset, device), len(distilled.images)
    batch, label = min(recipe.batch, images), recipe.label
    rows: list[torch.Tensor] = []
    for begin in range(0, images, batch):
        index = torch.arange(begin, min(begin + batch, images))
        logits = label_logits(teachers, render(ViewPlan(index)), label, batch, precision)
        rows.append(torch.softmax(logits / label.temperature, 1).half())
        progress(begin + len(index), images)
    labels = torch.cat(rows).cpu()
    if not bool(labels.isfinite().all()):
        raise NumericError("teacher logits of distilled images are not finite")
    save_tensors(path, {"labels": labels}, {"format": FORMAT})
    return images * len(teachers)


class LabelVectors:
    """A file of label vectors.

    Attributes:
        path: The file.
        rows: float16 [N, C]; those of sets from elsewhere may be float32.
        bytes: Size of the file.

    Args:
        path: What `write_vectors` wrote.

    Raises:
        DataError: If the file is not one of label vectors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("format") != FORMAT:
                    raise DataError("not a file of label vectors", where=str(path), hint=f"format {FORMAT} is read")
                self.rows: torch.Tensor = file.get_tensor("labels")
        except (OSError, SafetensorError) as error:
            raise DataError(f"unreadable label vectors ({error})", where=str(path)) from error
        self.bytes = path.stat().st_size
