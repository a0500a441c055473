"""Distilled sets that were made elsewhere, as the store keeps them: a `synthesis` artifact without a synthesis.

It holds `distilled.safetensors` like any other, whatever labels came with the images (`labels.safetensors`, or weights
of the teachers that give them), and `external.json`: which files were delivered, and the bytes that they have. Its key
follows from the content of these files and from nothing else. What they cost to make is unknown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from suite.errors import DataError
from suite.spec.keys import canonical, digest
from suite.spec.recipes import Labels
from suite.spec.stages import EXTERNAL, Stage, SynthesisSpec
from suite.store.files import read_json, write_json

#: Of how delivered files are decoded.
VERSION = 1
INFO, IMAGES, LABELS = "external.json", "distilled.safetensors", "labels.safetensors"


@dataclass(frozen=True)
class External:
    """A delivered set.

    Attributes:
        form: How its images came: `imagefolder`, `beton` or `safetensors`.
        labels: The label policy that it brings what is needed for.
        teachers: Architectures of the teachers whose weights came with it.
        files: (path, bytes, SHA-256) of every delivered file that is used.
        ledger: Storage entries of these files.
    """

    form: str
    labels: Labels
    teachers: tuple[str, ...]
    files: tuple[tuple[str, int, str], ...]
    ledger: tuple[dict[str, Any], ...]

    @property
    def content(self) -> str:
        """SHA-256 over the paths and bytes of the delivered files, as 64 hex digits."""
        return digest(canonical([self.form, self.labels, self.teachers, sorted(self.files)]))

    def stage(self, dataset: str, ipc: int) -> Stage:
        """The stage that the store keeps it as."""
        params = {"content": self.content}
        spec = SynthesisSpec(EXTERNAL, VERSION, params, dataset, ipc, (), 0, "torchvision", "fp32")
        return Stage.make("synthesis", spec)

    def save(self, folder: Path) -> None:
        """Write `external.json`."""
        write_json(folder / INFO, asdict(self))

    @staticmethod
    def load(folder: Path) -> External | None:
        """What a synthesis artifact was delivered as; None if the suite made it.

        Raises:
            DataError: If `external.json` is not what `save` writes.
        """
        path = folder / INFO
        try:
            return TypeAdapter(External).validate_python(read_json(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as error:
            raise DataError("not the facts of an external set", where=str(path)) from error


def teacher_file(number: int) -> str:
    """Where the weights of a delivered teacher lie in the artifact."""
    return f"teacher.{number}.safetensors"
