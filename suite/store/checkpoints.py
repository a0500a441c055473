"""Where the checkpoints of a stage lie, and how they go away.

<root>/<kind>/<2 hex>/<key>/checkpoints/<identity>/    what `suite.learn.checkpoint` writes

An identity stands for the bytes of the inputs and for how the stage is computed: the kind of device, into how many
parts batches are cut, which share of a set is made, how many tasks train together. A checkpoint of other inputs is
never found, and neither is one of another kind of device, whose draws and roundings differ: a stage that moves from CPU
to GPU, or to another number of tasks, starts again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from suite.spec.keys import canonical, digest
from suite.spec.stages import Stage
from suite.store.artifacts import Artifact, Store

FOLDER = "checkpoints"


def checkpoint_folder(store: Store, stage: Stage, inputs: dict[str, Artifact], place: str) -> Path:
    """The directory of a stage's checkpoints; it need not exist.

    Args:
        store: The store.
        stage: The stage.
        inputs: Its verified inputs by role.
        place: How it is computed, e.g. `cuda 1`: the kind of device, parts of a batch, and tasks if there are several.
    """
    identity = digest(canonical({"inputs": {role: a.digest for role, a in inputs.items()}, "place": place}))[:16]
    return store.home(stage.kind, stage.key) / FOLDER / identity


def discard_checkpoints(store: Store, stage: Stage) -> None:
    """Delete all checkpoints of a stage; called once it is published."""
    shutil.rmtree(store.home(stage.kind, stage.key) / FOLDER, ignore_errors=True)
