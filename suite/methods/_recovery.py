"""What the methods that recover images as SRe2L does have in common: their hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass

from suite.methods import Method, batches_by_slot


@dataclass(frozen=True)
class Recovery(Method):
    """Cross-entropy plus BatchNorm statistics on random crops; `suite.learn.recovery.recover` runs it.

    Attributes:
        iterations: Updates of every image (T).
        lr: Initial learning rate of Adam on pixels; cosine to 0.
        bn_weight: Weight of the BatchNorm term (r_bn).
        first: Multiplier of the first BatchNorm layer's term.
        batch: Images a batch. The BatchNorm term depends on it.
        crop: Area range of the RandomResizedCrop that a whole batch shares; (1, 1) for none.
        flip: Whether a batch is flipped, all of it or none, with probability one half.
        roll: Smallest and largest circular shift of a view, in pixels, one a batch and axis; (0, 0) for none.
    """

    iterations: int = 4000
    lr: float = 0.25
    bn_weight: float = 0.01
    first: float = 10.0
    batch: int = 100
    crop: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    roll: tuple[int, int] = (0, 32)

    def image_iterations(self, ipc: int) -> float:
        """Every image is updated `iterations` times."""
        return self.iterations

    def parts(self, classes: int, ipc: int) -> int:
        """Batches of one image a class."""
        return batches_by_slot(classes, ipc, self.batch)
