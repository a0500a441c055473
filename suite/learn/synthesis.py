"""The loop that decoupled methods share: optimise pixels so that frozen teachers see a class and real statistics.

A method is a composition: starts, a partition of the images into batches, views, teachers with their matching terms,
which of them judge an iteration, and which images are active (SRe2L, CDA, G-VBSM, EDC, DELT, E2D, WMDD, CV-DD).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from suite.data.distilled import DistilledSet
from suite.errors import NumericError, UserError
from suite.learn.composition import Composition, Critic, Seen, Views, by_class, by_slot, cosine, cyclic
from suite.learn.handover import Flag, Shelf
from suite.learn.initial import to_distilled
from suite.learn.job import Job
from suite.learn.models import denormalise, normalise, pixel_range
from suite.learn.share import blocks
from suite.learn.taps import Taps

__all__ = ["BETAS", "EPS", "LOG_EVERY", "STOP_EVERY", "BatchRun", "Composition", "Critic", "Seen", "Views", "by_class",
           "by_slot", "cosine", "cyclic", "distill", "stacks"]  # fmt: skip

#: Iterations between two looks at the device: progress, and whether everything is finite.
LOG_EVERY = 100
#: Iterations between two questions whether a batch has ended; the images are frozen meanwhile, on accelerators.
STOP_EVERY = 8
BETAS, EPS = (0.5, 0.9), 1e-8


def distill(job: Job, composition: Composition) -> DistilledSet:
    """Optimise every batch of the partition and return the last iterates, truncated to uint8.

    A job that has a share of the set optimises its batches only; the other images are black.

    Adam starts afresh for every batch; after each update pixels are clamped to what an image can hold. The host reads
    from the device only every `LOG_EVERY` iterations, and to find the end of batches that may stop early; finished
    images travel to the host while the next batch is optimised.

    Args:
        job: The synthesis. Its counters are filled in: updates of images that were kept, and images that teachers saw.
            With a checkpoint it goes on where an interrupted one was, to the same bits.
        composition: The method.

    Raises:
        NumericError: If a loss or a pixel is NaN or Inf.
        UserError: If a share is wanted of batches that depend on those before them.
    """
    facts, own = job.dataset, job.share.take(composition.partition)
    if composition.carry and job.share.count > 1:
        raise UserError("batches that carry their state on cannot be cut into shards", hint="run it as one task")
    shelf = Shelf(facts.classes * job.ipc, facts.size, job.device)
    saved = job.checkpoint.load() if job.checkpoint else None
    begun, counter = 0, 0
    if saved is not None:
        shelf.restore(saved["images"])
        begun, counter = saved["begun"], saved["counter"]
    with ExitStack() as stack:
        for critic in composition.critics:
            stack.callback(critic.close)
            if isinstance(critic.forward, Taps):
                critic.forward.compiled = job.compile
        for numbers in stacks(composition, job.stack, own):
            if numbers[0] < begun:
                continue
            run = BatchRun(job, composition, numbers, counter if composition.carry else None)
            if saved is not None:
                run.restore(saved["run"])
                for n, slots in zip(run.numbers, run.slots, strict=True):
                    composition.start(n, slots)  # what starts keep for the next batch is there again
                job.counters.image_iterations, job.counters.forward_images = saved["counters"]
                saved = None
            x = run.run(lambda run=run: _save(job, shelf, run, counter))  # type: ignore[misc]  # noqa: B023
            mean, std = run.scale
            shelf.put(torch.cat(run.slots), denormalise(x, mean, std))
            counter += run.updates
    return to_distilled(job, shelf.all())


def _save(job: Job, shelf: Shelf, run: BatchRun, counter: int) -> None:
    """Write a checkpoint if it is time for one."""
    if job.checkpoint is not None and job.checkpoint.due():
        counters = (job.counters.image_iterations, job.counters.forward_images)
        job.checkpoint.save(
            {
                "images": shelf.all(),
                "begun": run.numbers[0],
                "counter": counter,
                "counters": counters,
                "run": run.state(),
            }
        )


def stacks(composition: Composition, images: int, own: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Numbers of the batches that are optimised side by side, in order.

    They are equally large, their teachers judge the same iterations, and together they hold at most `images`; a batch
    alone may hold more. Each keeps its own statistics, draws and end, so that stacking changes no objective. It
    changes roundings, so that who makes a part of the set stacks as who makes all of it.

    Args:
        composition: The method.
        images: Most images of several batches.
        own: Numbers of the batches that are wanted, whose neighbours in a stack come along; all by default.
    """
    plan = composition
    turns: dict[int, list[Any]] = {}

    def alike(a: int, b: int) -> bool:
        for n in (a, b):
            if n not in turns:
                turns[n] = [list(plan.select(n * plan.iterations + t, n)) for t in range(plan.iterations)]
        return turns[a] == turns[b]

    for block in blocks(plan.partition, 1 if plan.carry else images):
        if own is not None and not set(own) & set(block):
            continue
        stack = block[:1]
        for n in block[1:]:
            if not alike(stack[0], n):
                yield stack
                stack = []
            stack = [*stack, n]
        yield stack


class BatchRun:
    """The optimisation of one batch, or of several equally large ones side by side.

    Args:
        job: The synthesis.
        composition: The method.
        numbers: Of the batches in the partition.
        counter: Iterations of all batches before it, if they are carried on.
        watch: Called with (t, images) after every update; for tests.

    Attributes:
        slots: Positions of each batch's images in the class-major set.
        updates: Iterations that changed the images (of the batch that went on longest), known when `run` returns.
        t: Iterations that have been made.
    """

    def __init__(
        self,
        job: Job,
        composition: Composition,
        numbers: Sequence[int],
        counter: int | None = None,
        watch: Callable[[int, torch.Tensor], None] | None = None,
    ) -> None:
        self.job, self.composition, self.numbers, self.watch = job, composition, list(numbers), watch
        self.groups, self.t, self.updates = len(self.numbers), 0, 0
        self.slots = [composition.partition[n] for n in self.numbers]
        positions = torch.cat(self.slots)
        self.positions, self.labels = (t.to(job.device, non_blocking=True) for t in (positions, positions // job.ipc))
        self.policies = [composition.views(n, len(s)) for n, s in zip(self.numbers, self.slots, strict=True)]
        self.carried = counter is not None
        self.counter = self.numbers[0] * composition.iterations if counter is None else counter
        facts = job.dataset
        self.scale = ((0.0,) * 3, (1.0,) * 3) if composition.pixels else (facts.mean, facts.std)
        self.counts: list[int] = []
        self._ended = Flag(job.device, wait=composition.carry)  # averages that go on must not see an iteration more
        self._live: torch.Tensor | None = None
        self._x: torch.Tensor | None = None
        self._saved: dict[str, Any] | None = None

    def _begin(self) -> tuple[torch.Tensor, torch.optim.Adam]:
        """Starts and fresh optimiser state, or what a checkpoint holds."""
        plan, saved = self.composition, self._saved
        if saved is None:
            starts = [plan.start(n, s).to(self.job.device) for n, s in zip(self.numbers, self.slots, strict=True)]
            x = torch.cat(starts).detach().clone(memory_format=torch.contiguous_format)
            if not self.carried:
                for critic in plan.critics:
                    critic.reset(*self.numbers)
        else:
            x = saved["x"].to(self.job.device)
            self.t, self.counter, self.counts = saved["t"], saved["counter"], list(saved["counts"])
            self._live = None if saved["live"] is None else saved["live"].to(self.job.device)
            self._ended.restore(saved.get("ended"))
            for critic, state in zip(plan.critics, saved["critics"], strict=True):
                critic.restore(state)
            for policy, state in zip(self.policies, saved["views"], strict=True):
                policy.restore(state)
        x.requires_grad_()
        optimizer = torch.optim.Adam([x], lr=plan.lr, betas=BETAS, eps=EPS, fused=True)
        if saved is not None:
            optimizer.load_state_dict(saved["adam"])
        self._x, self._optimizer, self._saved = x, optimizer, None
        return x, optimizer

    def state(self) -> dict[str, Any]:
        """All that the iterations from here on depend on; call it between two of them."""
        assert self._x is not None
        return {
            "t": self.t,
            "counter": self.counter,
            "counts": list(self.counts),
            "live": self._live,
            "ended": self._ended.state(),
            "x": self._x.detach().clone(),
            "adam": self._optimizer.state_dict(),
            "critics": [critic.state() for critic in self.composition.critics],
            "views": [policy.state() for policy in self.policies],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of a run of the same batches when `run` is called."""
        self._saved = state

    def run(self, between: Callable[[], None] = lambda: None) -> torch.Tensor:
        """Optimise until the end; `between` is called after every iteration.

        Returns:
            The last iterate, float [G * B, 3, S, S].
        """
        job, plan = self.job, self.composition
        x, optimizer = self._begin()
        self.low, self.high = pixel_range(*self.scale, x.device, x.dtype)
        loss = torch.zeros((), device=x.device)
        while self.t < plan.iterations:
            t = self.t
            done = self._done(t)
            if done is not None and self._look(t) and self._ended.ask(done.all()):
                break
            loss = self._update(x, optimizer, t, done)
            self.t += 1
            if self.watch is not None:
                self.watch(t, x.detach())
            if self.t % LOG_EVERY == 0:
                self._check(x, loss)
                self._progress()
            between()
        self._check(x, loss)
        live = [len(self.counts)] * self.groups if self._live is None else self._live.tolist()
        self.updates = max(live)
        job.counters.image_iterations += sum(sum(self.counts[:n]) for n in live)
        self.t = plan.iterations
        self._progress()
        return x.detach()

    def _done(self, t: int) -> torch.Tensor | None:
        """Which of the batches have ended, bool [G]; None where none can."""
        flags = [policy.finished(t) for policy in self.policies]
        present = [f for f in flags if f is not None]
        if len(present) < len(flags):
            return None
        return present[0][None] if self.groups == 1 else torch.stack(present)

    def _update(self, x: torch.Tensor, optimizer: torch.optim.Adam, t: int, done: torch.Tensor | None) -> torch.Tensor:
        """One iteration; batches that have ended stay as they are."""
        before = None if done is None else x.detach().clone()
        if self._live is None and done is not None:
            self._live = torch.full((self.groups,), t, device=x.device)
        loss, n = self._step(x, optimizer, t)
        self.counts.append(n)
        if done is not None and before is not None:
            with torch.no_grad():
                frozen = done.repeat_interleave(len(x) // self.groups, output_size=len(x)).view(-1, 1, 1, 1)
                x.copy_(torch.where(frozen, before, x))
            self._live = self._live + ~done  # type: ignore[operator]
        return loss

    def _step(self, x: torch.Tensor, optimizer: torch.optim.Adam, t: int) -> tuple[torch.Tensor, int]:
        """One update. Returns the loss and the number of each batch's images that teachers saw."""
        plan, job, groups = self.composition, self.job, self.groups
        optimizer.param_groups[0]["lr"] = plan.lr * plan.schedule(t, plan.iterations)
        views, labels, positions = self._views(x, t)
        total: torch.Tensor | None = None
        first_ce: torch.Tensor | None = None
        for index, weight in plan.select(self.counter + t, self.numbers[0]):
            ce, term = plan.critics[index].judge(views, labels, positions, job.precision, groups)
            loss = ce.mean() + term if groups == 1 else ce.view(groups, -1).mean(dim=1).sum() + term
            loss = loss if weight == 1 else weight * loss
            total = loss if total is None else total + loss
            first_ce = ce.detach() if first_ce is None else first_ce
            job.counters.forward_images += len(labels)
        if total is None or first_ce is None:
            raise ValueError(f"no teacher judges iteration {t}")
        for policy, part in zip(self.policies, first_ce.chunk(groups), strict=True):
            policy.observe(t, part)
        (gradient,) = torch.autograd.grad(total, x)
        x.grad = gradient.contiguous()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(self.low, self.high)
        return total.detach(), len(labels) // groups

    def _views(self, x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normalised views of the active images, their labels and their positions in the set."""
        plan = self.composition
        active, labels, positions = plan.active(t), self.labels, self.positions
        parts = [x] if self.groups == 1 else list(x.chunk(self.groups))
        if active is not None:
            active = active.to(x.device, non_blocking=True)
            size = len(x) // self.groups
            everywhere = torch.cat([active + i * size for i in range(self.groups)])
            labels, positions = labels[everywhere], positions[everywhere]
            parts = [part.index_select(0, active) for part in parts]
        seen = [policy.views(part, t, active) for policy, part in zip(self.policies, parts, strict=True)]
        views = seen[0] if self.groups == 1 else torch.cat(seen)
        if plan.pixels:
            views = normalise(views, self.job.dataset.mean, self.job.dataset.std)
        return views, labels, positions

    def _look(self, t: int) -> bool:
        """Whether the host asks at iteration t if the batches have ended."""
        plan = self.composition
        if plan.carry:  # averages must not see iterations after the end
            return True
        every = plan.stop_every or (1 if self.job.device.type == "cpu" else STOP_EVERY)
        return t % every == 0

    def _check(self, x: torch.Tensor, loss: torch.Tensor) -> None:
        if not bool(loss.isfinite() & x.detach().isfinite().all()):
            raise NumericError(
                f"loss or pixels are not finite by iteration {self.t}",
                where=f"batch {self.numbers[0]}",
                hint="lower `lr`",
            )

    def _progress(self) -> None:
        total = self.composition.iterations
        done = self.numbers[0] * total + self.t * self.groups
        self.job.progress(done, len(self.composition.partition) * total)
