"""Cutting syntheses into shards: stages of a run that no plan knows, since their number is a matter of resources."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from suite.cluster.profile import Profile
from suite.methods import get
from suite.spec.datasets import dataset
from suite.spec.stages import Stage
from suite.store import Store
from suite.store.artifacts import Corrupt
from suite.store.attempts import Blocked, is_current, open_inputs


@dataclass
class Cut:
    """The stages of a run, with syntheses cut.

    Attributes:
        stages: Those that were given, and before each synthesis that is cut its shards that are not there yet.
        shards: Shards of all syntheses that are cut.
        there: How many of them an earlier run has left.
        syntheses: How many are cut.
        whole: Methods of syntheses that would be cut, but consist of one part.
    """

    stages: list[Stage] = field(default_factory=list)
    shards: int = 0
    there: int = 0
    syntheses: int = 0
    whole: set[str] = field(default_factory=set)


def cut(stages: Sequence[Stage], profile: Profile, store: Store, shards: int | None = None) -> Cut:
    """Cut syntheses into as many shards as the profile wants and their methods allow.

    Args:
        stages: What has to run.
        profile: Says how many shards a synthesis may have.
        store: Where shards of earlier runs are found.
        shards: What the command line wants instead.
    """
    result = Cut()
    for stage in stages:
        if stage.kind == "synthesis":
            wanted = shards or profile.resources(stage).shards or 1
            stage = replace(stage, shards=min(wanted, parts(stage)))
            result.whole |= {stage.spec.method} if stage.shards == 1 < wanted else set()  # type: ignore[union-attr]
        if own := stage.parts():
            missing = [shard for shard in own if not _there(shard, store)]
            result.syntheses += 1
            result.shards += len(own)
            result.there += len(own) - len(missing)
            result.stages += missing
        result.stages.append(stage)
    return result


def parts(stage: Stage) -> int:
    """Of how many parts that do not depend on each other the images of a synthesis consist."""
    s: Any = stage.spec
    if s.stack > 1:  # which batches lie side by side, hence their roundings, would depend on the cut
        return 1
    return get(s.method)(**s.params).parts(dataset(s.dataset).classes, s.ipc)


def _there(shard: Stage, store: Store) -> bool:
    """Whether a shard is published and made from the inputs as they are."""
    if (store.home(shard.kind, shard.key) / "out").is_dir():
        with suppress(FileNotFoundError, Corrupt, Blocked):
            return is_current(store.open(shard.kind, shard.key), open_inputs(store, shard))
    return False
