"""E2D with a clock for each image: images enter and leave a running batch, and end their exploration on their own.

The places of a batch, not its images, are what the loop goes through. An image enters a place with fresh optimiser
state and memory, counts its own iterations, and leaves when it has explored and remembers nothing, or after T of them;
in the same iteration the next image of the set takes its place. Images wait on the device, and all exchanges happen
there: the host only brings new ones and takes finished ones away, now and then, and how rarely changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from suite.data.distilled import DistilledSet
from suite.errors import NumericError, UserError
from suite.learn.box_memory import BoxMemory
from suite.learn.checkpoint import Checkpoint, Never, Within
from suite.learn.handover import Shelf
from suite.learn.initial import to_distilled
from suite.learn.job import Job
from suite.learn.models import denormalise, normalise, pixel_range
from suite.learn.synthesis import BETAS, EPS, LOG_EVERY, STOP_EVERY, Composition
from suite.learn.taps import Taps
from suite.learn.view_policies import MemoryViews
from suite.learn.views import crop_resize, flip, roll


def distill_by_image(job: Job, composition: Composition, *, patience: int, continuous: bool) -> DistilledSet:
    """Optimise a set whose images have clocks of their own; `suite.learn.synthesis.distill` with early ends an image.

    With `patience` 0 and not `continuous` this is `distill`. An image keeps the draws (boxes, flips, revisits) that it
    would have there: they belong to its batch in the partition, its row, and its own iteration. Where nobody waits any
    more, an image that is done stays in its place and is updated on random crops as in E2D, up to T iterations.

    Args:
        job: The synthesis. Its counters are filled in: updates that changed images, and images that teachers saw.
            With a checkpoint it goes on where an interrupted one was, to the same bits.
        composition: The method; its views are `MemoryViews`, and all images are active.
        patience: See `BoxMemory`.
        continuous: One stream of images through as many places as the largest batch has, instead of batch after batch.

    Raises:
        NumericError: If a loss or a pixel is NaN or Inf.
        UserError: If a share is wanted of images that depend on those before them.
    """
    facts, partition = job.dataset, composition.partition
    own = job.share.take(partition)
    if job.share.count > 1 and (continuous or composition.carry):
        raise UserError("one stream of images cannot be cut into shards", hint="run it as one task")
    shelf = Shelf(facts.classes * job.ipc, facts.size, job.device)
    groups = [range(len(partition))] if continuous else [range(n, n + 1) for n in own]
    counter, finished, begun = 0, 0, 0
    outer = job.checkpoint or Never()
    saved = outer.load()
    if saved is not None:
        shelf.restore(saved["images"])
        counter, finished, begun = saved["counter"], saved["finished"], saved["group"]
        job.counters.image_iterations, job.counters.forward_images = saved["counters"]

    def state() -> dict[str, Any]:
        done = (job.counters.image_iterations, job.counters.forward_images)
        return {"images": shelf.all(), "counter": counter, "finished": finished, "group": group, "counters": done}

    with ExitStack() as stack:
        for critic in composition.critics:
            stack.callback(critic.close)
            if isinstance(critic.forward, Taps):
                critic.forward.compiled = job.compile
        for group, numbers in enumerate(groups):
            if group < begun:
                continue
            start = counter if composition.carry else numbers[0] * composition.iterations
            stream = Stream(job, composition, numbers, patience, start)
            inner = saved["inner"] if saved is not None and group == begun else None
            for slots, pixels in stream.run(Within(outer, state, inner)):
                mean, std = ((0.0,) * 3, (1.0,) * 3) if composition.pixels else (facts.mean, facts.std)
                shelf.put(slots, denormalise(pixels, mean, std))
                finished += len(slots)
                job.progress(finished, facts.classes * job.ipc)
            counter += stream.updates
    return to_distilled(job, shelf.all())


class ImageAdam:
    """Adam (Kingma and Ba, 2015) on a batch whose rows have taken different numbers of steps.

    Args:
        x: [B, ...], updated in place.
        lr: Learning rate of each of the T steps of a row; beyond them it is 0.
        betas: Decays of the averages.
        eps: Added to the denominator.
    """

    def __init__(self, x: torch.Tensor, lr: list[float], betas: tuple[float, float], eps: float) -> None:
        self.x, self.betas, self.eps = x, betas, eps
        self.first, self.second = torch.zeros_like(x), torch.zeros_like(x)
        steps = torch.arange(1, len(lr) + 2, dtype=torch.float64)
        rates = torch.tensor([*lr, 0.0], dtype=torch.float64)
        self._step = (-rates / (1 - betas[0] ** steps)).to(x)
        self._root = (1 - betas[1] ** steps).sqrt().to(x)

    def clear(self, rows: torch.Tensor) -> None:
        """Forget the averages of the rows marked in bool [B]."""
        self.first.masked_fill_(_wide(rows), 0)
        self.second.masked_fill_(_wide(rows), 0)

    def step(self, gradient: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        """One step of every row, the `clock`-th of its own counted from 0. Returns the new x, which is not yet set."""
        self.first.lerp_(gradient, 1 - self.betas[0])
        self.second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        denominator = (self.second.sqrt() / _wide(self._root[clock])).add_(self.eps)
        return self.x + _wide(self._step[clock]) * self.first / denominator


def _wide(rows: torch.Tensor) -> torch.Tensor:
    return rows.view(-1, 1, 1, 1)


@dataclass
class Waiting:
    """An image before it enters: its slot, its start [3, S, S], and its draws for all of its iterations."""

    slot: int
    start: torch.Tensor
    boxes: torch.Tensor
    flips: torch.Tensor
    uniforms: torch.Tensor


class Pool:
    """Images on the device: those in places, those that wait in a line, and those that are finished.

    Args:
        job: The synthesis.
        iterations: T.
        entries: How many images there is room for.
        line: How many can wait.

    Attributes:
        pixels: float [entries, 3, S, S]: the start of an image that waits, the result of one that is finished.
        labels: int64 [entries].
        positions: int64 [entries], in the class-major set.
        boxes: int64 [entries, T, 4].
        flips: bool [entries, T].
        uniforms: float [entries, T].
        line: int64 [line], entries in the order in which they enter.
        head: int64, 0-d: how many of the line have entered.
    """

    def __init__(self, job: Job, iterations: int, entries: int, line: int) -> None:
        size, device = job.dataset.size, job.device
        self.ipc = job.ipc
        self.pixels = torch.empty(entries, 3, size, size, device=device)
        self.labels, self.positions = torch.empty(2, entries, dtype=torch.int64, device=device)
        self.boxes = torch.empty(entries, iterations, 4, dtype=torch.int64, device=device)
        self.flips = torch.empty(entries, iterations, dtype=torch.bool, device=device)
        self.uniforms = torch.empty(entries, iterations, device=device)
        self.line = torch.zeros(line, dtype=torch.int64, device=device)
        self.head = torch.zeros((), dtype=torch.int64, device=device)
        self.free, self.queued = deque(range(entries)), 0
        self.slots: dict[int, int] = {}

    def put(self, image: Waiting) -> int:
        """Take an image in; returns its entry."""
        entry = self.free.popleft()
        self.pixels[entry], self.labels[entry] = image.start, image.slot // self.ipc
        self.boxes[entry], self.flips[entry], self.uniforms[entry] = image.boxes, image.flips, image.uniforms
        self.slots[entry] = image.slot
        self.positions[entry] = image.slot
        return entry

    def refill(self, images: Iterator[Waiting], waiting: list[int]) -> None:
        """Line up the entries that wait, and further images behind them as long as there are some and room."""
        line = list(waiting)
        while len(line) < len(self.line) and (image := next(images, None)) is not None:
            line.append(self.put(image))
        self.queued = len(line)
        if line:
            self.line[: len(line)] = torch.tensor(line, device=self.line.device)
        self.head.zero_()

    def take(self, entries: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give finished entries free. Returns their slots int64 [n] and pixels [n, 3, S, S]."""
        slots = torch.tensor([self.slots.pop(e) for e in entries], dtype=torch.int64)
        self.free.extend(entries)
        return slots, self.pixels[torch.tensor(entries, dtype=torch.int64, device=self.pixels.device)]

    def state(self) -> dict[str, Any]:
        """Everything that is in it."""
        return {
            **{name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)},
            "free": list(self.free),
            "queued": self.queued,
            "slots": dict(self.slots),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what a `state` says."""
        for name, value in state.items():
            setattr(self, name, value.to(self.pixels.device) if isinstance(value, torch.Tensor) else value)
        self.free = deque(state["free"])


#: What a stream keeps on the device besides its pool, its memory and its optimiser.
_TENSORS = ("x", "entry", "clock", "image_updates", "lived", "ended")


class Stream:
    """One stream of images through the places of a batch.

    Args:
        job: The synthesis.
        plan: The method.
        numbers: Of the batches of the partition whose images flow through, in this order.
        patience: See `BoxMemory`.
        counter: Iterations of all streams before it.

    Attributes:
        updates: Iterations until every image was done, known when `run` has ended.
    """

    def __init__(self, job: Job, plan: Composition, numbers: range, patience: int, counter: int) -> None:
        self.job, self.plan, self.numbers, self.counter, self.updates = job, plan, numbers, counter, 0
        self.shifts: dict[int, list[list[int]] | None] = {}
        first = plan.views(numbers[0], 1)
        if not isinstance(first, MemoryViews) or plan.active(0) is not None:
            raise UserError("images have clocks of their own only with a box memory and all of them active")
        explore, threshold = first.memory.explore, first.memory.threshold
        places = max(len(plan.partition[n]) for n in numbers)
        self.every = 1 if plan.carry else plan.stop_every or (1 if job.device.type == "cpu" else STOP_EVERY)
        life = min(plan.iterations, explore + 1, patience or plan.iterations)  # no image leaves earlier
        # The line never runs short between two looks.
        total = sum(len(plan.partition[n]) for n in numbers)
        line = min(places * -(-self.every // life), total - places)
        self.pool = Pool(job, plan.iterations, places + line, line)
        self.drawn, self.images = 0, self._images()
        device = job.device
        self.entry = torch.tensor([self.pool.put(next(self.images)) for _ in range(places)], device=device)
        self.pool.refill(self.images, [])
        self.x = self.pool.pixels[self.entry]
        self.clock = torch.zeros(places, dtype=torch.int64, device=device)
        self.memory = BoxMemory(places, explore, threshold, device, patience)
        rates = [plan.lr * plan.schedule(t, plan.iterations) for t in range(plan.iterations)]
        self.adam = ImageAdam(self.x, rates, BETAS, EPS)
        mean, std = ((0.0,) * 3, (1.0,) * 3) if plan.pixels else (job.dataset.mean, job.dataset.std)
        self.low, self.high = pixel_range(mean, std, device, self.x.dtype)
        self.image_updates = torch.zeros((), dtype=torch.int64, device=device)
        self.lived = torch.zeros((), dtype=torch.int64, device=device)
        self.ended = torch.zeros((), dtype=torch.bool, device=device)

    def _images(self, drawn: int = 0) -> Iterator[Waiting]:
        """All images of the stream in order, made a batch of the partition at a time; without the first `drawn`."""
        plan, total = self.plan, self.plan.iterations
        for number in self.numbers:
            slots = plan.partition[number]
            if drawn >= len(slots):
                drawn -= len(slots)
                continue
            views, starts = plan.views(number, len(slots)), plan.start(number, slots).detach()
            assert isinstance(views, MemoryViews) and views.boxes is not None
            self.shifts[number] = views.shifts
            still = torch.zeros(total, dtype=torch.bool, device=starts.device)
            for row, slot in list(enumerate(slots.tolist()))[drawn:]:
                self.drawn += 1
                flips = still if views.flips is None else views.flips[:, row]
                yield Waiting(slot, starts[row], views.boxes[:, row], flips, views.uniforms[:, row])
            drawn = 0

    def state(self, step: int) -> dict[str, Any]:
        """All that the iterations from here on depend on; call it between two of them."""
        return {
            "step": step,
            "drawn": self.drawn,
            "shifts": list(self.shifts.items()),
            "pool": self.pool.state(),
            "memory": {n: v for n, v in vars(self.memory).items() if isinstance(v, torch.Tensor)},
            "adam": [self.adam.first, self.adam.second],
            "critics": [critic.state() for critic in self.plan.critics],
            **{name: getattr(self, name) for name in _TENSORS},
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Go on from a `state`. Returns the iterations that were made."""
        device = self.job.device
        self.drawn, self.shifts = state["drawn"], dict(state["shifts"])
        self.images = self._images(self.drawn)
        self.pool.restore(state["pool"])
        for name, value in state["memory"].items():
            setattr(self.memory, name, value.to(device))
        for name in _TENSORS:
            setattr(self, name, state[name].to(device))
        self.adam.x = self.x
        self.adam.first, self.adam.second = (t.to(device) for t in state["adam"])
        for critic, saved in zip(self.plan.critics, state["critics"], strict=True):
            critic.restore(saved)
        return int(state["step"])

    def run(self, checkpoint: Checkpoint) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Optimise until every image is done. Yields the slots [n] and last iterates [n, 3, S, S] of finished ones."""
        step, loss, saved = 0, torch.zeros(()), checkpoint.load()
        if saved is not None:
            step = self.restore(saved)
        elif not self.plan.carry:
            for critic in self.plan.critics:
                critic.reset(*self.numbers)
        while True:
            self._exchange()
            if step % self.every == 0:
                entry, head, ended = self._ask()
                if ended:
                    break
                yield from self._flush(entry, head)
            loss = self._step(step)
            step += 1
            if step % LOG_EVERY == 0:
                self._check(loss, step)
            checkpoint.offer(partial(self.state, step))
        self._check(loss, step)
        self.updates = int(self.lived)
        self.job.counters.image_iterations += int(self.image_updates)
        self.pool.pixels[self.entry] = self.x
        yield self.pool.take(sorted(self.pool.slots))

    def _exchange(self) -> None:
        """Let images that are done leave, and those that wait enter, without asking the host."""
        pool = self.pool
        done = self.memory.done(self.clock) | (self.clock >= self.plan.iterations)
        if not pool.queued:
            self.ended = done.all()
            return
        turn = pool.head + done.cumsum(0) - 1
        enter = done & (turn < pool.queued)
        coming = pool.line[turn.clamp(0, pool.queued - 1)]
        pool.pixels[self.entry] = self.x
        self.entry = torch.where(enter, coming, self.entry)
        self.x.copy_(pool.pixels[self.entry])
        self.clock = self.clock.masked_fill(enter, 0)
        self.memory.clear(enter)
        self.adam.clear(enter)
        pool.head += enter.sum()
        self.ended = (done & ~enter).all()

    def _ask(self) -> tuple[list[int], int, bool]:
        """Entries of the places, how many of the line have entered, and whether all is done: one transfer."""
        *entry, head, ended = torch.cat([self.entry, self.pool.head[None], self.ended[None].long()]).tolist()
        return entry, head, bool(ended)

    def _flush(self, entry: list[int], head: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Take finished images away and line up further ones."""
        pool = self.pool
        if not pool.queued:
            return
        waiting = pool.line[head : pool.queued].tolist()
        finished = sorted(set(pool.slots) - set(entry) - set(waiting))
        if finished:
            yield pool.take(finished)
            pool.refill(self.images, waiting)

    def _step(self, step: int) -> torch.Tensor:
        """One update of every place. Returns the loss."""
        plan, job, pool = self.plan, self.job, self.pool
        now = self.clock.clamp(max=plan.iterations - 1)
        selected = self.memory.select(self.clock, pool.uniforms[self.entry, now])
        boxes = self.memory.choose(selected, pool.boxes[self.entry, now])
        x = self.x.detach().requires_grad_()
        views = flip(crop_resize(x, boxes, job.dataset.size), pool.flips[self.entry, now])
        number = self.numbers[min(step // plan.iterations, len(self.numbers) - 1)]
        if (shifts := self.shifts[number]) is not None:
            views = roll(views, *shifts[step % plan.iterations])
        if plan.pixels:
            views = normalise(views, job.dataset.mean, job.dataset.std)
        ((index, weight),) = plan.select(self.counter + step, number)
        labels, slots = pool.labels[self.entry], pool.positions[self.entry]
        ce, term = plan.critics[index].judge(views, labels, slots, job.precision)
        loss = weight * (ce.mean() + term)
        (gradient,) = torch.autograd.grad(loss, x)
        job.counters.forward_images += len(ce)
        self.memory.observe(self.clock, selected, boxes, ce.detach())
        moved = self.adam.step(gradient, self.clock.clamp(max=plan.iterations))
        self.x.copy_(torch.where(self.ended, self.x, moved.clamp(self.low, self.high)))
        self.image_updates += ((self.clock < plan.iterations) & ~self.ended).sum()
        self.lived += ~self.ended
        self.clock = self.clock + 1
        return loss.detach()

    def _check(self, loss: torch.Tensor, step: int) -> None:
        if not bool(loss.isfinite().cpu() & self.x.isfinite().all().cpu()):
            raise NumericError(
                f"loss or pixels are not finite by iteration {step}",
                where=f"batch {self.numbers[0]} and on",
                hint="lower `lr`",
            )
