"""Several processes that train one network: the same steps as one process makes, up to rounding.

Every rank draws the order, the views and the targets of whole batches from the same seeds and forwards its own rows.
BatchNorm normalises by the whole batch, gradients are summed before each update, and so every rank holds the same
network to the last bit. Trainings with 1 and 2 ranks differ by the order of sums and nothing else: by 1e-5 (relative)
after the first update in float32, by 1e-13 in float64. What becomes of that later is what becomes of any rounding: a
ReLU whose input is rounded to the other side of 0 has another gradient, and Adam follows the sign of any.

How ranks find each other is the matter of `suite.stages.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from suite.errors import UserError
from suite.learn.checkpoint import Checkpoint, State
from suite.learn.view_plans import parts
from suite.preemption import Preempted


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together, in the default process group; alone there is no group.

    Attributes:
        rank: Number of this process.
        size: Processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what all have made."""
        return self.rank == 0

    def rows(self, images: int, count: int = 1) -> list[slice]:
        """Rows of a batch that this process forwards.

        Args:
            images: Of the whole batch.
            count: Parts of the batch, each normalised by itself; every rank has its share of each.

        Returns:
            A slice of the batch for each part; shares differ by one row at most, and may be empty.
        """
        found = []
        for part in parts(images, count):
            n = part.stop - part.start
            found.append(slice(part.start + n * self.rank // self.size, part.start + n * (self.rank + 1) // self.size))
        return found

    def chosen(self, images: int, count: int = 1) -> slice | torch.Tensor:
        """The same rows as one index into the batch."""
        if self.size == 1:
            return slice(None)
        return torch.cat([torch.arange(images)[own] for own in self.rows(images, count)])

    def pieces(self, images: int, count: int = 1) -> list[slice]:
        """Where the rows of each part stand among `chosen`."""
        edges = accumulate((own.stop - own.start for own in self.rows(images, count)), initial=0)
        return [slice(a, b) for a, b in pairwise(edges)]

    def prepare(self, model: nn.Module) -> None:
        """Make a network's BatchNorm layers normalise by the rows of all ranks, in place. Its state stays as it is.

        Raises:
            UserError: If there is a layer with normalisation of its own kind, or, at the first forward pass, if the
                network draws random numbers (dropout, stochastic depth): masks would depend on the number of ranks.
        """
        if self.size == 1:
            return
        for module in model.modules():
            if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                module.__class__ = WholeBatchNorm
            elif isinstance(module, _BatchNorm):
                raise _only_one(f"{type(module).__name__} normalises in a way of its own")
        _refuse_draws(model)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """Sum gradients over ranks, in place.

        Args:
            parameters: Of the network; those without a gradient are without one in every rank.
            loss: float [], this rank's share of it.

        Returns:
            The whole loss.
        """
        if self.size == 1:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), loss.reshape(1).to(gradients[0].dtype)])
        dist.all_reduce(flat)
        *sums, total = flat.split([*(g.numel() for g in gradients), 1])
        for g, s in zip(gradients, sums, strict=True):
            g.copy_(s.view_as(g))
        return total[0]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Values summed over ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each integer, by way of the CPU: nobody waits for a GPU."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [int(v) for v in found]

    def shared(self, state: State | None) -> State | None:
        """What the leading process holds."""
        if self.size == 1:
            return state
        box = [state]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


def mean_over(
    rows: torch.Tensor, target: torch.Tensor, loss: Callable[..., torch.Tensor], *more: torch.Tensor
) -> torch.Tensor:
    """A loss that is a mean over rows, float32 or more exact; 0 where there is no row, with a gradient all the same.

    Args:
        rows: [b, C] outputs of a network.
        target: [b, ...] their targets.
        loss: Called with rows, targets and `more`.
        more: Further arguments with b rows.
    """
    return loss(rows.float(), target, *more) if len(rows) else rows.float().sum()


class WholeBatchNorm(_BatchNorm):
    """BatchNorm over the rows of all ranks: means, variances and their gradients are those of the whole batch."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """The class that this one stands in for has had its say when the network was built."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise [b, C, ...] by the whole batch; in eval mode by the running statistics, as always."""
        if not self.training:
            return super().forward(input)
        mean, variance, count = _whole_moments(input.detach())
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), weight)
        return cast(torch.Tensor, _Normalise.apply(input, self.weight, self.bias, mean, variance, count, self.eps))


def _whole_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean [C] and variance [C] of the batch of all ranks, and how many values a channel has in it; float64.

    Raises:
        ValueError: If that is one, as torch's own layers do.
    """
    over = [0, *range(2, x.ndim)]
    count = x.numel() // x.shape[1]
    own = torch.zeros(1 + 2 * x.shape[1], dtype=torch.float64, device=x.device)
    if count:
        variance, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), over, correction=0)
        own = torch.cat([own.new_tensor([count]), mean.double(), variance.double()])
    each = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(each, own)
    counts, means, variances = torch.stack(each).split([1, x.shape[1], x.shape[1]], 1)
    total = counts.sum()
    if count <= 1 and int(total) <= 1:  # the host waits for the device only where it may be so
        raise ValueError(f"BatchNorm over {int(total)} values a channel")
    mean = (counts * means).sum(0) / total
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / total, total


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are functions of all ranks' x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *given: Any) -> Any:
        """Of x [b, C, ...], weight, bias, mean, variance, count of values and eps."""
        weight, bias, mean, variance, count, ctx.eps = given
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, variance = mean.to(kind), variance.to(kind)
        ctx.save_for_backward(x, weight, mean, variance, count.to(kind))
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, ctx.eps) if x.numel() else x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Of x by the whole batch; of weight and bias by own rows, since gradients of parameters are summed later."""
        x, weight, mean, variance, count = ctx.saved_tensors
        (dy,), scale = gradients, (variance + ctx.eps).rsqrt()
        sums = mean.new_zeros(2, len(mean))  # of dy, and of dy times the normalised x
        dx, factor = dy, torch.ones_like(mean) if weight is None else weight  # CUDA's kernel makes its gradient anyway
        if x.numel():
            dx, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
                dy.contiguous(memory_format=_layout(x)), x, factor, mean, variance, mean, scale, False, ctx.eps,
                [True, True, True],
            )  # fmt: skip
            sums = torch.stack([by_bias, by_weight])
        own = sums.clone()
        dist.all_reduce(sums)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        by_mean, by_scale = (sums / count) * (scale if weight is None else scale * weight)
        slope = by_scale * scale
        dx = dx - (x * slope.view(shape) + (by_mean - mean * slope).view(shape)).to(dx.dtype)
        affine = weight is not None
        return dx, own[1] if affine else None, own[0] if affine else None, None, None, None, None


def _layout(x: torch.Tensor) -> torch.memory_format:
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _only_one(what: str) -> UserError:
    return UserError(f"several tasks cannot train this network: {what}", hint="`tasks: 1` in the site profile")


def _refuse_draws(model: nn.Module) -> None:
    """Look at the global generator around the first forward pass in training mode."""
    device = next(model.parameters()).device

    def draws() -> torch.Tensor:
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    before: list[torch.Tensor] = []

    def note(module: nn.Module, _: Any) -> None:
        before.append(draws())

    def compare(module: nn.Module, _: Any, output: Any) -> None:
        noting.remove()
        comparing.remove()
        if not torch.equal(before[0], draws()):
            raise _only_one("it draws random numbers as it computes (dropout, stochastic depth)")

    noting = model.register_forward_pre_hook(note)
    comparing = model.register_forward_hook(compare)


class Agreed(Checkpoint):
    """The checkpoints of ranks: the leading one writes and reads them; when any was asked to leave, all do, together.

    Args:
        outer: The leading rank's checkpoints. Of those of the others only the notice and the fault points count.
        ranks: The processes. They meet after every step.
    """

    def __init__(self, outer: Checkpoint, ranks: Ranks) -> None:
        self.outer, self.ranks, self.notice = outer, ranks, outer.notice
        self._leaving = False

    def due(self) -> bool:
        """Whether it is time for the leading rank, or some rank was asked to leave: then all are, at this step."""
        due, signum = self.ranks.largest([int(self.outer.due()), self.notice.signum or 0])
        if signum:
            self.notice.take(signum)
            self._leaving = True
        return bool(due or signum)

    def save(self, state: State) -> bool:
        """Write in the leading rank; then leave if that was agreed on.

        Raises:
            Preempted: Then.
        """
        written = False
        if self.ranks.leads:
            try:
                written = self.outer.save(state)
            except Preempted:
                if self._leaving:
                    raise
                written = True  # asked to leave while it saved: the others learn of it after the next step
        if self._leaving:
            self.notice.leave()
        return written

    def load(self) -> State | None:
        """What the leading rank goes on from."""
        return self.ranks.shared(self.outer.load() if self.ranks.leads else None)


def agreed(checkpoint: Checkpoint, ranks: Ranks) -> Checkpoint:
    """The checkpoints of a training by some ranks."""
    return checkpoint if ranks.size == 1 else Agreed(checkpoint, ranks)
