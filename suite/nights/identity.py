"""What makes two stages of different nights comparable: everything in their specs but seeds and versions.

A key changes with the declared version of a stage or method, and a changed version is just what a nightly watches. An
identity is a key without versions and without the seed, so that rows are compared over a change of the code. A grid
that asks for something else (more steps, another recipe) has other identities, and so starts a history of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from suite.spec.keys import canonical, digest, plain
from suite.spec.stages import Stage

_LEFT_OUT = ("seed", "version")


def identities(stages: Iterable[Stage]) -> dict[str, str]:
    """The identity of each stage by its key.

    Args:
        stages: In an order in which inputs come before what needs them.
    """
    found: dict[str, str] = {}
    for stage in stages:
        spec = {k: v for k, v in plain(stage.spec).items() if k not in _LEFT_OUT}
        inputs = {role: found.get(key, key) for role, key in stage.inputs.items()}
        found[stage.key] = digest(canonical({"kind": stage.kind, "spec": spec, "inputs": inputs}))[:16]
    return found


def label(stage: Stage) -> str:
    """A stage's name without its seed."""
    seed = getattr(stage.spec, "seed", None)
    return stage.label().removesuffix(f" seed{seed}")
