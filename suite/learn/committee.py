"""Which teachers vote on which images (CV-DD, arXiv:2501.07575, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch

from suite.learn.job import Job

Voting = Literal["random", "each", "best"]


def committees(job: Job, voting: Voting, size: int, scores: Sequence[float]) -> list[tuple[int, ...]]:
    """The teachers of every slot, as positions among the job's teachers.

    Args:
        job: The synthesis.
        voting: `random`: drawn without replacement for every slot; `each`: the unordered groups in turn, in
            lexicographic order; `best`: those with the highest scores, the earlier of equal ones.
        size: Teachers of a committee; all of them where there are fewer.
        scores: One a teacher.
    """
    size = min(size, len(job.teachers))
    groups = list(combinations(range(len(job.teachers)), size))
    if voting == "best":
        order = sorted(range(len(scores)), key=lambda k: -scores[k])
        return [tuple(sorted(order[:size]))] * job.ipc
    if voting == "each":
        return [groups[s % len(groups)] for s in range(job.ipc)]
    draws = job.generator("committee")
    return [groups[i] for i in torch.randint(len(groups), (job.ipc,), generator=draws).tolist()]
