"""What a method is given: the dataset's facts, its inputs, a device, seeded generators and counters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from suite.learn.checkpoint import Checkpoint, Never, Within
from suite.learn.share import Share
from suite.spec.datasets import Dataset

if TYPE_CHECKING:
    from suite.data.loader import RealImages
    from suite.learn.statistics import ClassStatistics
    from suite.learn.teachers import Teacher


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a number and a purpose, so that no two purposes share a stream.

    Args:
        seed: The seed of the stage.
        names: The purpose, e.g. `("views", batch_index)`.
        device: Where the draws are made; the stream differs between CPU and CUDA.
    """
    text = ":".join(str(n) for n in (seed, *names))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator(device=device).manual_seed(number)


@dataclass
class Counters:
    """Work that was done, counted rather than timed.

    Attributes:
        image_iterations: Optimiser updates summed over images.
        forward_images: Images that went through a teacher (scoring and relabelling included).
    """

    image_iterations: int = 0
    forward_images: int = 0


@dataclass
class Job:
    """The inputs of one synthesis.

    Attributes:
        dataset: Facts: classes, size S, mean, std.
        ipc: Images per class.
        seed: Of this synthesis.
        device: Where to compute.
        teachers: Frozen networks in eval mode, those that the plan gave; empty unless the method needs them.
        statistics: One per teacher, for methods that need `statistics`.
        real: The training split; None unless the method needs `real`.
        precision: `fp32` or `bf16` (autocast around teacher forwards; statistics stay fp32).
        progress: Called with (done, total) now and then.
        counters: Filled in by the method and the shared loop.
        compile: Run teachers through `torch.compile`: other rounding, a first iteration of minutes.
        stack: Most images of several image batches that are optimised side by side; a batch alone may hold more.
        checkpoint: Where an interrupted synthesis goes on; None to start again.
        share: The part of the set that is made; all of it by default.
    """

    dataset: Dataset
    ipc: int
    seed: int
    device: torch.device
    teachers: list[Teacher] = field(default_factory=list)
    statistics: list[ClassStatistics] = field(default_factory=list)
    real: RealImages | None = None
    precision: str = "fp32"
    progress: Callable[[int, int], None] = lambda done, total: None
    counters: Counters = field(default_factory=Counters)
    compile: bool = False
    stack: int = 1
    checkpoint: Checkpoint | None = None
    share: Share = field(default_factory=Share)

    def generator(self, *names: object) -> torch.Generator:
        """A CPU generator for one purpose of this synthesis."""
        return generator(self.seed, *names)

    def each_class(
        self, make: Callable[[int], torch.Tensor], classes: Iterable[int] | None = None
    ) -> dict[int, torch.Tensor]:
        """What `make` gives for each class, on the CPU; what a checkpoint has is not made again.

        Args:
            make: Maps a class to a tensor.
            classes: Which; by default those of `classes`.
        """
        checkpoint = self.checkpoint or Never()
        saved = checkpoint.load()
        made: dict[int, torch.Tensor] = {}
        if saved is not None:
            made = dict(saved["made"])
            self.counters.image_iterations, self.counters.forward_images = saved["counters"]
        for c in self.classes() if classes is None else classes:
            if c in made:
                continue
            made[c] = make(c).cpu()
            self.progress(c + 1, self.dataset.classes)
            counters = (self.counters.image_iterations, self.counters.forward_images)
            checkpoint.offer(lambda counters=counters: {"made": made, "counters": counters})  # type: ignore[misc]
        return made

    def before(self, make: Callable[[Job], torch.Tensor]) -> tuple[torch.Tensor, Job]:
        """What `make` gives before the rest of a synthesis, and the job of the rest.

        Checkpoints of both jobs are one: those of the rest hold what was made before.
        """
        outer = self.checkpoint or Never()
        saved = outer.load() or {"before": None, "inner": None}
        if saved["before"] is None:
            made = make(replace(self, checkpoint=Within(outer, lambda: {"before": None}, saved["inner"])))
            inner = None
        else:
            made, inner = saved["before"].to(self.device), saved["inner"]
        return made, replace(self, checkpoint=Within(outer, lambda: {"before": made}, inner))

    def classes(self) -> list[int]:
        """Classes that this job makes all images of, ascending: for methods that go class by class."""
        return self.share.take(torch.arange(self.dataset.classes * self.ipc).split(self.ipc))
