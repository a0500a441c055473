"""`shard`: make a part of a synthesis's images; the synthesis merges the parts."""

from __future__ import annotations

from suite.data.tensors import save_tensors
from suite.errors import UserError
from suite.learn.share import Share
from suite.stages.context import Context, Outcome
from suite.stages.merge import PART
from suite.stages.synthesis import make, upstream


def run(context: Context) -> Outcome:
    """Write `part.safetensors`.

    Raises:
        UserError: If the method does not ask for its share.
    """
    spec = context.spec
    share = Share(spec.index, spec.count, spec.stack)
    distilled, cost = make(context, share)
    if share.slots is None:
        raise UserError(f"{spec.method} cannot be cut into {spec.count} shards", hint="launch again, without shards")
    part = {"slots": share.slots, "images": distilled.images[share.slots]}
    save_tensors(context.dir / PART, {name: tensor.contiguous() for name, tensor in part.items()})
    cost["images"] = len(share.slots)
    return Outcome(cost, upstream=upstream(context))
