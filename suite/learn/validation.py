"""What teachers and students share: seeding without side effects, and accuracy on the full validation split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from suite.errors import DataError, NumericError
from suite.learn.distributed import Ranks
from suite.learn.job import generator
from suite.learn.models import normalise
from suite.spec.datasets import Dataset

if TYPE_CHECKING:
    from suite.data.loader import RealImages

#: Validation splits up to this many decoded bytes stay on the device between evaluations.
RESIDENT_BYTES = 2 << 30


@contextmanager
def seeded(seed: int, purpose: str, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators (initial weights, dropout) inside the block and restore them behind it."""
    number = generator(seed, purpose).initial_seed()
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(number)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(number)
        yield


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast for `bf16`, nothing for `fp32`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def centre(x: torch.Tensor, size: int) -> torch.Tensor:
    """The centre `size` x `size` of images [..., H, W] (torchvision's CenterCrop)."""
    top, left = (round((side - size) / 2) for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


@dataclass(frozen=True)
class Score:
    """An evaluation.

    Attributes:
        accuracy: Top-1, in percent of all validation images.
        images: How many images were seen.
        constant: Whether every image got the same class.
    """

    accuracy: float
    images: int
    constant: bool


Numbers = dict[str, Any]


class Curve:
    """The evaluations of a training: the last one ranks, the best is stored beside it."""

    def __init__(self) -> None:
        self.points: list[list[float]] = []
        self.last: Score | None = None

    def add(self, epoch: float, score: Score) -> None:
        """Take note of an evaluation."""
        self.points.append([epoch, score.accuracy])
        self.last = score

    def numbers(self, epochs: float, steps: int, classes: int) -> Numbers:
        """`Record.numbers` of the whole training, which ends with an evaluation."""
        assert self.last is not None
        best = max(self.points, key=lambda point: point[1])
        return {
            "accuracy_last": self.last.accuracy,
            "accuracy_best": best[1],
            "best_epoch": best[0],
            "epochs": epochs,
            "steps": steps,
            "classes": classes,
            "val_images": self.last.images,
            "curve": self.points,
            "constant_prediction": self.last.constant,
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"curve": [list(point) for point in self.points], "last": self.last and astuple(self.last)}

    def restore(self, state: dict[str, Any] | None) -> Any:
        """Go on from a checkpoint, if there is one; returns what the loop inside it remembers."""
        if state is None:
            return None
        self.points = [list(point) for point in state["curve"]]
        self.last = Score(*state["last"]) if state["last"] else None
        return state["inner"]


def _batch(size: int, device: torch.device) -> int:
    """Images a forward pass: a GPU is filled, on a CPU the activations of a layer stay near its caches."""
    if device.type == "cpu":
        return 16 if size >= 96 else 64
    return 256 if size >= 96 else 1024


class Validation:
    """The validation split as the papers see it: the centre S x S of the stored R x R, every image once.

    Args:
        val: The validation split.
        dataset: For S, mean and standard deviation.
        device: Where to evaluate; small splits are moved there once.
        batch: Images a forward pass, 0 for what suits the device; it changes no prediction.
        ranks: Processes that share the work; one by default.
    """

    def __init__(
        self, val: RealImages, dataset: Dataset, device: torch.device, batch: int = 0, ranks: Ranks | None = None
    ) -> None:
        self.val, self.dataset, self.device = val, dataset, device
        self.ranks = ranks or Ranks()
        self.batch = (batch or _batch(dataset.size, device)) * self.ranks.size
        self.resident: tuple[torch.Tensor, torch.Tensor] | None = None
        if len(val) * 3 * val.stored**2 <= RESIDENT_BYTES:
            images, labels = val.tensor()
            self.resident = centre(images, dataset.size).contiguous().to(device), labels.to(device)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """uint8 [b, 3, S, S] and int64 [b], on the device: the rows of this rank."""
        if self.resident is not None:
            for images, labels in zip(*(t.split(self.batch) for t in self.resident), strict=True):
                own = self.ranks.chosen(len(labels))
                yield images[own], labels[own]
            return
        for images, labels in self.val.batches(self.batch, rows=self.ranks.chosen):
            yield centre(images, self.dataset.size).to(self.device), labels.to(self.device)

    def score(self, model: nn.Module, precision: str = "fp32", what: str = "network") -> Score:
        """Top-1 accuracy of a network in eval mode; its mode is restored.

        Raises:
            NumericError: If a logit is NaN or Inf.
            DataError: If the split does not give every image once.
        """
        training = model.training
        model.eval()
        seen, right = 0, torch.zeros((), dtype=torch.int64, device=self.device)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        low, high = right + self.dataset.classes, right - 1
        with torch.no_grad(), autocast(precision, self.device):
            for images, labels in self.batches():
                if not len(labels):  # a last batch may have no row for this rank
                    continue
                logits = model(normalise(images, self.dataset.mean, self.dataset.std))
                predicted = logits.argmax(1)
                right = right + (predicted == labels).sum()
                finite = finite & logits.isfinite().all()
                low, high = torch.minimum(low, predicted.min()), torch.maximum(high, predicted.max())
                seen += len(labels)
        model.train(training)
        seen, hits, broken = self.ranks.total(torch.tensor([seen, int(right), int(not finite)])).tolist()
        if seen != len(self.val):
            raise DataError(f"validation gave {seen} images of {len(self.val)}")
        if broken:
            raise NumericError(f"{what} gives logits that are not finite")
        highest, lowest = self.ranks.largest([int(high), -int(low)])
        return Score(100 * hits / seen, seen, highest == -lowest)
