"""Similarities within classes that `python -m suite.bench diversity` has measured, to be joined by the key of a set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from suite.errors import DataError
from suite.store.files import read_json


def read_similarities(paths: Iterable[Path]) -> dict[str, dict[str, float]]:
    """Mean cosine similarity by network and synthesis key.

    Files from before keys were recorded have tables only, and join with nothing.

    Args:
        paths: JSON files of `suite.bench diversity`.

    Raises:
        DataError: If one is not such a file.
    """
    found: dict[str, dict[str, float]] = {}
    for path in sorted(paths):
        try:
            data = read_json(path)
            if data["benchmark"] != "diversity":
                raise DataError(f"measurements of {data['benchmark']!r}, not of diversity", where=str(path))
            values = {str(key): float(value) for key, value in data.get("sets", {}).items()}
            network = str(data["settings"]["network"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not measurements of diversity ({type(error).__name__})", where=str(path)) from error
        if wrong := [v for v in values.values() if not (math.isfinite(v) and -1 <= v <= 1)]:
            raise DataError(f"{wrong[0]} is not a cosine", where=str(path))
        found.setdefault(network, {}).update(values)
    return found
