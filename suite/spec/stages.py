"""Stages: units of work shared by cells, each with a frozen, typed spec and a key.

A spec holds everything that changes a stage's output and nothing else: resources, paths and hosts are never in it.
A change to how a stage computes bumps its number in `VERSIONS` (and CHANGELOG.md says so).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from suite.spec.keys import LATER, plain, stage_key
from suite.spec.recipes import LabelRecipe, Labels, RelabelRecipe, StudentRecipe, TeacherRecipe

Loader = Literal["ffcv", "torchvision"]
Precision = Literal["fp32", "bf16"]
Protocol = Literal["paper", "matched"]
Weights = Literal["scratch", "pretrained", "file"]

#: Kinds in the order in which a run goes through them. Shards are not in plans: a launch cuts syntheses into them.
KINDS = ("prepare", "teacher", "statistics", "shard", "synthesis", "relabel", "evaluation")

#: The method in the spec of a distilled set that was made elsewhere; no method of the suite can have this name.
EXTERNAL = "external"

#: Declared versions; part of every key. Methods have versions of their own, in `SynthesisSpec.version`.
VERSIONS = {"prepare": 1, "teacher": 2, "statistics": 2, "synthesis": 3, "relabel": 1, "evaluation": 2}
VERSIONS["shard"] = VERSIONS["synthesis"]


@dataclass(frozen=True, slots=True)
class PrepareSpec:
    """A dataset as square images of side `stored`: betons for FFCV, or an ImageFolder for `loader: torchvision`.

    Betons hold raw pixels below 96 pixels a side and JPEG (quality 90) from there up; folders hold PNG and JPEG.
    """

    dataset: str
    classes: int
    size: int
    stored: int
    per_class: int | None
    format: Literal["beton", "folder"]


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """A teacher: trained from scratch with `recipe`, or weights that exist already.

    `pretrained` takes torchvision's IMAGENET1K_V1 or timm's default weights from the hub's cache; `file` reads
    `<weights root>/<dataset base>/<arch>.{safetensors,pth}`.
    """

    dataset: str
    arch: str
    weights: Weights
    recipe: TeacherRecipe | None
    seed: int
    loader: Loader
    precision: Precision


@dataclass(frozen=True, slots=True)
class StatisticsSpec:
    """Class-wise and global statistics of a teacher's BatchNorm and Conv2d inputs over real training images."""

    dataset: str
    arch: str
    per_class: int | None
    crop: tuple[float, float]
    flip: bool
    patch: int
    batch: int
    seed: int
    loader: Loader


@dataclass(frozen=True, slots=True)
class SynthesisSpec:
    """A distilled set: method, its resolved parameters, what it is made for, and how it is rounded.

    `stack` is the number of images of several batches that are optimised side by side at most, `compile` runs teachers
    through `torch.compile`. Both leave objectives as they are and change roundings, which is why they are here and not
    in a site profile.
    """

    method: str
    version: int
    params: dict[str, Any]
    dataset: str
    ipc: int
    teachers: tuple[str, ...]
    seed: int
    loader: Loader
    precision: Precision
    stack: int = field(default=1, metadata=LATER)
    compile: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True, slots=True)
class ShardSpec(SynthesisSpec):
    """Part `index` (from 0) of `count` of the images of a synthesis."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class RelabelSpec:
    """Stored soft labels: views of distilled images and the teachers' logits on them (FKD), or a vector an image."""

    labels: Literal["stored", "vector"]
    dataset: str
    ipc: int
    teachers: tuple[str, ...]
    recipe: RelabelRecipe
    seed: int
    precision: Precision


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """A student trained on a distilled set and scored on the full validation split. Its attempt's record is a row."""

    method: str
    dataset: str
    ipc: int
    teacher: str
    student: str
    protocol: Protocol
    seed: int
    labels: Labels
    label: LabelRecipe
    recipe: StudentRecipe
    loader: Loader
    precision: Precision


Spec = PrepareSpec | TeacherSpec | StatisticsSpec | SynthesisSpec | ShardSpec | RelabelSpec | EvaluationSpec
SPECS: dict[str, type] = {
    "prepare": PrepareSpec,
    "teacher": TeacherSpec,
    "statistics": StatisticsSpec,
    "shard": ShardSpec,
    "synthesis": SynthesisSpec,
    "relabel": RelabelSpec,
    "evaluation": EvaluationSpec,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One node of a plan.

    Attributes:
        kind: One of `KINDS`.
        spec: The frozen parameters.
        inputs: Roles and keys of the stages that it reads, e.g. `{"prepare": ..., "teacher.0": ...}`. The kind of an
            input is the part of its role before the dot.
        key: Derived from kind, version, spec and the inputs' keys.
        shards: Of a synthesis: how many shards make its images in this run, and are merged by it; 1 if it makes them
            itself. A matter of resources, and so not in the key.
    """

    kind: str
    spec: Spec
    inputs: dict[str, str] = field(default_factory=dict)
    key: str = ""
    shards: int = 1

    @staticmethod
    def make(kind: str, spec: Spec, inputs: dict[str, str] | None = None) -> Stage:
        """Build a stage and derive its key."""
        inputs = dict(inputs or {})
        return Stage(kind, spec, inputs, stage_key(kind, VERSIONS[kind], spec, inputs))

    @property
    def needs(self) -> dict[str, str]:
        """Roles and keys of the stages that have to be through before this one: inputs, and shards to merge."""
        return self.inputs | {f"shard.{s.spec.index}": s.key for s in self.parts()}  # type: ignore[union-attr]

    def parts(self) -> list[Stage]:
        """The shards that this synthesis merges; none if it makes its images itself."""
        if self.shards == 1:
            return []
        own = {f.name: getattr(self.spec, f.name) for f in fields(SynthesisSpec)}
        specs = [ShardSpec(**own, index=i, count=self.shards) for i in range(self.shards)]
        return [Stage.make("shard", spec, self.inputs) for spec in specs]

    def whole(self) -> Stage:
        """The synthesis of a shard; any other stage itself."""
        if self.kind != "shard":
            return self
        own = {f.name: getattr(self.spec, f.name) for f in fields(SynthesisSpec)}
        return Stage.make("synthesis", SynthesisSpec(**own), self.inputs)

    def label(self) -> str:
        """A short human name, for tables and logs."""
        s: Any = self.spec
        if self.kind == "shard":
            return f"{self.whole().label()} shard {s.index + 1}/{s.count}"
        if self.kind in ("synthesis", "evaluation"):
            head = f"{s.method} {s.dataset} ipc{s.ipc}"
            return (
                f"{head} -> {s.student} {s.protocol} seed{s.seed}"
                if self.kind == "evaluation"
                else f"{head} seed{s.seed}"
            )
        if self.kind == "relabel":
            return f"{s.dataset} ipc{s.ipc} by {'+'.join(s.teachers)} seed{s.seed}"
        return f"{s.arch} on {s.dataset}" if self.kind != "prepare" else s.dataset

    def to_json(self) -> dict[str, Any]:
        """The stage as JSON types."""
        own = {"kind": self.kind, "key": self.key, "spec": plain(self.spec), "inputs": self.inputs}
        if self.kind == "shard":
            return own | {"of": self.whole().key}
        return own if self.shards == 1 else own | {"shards": self.shards}


def input_kind(role: str) -> str:
    """The stage kind that a role names: `teacher.1` is a teacher."""
    return role.partition(".")[0]


def stage_from_json(data: dict[str, Any]) -> Stage:
    """Rebuild a stage from a plan file or a manifest.

    Raises:
        ValueError: If the stored key does not follow from the stored spec (other version, or edited by hand).
    """
    from pydantic import TypeAdapter

    kind = data["kind"]
    spec: Spec = TypeAdapter(SPECS[kind]).validate_python(data["spec"])
    stage = Stage.make(kind, spec, data["inputs"])
    if stage.key != data["key"]:
        raise ValueError(f"{kind} {data['key']}: spec hashes to {stage.key}; it was planned by another version")
    return replace(stage, shards=data.get("shards", 1))
