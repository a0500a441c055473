"""Records: what one attempt at a stage did, where, at what cost. The record of an evaluation is a row.

A published attempt's record is `record.json` inside its artifact; a failed attempt's is `failed/<attempt>.json` beside
it. Both have this schema, one file an attempt, never appended to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = 1
Status = Literal["done", "failed", "diverged", "blocked"]


@dataclass
class Record:
    """One attempt.

    Attributes:
        kind: Stage kind.
        key: Stage key.
        attempt: Name of the attempt, unique in the stage.
        status: `done`, `failed`, `diverged` (NaN or Inf: a row that counts as a hole), or `blocked` (an input was
            missing or damaged; the failure names it as `stage`).
        spec: The stage's spec as JSON.
        inputs: {role: {"key", "digest"}}.
        failure: {"kind", "message"} unless done; `cost` then holds the peak memory alone.
        node: Name of the node, as Slurm knows it.
        job: Slurm's job id, with the index in its array; empty elsewhere.
        number: Of the attempt: failed attempts before it, plus one.
        resumed: Earlier attempts on whose checkpoints this one went on, oldest first: {"attempt", "host", "started",
            "commit"}. Their seconds and counts are in `cost`.
        started: UTC wall clock, ISO 8601.
        seconds: Duration by the monotonic clock, device-synchronised.
        device: {"type", "name", "threads", "precision"}.
        cost: Own cost: {"seconds", "image_iterations", "forward_images", "images", "peak_memory_bytes",
            "peak_memory_kind", "device"}. Seconds of devices: where several tasks trained together those of all, with
            "wall_seconds" and the number of "tasks" beside.
        upstream: For rows: {"synthesis": cost, "teacher": cost, "statistics": cost, "relabel": cost} of the inputs;
            several teachers are summed, and listed by key under `each`.
        numbers: For rows: {"accuracy_last", "accuracy_best", "best_epoch", "epochs", "steps", "classes", "val_images",
            "curve": [[epoch, accuracy]], "constant_prediction": bool}; accuracies in percent. With "micro_batches"
            if batches were cut into so many parts after the device ran out of memory.
        storage: For rows: ledger entries {"name", "kind", "bytes", "shipped", "needed_for"}.
        provenance: {"commit", "dirty", "suite", "python", "torch", ..., "host", "pid", "slurm", "loader", "seed"}, and
            "tasks" if there were several.
        schema: Version of this layout.
    """

    kind: str
    key: str
    attempt: str
    status: Status
    spec: dict[str, Any]
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    failure: dict[str, str] | None = None
    node: str = ""
    job: str = ""
    number: int = 0
    resumed: list[dict[str, Any]] = field(default_factory=list)
    started: str = ""
    seconds: float = 0.0
    device: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    upstream: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    storage: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def failure_kind(self) -> str:
        """The kind of the failure; empty if there was none."""
        return (self.failure or {}).get("kind", "")

    @property
    def blocked(self) -> bool:
        """Whether an input kept the stage from being attempted; it is not to blame itself."""
        return self.status == "blocked" or (self.failure or {}).get("message", "").startswith("blocked")

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Record:
        """Read a record of this or an older schema.

        Raises:
            ValueError: If it is not a record, or of a newer schema.
        """
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise ValueError("not a record")
        if data["schema"] > SCHEMA:
            raise ValueError(f"record of schema {data['schema']}; this suite reads up to {SCHEMA}")
        known = Record.__dataclass_fields__
        return Record(**{k: v for k, v in data.items() if k in known})
