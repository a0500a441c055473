"""E2D's memory of hard crops (arXiv:2602.15277, section on exploration and exploitation), for a batch at once.

Every image b keeps an ordered list of boxes with the cross-entropy that was last measured on each. All state is tensors
on one device and every operation is masked, so that an iteration never asks the host what happened.
"""

from __future__ import annotations

import torch


class BoxMemory:
    """Lists of (box, cross-entropy) for B images.

    Iterations t = 0 .. explore remember crops whose cross-entropy is above the threshold. Later iterations revisit a
    remembered crop, drawn with probability softmax(stored cross-entropies), and forget it once its cross-entropy is not
    above the threshold any more; an image without memories takes the crop that it is offered and remembers nothing.

    Wherever an iteration t is asked for, it may be one number for the batch or int64 [B], a clock for each image.

    Args:
        images: B.
        explore: K; iterations 0 .. K remember, so a list holds at most K + 1 entries.
        threshold: eps; strictly larger values are remembered. May be infinite, with either sign.
        device: Where the state lives.
        patience: m; an image stops exploring once m consecutive crops were not above the threshold. 0 for never,
            as in the paper.

    Attributes:
        boxes: int64 [B, K+1, 4] as (top, left, height, width); entries from `count` on are meaningless.
        ce: float32 [B, K+1].
        count: int64 [B], entries in use.
        misses: int64 [B], crops not above the threshold since the last one that was, in exploration; with patience.
    """

    def __init__(
        self,
        images: int,
        explore: int,
        threshold: float,
        device: torch.device | str = "cpu",
        patience: int = 0,
    ) -> None:
        capacity = max(1, explore + 1)
        self.explore, self.threshold, self.patience = explore, threshold, patience
        self.boxes = torch.zeros(images, capacity, 4, dtype=torch.int64, device=device)
        self.ce = torch.zeros(images, capacity, device=device)
        self.count = torch.zeros(images, dtype=torch.int64, device=device)
        self.misses = torch.zeros(images, dtype=torch.int64, device=device)
        self._slots = torch.arange(capacity, device=device)

    def valid(self) -> torch.Tensor:
        """Which entries are in use, bool [B, K+1]."""
        return self._slots < self.count[:, None]

    def empty(self) -> torch.Tensor:
        """Whether nothing at all is remembered: a 0-d bool tensor on the device."""
        return self.count.sum() == 0

    def exploring(self, t: int | torch.Tensor) -> bool | torch.Tensor:
        """Whether iteration t explores: one answer for all, or bool [B] where it depends on the image."""
        early = t <= self.explore
        return early & (self.misses < self.patience) if self.patience else early

    def done(self, t: int | torch.Tensor) -> torch.Tensor:
        """Images that have explored and remember nothing, bool [B]; they stay so."""
        exploring = self.exploring(t)
        empty = self.count == 0
        return empty & ~exploring if isinstance(exploring, torch.Tensor) else empty & (not exploring)

    def clear(self, rows: torch.Tensor) -> None:
        """Start afresh for the images marked in bool [B]."""
        self.count = self.count.masked_fill(rows, 0)
        self.misses = self.misses.masked_fill(rows, 0)

    def probabilities(self) -> torch.Tensor:
        """Probability of each entry to be revisited, float32 [B, K+1]; rows of empty lists are 0."""
        masked = self.ce.masked_fill(~self.valid(), -torch.inf)
        return torch.softmax(masked, dim=1).nan_to_num(0.0)  # a row of -inf only is an empty list

    def select(self, t: int | torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Draw the entry that each image revisits at iteration t, by inversion of the cumulative distribution.

        Args:
            t: The iteration.
            uniforms: float [B] in [0, 1), one draw for each image; a draw is used up whether it is needed or not.

        Returns:
            int64 [B]: an index into the image's list, or -1 where the image explores.
        """
        exploring = self.exploring(t)
        if exploring is True:
            return torch.full_like(self.count, -1)
        cumulative = self.probabilities().cumsum(dim=1)
        index = (cumulative <= uniforms[:, None]).sum(dim=1)
        # Rounding may leave the last cumulative value below a draw close to 1. An empty list gives -1.
        index = torch.minimum(index, self.count - 1)
        return index if exploring is False else index.masked_fill(exploring, -1)

    def choose(self, selected: torch.Tensor, offered: torch.Tensor) -> torch.Tensor:
        """The box of each image: the selected entry, or the offered box where `selected` is -1.

        Args:
            selected: int64 [B] from `select`, or a replay of it.
            offered: int64 [B, 4], fresh random boxes.
        """
        remembered = self.boxes[self._rows(), selected.clamp(min=0)]
        return torch.where((selected >= 0)[:, None], remembered, offered)

    def observe(
        self, t: int | torch.Tensor, selected: torch.Tensor, boxes: torch.Tensor, ce: torch.Tensor
    ) -> torch.Tensor:
        """Update the lists with the cross-entropies measured at iteration t, before the pixels change.

        Args:
            t: The iteration.
            selected: int64 [B], entries that were revisited, or -1.
            boxes: int64 [B, 4], the boxes that were used.
            ce: float [B], cross-entropy of each image.

        Returns:
            bool [B]: where an entry was forgotten.
        """
        hard, exploring = ce > self.threshold, self.exploring(t)
        if exploring is not False:  # one answer for all spares the device the other branch
            self._remember(boxes, ce, hard if exploring is True else hard & exploring)
        if isinstance(exploring, torch.Tensor):
            self.misses = torch.where(exploring, (self.misses + 1).masked_fill(hard, 0), self.misses)
        if exploring is True:
            return torch.zeros_like(hard)
        revisited = selected >= 0
        kept = (revisited & hard)[:, None] & (self._slots == selected[:, None])
        self.ce = torch.where(kept, ce[:, None].to(self.ce.dtype), self.ce)
        forgotten = revisited & ~hard
        self._forget(selected, forgotten)
        return forgotten

    def _rows(self) -> torch.Tensor:
        return torch.arange(len(self.count), device=self.count.device)

    def _remember(self, boxes: torch.Tensor, ce: torch.Tensor, hard: torch.Tensor) -> None:
        """Overwrite the entry of an identical box, else append; entries of easy crops stay as they are."""
        same = (self.boxes == boxes[:, None]).all(dim=2) & self.valid()
        known = same.any(dim=1)
        target = torch.where(known, same.to(torch.uint8).argmax(dim=1), self.count)
        write = hard[:, None] & (self._slots == target[:, None])
        self.ce = torch.where(write, ce[:, None].to(self.ce.dtype), self.ce)
        self.boxes = torch.where(write[:, :, None], boxes[:, None], self.boxes)
        self.count = self.count + (hard & ~known)

    def _forget(self, selected: torch.Tensor, forgotten: torch.Tensor) -> None:
        """Remove one entry of each marked image; later entries move up, so that the order is kept."""
        behind = forgotten[:, None] & (self._slots >= selected[:, None])
        source = (self._slots + behind).clamp(max=len(self._slots) - 1)
        self.ce = self.ce.gather(1, source)
        self.boxes = self.boxes.gather(1, source[:, :, None].expand_as(self.boxes))
        self.count = self.count - forgotten.to(self.count.dtype)
