"""What a night says: one screen, what needs a person first, nothing that a terminal or a mail could choke on."""

from __future__ import annotations

from collections.abc import Sequence

from suite.cluster.show import clean, plural
from suite.nights.budget import Figures
from suite.nights.history import Night

_EACH = 8
_WIDTH = 160


def needs_attention(night: Night) -> bool:
    """Whether a person should look."""
    return bool(night.failures or night.findings or night.unreached or night.ended != "complete")


def summary(night: Night, earlier: Sequence[Night], figures: Figures, new: Sequence[str], gone: int) -> str:
    """The screen.

    Args:
        night: Tonight.
        earlier: Nights before, oldest first.
        figures: What it was expected to need.
        new: Labels of rows that no earlier night has.
        gone: Rows of the newest earlier night that the grid no longer has.
    """
    ended = "" if night.ended == "complete" else ", stopped by the wall clock"
    lines = [
        f"nightly {night.grid}, night {night.night}: {night.published} of {plural(night.planned, 'stage')} published"
        f" in {duration(night.seconds)}{ended}",
        f"GPU-hours: {night.gpu_hours:.2f} used, {figures.gpu_hours:.2f} {figures.basis}",
        _compared(night, earlier),
        "",
        f"failed: {len(night.failures)}",
    ]
    for f in night.failures[:_EACH]:
        behind = f", {plural(f.behind, 'stage')} behind it" if f.behind else ""
        lines.append(f"  {f.kind} {f.key} {f.label}: {f.reason}{behind}")
    lines += _more(len(night.failures))
    if night.unreached:
        lines.append(f"not reached: {plural(night.unreached, 'stage')}")
    lines.append(f"drifted: {len(night.findings)}")
    lines += [f"  {f.what}: {f.label}: {f.text}" for f in night.findings[:_EACH]] + _more(len(night.findings))
    lines.append(f"new: {len(new)}" + (f", gone: {gone}" if gone else ""))
    lines += [f"  {name}" for name in new[:_EACH]] + _more(len(new)) if earlier else []
    return "".join(f"{clean(line, _WIDTH) if line[:2] != '  ' else '  ' + clean(line, _WIDTH)}\n" for line in lines)


def _compared(night: Night, earlier: Sequence[Night]) -> str:
    if not earlier:
        return f"the first night: what it measured is what later nights are compared with; code {night.commit}"
    before = earlier[-1].commit
    changed = f" (before: {before})" if before != night.commit else ""
    return f"compared with {plural(len(earlier), 'night')} since {earlier[0].night}; code {night.commit}{changed}"


def _more(count: int) -> list[str]:
    return [f"  ... and {count - _EACH} more"] if count > _EACH else []


def duration(seconds: float) -> str:
    """`41 s`, `12 min`, `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
