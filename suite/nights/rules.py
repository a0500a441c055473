"""What has drifted: a night compared with earlier ones. Pure functions of what was measured.

- Accuracy: the mean over tonight's seeds lies below the baseline by more than
  max(1.0 point, 3 s sqrt(1/n1 + 1/n2)), s pooled over seeds. Re-runs that papers report differ by about a point.
- Speed: the median of at least three durations is longer than the median of earlier ones on the same device by more
  than 5 %, and by more than a second.
- Storage: any change of the shipped bytes of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TypeVar

from suite.nights.history import Finding, Night, Row, Timing, comparable

_TIMINGS = 3
T = TypeVar("T", Row, Timing)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a difference is worth a line.

    Attributes:
        points: Points of accuracy.
        percent: Of a duration.
        seconds: Of a duration.
        window: Earlier nights that count.
    """

    points: float = 1.0
    percent: float = 5.0
    seconds: float = 1.0
    window: int = 7


def compare(
    rows: Sequence[Row],
    timings: Sequence[Timing],
    earlier: Sequence[Night],
    accepted: dict[tuple[str, str], str],
    limits: Limits,
) -> list[Finding]:
    """Everything of a night that differs from earlier nights.

    Args:
        rows: Tonight's evaluations.
        timings: Tonight's durations.
        earlier: Earlier nights of the same grid, oldest first.
        accepted: The night from which on (what, identity) was accepted.
        limits: When a difference counts.
    """
    findings: list[Finding] = []
    for identity, group in _by_identity(rows):
        nights = comparable(earlier, "accuracy", identity, accepted.get(("accuracy", identity), ""), limits.window)
        if text := accuracy(group, [r for n in nights for r in n.rows if r.identity == identity], limits):
            findings.append(Finding(what="accuracy", identity=identity, label=group[0].label, text=text))
        nights = comparable(earlier, "storage", identity, accepted.get(("storage", identity), ""))
        if text := storage(group, [r for n in nights for r in n.rows if r.identity == identity]):
            findings.append(Finding(what="storage", identity=identity, label=group[0].label, text=text))
    for identity, clocked in _by_identity(timings):
        since = accepted.get(("speed", identity), "")
        nights = comparable(earlier, "speed", identity, since, limits.window)
        if text := speed(clocked, [[t for t in n.timings if t.identity == identity] for n in nights], limits):
            findings.append(Finding(what="speed", identity=identity, label=clocked[0].label, text=text))
    order = ("accuracy", "speed", "storage")
    return sorted(findings, key=lambda f: (order.index(f.what), f.label))


def _by_identity(items: Sequence[T]) -> Iterator[tuple[str, list[T]]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(item.identity, []).append(item)
    yield from groups.items()


def accuracy(tonight: Sequence[Row], earlier: Sequence[Row], limits: Limits) -> str:
    """How far the mean over seeds fell below the baseline; empty if not further than is allowed.

    The baseline has one value a seed, the median over nights: nights that repeat the same bits are not more evidence.
    """
    seeds: dict[int, list[float]] = {}
    for row in earlier:
        seeds.setdefault(row.seed, []).append(row.accuracy)
    base, now = [median(v) for v in seeds.values()], [r.accuracy for r in tonight]
    if not base:
        return ""
    drop = fmean(base) - fmean(now)
    allowed = max(limits.points, 3 * pooled(now, base) * math.sqrt(1 / len(now) + 1 / len(base)))
    if drop <= allowed:
        return ""
    return (
        f"{fmean(base):.2f} -> {fmean(now):.2f} % (-{drop:.2f} points, {allowed:.2f} are allowed;"
        f" {len(now)} seeds against {len(base)})"
    )


def pooled(a: Sequence[float], b: Sequence[float]) -> float:
    """Pooled standard deviation of two samples; 0 where two single values leave it unknown."""
    freedom = len(a) + len(b) - 2
    if freedom <= 0:
        return 0.0
    squares = sum((x - fmean(s)) ** 2 for s in (a, b) for x in s)
    return math.sqrt(squares / freedom)


def speed(tonight: Sequence[Timing], earlier: Sequence[Sequence[Timing]], limits: Limits) -> str:
    """How much longer a stage takes than it did on the same device; empty if not more than is allowed.

    Args:
        tonight: Durations of stages of one identity.
        earlier: Those of earlier nights, oldest first. Where tonight has fewer than three, the newest of them make up
            for it; where nothing is left to compare with, there is no verdict.
        limits: When a difference counts.
    """
    for device in sorted({t.device for t in tonight}):
        recent = [t.seconds for t in tonight if t.device == device]
        nights = [[t.seconds for t in night if t.device == device] for night in earlier]
        while len(recent) < _TIMINGS and nights:
            recent += nights.pop()
        base = [s for night in nights for s in night]
        if len(recent) < _TIMINGS or not base:
            continue
        now, before = median(recent), median(base)
        if now > before * (1 + limits.percent / 100) and now - before > limits.seconds:
            return (
                f"{before:.3g} -> {now:.3g} s (+{100 * (now / before - 1):.0f} %, {limits.percent:g} % are allowed;"
                f" median of {len(recent)} against {len(base)} on {device})"
            )
    return ""


def storage(tonight: Sequence[Row], earlier: Sequence[Row]) -> str:
    """Which shipped bytes of which seed changed since the newest earlier night that has them; empty if none."""
    newest = {row.seed: row for row in earlier}
    for row in tonight:
        before = newest.get(row.seed)
        if before is not None and before.bytes != row.bytes:
            kinds = sorted(before.bytes.keys() | row.bytes.keys())
            parts = [
                f"{kind} {before.bytes.get(kind, 0):,} -> {row.bytes.get(kind, 0):,} B"
                for kind in kinds
                if before.bytes.get(kind) != row.bytes.get(kind)
            ]
            return f"{', '.join(parts)} (seed {row.seed})"
    return ""
