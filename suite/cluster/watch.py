"""Looking again and again until nothing is in flight: a live view on a terminal, a block of text a change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from suite.cluster.pace import Pace
from suite.cluster.show import printed, rendered
from suite.cluster.states import Picture


def watch(
    look: Callable[[], Picture],
    tables: Callable[[Picture], Sequence[object]],
    pace: Pace,
    sleep: Callable[[float], None],
) -> Picture:
    """Show a plan's state whenever it changes, and come back when nothing is in flight any more.

    Args:
        look: Takes a picture: one query of Slurm at most.
        tables: What a person sees of it.
        pace: How long to wait after each look.
        sleep: Waits.

    Returns:
        The last picture.
    """
    shown: Picture | None = None
    with _screen() as screen:
        while True:
            picture = look()
            changed = shown is None or (picture.states, picture.note) != (shown.states, shown.note)
            if screen is not None:
                screen.update(rendered(tables(picture)), refresh=True)
            elif changed:
                printed(tables(picture), sys.stdout)
            shown = picture
            if not picture.alive:
                return picture
            sleep(pace.next(changed))


def _screen() -> Any:
    if not sys.stdout.isatty():
        return nullcontext(None)
    from rich.live import Live

    return Live(auto_refresh=False)
