"""From waves to arrays: what one call of sbatch submits, and which arrays follow each other task by task.

Where every stage that a wave needs has a task of its own, the wave's tasks get the index of the task that they wait for
and follow it by `aftercorr`: a student starts when its synthesis is there, not when the last of a thousand is. All
other arrays wait by `afterany` and have their workers check inputs.

The number of calls is bounded: arrays are as large as the site allows, and a launch that would need more than
`max_submissions` of them gives up following task by task, and then makes packs longer until it fits. A pack that
outgrows its time limit is requeued, and goes on behind what it has published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from suite.cluster.waves import Wave, filled
from suite.spec.stages import KINDS, Stage, input_kind

#: At most this many arrays follow one array, each with a part of what waits for its tasks.
_LAYERS = 8


@dataclass(frozen=True, slots=True)
class Draft:
    """An array that is to be submitted.

    Attributes:
        wave: Its kind and resources.
        packs: Positions of the stages of each task, by index in the array.
        follows: Number of the draft whose tasks these follow, index by index; None if it waits for whole tasks only.
    """

    wave: Wave
    packs: Mapping[int, tuple[int, ...]]
    follows: int | None = None


def make_drafts(waves: Sequence[Wave], stages: Sequence[Stage], limit: int, budget: int) -> list[Draft]:
    """Cut waves into arrays, in the order of submission.

    Args:
        waves: In the order of `KINDS`.
        stages: The stages of the run.
        limit: Tasks that one array may have.
        budget: Arrays that one launch may submit; exceeded only where there are more resource classes than that.

    Returns:
        Arrays. Each stage is in exactly one of them, and what it needs is in earlier ones.
    """
    drafts = _cut(waves, stages, limit, follow=True)
    if len(drafts) > budget:
        drafts = _cut(waves, stages, limit, follow=False)
    while len(drafts) > budget:
        # What several tasks train together shares no job with others.
        largest = max(waves, key=lambda w: len(w.packs) if (w.resources.tasks or 1) == 1 else 0)
        if len(largest.packs) <= limit or (largest.resources.tasks or 1) > 1:
            break
        waves = [_longer(w) if w is largest else w for w in waves]
        drafts = _cut(waves, stages, limit, follow=False)
    return drafts


def _longer(wave: Wave) -> Wave:
    """A wave with half as many packs."""
    p = wave.packs
    return replace(wave, packs=tuple(p[i] + (p[i + 1] if i + 1 < len(p) else ()) for i in range(0, len(p), 2)))


def _cut(waves: Sequence[Wave], stages: Sequence[Stage], limit: int, follow: bool) -> list[Draft]:
    positions = {(s.kind, s.key): i for i, s in enumerate(stages)}
    drafts: list[Draft] = []
    own: dict[int, tuple[int, int]] = {}  # stages with a task of their own: number of the draft, and index
    for wave in waves:
        new = _following(wave, stages, positions, own) if follow else []
        taken = {i for draft in new for pack in draft.packs.values() for i in pack}
        rest = [p for pack in wave.packs if (p := tuple(i for i in pack if i not in taken))]
        new += [Draft(wave, dict(enumerate(rest[start : start + limit]))) for start in range(0, len(rest), limit)]
        for draft in new:
            own |= {pack[0]: (len(drafts), index) for index, pack in draft.packs.items() if len(pack) == 1}
            drafts.append(draft)
    return drafts


def _following(
    wave: Wave, stages: Sequence[Stage], positions: Mapping[tuple[str, str], int], own: Mapping[int, tuple[int, int]]
) -> list[Draft]:
    """Arrays of the part of a wave that can follow earlier tasks index by index; none if that takes many arrays."""
    groups: dict[int, list[int]] = {}
    for member in wave.stages:
        if (anchor := _anchor(stages[member], positions)) in own:
            groups.setdefault(anchor, []).append(member)  # type: ignore[arg-type]
    layers = {anchor: list(filled(members, wave.seconds, wave.longest)) for anchor, members in groups.items()}
    if len(layers) < 2 or max(map(len, layers.values())) > min(_LAYERS, len(layers)):
        return []
    cut: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {}
    for anchor, packs in layers.items():
        number, index = own[anchor]
        for layer, pack in enumerate(packs):
            cut.setdefault((number, layer), {})[index] = pack
    return [Draft(wave, packs, number) for (number, _), packs in sorted(cut.items(), key=lambda item: item[0])]


def _anchor(stage: Stage, positions: Mapping[tuple[str, str], int]) -> int | None:
    """The input of this run that is there last; None for a synthesis that waits for several shards."""
    if stage.shards > 1:
        return None
    inputs = [(KINDS.index(input_kind(role)), positions.get((input_kind(role), key))) for role, key in
              stage.inputs.items()]  # fmt: skip
    return max(((kind, i) for kind, i in inputs if i is not None), default=(0, None))[1]


def direct_inputs(
    stage: Stage, ancestors: Mapping[tuple[str, str], frozenset[tuple[str, str]]]
) -> set[tuple[str, str]]:
    """Inputs of a stage that no other input of it needs: when these are there, all are.

    Args:
        stage: The stage.
        ancestors: What each stage of the run needs, directly or not.
    """
    nodes = {(input_kind(role), key) for role, key in stage.needs.items()}
    return nodes - {a for node in nodes for a in ancestors.get(node, ())}


def all_ancestors(stages: Sequence[Stage]) -> dict[tuple[str, str], frozenset[tuple[str, str]]]:
    """What each stage needs, directly or not, as far as it is among these stages or one step beyond."""
    found: dict[tuple[str, str], frozenset[tuple[str, str]]] = {}
    for stage in sorted(stages, key=lambda s: KINDS.index(s.kind)):
        nodes = {(input_kind(role), key) for role, key in stage.needs.items()}
        found[stage.kind, stage.key] = frozenset(nodes.union(*(found.get(n, frozenset()) for n in nodes)))
    return found
