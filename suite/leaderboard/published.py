"""What papers report (`results/published.csv`), to stand beside rows of protocol `paper`."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.errors import DataError, UserError
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
    "method",
    "dataset",
    "resolution",
    "ipc",
    "teacher",
    "student",
    "label_mode",
    "metric",
    "unit",
    "confidence",
)


@dataclass(frozen=True, slots=True)
class Beside:
    """Published accuracies of one cell, in percent.

    Attributes:
        low: Smallest one.
        high: Largest one; papers disagree.
        sd: Largest published standard deviation; 0 where none is.
    """

    low: float
    high: float
    sd: float

    def difference(self, accuracy: float) -> float:
        """Points by which an accuracy lies above (or, negative, below) what is published; 0 between two papers."""
        return accuracy - min(max(accuracy, self.low), self.high)

    def agrees(self, accuracy: float) -> bool:
        """Whether the difference is within `TOLERANCE`, or within two published standard deviations."""
        return abs(self.difference(accuracy)) <= max(TOLERANCE, 2 * self.sd)


@dataclass(frozen=True, slots=True)
class _Number:
    teacher: str
    labels: str
    value: float
    sd: float
    own: bool


class Published:
    """Published top-1 accuracies that were read in their source; recalled ones are not compared with.

    Args:
        path: A CSV file with the columns of `results/published.csv`.

    Raises:
        DataError: If it cannot be read or is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self._found: dict[tuple[str, str, int, int, str], list[_Number]] = {}
        try:
            with path.open(encoding="utf-8", newline="") as file:
                for line, row in enumerate(csv.DictReader(file), 2):
                    self._add(row, f"{path}:{line}")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"cannot read published numbers: {error}", where=str(path)) from error

    def _add(self, row: Mapping[str, str], where: str) -> None:
        if missing := [c for c in (*_COLUMNS, "value", "std") if row.get(c) is None]:
            raise DataError(f"no column {', '.join(missing)}", where=where)
        if (row["metric"], row["unit"], row["confidence"]) != ("top1", "%", "read") or row["ipc"] == "full":
            return
        try:
            name, size = _name(row["method"]), int(row["resolution"])
            labels = row["label_mode"].split(" ")[0]  # `soft-fkd pruned 40x` is what a pruned stream is
            name = _KNOWN_AS.get((name, labels), name)
            at = (name, row["dataset"], size, int(row["ipc"]), _network(row["student"], size))
            value, sd = float(row["value"]), float(row["std"] or 0.0)
        except ValueError as error:
            raise DataError(f"not a number: {error}", where=where) from error
        if not (0 <= value <= 100 and 0 <= sd < math.inf):
            raise DataError(f"{value} ± {sd} is not a percentage", where=where)
        own = row["source_title"].lower().split(" ")[0].rstrip(":") == row["method"].lower()
        self._found.setdefault(at, []).append(_Number(_network(row["teacher"], size), labels, value, sd, own))

    def beside(self, line: Mapping[str, Any]) -> Beside | None:
        """What papers report for a line of the accuracy leaderboard; None for other protocols and where nothing is.

        Numbers of the method's own paper or repository go before those that other papers measured. Hard labels are
        compared with hard ones only, one soft label an image with such, and labels of a teacher on the student's views
        (FKD) with such.
        """
        if line["protocol"] != "paper" or not line["n"]:
            return None
        try:
            size = dataset(line["dataset"]).size
        except UserError:
            return None  # a row of a suite that knew other datasets
        at = (_name(line["method"]), line["dataset"], size, line["ipc"], _network(line["student"], size))
        kinds, teacher = ("unspecified", _KINDS.get(line["labels"], "soft-fkd")), _network(line["teacher"], size)
        fitting = [
            x
            for x in self._found.get(at, [])
            if x.labels in kinds and (x.teacher in ("", teacher) or x.teacher.startswith(_ANY))
        ]
        if not fitting:
            return None
        used = [x for x in fitting if x.own] or fitting
        return Beside(min(x.value for x in used), max(x.value for x in used), max(x.sd for x in used))


def _name(text: str) -> str:
    """`K-Center` and `kcenter` are the same method, `SRe2L++` is `sre2lpp` and not `SRe2L`."""
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("+", "p"))


def _network(text: str, size: int) -> str:
    """`MobileNetV2`, `mobilenet_v2` and `resnet18_cifar`, `ResNet18` are the same networks in papers' tables.

    So are ConvNets of either normalisation. A `ConvNet` without a number has as many blocks as leave 4 x 4 pixels.
    """
    name = _name(re.sub(r"_cifar$|(?<=^convnet\d)_(in|bn)$", "", text.lower()))
    return f"convnet{size.bit_length() - 3}" if name == "convnet" else name
