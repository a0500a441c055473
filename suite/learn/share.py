"""The share of a synthesis that one process makes: whole batches, as near to a range of classes as can be.

Batches keep the numbers that they have in the whole set, hence their starts, views and draws. What a share makes is so,
bit for bit, what a process that makes the whole set has in these places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from suite.errors import UserError


@dataclass
class Share:
    """Share `index` of `count`; by default all of the set.

    Attributes:
        index: From 0.
        count: Into how many shares the set is cut.
        together: Most images of several batches that may be optimised side by side: such batches stay together.
        slots: int64, ascending: positions in the class-major set that this share makes; None before `take`.
    """

    index: int = 0
    count: int = 1
    together: int = 1
    slots: torch.Tensor | None = None

    def take(self, partition: Sequence[torch.Tensor]) -> list[int]:
        """Numbers of the batches that this share makes, ascending. The first call decides, later ones follow it.

        Blocks of batches are ordered by the position of their first image, and cut into `count` runs of about equally
        many: what is prepared for a class is prepared by as few shares as can be. With more shares than blocks, some
        make nothing.

        Args:
            partition: Positions int64 of each batch's images. No image is in two batches.

        Raises:
            UserError: If the share was taken from a partition that cuts these batches apart.
        """
        if self.count == 1:
            return list(range(len(partition)))
        if self.slots is None:
            order = sorted(blocks(partition, self.together), key=lambda block: int(partition[block[0]].min()))
            low, high = (len(order) * i // self.count for i in (self.index, self.index + 1))
            chosen = sorted(n for block in order[low:high] for n in block)
            found = [partition[n] for n in chosen]
            self.slots = torch.cat(found).sort().values if found else torch.empty(0, dtype=torch.int64)
            return chosen
        inside = [torch.isin(slots, self.slots) for slots in partition]
        if any(bool(mask.any()) and not bool(mask.all()) for mask in inside):
            raise UserError("a shard cuts batches apart", hint="take the share from the partition that is optimised")
        return [n for n, mask in enumerate(inside) if bool(mask.any())]

    def classes(self, partition: Sequence[torch.Tensor], ipc: int) -> list[int]:
        """Classes of the images that this share makes, ascending.

        Args:
            partition: As in `take`.
            ipc: Images a class.
        """
        numbers = self.take(partition)
        return sorted({int(c) for n in numbers for c in (partition[n] // ipc).unique()})


def blocks(partition: Sequence[torch.Tensor], images: int) -> list[list[int]]:
    """Numbers of consecutive, equally large batches of together at most `images` images; one alone may have more."""
    found: list[list[int]] = []
    for n, slots in enumerate(partition):
        before = found[-1] if found else []
        if before and len(partition[before[0]]) == len(slots) and (len(before) + 1) * len(slots) <= images:
            before.append(n)
        else:
            found.append([n])
    return found
