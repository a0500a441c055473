"""Site profiles: one YAML file says how one place runs stages. Nothing in it changes a number or a key.

A profile is strict: unknown and duplicate fields, wrong types and YAML's surprises (`time: 10:30` is the integer 630)
are refused with the file, the line and the field.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from suite.errors import UserError, did_you_mean
from suite.grid.yaml_strict import Document, load_yaml
from suite.spec.datasets import REGISTRY, dataset
from suite.spec.stages import KINDS, Stage

#: sbatch options that the suite sets itself, and one with which jobs would not be found again.
_OURS = frozenset({
    "array", "dependency", "job-name", "output", "error", "open-mode", "export", "signal", "wrap", "wait", "parsable",
    "kill-on-invalid-dep", "test-only", "clusters",
})  # fmt: skip
#: Name under `stages` of syntheses that only put shards together.
_MERGE = "merge"
#: Tasks are asked to leave 90 s before their limit; a shorter one would leave no time to work in.
MIN_MINUTES = 5
_CLOCK = re.compile(r"(?:(\d{1,3})-)?(\d{1,3}):(\d{2}):(\d{2})")
_AMOUNT = re.compile(r"(\d{1,5})\s*(m|min|h|d)")
_USER = re.compile(r"\$(?:USER\b|\{USER\})")
_UNIT = {"m": 1, "min": 1, "h": 60, "d": 1440}


def minutes(value: object) -> int:
    """Minutes of a time limit: `90m`, `4h`, `2d`, `"12:00:00"` or `"1-12:00:00"`.

    Raises:
        ValueError: If it is anything else, or less than `MIN_MINUTES`.
    """
    if not isinstance(value, str):
        raise ValueError('write a time limit as 90m, 4h, 2d or, in quotes, "12:00:00"')
    if m := _AMOUNT.fullmatch(value.strip()):
        total = int(m[1]) * _UNIT[m[2]]
    elif m := _CLOCK.fullmatch(value.strip()):
        total = int(m[1] or 0) * 1440 + int(m[2]) * 60 + int(m[3]) + (int(m[4]) > 0)
    else:
        raise ValueError(f'{value!r} is not a time limit; write 90m, 4h, 2d or "12:00:00"')
    if not MIN_MINUTES <= total <= 60 * 24 * 60:
        raise ValueError(f"a time limit lies between {MIN_MINUTES} minutes and 60 days")
    return total


def _expand(value: object) -> object:
    """Replace `~` and `$NAME` in a path."""
    if not isinstance(value, str):
        return value
    text = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 - Path.expanduser does not take $NAME
    # Some crons set LOGNAME alone; paths on shared disks are made of USER.
    text = _USER.sub(lambda _: getpass.getuser(), text)
    if "$" in text:
        raise ValueError(f"{value!r} names an environment variable that is not set")
    return text


def _with_prepare(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("prepare", *kinds)))


Minutes = Annotated[int, BeforeValidator(minutes)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@+-]{1,128}$")]
Memory = Annotated[str, Field(pattern=r"^(0|[1-9]\d{0,6}[KMGT])$")]
Location = Annotated[str, BeforeValidator(_expand), Field(min_length=1, max_length=4096, pattern=r"^[^\n\r\x00]+$")]
Line = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\n\r\x00]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Resources(_Strict):
    """What one task asks Slurm for. Absent fields are inherited from the profile.

    Attributes:
        partition: Slurm partition.
        account: Slurm account.
        qos: Slurm quality of service.
        gpus: GPUs a task; 0 for none.
        gpu_type: Type of the GPU as Slurm's `gres` names it, e.g. `h200`.
        cpus_per_task: CPU cores a task.
        mem: Memory a task, e.g. `64G`; `"0"` for all of its node's.
        time: Time limit; minutes once read.
        sbatch: Further sbatch options by their long names, e.g. `{constraint: nvlink, exclusive: true}`.
        shards: Tasks that one synthesis is cut into, at most; a method may allow fewer.
        tasks: Tasks of one job, on one node, that train a teacher or a student together; with one GPU each where GPUs
            are asked for. Such stages share no job with others. Changes no key.
    """

    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    gpu_type: Name | None = None
    cpus_per_task: Annotated[int, Field(ge=1, le=1024)] | None = None
    mem: Memory | None = None
    time: Minutes | None = None
    sbatch: dict[Name, Line | Literal[True]] | None = None
    shards: Annotated[int, Field(ge=1, le=10_000)] | None = None
    tasks: Annotated[int, Field(ge=1, le=64)] | None = None


class Nightly(_Strict):
    """What a site allows its nightly grids, and when a night is worth a mail.

    Attributes:
        gpu_hours: GPU-hours of one night; a night that is expected to need more is refused.
        in_flight: Tasks of a night that run at once, over all of its arrays.
        wall_clock: Duration of a night; what is left then is cancelled. Minutes once read.
        reuse: Stage kinds whose artifacts nights take from the store instead of making them again; `prepare` always.
        keep: Nights whose artifacts are kept; what was measured is kept for ever.
        window: Earlier nights that a night is compared with.
        accuracy_points: A mean over seeds that is lower by this many points is always allowed.
        speed_percent: A median duration that is longer by this much is allowed.
        speed_seconds: So is one that is longer by this many seconds.
    """

    gpu_hours: Annotated[float, Field(gt=0, le=1e6, strict=False)] | None = None
    in_flight: Annotated[int, Field(ge=1, le=100_000)] | None = None
    wall_clock: Minutes | None = None
    reuse: Annotated[tuple[Literal["prepare", "teacher", "statistics"], ...], AfterValidator(_with_prepare)] = Field(
        default=("prepare",), strict=False
    )
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    window: Annotated[int, Field(ge=1, le=365)] = 7
    accuracy_points: Annotated[float, Field(gt=0, le=100, strict=False)] = 1.0
    speed_percent: Annotated[float, Field(gt=0, le=1000, strict=False)] = 5.0
    speed_seconds: Annotated[float, Field(ge=0, le=86_400, strict=False)] = 1.0


class Profile(Resources):
    """One place where stages run.

    Attributes:
        cluster: `local` (this machine, bounded slots) or `slurm`.
        stages: Overrides by stage kind (`teacher`) or kind and dataset base (`evaluation:imagenet1k`); `merge` is a
            synthesis that only puts its shards together.
        max_array: Largest array to submit; the site's own MaxArraySize counts too.
        max_in_flight: Tasks of one array that run at once.
        in_flight_per_run: Tasks of one launch that wait or run at once; by default no limit but the site's.
        in_flight_per_user: The same for all tasks of this user.
        max_submissions: Calls of sbatch in one launch; packs grow until it fits.
        setup: Shell lines before the worker starts (modules, environments); Slurm only.
        store: Root of the store.
        sources: Where raw datasets lie, by dataset base.
        weights: Root of teacher weights for `teacher.weights: file`.
        threads: CPU threads a process; the same value everywhere gives bit-identical results.
        device: `auto`, `cpu` or `cuda`.
        python: Interpreter on the nodes; by default the one that launches.
        slots: Processes at once, local only; by default the smaller of 2 and the number of cores.
        visible_gpus: GPUs that local slots use in turn; by default those that the launching shell sees.
        pack_minutes: Stages are packed into Slurm tasks of about this many estimated minutes.
        loader_timeout: Seconds without a batch after which a loader counts as stalled.
        nightly: Budget and rules of nightly grids.
        group_readable: Whether the account's group may read what is written, whatever the umask.
        checkpoint_minutes: Minutes between two checkpoints of a stage, which a kill -9 may cost.
    """

    cluster: Literal["local", "slurm"] = "local"
    stages: dict[str, Resources] = Field(default_factory=dict)
    max_array: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] = 64
    in_flight_per_run: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    in_flight_per_user: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_submissions: Annotated[int, Field(ge=1, le=10_000)] = 100
    setup: tuple[Line, ...] = Field(default=(), strict=False)
    store: Location = "results/store"
    sources: dict[str, Location] = Field(default_factory=dict)
    weights: Location | None = None
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    python: Location = sys.executable
    slots: Annotated[int, Field(ge=1, le=256)] = min(2, os.cpu_count() or 1)
    visible_gpus: tuple[int, ...] | None = Field(default=None, strict=False)
    pack_minutes: Annotated[int, Field(ge=1, le=1440)] = 30
    loader_timeout: Annotated[float, Field(gt=0, le=86_400, strict=False)] = 300.0
    nightly: Nightly = Nightly()
    group_readable: bool = False
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1440, strict=False)] = 10.0

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        for name in self.stages:
            kind, _, base = name.partition(":")
            if kind not in (*KINDS, _MERGE):
                raise ValueError(f"stages.{name}: no stage kind {kind!r} - {did_you_mean(kind, (*KINDS, _MERGE))}")
            if base and base not in REGISTRY:
                raise ValueError(f"stages.{name}: no dataset {base!r} - {did_you_mean(base, REGISTRY)}")
        for place, more in [
            ("sbatch", self.sbatch),
            *((f"stages.{n}.sbatch", r.sbatch) for n, r in self.stages.items()),
        ]:
            if taken := sorted({name.replace("_", "-") for name in more or ()} & _OURS):
                raise ValueError(f"{place}.{taken[0]}: the suite sets this option itself")
            if bare := [name for name in ("exclude", "gres") if (more or {}).get(name) is True]:
                raise ValueError(f"{place}.{bare[0]}: this option has a value")
        for base in self.sources:
            if base not in REGISTRY:
                raise ValueError(f"sources.{base}: no dataset {base!r} - {did_you_mean(base, REGISTRY)}")
        self._check_tasks()
        if self.cluster == "local" and self.setup:
            raise ValueError("setup: lines are for Slurm - activate the environment before launching locally")
        return self

    def _check_tasks(self) -> None:
        if self.tasks is not None:
            raise ValueError("tasks: say it for stages that train - below `stages: teacher` or `stages: evaluation`")
        for name, r in self.stages.items():
            if r.tasks is None or r.tasks == 1:
                continue
            kind = name.partition(":")[0]
            if kind not in ("teacher", "evaluation"):
                raise ValueError(f"stages.{name}.tasks: one task a {kind} - teacher and evaluation may have several")
            if self.cluster == "local":
                raise ValueError(f"stages.{name}.tasks: several tasks of a job need Slurm - leave it out locally")
            kinds = (r, self.stages.get(kind, r), self)
            if next((k.gpus for k in kinds if k.gpus is not None), 0) > 1:
                raise ValueError(f"stages.{name}.gpus: each task computes on one GPU - set it to 1")

    def resources(self, stage: Stage) -> Resources:
        """What a task with this stage asks for: the profile, then its kind, then its kind and dataset base.

        A shard asks for what its synthesis would, unless `stages: shard` says otherwise; a synthesis that merges shards
        for the same without a GPU, which it has no use for, unless `stages: merge` says otherwise.
        """
        base = dataset(stage.spec.dataset).base
        merged = {n: getattr(self, n) for n in Resources.model_fields}
        kinds = ("synthesis", "shard") if stage.kind == "shard" else (stage.kind,)
        if stage.shards > 1:
            kinds = (*kinds, _MERGE)
        for kind in kinds:
            if kind == _MERGE:
                merged |= {"gpus": 0, "gpu_type": None}
            for name in (kind, f"{kind}:{base}"):
                if name in self.stages:
                    merged |= {n: v for n, v in self.stages[name] if v is not None}
        return Resources.model_construct(**merged)

    def settings(self, store: Path) -> dict[str, Any]:
        """What a run's `settings.json` says: the part of the profile that workers need."""
        return {
            "store": str(store),
            "sources": {base: str(Path(p).absolute()) for base, p in self.sources.items()},
            "weights": str(Path(self.weights).absolute()) if self.weights else None,
            "threads": self.threads,
            "device": self.device,
            "loader_timeout": self.loader_timeout,
            "group_readable": self.group_readable,
            "checkpoint_minutes": self.checkpoint_minutes,
        }


def find_profile(name: str) -> Path:
    """The file of a profile: a path, or the name of a file in `slurm/` here or beside the package.

    Raises:
        UserError: If there is none.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UserError("no such profile", where=name)
        return path
    folders = [Path("slurm"), Path(__file__).resolve().parents[2] / "slurm"]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = {p.stem for folder in folders for p in folder.glob("*.yaml")}
    raise UserError(f"no profile {name!r} in slurm/", hint=did_you_mean(name, known))


def load_profile(path: Path, **overrides: object) -> Profile:
    """Read and check a profile.

    Args:
        path: The YAML file.
        overrides: Fields that the command line sets; None leaves the file's value.

    Raises:
        UserError: `file:line:column: field: what - hint`.
    """
    document = load_yaml(path)
    data = document.value
    if not isinstance(data, dict):
        raise UserError("a profile is a mapping of fields", where=f"{path}:1:1")
    try:
        Profile.model_validate(data)
        given = {k: v for k, v in overrides.items() if v is not None}
    except ValidationError as error:
        raise _as_user_error(document, error) from error
    try:
        return Profile.model_validate({**data, **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(_message(first), where=f"--{'.'.join(map(str, first['loc']))}".replace("_", "-")) from error


def _as_user_error(document: Document, error: ValidationError) -> UserError:
    first = error.errors()[0]
    unknown = first["type"] == "extra_forbidden"
    place = document.resolve(first["loc"])
    field = ".".join(str(p) for p in place)
    inner = Nightly if place[:1] == ("nightly",) else Resources
    known = Profile.model_fields if len(place) == 1 else inner.model_fields
    return UserError(
        f"{field}: {_message(first)}" if field else _message(first),
        where=document.where(place, key=unknown),
        hint=did_you_mean(str(place[-1]), known) if unknown and place else "",
    )


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field"
    text = str(error["msg"]).removeprefix("Value error, ")
    value = error["input"]
    found = f" (found {value!r})" if isinstance(value, str | int | float | None) and repr(value) not in text else ""
    return text[:1].lower() + text[1:] + found
