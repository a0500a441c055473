"""From the logits of several teachers to one: the only place that knows how soft labels are made.

Online labels, label streams and label vectors all ask `label_logits`, so that the same views get the same labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from suite.errors import UserError
from suite.learn.teachers import Teacher
from suite.learn.validation import autocast
from suite.learn.view_plans import parts
from suite.spec.recipes import LabelRecipe


def combine(logits: torch.Tensor, label: LabelRecipe) -> torch.Tensor:
    """One logit matrix from those of several teachers.

    `mean` is the plain mean of raw logits (EDC, E2D, label-worth); `norm` first scales each teacher's matrix to the
    mean of the teachers' Frobenius norms over this batch (G-VBSM, section 3.3); `weighted` sums w_k logits_k (CV-DD,
    section 3.3).

    Args:
        logits: float [K, B, C], one matrix a teacher.
        label: Which of them, and the weights.

    Returns:
        float [B, C].

    Raises:
        UserError: If the number of weights is not K.
    """
    if label.ensemble == "weighted":
        if len(label.weights) != len(logits):
            raise UserError(f"{len(label.weights)} label weights for {len(logits)} teachers")
        return torch.tensordot(logits.new_tensor(label.weights), logits, 1)
    if label.ensemble == "norm":
        norms = logits.flatten(1).norm(dim=1)
        logits = logits * (norms.mean() / norms)[:, None, None]
    return logits.mean(0)


def part_count(label: LabelRecipe, batch: int) -> int:
    """Into how many parts the batches of a training are cut, 0 for teachers in eval mode.

    A short last batch is cut into as many as a full one of `batch` images, as CV-DD's code and its students do.
    """
    return -(-batch // label.part) if label.part else 0


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the block BatchNorm layers normalise by the batch, and nothing else changes.

    Their running statistics are taken away and put back, so they are neither used nor updated; dropout stays off,
    since the network stays in eval mode (CV-DD's code leaves it on, which makes labels random).
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    kept = [(m.running_mean, m.running_var) for m in layers]
    try:
        for layer in layers:
            layer.running_mean = layer.running_var = None
        yield
    finally:
        for layer, (mean, var) in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var = mean, var


def teacher_logits(teacher: nn.Module, x: torch.Tensor, count: int) -> torch.Tensor:
    """Logits of one teacher, with batch-specific soft labels (CV-DD, section 3.3) where `count` is positive.

    Args:
        teacher: A frozen network in eval mode.
        x: float [B, 3, S, S] normalised views.
        count: Parts of the batch, each with BatchNorm statistics of its own; 0 for the running statistics.

    Raises:
        UserError: If a part has one value a channel, which has no variance.
    """
    if count == 0:
        logits: torch.Tensor = teacher(x)
        return logits
    try:
        with batch_statistics(teacher):
            return torch.cat([teacher(x[part]) for part in parts(len(x), count)])
    except ValueError as error:
        raise UserError(
            f"no batch-specific labels: {error}", hint="larger label.part, or a batch that divides"
        ) from error


def label_logits(
    teachers: Sequence[Teacher],
    x: torch.Tensor,
    label: LabelRecipe,
    batch: int | None = None,
    precision: str = "fp32",
) -> torch.Tensor:
    """Soft labels of views, as logits, without a graph.

    Args:
        teachers: At least one.
        x: float [B, 3, S, S] normalised views.
        label: How teachers are combined, and whose statistics their BatchNorm layers use.
        batch: Images of a full batch, of which this may be a shorter last one; B by default.
        precision: `fp32` or `bf16` for the forward passes; logits are combined in float32.

    Returns:
        float32 [B, C].

    Raises:
        UserError: If weights do not fit the teachers, or BatchNorm statistics of a part do not exist.
    """
    count = part_count(label, batch or len(x))
    with torch.no_grad():
        with autocast(precision, x.device):
            each = [teacher_logits(teacher, x, count).float() for teacher in teachers]
        return combine(torch.stack(each), label)
