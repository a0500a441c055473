"""The history of nights: one small JSON file a night, written once, never changed.

<store>/nights/<grid>/history/<night>.json    what a night measured, and what it reported
<store>/nights/<grid>/accepted/<night>.json   findings of that night that a person accepted as the new normal
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from suite.errors import DataError, InfraError
from suite.store.files import read_json, write_json

SCHEMA = 1
What = Literal["accuracy", "speed", "storage"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Row(_Frozen):
    """One evaluation.

    Attributes:
        identity: Of the evaluation; rows of one identity differ in their seeds.
        label: For people.
        seed: Of the row.
        key: Of the evaluation.
        accuracy: Top-1 of the last epoch in percent.
        bytes: Shipped bytes by ledger kind.
    """

    identity: str
    label: str
    seed: int
    key: str
    accuracy: float
    bytes: dict[str, int]


class Timing(_Frozen):
    """What one stage took.

    Attributes:
        identity: Of the stage.
        label: Kind and name, for people.
        device: Name of the device that computed.
        seconds: Of the computation itself, device-synchronised.
        attempt_seconds: Of the whole attempt, with opening, checking and publishing.
        gpus: GPUs that its task had.
    """

    identity: str
    label: str
    device: str
    seconds: float
    attempt_seconds: float
    gpus: int


class Failure(_Frozen):
    """A stage that was not published although its inputs were."""

    kind: str
    key: str
    label: str
    reason: str
    behind: int = 0


class Finding(_Frozen):
    """Something that drifted."""

    what: What
    identity: str
    label: str
    text: str


class Night(_Frozen):
    """What a night measured.

    Attributes:
        schema_version: Of this layout.
        grid: Name of the plan.
        night: Name of the night: a UTC date, and a number for a second one on that date.
        started: UTC.
        seconds: By the monotonic clock, from the first launch to the last artifact.
        ended: `complete`, or `stopped` at the end of the wall clock.
        commit: Code that computed the rows; several if it changed meanwhile.
        planned: Stages of the plan.
        published: Of them, published.
        unreached: Stages that neither failed nor stand behind a failure, but did not get their turn.
        rows: Evaluations.
        timings: Stages that were computed this night.
        failures: Stages that failed.
        findings: What drifted.
    """

    schema_version: Annotated[int, Field(alias="schema", le=SCHEMA)] = SCHEMA
    grid: str
    night: str
    started: str
    seconds: float
    ended: Literal["complete", "stopped"]
    commit: str
    planned: int
    published: int
    unreached: int = 0
    rows: tuple[Row, ...] = ()
    timings: tuple[Timing, ...] = ()
    failures: tuple[Failure, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of published stages."""
        return sum(t.attempt_seconds * t.gpus for t in self.timings) / 3600


def read_nights(folder: Path) -> list[Night]:
    """All nights of a grid, oldest first.

    Raises:
        DataError: If a file is damaged, or of a newer layout.
    """
    return [_read(path) for path in _files(folder / "history")]


def _files(folder: Path) -> list[Path]:
    """Files of nights in the order of nights: the suffix is no part of a name that may hold a dot."""
    return sorted(folder.glob("*.json"), key=lambda p: p.stem)


def _read(path: Path) -> Night:
    try:
        return Night.model_validate(read_json(path))
    except (ValueError, ValidationError, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"not the record of a night: {first}", where=str(path), hint="move it away") from error


def write_night(folder: Path, night: Night) -> None:
    """Add a night to the history. A night that is there already stays as it is.

    Raises:
        InfraError: If the file system refuses.
    """
    path = folder / "history" / f"{night.night}.json"
    if path.exists():
        raise InfraError("this night is in the history already", where=str(path), hint="another process was faster")
    write_json(path, night.model_dump(mode="json", by_alias=True))


def accept(folder: Path, night: Night) -> int:
    """Take everything that a night found as the new normal; returns how much that is."""
    found = [[f.what, f.identity] for f in night.findings]
    if found:
        write_json(folder / "accepted" / f"{night.night}.json", {"schema": SCHEMA, "findings": found})
    return len(found)


def accepted(folder: Path) -> dict[tuple[str, str], str]:
    """The newest night from which on (what, identity) was accepted."""
    found: dict[tuple[str, str], str] = {}
    for path in _files(folder / "accepted"):
        body: Any = read_json(path)
        found |= {(what, identity): path.stem for what, identity in body["findings"]}
    return found


def comparable(
    nights: Sequence[Night], what: What, identity: str, since: str = "", window: int | None = None
) -> list[Night]:
    """Earlier nights that a measurement is compared with, oldest first.

    A night whose value drifted is no measure for the next one, until a person accepts it: then it is where a new
    history begins.

    Args:
        nights: Earlier nights, oldest first.
        what: What is compared.
        identity: Of the stage.
        since: The night from which on it was accepted.
        window: At most so many, the newest.
    """
    kept = [n for n in nights if n.night >= since and (n.night == since or not _flagged(n.findings, what, identity))]
    return kept if window is None else kept[-window:]


def _flagged(findings: Iterable[Finding], what: str, identity: str) -> bool:
    return any(f.what == what and f.identity == identity for f in findings)
