"""The registry of methods: one file a method, found by its name, readable without torch.

A method is a frozen dataclass whose fields are its hyper-parameters. That one class is what a grid's overrides are
checked against, what `python -m suite.methods` prints, what is hashed, and what runs. To add one, copy
`template.py.txt` beside this file to `<name>.py` and fill it in; nothing else needs to be edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from suite.errors import UserError, did_you_mean
from suite.spec.recipes import LabelRecipe, Labels, StudentRecipe
from suite.spec.stages import EXTERNAL, KINDS

if TYPE_CHECKING:
    from suite.data.distilled import DistilledSet
    from suite.learn.job import Job

#: Needs that a method may declare: real training images, a teacher, class-wise statistics of the teacher.
NEEDS = frozenset({"real", "teacher", "statistics"})


@dataclass(frozen=True)
class Method(ABC):
    """What every method is. Subclasses add hyper-parameters as fields and implement `recipe` and `synthesize`."""

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    version: ClassVar[int] = 0
    needs: ClassVar[frozenset[str]] = frozenset()
    #: Label policy of protocol `paper`. Protocol `matched` keeps `hard` and turns the others into `online`.
    labels: ClassVar[Labels] = "online"
    #: Whether the images follow from the real ones and the teachers alone, whatever the seed.
    deterministic: ClassVar[bool] = False
    #: Label policies that differ from `labels` under protocol `paper`, by dataset base.
    paper_labels: ClassVar[Mapping[str, Labels]] = {}
    #: Paper hyper-parameters: {(dataset base or "*", IPC or None): {field: value}}; later matches win.
    paper_values: ClassVar[Mapping[tuple[str, int | None], Mapping[str, Any]]] = {}
    #: Teachers of synthesis and of labels under protocol `paper`, by dataset base; others use the grid's teacher.
    paper_teachers: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    paper_label_teachers: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        """Refuse hyper-parameters that make no sense, at planning time: each field is judged by its name (`_RANGES`).

        Raises:
            UserError: Naming the fields that cannot be used.
        """
        check_ranges(
            self, **{f.name: _RANGES[f.name](getattr(self, f.name)) for f in fields(self) if f.name in _RANGES}
        )

    @classmethod
    def for_dataset(cls, base: str, ipc: int, overrides: Mapping[str, Any] | None = None) -> Method:
        """The method with its paper's values for a dataset and IPC, then the grid's overrides."""
        values: dict[str, Any] = {}
        for name, count in (("*", None), ("*", ipc), (base, None), (base, ipc)):
            values |= cls.paper_values.get((name, count), {})
        return replace(cls(), **{**values, **(overrides or {})})

    @classmethod
    def engine(cls) -> frozenset[str]:
        """Which settings of the shared loop a synthesis by this method uses: `compile`, `stack`, or none of them."""
        return frozenset({"compile", "stack"}) if cls().image_iterations(1) else frozenset()

    @classmethod
    def label_policy(cls, base: str, protocol: str) -> Labels:
        """The label policy on a dataset base under a protocol, unless the grid overrides it."""
        policy = cls.paper_labels.get(base, cls.labels)
        return policy if protocol == "paper" or policy == "hard" else "online"

    @classmethod
    def stages(cls, labels: Labels) -> tuple[str, ...]:
        """Kinds of the stages from a dataset to a row under a label policy, in the order in which a plan runs them."""
        used = {"prepare", "synthesis", "evaluation"}
        used |= {"teacher"} if cls.needs & {"teacher", "statistics"} or labels != "hard" else set()
        used |= {"statistics"} & cls.needs
        used |= {"relabel"} if labels in ("vector", "stored") else set()
        return tuple(kind for kind in KINDS if kind in used)

    @abstractmethod
    def recipe(self, base: str, classes: int, ipc: int, student: str) -> StudentRecipe:
        """The student recipe of the paper (protocol `paper`) for a dataset base and its number of classes."""

    def label_recipe(self, base: str, classes: int, ipc: int) -> LabelRecipe:
        """How labels follow from the label teachers' logits under protocol `paper`; the mean of raw logits."""
        return LabelRecipe()

    def label_teacher(self, base: str, ipc: int) -> Mapping[str, Any]:
        """Fields of `TeacherRecipe` in which label teachers differ under protocol `paper`, e.g. `{"stop": 11}`."""
        return {}

    def image_iterations(self, ipc: int) -> float:
        """Planned optimiser updates per image, a mean (0 for methods that only select); used by the cost estimate."""
        return 0

    def parts(self, classes: int, ipc: int) -> int:
        """Of how many parts that do not depend on each other the images consist: the most shards of a synthesis.

        Methods that go through `suite.learn.synthesis.distill` have as many as batches; those that ask `job.classes()`
        what to make have as many as classes. 1, the default, says that the images are made as one, since a batch
        depends on those before it (a running average, a count, a stream), or since nothing is known.
        """
        return 1

    @abstractmethod
    def synthesize(self, job: Job) -> DistilledSet:
        """Make the distilled set: uint8 [classes*ipc, 3, S, S], class-major, with int64 labels."""


#: What a hyper-parameter of a name may be, for the names that methods share. Others are checked by the method itself.
_RANGES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("iterations", "batch", "candidates", "crops", "factor", "rounds", "epochs"), lambda v: v >= 1),
    **dict.fromkeys(("explore", "bn_weight", "weight", "first", "ce_weight", "feature_weight"), lambda v: v >= 0),
    **dict.fromkeys(("lr", "tau"), lambda v: v > 0),
    **dict.fromkeys(("ema", "drop_rate"), lambda v: 0 <= v < 1),
    "curriculum": lambda v: 0 <= v <= 1,
    "crop": lambda v: is_area(v),
    "roll": lambda v: v[0] <= v[1],
}

METHODS: dict[str, type[Method]] = {}
_BROKEN: dict[str, BaseException] = {}
_TWICE: dict[str, str] = {}
M = TypeVar("M", bound=type[Method])


def method(
    *, name: str, paper: str, version: int, needs: tuple[str, ...] = (), labels: Labels = "online"
) -> Callable[[M], M]:
    """Register a method class.

    Args:
        name: The name that grids use: lower case, digits and underscores.
        paper: `arXiv:NNNN.NNNNN`, or a short reference for baselines.
        version: Bumped whenever the method computes something else.
        needs: Some of `NEEDS`; the plan gives a synthesis exactly these inputs.
        labels: Label policy of protocol `paper`.
    """

    def register(cls: M) -> M:
        if name == EXTERNAL:
            raise ValueError(f"method {name!r}: that is what sets from elsewhere are called")
        if name in METHODS:
            _TWICE[name] = f"method {name!r} is registered twice: {METHODS[name].__module__} and {cls.__module__}"
            raise ValueError(_TWICE[name])
        if not is_dataclass(cls) or unknown_needs(needs):
            raise ValueError(f"method {name!r}: a frozen dataclass is needed, with needs among {sorted(NEEDS)}")
        if missing := sorted(cls.__abstractmethods__):
            raise ValueError(f"method {name!r} does not implement {' and '.join(missing)}")
        cls.name, cls.paper, cls.version = name, paper, version
        cls.needs, cls.labels = frozenset(needs), labels
        METHODS[name] = cls
        return cls

    return register


def check_ranges(instance: Method, **allowed: bool) -> None:
    """Refuse hyper-parameters that make no sense; for a method's `__post_init__`, after `super().__post_init__()`.

    Args:
        instance: The method.
        allowed: For names of fields, whether their value can be used.

    Raises:
        UserError: Naming the fields that cannot.
    """
    bad = [f"{name} = {getattr(instance, name)!r}" for name, fine in allowed.items() if not fine]
    if bad:
        raise UserError(
            f"{type(instance).name}: out of range: {', '.join(bad)}", hint=f"see {type(instance).__module__}"
        )


def batches_by_slot(classes: int, ipc: int, batch: int) -> int:
    """Batches of one image a class: `suite.learn.composition.by_slot` makes as many."""
    return ipc * -(-classes // batch)


def batches_by_class(classes: int, ipc: int, batch: int) -> int:
    """Batches of consecutive images of the class-major set: `suite.learn.composition.by_class` makes as many."""
    return -(-classes * ipc // batch)


def is_area(crop: tuple[float, float]) -> bool:
    """Whether a pair is a range of areas for RandomResizedCrop."""
    return 0 < crop[0] <= crop[1] <= 1


def unknown_needs(needs: tuple[str, ...]) -> set[str]:
    """The declared needs that do not exist."""
    return set(needs) - NEEDS


@cache
def discover() -> dict[str, type[Method]]:
    """Import every method file once and return the registry. A file that fails to import spoils only itself."""
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):  # `__main__`
            continue
        try:
            importlib.import_module(f"{__name__}.{info.name}")
        except (
            Exception,
            SystemExit,
        ) as error:  # reported by `get` with the file's name; the other methods stay usable
            _BROKEN[info.name] = error
    return METHODS


def broken() -> dict[str, str]:
    """Method files that could not be imported, with the reason."""
    discover()
    return {name: _told(error) for name, error in _BROKEN.items()}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def get(name: str, where: str = "") -> type[Method]:
    """The method class of a name.

    Raises:
        UserError: If it is unknown, its file cannot be imported, or two files claim it.
    """
    found = discover().get(name)
    if name in _TWICE:  # which of the two a key means would depend on the names of files
        raise UserError(_TWICE[name], where=where, hint="give one of them another name")
    if found is not None:
        return found
    if name in _BROKEN:
        what = f"method {name!r} cannot be imported: {_told(_BROKEN[name])}"
        raise UserError(what, where=where, hint="SUITE_DEBUG=1 shows where") from _BROKEN[name]
    others = [n for n, cls in METHODS.items() if cls.__module__ == f"{__name__}.{name}"]
    hint = f"suite/methods/{name}.py names it {others[0]!r}" if others else did_you_mean(name, METHODS)
    raise UserError(f"unknown method {name!r}", where=where, hint=hint)


def parameters(cls: type[Method]) -> dict[str, Any]:
    """The hyper-parameters of a method and their defaults."""
    instance = cls()
    return {f.name: getattr(instance, f.name) for f in fields(cls)}
