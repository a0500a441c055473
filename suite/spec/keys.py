"""Keys: the identity of a stage.

A key is 16 hex digits of the SHA-256 of canonical JSON. 64 bits make a collision among 100,000 stages as likely as
3e-10, and the full spec is stored in the manifest and compared whenever an artifact is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

#: Metadata of a field that a spec got later: at its default it is left out, so that older keys stay.
LATER = {"later": True}


def shown(spec: Any) -> list[str]:
    """Names of a dataclass's fields that its JSON has."""
    kind: Any = type(spec)
    names, later = _names(kind)
    left_out = [name for name, default in later if getattr(spec, name) == default]
    return [name for name in names if name not in left_out] if left_out else names


@cache
def _names(cls: type) -> tuple[list[str], list[tuple[str, Any]]]:
    """Names of all fields, and of those that came later with their defaults."""
    every = fields(cls)
    return [f.name for f in every], [(f.name, f.default) for f in every if "later" in f.metadata]


def plain(value: Any) -> Any:
    """Turn a spec into JSON types. Tuples become lists, dataclasses become objects.

    Raises:
        TypeError: If a value has no canonical form (NaN, Inf, or a type that JSON does not have).
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value!r} cannot be part of a spec")
        # 1 and 1.0 are decided by the schema before hashing; what is left is normalised here.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in shown(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    raise TypeError(f"{type(value).__name__} cannot be part of a spec")


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII, integral floats written as integers."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str | bytes) -> str:
    """SHA-256 of text or bytes, as 64 hex digits."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def stage_key(kind: str, version: int, spec: Any, inputs: dict[str, str]) -> str:
    """The key of a stage: its kind, declared version, spec and its inputs' keys; nothing else."""
    return digest(canonical({"inputs": inputs, "kind": kind, "spec": spec, "version": version}))[:16]
