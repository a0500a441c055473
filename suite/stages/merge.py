"""Putting the parts of a synthesis together that its shards have made."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from suite.data.distilled import DistilledSet
from suite.errors import DataError, InfraError, NumericError, OutOfMemory, SuiteError, UserError
from suite.spec.stages import Stage
from suite.stages.context import Context, summed
from suite.store import Artifact, Store
from suite.store.artifacts import Corrupt
from suite.store.attempts import await_published, is_current, patience

#: What a shard writes: int64 `slots` [n], ascending, and uint8 `images` [n, 3, S, S] in these places of the set.
PART = "part.safetensors"
_OF_KIND: dict[str, type[SuiteError]] = {
    error.kind: error for error in (UserError, DataError, OutOfMemory, NumericError, InfraError)
}


def merged(context: Context) -> tuple[DistilledSet, dict[str, Any], dict[str, Any]]:
    """The set that one process would have made, from the shards of a synthesis.

    Returns:
        The set; its cost, summed over the shards, with theirs under `shards`; and the device that made it.

    Raises:
        SuiteError: If a shard is not published, as it failed; or is damaged, or made from other inputs.
        DataError: If the parts are not the set.
    """
    spec, facts, stage = context.spec, context.dataset, context.stage
    store = Store(context.settings.store)
    shards = [_opened(store, shard, context.inputs) for shard in stage.parts()]
    images = torch.empty(facts.classes * spec.ipc, 3, facts.size, facts.size, dtype=torch.uint8)
    filled = torch.zeros(len(images), dtype=torch.int64)
    for shard in shards:
        part = load_file(shard.path / PART)
        images[part["slots"]] = part["images"]
        filled[part["slots"]] += 1
    if not bool((filled == 1).all()):
        raise DataError(f"{stage.shards} shards do not make up {len(images)} images", where=stage.label())
    labels = torch.arange(facts.classes).repeat_interleave(spec.ipc)
    records = [shard.record() for shard in shards]
    each = {
        f"{i + 1}/{stage.shards}": r.cost | {"attempt": r.attempt, "commit": r.provenance.get("commit")}
        for i, r in enumerate(records)
    }
    cost = summed(each)
    cost["shards"] = cost.pop("each")
    return DistilledSet(images, labels), cost, dict(records[0].device)


def _opened(store: Store, shard: Stage, inputs: dict[str, Artifact]) -> Artifact:
    """A shard's artifact, made from these inputs.

    Raises:
        SuiteError: Of the kind of the shard's last failure, if it has one.
        InfraError: If it was never made, or must be made again.
    """
    await_published(store, shard.kind, shard.key, patience())
    try:
        artifact = store.open(shard.kind, shard.key)
        why = "stale"
        if is_current(artifact, inputs):
            return artifact
    except FileNotFoundError:
        raise _missing(store, shard) from None
    except Corrupt:
        why = "corrupt"
    store.quarantine(shard.kind, shard.key, why)
    raise InfraError(f"shard {shard.key} is {why}", where=shard.label(), hint="launch again: it alone is made again")


def _missing(store: Store, shard: Stage) -> SuiteError:
    failures = [r for r in store.failures(shard.kind, shard.key) if r.failure]
    if not failures:
        return InfraError(f"shard {shard.key} was not made, and left no record", where=shard.label())
    last = failures[-1]
    error = _OF_KIND[last.failure_kind](f"shard {shard.key}: {(last.failure or {})['message']}", where=shard.label())
    error.place = last.node, last.job
    return error
