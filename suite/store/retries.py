"""Which failed stages run again by themselves: one pure function of what their attempts left behind.

| kind | by itself | why |
|---|---|---|
| infra | until it failed `MAX_INFRA` times, elsewhere than on the nodes where it failed | nodes and disks recover |
| oom | once, every batch cut in two | where the cut leaves the objective alone |
| user, data, numeric | never | the same attempt would fail in the same way |

`--retry KIND` runs any of them all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from suite.store.records import Record

KINDS = ("user", "data", "oom", "numeric", "infra")
#: Attempts that may fail for reasons of the place before a person has to look.
MAX_INFRA = 3
#: Stages whose batches may be cut without another objective: gradients of the parts are summed before each update.
#: Syntheses compare statistics of the batch as a whole, and labels may depend on it.
CUTTABLE = ("teacher", "evaluation")


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from the failed attempts of a stage.

    Attributes:
        retry: Whether it runs again.
        why: The reason, in words that follow the failure's own.
        exclude_nodes: Nodes of the cluster that the next attempt avoids.
        micro_batches: Parts that the next attempt cuts each batch into.
    """

    retry: bool
    why: str = ""
    exclude_nodes: tuple[str, ...] = ()
    micro_batches: int = 1


def decide(history: Sequence[Record], asked: Collection[str] = ()) -> Decision:
    """Whether and how a stage runs again.

    Args:
        history: Records of its failed attempts, oldest first. Attempts that were blocked by an input do not count.
        asked: Failure kinds that a person wants run again.
    """
    own = [r for r in history if r.failure and not r.blocked]
    if not own:
        return Decision(True)
    kind = own[-1].failure_kind
    times = sum(r.failure_kind == kind for r in own)
    places = (r for r in own if r.failure_kind == "infra" and (r.failure or {}).get("place") != "everywhere")
    bad = tuple(dict.fromkeys(r.node for r in places if r.job and r.node))
    if kind in asked:
        return Decision(True, f"`--retry {kind}`")  # who asks has looked at the nodes
    if kind == "infra":
        if times < MAX_INFRA:
            return Decision(True, f"attempt {times + 1} of {MAX_INFRA}", bad)
        return Decision(False, f"after {times} attempts", bad)
    if kind == "oom" and times == 1 and own[-1].kind in CUTTABLE:
        return Decision(True, "once more, with batches in 2 parts", bad, micro_batches=2)
    return Decision(False, "not by itself", bad)
