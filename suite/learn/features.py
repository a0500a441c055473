"""Penultimate features: what a network's last linear layer is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from suite.errors import DataError, NumericError, UserError
from suite.learn.initial import per_class, real_images
from suite.learn.job import Job
from suite.learn.models import normalise
from suite.learn.teachers import Teacher
from suite.learn.validation import autocast, centre

#: Decoded bytes of the real images that are held at once.
CHUNK_BYTES = 256 << 20


def last_linear(model: nn.Module) -> nn.Linear:
    """The classifier of a network: its last linear layer, in the order of `model.modules()`.

    Raises:
        UserError: If it has none.
    """
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError(
            f"{type(model).__name__} ends in no linear layer: it has no penultimate features",
            hint="choose another teacher",
        )
    return linear[-1]


@contextmanager
def penultimate(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside the block, every forward pass leaves the input of the last linear layer, [B, D], in the list.

    Only the latest one is kept. The network has no hook of this once the block has ended.

    Raises:
        UserError: If the network has no linear layer.
    """
    latest: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        latest[:] = [inputs[0].flatten(1)]

    handle = last_linear(model).register_forward_pre_hook(keep)
    try:
        yield latest
    finally:
        handle.remove()


def image_features(
    teacher: Teacher, images: torch.Tensor, *, precision: str = "fp32", batch: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Penultimate features and logits of images as they are: whole, not augmented.

    Args:
        teacher: Normalises with its own numbers; its device computes.
        images: uint8 [n, 3, S, S], or float in [0, 1].
        precision: `fp32` or `bf16` (autocast).
        batch: Images a forward pass; by default 256 from 96 pixels up, else 1024. It changes nothing but rounding.

    Returns:
        float32 [n, D] and float32 [n, C], on the CPU.

    Raises:
        NumericError: If a feature or a logit is NaN or Inf.
    """
    device = next(teacher.parameters()).device
    batch = batch or (256 if images.shape[-1] >= 96 else 1024)
    found, logits = [], []
    with penultimate(teacher) as latest, torch.no_grad(), autocast(precision, device):
        for part in images.split(batch):
            z = teacher(normalise(part.to(device), teacher.mean, teacher.std))
            found.append(latest[0].float().cpu())
            logits.append(z.float().cpu())
    features, scores = torch.cat(found), torch.cat(logits)
    if not (bool(features.isfinite().all()) and bool(scores.isfinite().all())):
        raise NumericError("features are not finite", where=teacher.arch)
    return features, scores


def real_features(
    job: Job, indices: torch.Tensor, *, teacher: Teacher | None = None, batch: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Penultimate features and logits of training images, of which the centre is kept, as at validation.

    Args:
        job: The synthesis; the images are counted in `forward_images`.
        indices: int64 [n], of the training split.
        teacher: The job's first one by default.
        batch: As in `image_features`.

    Returns:
        float32 [n, D] and float32 [n, C], on the CPU, in the order of `indices`.

    Raises:
        DataError: If the plan gave no real images.
        NumericError: If a feature or a logit is NaN or Inf.
        UserError: If the teacher has no linear layer.
    """
    real = real_images(job)
    network = job.teachers[0] if teacher is None else teacher
    chunk = max(1, CHUNK_BYTES // (3 * real.stored**2))
    parts = [
        image_features(network, centre(real.take(part), job.dataset.size), precision=job.precision, batch=batch)
        for part in indices.split(chunk)
    ]
    job.counters.forward_images += len(indices)
    return torch.cat([f for f, _ in parts]), torch.cat([z for _, z in parts])


def members_per_class(job: Job) -> list[torch.Tensor]:
    """Indices int64 of the training images of every class, in stored order.

    Raises:
        DataError: If a class has fewer than `ipc` images.
    """
    members = per_class(job)
    for c, indices in enumerate(members):
        if len(indices) < job.ipc:
            raise DataError(f"class {c} has {len(indices)} images, {job.ipc} are wanted", where=job.dataset.name)
    return members


def class_features(job: Job) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each class of the job, the training images and what the job's first teacher makes of them; for selections.

    Yields:
        Indices int64 [n] in stored order, and float32 features [n, D].

    Raises:
        DataError: If a class has fewer than `ipc` images.
    """
    members = members_per_class(job)
    for c in job.classes():
        yield members[c], real_features(job, members[c])[0]
        job.progress(c + 1, job.dataset.classes)
