"""Tables of plain values: columns with meanings, lines as a typed frame, footnotes. The file formats write them out.

The tables of a report, by section and slug (`make.make` gives them in this order; those without a line are left out):

| section | slug | a line is | made by |
|---|---|---|---|
| boards | accuracy, synthesis_time, storage | a group of seeds; a way of making a set; a group of seeds | `boards` |
| crossings | equal_bytes | the best of a method within a budget of bytes | `crossings` |
| crossings | accuracy_time | a group of seeds with its cost in seconds and the Pareto front | `crossings` |
| crossings | generalisation | a distilled set; a column `student:NAME` for each student | `crossings` |
| crossings | protocols | a cell under protocol `paper` and under `matched`, with the change of rank | `crossings` |
| crossings | diversity | a distilled set with the similarity within its classes | `crossings` |
| papers | published | one published number with what was measured and a verdict | `versus` |
| papers | contradictions | one cell of the literature for which sources disagree | `versus` |
| history | changes | a cell that differs between two states (`--against`) | `history` |
| history | trend | a quantity of a cell over time, cut into steps | `trend` |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from suite.leaderboard.statistics import plain_records

#: pandas types of a column's values, by form. What is not listed is text.
_TYPES = {
    **dict.fromkeys(("count", "signed_count"), "Int64"),
    **dict.fromkeys(
        ("percent", "spread", "signed", "seconds", "number", "value", "bytes", "probability", "cosine"), "Float64"
    ),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its name in CSV, Parquet and JSON files.
        header: What people read.
        form: How values are shown: `text`, `count`, `signed_count`, `percent`, `spread`, `interval`, `range`, `signed`,
            `seconds`, `number` (large ones), `value` (of any size), `bytes`, `probability`, `cosine`, `notes`.
        identity: Part of what names a line; screens show it above the table where it is the same everywhere.
        csv: Whether CSV, Parquet and JSON files have it.
        shown: Whether Markdown, LaTeX and HTML have it.
        terminal: Whether the terminal has it.
        help: What it means, in one sentence.
        short: Header on the terminal, where it differs.
        spare: Whether a terminal that is too narrow for all columns goes without it.
        parts: For `interval` and `range`: the columns with its two ends.
        best: `max` or `min`: LaTeX prints the best value of a block bold and underlines the second.
        longest: Characters after which text is cut.
    """

    name: str
    header: str
    form: str = "text"
    identity: bool = False
    csv: bool = True
    shown: bool = True
    terminal: bool = True
    help: str = ""
    short: str = ""
    spare: bool = False
    parts: tuple[str, str] | None = None
    best: str = ""
    longest: int = 300

    @property
    def numeric(self) -> bool:
        """Whether values line up on the right."""
        return self.form != "text"


@dataclass(frozen=True)
class Table:
    """A leaderboard, or another table of a report.

    Attributes:
        slug: File name without suffix.
        title: Heading.
        caption: What is measured, in one or two sentences.
        columns: Its columns.
        frame: Its lines: the columns by name (those with `parts` stand as their parts), `notes` (lists of numbers of
            footnotes), `flag` (`hole`, `suspicious` or empty) and `break` (a new block of comparable lines begins).
        footnotes: Text of footnotes 1, 2, ...
        section: `boards`, `crossings`, `papers` or `history`.
        within: Columns whose change begins a block.
    """

    slug: str
    title: str
    caption: str
    columns: list[Column]
    frame: pd.DataFrame
    footnotes: list[str] = field(default_factory=list)
    section: str = "boards"
    within: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)

    def lines(self, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
        """Some lines as dicts of plain values by column name; None is a value that is not there.

        Args:
            start: The first line.
            stop: The line before which to stop; all without it. A table can have 100,000 lines.
        """
        found = plain_records(self.frame.iloc[start:stop])
        for c in self.columns:
            if c.parts:
                for line in found:
                    ends = (line[c.parts[0]], line[c.parts[1]])
                    line[c.name] = None if None in ends else ends
        return found

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All lines; prefer `lines` where a bound is wanted."""
        return self.lines()

    def constant(self) -> dict[str, Any]:
        """Identity columns but the method's that say the same on every line; screens show them once, above the table.

        A hole has no device and no kind of memory, so that holes do not count for these.
        """
        found = {}
        for c in self.columns:
            if c.identity and c.name != "method" and len(self.frame):
                measured = c.name in ("device", "peak_memory_kind")
                values = (self.frame[self.frame["flag"] != "hole"] if measured else self.frame)[c.name]
                if values.nunique(dropna=False) == 1:
                    value = plain_records(values.head(1).to_frame())[0][c.name]
                    found[c.name] = value
        return found


WHO = [
    Column("method", "Method", identity=True, help="How the distilled set is made"),
    Column("dataset", "Dataset", identity=True),
    Column("ipc", "IPC", "count", identity=True, help="Images per class"),
    Column("teacher", "Teacher", identity=True, help="Network that the synthesis and soft labels come from"),
]
STUDENT = Column("student", "Student", identity=True, help="Network that is trained on the distilled set")
PROTOCOL = Column(
    "protocol",
    "Protocol",
    identity=True,
    help="How students are trained. paper: the method's own recipe; matched: one recipe and step budget for all",
)
SETTING = Column("setting", "Setting", identity=True, help="Identifies parameters and inputs; equal for all seeds")
NOTES = Column("notes", "Notes", "notes", help="Numbers of the notes below")


def settings_column(grouped: pd.DataFrame) -> list[Column]:
    """The column `setting`, where some cell has rows of more than one."""
    return [SETTING] if bool((grouped["settings"] > 1).any()) else []


def finish(
    slug: str,
    title: str,
    caption: str,
    columns: list[Column],
    lines: pd.DataFrame,
    within: Sequence[str],
    section: str = "boards",
) -> Table:
    """Number the footnotes, keep what the columns name, and mark where a block of comparable lines begins.

    Args:
        slug: Of the table.
        title: Of the table.
        caption: Of the table.
        columns: Of the table.
        lines: Sorted lines with the columns' values; `notes` (lists of text) and `n` (0 in a hole) where there are any.
        within: Columns whose change begins a block; a hole has no device.
        section: Of the table.
    """
    lines = lines.reset_index(drop=True)
    data: dict[str, Any] = {}
    for c in columns:
        for name in c.parts or (c.name,):
            if name != "notes" and name not in data:
                data[name] = _typed(lines, name, "percent" if c.parts else c.form)
    texts = list(lines["notes"]) if "notes" in lines else [[]] * len(lines)
    data["notes"], footnotes = _numbered(texts)
    odd = [any(" suspicious: " in text for text in t) for t in texts]
    empty = (lines["n"].fillna(0) == 0).tolist() if "n" in lines else [False] * len(lines)
    flags = ["hole" if e else "suspicious" if o else "" for e, o in zip(empty, odd, strict=True)]
    data["flag"] = pd.array(flags, dtype="string")
    data["break"] = _breaks(lines, within, flags)
    return Table(slug, title, caption, columns, pd.DataFrame(data), footnotes, section, tuple(within))


def _typed(lines: pd.DataFrame, name: str, form: str) -> Any:
    kind = _TYPES.get(form, "string")
    if name not in lines:
        return pd.array([None] * len(lines), dtype=kind)  # type: ignore[call-overload]
    return lines[name].array if str(lines[name].dtype) == kind else pd.array(lines[name].tolist(), dtype=kind)  # type: ignore[call-overload]


def _numbered(texts: Iterable[list[str]]) -> tuple[pd.Series, list[str]]:
    """Lists of footnotes as lists of their numbers, and the footnotes in order of first use."""
    numbers: dict[str, int] = {}
    found = [[numbers.setdefault(t, len(numbers) + 1) for t in line] for line in texts]
    return pd.Series(found, dtype=object), list(numbers)


def _breaks(lines: pd.DataFrame, within: Sequence[str], flags: list[str]) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(lines), dtype=bool)
    measured = np.array(flags, dtype=object) != "hole"
    for name in within:
        codes = pd.factorize(lines[name])[0]  # what is missing has one code
        changed = np.diff(codes, prepend=codes[:1]) != 0
        found |= changed & measured if name == "device" else changed
    return found
