"""What papers report (`results/published.csv`): reading it, and which of its numbers a measured cell compares with."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from suite.errors import DataError, UserError
from suite.leaderboard.statistics import plain_records
from suite.spec.datasets import dataset

#: Points within which a row agrees with a paper: published re-runs of one method differ by about as much.
TOLERANCE = 1.0
#: Teachers of papers that name no single network: they stand beside any teacher, as does none at all.
_ANY = ("unspecified", "ensemble")
#: Kinds of labels in papers' tables, by label policy; all others are labels of a teacher on the student's views.
_KINDS = {"hard": "hard", "vector": "soft-static"}
#: What other papers call a method of the suite: random images with one soft label each are label-worth.
_KNOWN_AS = {("random", "soft-static"): "labelworth"}
_COLUMNS = (
    "method", "dataset", "resolution", "ipc", "teacher", "student", "label_mode", "metric", "value", "std", "unit",
    "source_title", "source_where", "confidence", "primary", "mark",
)  # fmt: skip
#: `soft-fkd pruned 40x`, `soft-fkd pruned+quantised 80x`
_PRUNED = re.compile(r"pruned(\+quantised)? (\d+)x")
_VARIANT = re.compile(r"([^\[(]+)[\[(](.+)[\])]")
#: A grid overrides what the method, its recipe or its labels set, or the row is of an older version of them.
OTHER_SETTINGS = "settings are not the paper's"


@dataclass(frozen=True, slots=True)
class Number:
    """One published number.

    Attributes:
        row: Its line of the table as it stands there.
        name: Method, normalised and without the variant.
        variant: What a paper changed about the method (`CDA config`), empty for the method itself.
        size: Pixels a side, None where the table does not say.
        ipc: Images per class, None for whole datasets and numbers that are not tied to one.
        student: Normalised.
        teacher: Normalised.
        labels: Kind of labels: `hard`, `soft-fkd`, `soft-static`, `learned-soft`, ...
        prune: By how much a label stream was cut; 1 for not at all.
        quantised: Whether labels were also quantised.
        value: The number.
        sd: Its standard deviation, None where none is given.
        primary: Whether the source is the one to cite for the method.
    """

    row: Mapping[str, str]
    name: str
    variant: str
    size: int | None
    ipc: int | None
    student: str
    teacher: str
    labels: str
    prune: int
    quantised: bool
    value: float
    sd: float | None
    primary: bool

    @property
    def accuracy(self) -> bool:
        """Whether it is a top-1 accuracy in percent."""
        return self.row["metric"] == "top1"

    def obstacles(self, line: Mapping[str, Any]) -> list[str]:
        """Why it does not compare with a measured line of equal method, dataset and IPC; empty if it does.

        Args:
            line: One line of `statistics.groups`.
        """
        why = []
        if self.row["confidence"] != "read":
            why.append("recalled, not read in its source")
        if "re-evaluated" in self.row["mark"]:
            why.append("re-evaluated by others under one recipe")
        if self.variant:
            why.append(f"variant: {self.variant}")
        if self.accuracy:
            kind = _KINDS.get(line["labels"], "soft-fkd")
            if self.labels not in ("unspecified", kind):
                why.append(f"labels: {kind} here, {self.labels} there")
            elif kind == "soft-fkd" and self.prune != (here := pruned(line["label_prune"])):
                why.append(f"labels cut {here}x here, {self.prune}x there")
            if self.quantised:
                why.append("quantised labels")
        if not (self.teacher in ("", network(line["teacher"], self.size or 0)) or self.teacher.startswith(_ANY)):
            why.append(f"teacher: {line['teacher']} here, {self.row['teacher']} there")
        if line["protocol"] != "paper":
            why.append(f"protocol {line['protocol']}")
        elif line["overridden"]:
            why.append(OTHER_SETTINGS)
        return why


def tolerance(published_sd: float | None, measured_sd: float | None) -> float:
    """Points within which a measured and a published accuracy agree: twice their joint sd, at least `TOLERANCE`."""
    return max(TOLERANCE, 2 * math.hypot(published_sd or 0.0, measured_sd or 0.0))


def verdict(difference: float, allowed: float) -> str:
    """`reproduced`, `above` or `below`."""
    return "reproduced" if abs(difference) <= allowed else "above" if difference > 0 else "below"


class Published:
    """Published numbers.

    Args:
        path: A CSV file with the columns of `results/published.csv`.

    Raises:
        DataError: If it cannot be read or is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self.numbers: list[Number] = []
        try:
            with path.open(encoding="utf-8", newline="") as file:
                for line, row in enumerate(csv.DictReader(file), 2):
                    self.numbers.append(_number(row, f"{path}:{line}"))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"cannot read published numbers: {error}", where=str(path)) from error
        self._accuracies: dict[tuple[Any, ...], list[Number]] = {}
        for number in self.numbers:
            if number.accuracy and number.ipc is not None:
                at = (number.name, number.row["dataset"], number.size, number.ipc, number.student)
                self._accuracies.setdefault(at, []).append(number)

    def accuracies(self, line: Mapping[str, Any]) -> list[Number]:
        """Published accuracies of a line's method, dataset, IPC and student, comparable or not."""
        return self._accuracies.get(place(line), [])

    def comparable(self, line: Mapping[str, Any]) -> list[Number]:
        """Accuracies that a line compares with: those of the method's primary source, else what others give.

        Args:
            line: One of `statistics.groups`. Settings that a grid changed are no obstacle here.
        """
        fitting = [x for x in self.accuracies(line) if not set(x.obstacles(line)) - {OTHER_SETTINGS}]
        return [x for x in fitting if x.primary] or fitting

    def beside(self, grouped: pd.DataFrame) -> pd.DataFrame:
        """What papers report for lines of protocol `paper`, one line each.

        A cell whose settings a grid has
        changed shows what is published, and compares with nothing.

        Args:
            grouped: `statistics.groups`.

        Returns:
            Columns published_low, published_high, difference (points, 0 between two papers) and verdict.
        """
        names = ("published_low", "published_high", "difference", "verdict")
        found: dict[str, list[Any]] = {name: [None] * len(grouped) for name in names}
        known = {at[0] for at in self._accuracies}
        candidate = grouped["method"].map({m: method_name(m) in known for m in grouped["method"].unique()})
        paper = (candidate & (grouped["protocol"] == "paper") & (grouped["n"] > 0)).to_numpy(dtype=bool)
        for i, line in zip(paper.nonzero()[0], plain_records(grouped[paper]), strict=True):
            for name, value in zip(names, self._compare(line), strict=False):
                found[name][i] = value
        types = {name: "string" if name == "verdict" else "Float64" for name in names}
        return pd.DataFrame({n: pd.array(v, dtype=types[n]) for n, v in found.items()}, index=grouped.index)  # type: ignore[call-overload]

    def _compare(self, line: Mapping[str, Any]) -> tuple[Any, ...]:
        used = self.comparable(line)
        if not used:
            return ()
        low, high = min(x.value for x in used), max(x.value for x in used)
        if line["overridden"]:
            return low, high, None, f"not comparable ({OTHER_SETTINGS})"
        difference = line["mean"] - min(max(line["mean"], low), high)
        allowed = tolerance(max((x.sd or 0.0 for x in used), default=0.0), line["sd"])
        return low, high, difference, verdict(difference, allowed)


def _number(row: Mapping[str, str], where: str) -> Number:
    if missing := [c for c in _COLUMNS if row.get(c) is None]:
        raise DataError(f"no column {', '.join(missing)}", where=where)
    variant = _VARIANT.fullmatch(row["method"])
    base = variant[1] if variant else row["method"]
    labels = row["label_mode"].split(" ")[0]
    cut = _PRUNED.search(row["label_mode"])
    try:
        size = int(row["resolution"]) if row["resolution"].isdigit() else None
        ipc = None if row["ipc"] in ("", "full") else int(row["ipc"])
        value, sd = float(row["value"]), float(row["std"]) if row["std"] else None
    except ValueError as error:
        raise DataError(f"not a number: {error}", where=where) from error
    if not (math.isfinite(value) and 0 <= (sd or 0.0) < math.inf):
        raise DataError(f"{value} ± {sd} is not a result", where=where)
    if row["metric"] == "top1" and not (0 <= value <= 100 and row["unit"] == "%"):
        raise DataError(f"{value} {row['unit']} is not a percentage", where=where)
    name = method_name(base)
    return Number(
        row=dict(row),
        name=_KNOWN_AS.get((name, labels), name),
        variant=variant[2] if variant else "",
        size=size,
        ipc=ipc,
        student=network(row["student"], size or 0),
        teacher=network(row["teacher"], size or 0),
        labels=labels,
        prune=int(cut[2]) if cut else 1,
        quantised=bool(cut and cut[1]),
        value=value,
        sd=sd,
        primary=row["primary"] == "yes",
    )


def place(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Method, dataset, size, IPC and student of a measured line, as published numbers are found by."""
    try:
        size: int | None = dataset(line["dataset"]).size
    except UserError:
        size = None  # a row of a suite that knew other datasets
    return (method_name(line["method"]), line["dataset"], size, line["ipc"], network(line["student"], size or 0))


def pruned(share: float | None) -> int:
    """By how much a stream is cut of which a share is left out: 40 for 0.975."""
    return round(1 / (1 - share)) if share else 1


@cache
def method_name(text: str) -> str:
    """`K-Center` and `kcenter` are the same method, `SRe2L++` is `sre2lpp` and not `SRe2L`."""
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("+", "p"))


@cache
def network(text: str, size: int) -> str:
    """`MobileNetV2`, `mobilenet_v2` and `resnet18_cifar`, `ResNet18` are the same networks in papers' tables.

    So are ConvNets of either normalisation. A `ConvNet` without a number has as many blocks as leave 4 x 4 pixels, and
    `ConvNetW128` is what G-VBSM calls it (128 channels, which all of these have).
    """
    name = method_name(re.sub(r"_cifar$|(?<=^convnet\d)_(in|bn)$", "", text.lower()))
    return f"convnet{max(size.bit_length() - 3, 0)}" if name in ("convnet", "convnetw128") else name
