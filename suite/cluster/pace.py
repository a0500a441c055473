"""How often to look: soon after a change, and ever more rarely while nothing happens."""

from __future__ import annotations

import random


class Pace:
    """Pauses between questions to a scheduler that others use too.

    Args:
        first: Seconds after a change.
        longest: Seconds that a pause grows to while nothing changes.
        growth: Factor from one pause to the next.
        jitter: A pause is shorter by up to this part of it, so that several followers do not ask together.
    """

    def __init__(self, first: float, longest: float, growth: float = 1.5, jitter: float = 0.1) -> None:
        self.first, self.longest, self.growth, self.jitter = first, longest, growth, jitter
        self.pause = first
        self.random = random.Random()

    def next(self, changed: bool) -> float:
        """Seconds until the next question."""
        self.pause = self.first if changed else min(self.pause * self.growth, self.longest)
        return self.pause * self.random.uniform(1 - self.jitter, 1)
