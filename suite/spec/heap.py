"""Plans of 100,000 cells are a million small objects without cycles, among which Python looks for cycles in vain."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def many_objects() -> Iterator[None]:
    """No search for cycles within the block, which builds what stays: a quarter of the time of planning."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
