"""Parts of the tests of WMDD and LPLD: a critic asked directly, and class statistics made by hand."""

from __future__ import annotations

from typing import Any

import torch

from suite.learn import synthesis
from suite.learn.job import Job
from suite.learn.statistics import ClassStatistics, LayerTargets
from suite.learn.synthesis import Critic, Seen
from suite.methods import get


def compositions(monkeypatch: Any, name: str, job: Job, **values: Any) -> synthesis.Composition:
    """What the method hands to the shared loop."""
    seen: list[synthesis.Composition] = []
    original = synthesis.distill
    monkeypatch.setattr(synthesis, "distill", lambda job, plan: (seen.append(plan), original(job, plan))[1])
    get(name)(**values).synthesize(job)
    monkeypatch.setattr(synthesis, "distill", original)
    return seen[0]


def by_hand(moments: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> ClassStatistics:
    """Statistics whose class moments [K, C] are these, by BatchNorm layer in module order."""
    layers = [
        LayerTargets(name, "bn", m[0], v[0], class_mean=m, class_var=v, class_between=torch.zeros_like(v))
        for name, (m, v) in moments.items()
    ]
    return ClassStatistics(layers, len(next(iter(moments.values()))[0]), None)


def asked(critic: Critic, x: torch.Tensor, labels: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, Seen]:
    """The weighted matching term of a batch, and what was seen."""
    logits, stats = critic.forward(x)
    seen = Seen(x, labels, logits, stats, slots)
    assert critic.matching is not None
    return critic.weight * critic.matching(seen), seen
