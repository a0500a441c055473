"""`teacher`: train a network on real images, or take weights that exist, and publish one safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch

from suite.data.tensors import save_tensors
from suite.errors import UserError
from suite.learn.teachers import load_teacher, train_teacher, trained_epochs
from suite.stages.context import Context, Outcome, metered
from suite.store.files import write_json


def run(context: Context) -> Outcome:
    """Write `weights.safetensors` (fp32 state dict) and `metrics.json` (validation accuracy where it was measured)."""
    spec, facts = context.spec, context.dataset
    if spec.weights == "scratch":
        train, val = context.real("train"), context.real("val")
        with context.training() as (ranks, cost):
            state, numbers = train_teacher(
                spec,
                facts,
                train,
                val,
                context.device,
                context.progress,
                context.checkpoint,
                context.micro_batches,
                ranks,
            )
        if not ranks.leads:
            return Outcome(cost)
        if context.micro_batches > 1:
            numbers["micro_batches"] = context.micro_batches
        cost["images"] = len(train) * trained_epochs(spec.recipe)
    else:
        with metered(context.device) as cost:
            state, numbers = _existing(context), {}
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}
    save_tensors(context.dir / "weights.safetensors", tensors)
    write_json(context.dir / "metrics.json", numbers)
    return Outcome(cost, numbers=numbers)


def _existing(context: Context) -> dict[str, torch.Tensor]:
    spec = context.spec
    if spec.weights == "pretrained":
        teacher = load_teacher(spec.arch, context.dataset, pretrained="IMAGENET1K_V1", device=context.device)
    else:
        if context.settings.weights is None:
            raise UserError("`teacher.weights: file` needs a weights root", hint="set `weights:` in the site profile")
        folder = Path(context.settings.weights) / context.dataset.base
        teacher = load_teacher(
            spec.arch, context.dataset, path=folder / f"{spec.arch}.safetensors", device=context.device
        )
    return dict(teacher.model.state_dict())
