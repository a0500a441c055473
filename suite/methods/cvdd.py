"""CV-DD: SRe2L++ by committees of teachers, weighted by how well each of them distills alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from suite.methods import check_ranges, method
from suite.methods.sre2lpp import SRe2LPlusPlus
from suite.spec.recipes import LabelRecipe

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job

#: The paper's pool, in its order, and the same families for small images: 3x3 stems, ShuffleNetV2 at width 0.5.
POOL = ("resnet18", "resnet50", "shufflenet_v2_x1_0", "mobilenet_v2", "densenet121")
SMALL_POOL = ("resnet18_cifar", "resnet50_cifar", "shufflenet_v2_x0_5", "mobilenet_v2", "densenet121")
#: Prior performance of the pool in percent: accuracy of students of what SRe2L++ distills from each [inferred].
PRIORS: dict[str, tuple[float, ...]] = {
    "cifar10": (63.0, 65.3, 68.5, 67.6, 67.4),
    "cifar100": (64.0, 60.6, 51.6, 59.4, 56.4),
    "tinyimagenet": (46.5, 28.3, 43.6, 44.8, 41.5),
    "imagenette": (62.4, 52.0, 57.2, 54.0, 60.8),
    "imagenet1k": (56.4, 42.3, 52.5, 44.2, 40.6),
}
#: Of the softmax over priors that weighs labels.
LABEL_TEMPERATURE = 10.0


@method(name="cvdd", paper="arXiv:2501.07575", version=1, needs=("real", "teacher"), labels="stored")
@dataclass(frozen=True)
class CVDD(SRe2LPlusPlus):
    """Cui, Li, Ma, Bi, Luo and Shen, 2025, section 3: prior-guided voting of N teachers on every batch of images.

    Every slot has a committee, whose members see the same views in every iteration: the loss is the sum of their
    SRe2L losses, weighted by the softmax of prior scores over `temperature`. Priors are known for the paper's five
    families on its five datasets; where one of the teachers has none, all of them weigh the same (ours): so it is on
    Imagewoof, which takes Imagenette's pool (inferred). With one teacher this is SRe2L++. Teachers are trained as the
    grid says; the reference has recipes of its own for each of the small sets.

    Attributes:
        voting: `random`: committees drawn for every slot (the paper's IPC 50), by the seed (the reference has none);
            `each`: all unordered groups in turn (IPC 10); `best`: the highest priors (IPC 1 on Tiny-ImageNet and
            ImageNet-1K); `single`: the first teacher alone, which is SRe2L++ (the reference's setting 0).
        members: Teachers of a committee (N); all of them where there are fewer.
        pair: For `best`: these two of the paper's five instead, where both are among the teachers (IPC 1 on the other
            datasets).
        temperature: Of the softmax over prior scores, in percent.
    """

    voting: Literal["random", "each", "best", "single"] = "random"
    members: int = 2
    pair: tuple[str, ...] = ()
    temperature: float = 5.0

    paper_values: ClassVar[dict[tuple[str, int | None], dict[str, Any]]] = {
        **SRe2LPlusPlus.paper_values,
        ("*", 1): {"voting": "best"},
        ("*", 10): {"voting": "each"},
        ("cifar10", 1): {"pair": POOL[3:]},
        ("imagenette", 1): {"pair": POOL[3:]},
        ("cifar100", 1): {"pair": POOL[2:4]},
    }
    paper_teachers: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("imagenet1k", "imagenette", "imagewoof"), POOL),
        **dict.fromkeys(("cifar10", "cifar100", "tinyimagenet"), SMALL_POOL),
    }
    paper_label_teachers: ClassVar[dict[str, tuple[str, ...]]] = paper_teachers

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, members=self.members >= 1, temperature=self.temperature > 0, pair=set(self.pair) <= {*POOL})

    def label_recipe(self, base: str, classes: int, ipc: int) -> LabelRecipe:
        """SRe2L++'s, with the sum of all teachers' logits weighted by the softmax of their priors over 10."""
        label = super().label_recipe(base, classes, ipc)
        if self.voting == "single" and base in self.paper_label_teachers:
            return replace(label, ensemble="weighted", weights=(1.0, 0.0, 0.0, 0.0, 0.0))
        if base not in PRIORS:
            return label
        return replace(label, ensemble="weighted", weights=softmax(PRIORS[base], LABEL_TEMPERATURE))

    def synthesize(self, job: Job) -> DistilledSet:
        """SRe2L's recovery from patches, judged by the committee of a batch's slot."""
        from suite.learn.committee import committees
        from suite.learn.patches import PatchStart
        from suite.learn.recovery import recover
        from suite.learn.synthesis import by_slot

        partition = by_slot(job.dataset.classes, job.ipc, self.batch)
        own = job.share.classes(partition, job.ipc)
        start = PatchStart(job, self.candidates, self.crops, self.patch, own)
        if self.voting == "single":
            return recover(job, self, start=start, partition=partition)
        archs = tuple(teacher.arch for teacher in job.teachers)
        scores = priors(job.dataset.base, archs)
        pair = [k for k, arch in enumerate(archs) if family(arch) in self.pair]
        if self.voting == "best" and len(pair) == 2:
            chosen = [tuple(pair)] * job.ipc
        else:
            chosen = committees(job, self.voting, self.members, scores)
        votes = [list(zip(who, softmax([scores[k] for k in who], self.temperature), strict=True)) for who in chosen]
        chunks = -(-job.dataset.classes // self.batch)
        return recover(
            job, self, start=start, partition=partition, select=lambda counter, batch: votes[batch // chunks]
        )


def family(arch: str) -> str | None:
    """The network of the paper's pool that an architecture stands for, if any: other stems and ShuffleNet widths do."""
    name = "shufflenet_v2_x1_0" if arch.startswith("shufflenet_v2_x") else arch.removesuffix("_cifar")
    return name if name in POOL else None


def priors(base: str, archs: Sequence[str]) -> tuple[float, ...]:
    """Prior scores of teachers in percent; all zero where the paper has none for one of them."""
    known = dict(zip(POOL, PRIORS.get(base, ()), strict=False))
    found = [known.get(family(arch) or "") for arch in archs]
    return tuple(0.0 if None in found else score or 0.0 for score in found)


def softmax(scores: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Weights that sum to 1."""
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return tuple(power / sum(powers) for power in powers)
