"""Galleries: contact sheets of distilled images by class, beside real ones, as PNG files next to the page.

Datasets have their own terms. By default only images of datasets that may be passed on are written; `--gallery` says
otherwise, for pages that stay where the data may be.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import load_file

from suite.errors import DataError, UserError
from suite.leaderboard.embed import records
from suite.leaderboard.formats import clean
from suite.leaderboard.rows import CELL, Rows
from suite.leaderboard.statistics import plain_records
from suite.leaderboard.tables import Column
from suite.spec.datasets import dataset
from suite.store import Artifact, Store
from suite.store.files import read_json

#: What may be shown: images of datasets whose terms allow it, all distilled ones, real ones of all datasets too, none.
CHOICES = ("open", "distilled", "real", "none")
#: Bounds: classes and images of one sheet, side of an image in pixels, sheets, and bytes of all of them.
MAX_CLASSES, MAX_IMAGES, MAX_SIDE, MAX_SHEETS, MAX_BYTES = 10, 10, 128, 300, 64_000_000
_COLUMNS = [
    *(
        Column(name, name, "count" if name == "ipc" else "text", identity=True)
        for name in CELL
        if name not in ("student", "protocol")
    ),
    Column("synthesis_setting", "setting"),
    Column("name", "name"),
]
#: Reads real training images: (prepared dataset, classes, images a class) to uint8 [classes, images, R, R, 3].
RealImages = Callable[[Path, Sequence[int], int], np.ndarray]


@dataclass
class Gallery:
    """Pictures of a report.

    Attributes:
        body: What the page's script draws from.
        remarks: What is shown and what is left out, in sentences.
        files: PNG files by name.
    """

    body: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


def gallery(rows: Rows, store: Store, choice: str, real: RealImages) -> Gallery | None:
    """Contact sheets of the first seed of every distilled set behind the rows; None if no image is wanted.

    Args:
        rows: The rows.
        store: Where the sets lie.
        choice: One of `CHOICES`.
        real: Reads real images of a prepared dataset.
    """
    if choice == "none":
        return None
    made = Gallery()
    sets = _sets(rows)
    known = sorted(sets["dataset"].unique())
    closed = {name for name in known if choice == "open" and not _open(name)}
    wanted = sets[~sets["dataset"].isin(closed)]
    shown, sheets, beside = [], [], {}
    for r in plain_records(wanted.head(MAX_SHEETS)):
        if sum(map(len, made.files.values())) > MAX_BYTES:
            break
        artifact = _opened(store, "synthesis", r["synthesis_key"])
        if artifact is None:
            continue
        sheet, png = _sheet(f"gallery/{r['synthesis_key']}.png", artifact, r["ipc"], _names(store, artifact))
        made.files[sheet["file"]] = png
        sheets.append({**sheet, "seed": r["seed"]})
        shown.append(r)
        if r["dataset"] not in beside and (choice == "real" or _open(r["dataset"])):
            beside[r["dataset"]] = _beside(store, artifact, sheet, real, made)
    made.body = {**records(shown, _COLUMNS), "sheets": sheets, "real": {k: v for k, v in beside.items() if v}}
    made.remarks = _remarks(shown, closed, len(wanted) - len(shown))
    return made


def _sets(rows: Rows) -> pd.DataFrame:
    """The first seed of each way of making a set, in a stable order, with a name for people."""
    frame = rows.frame[[*CELL, "seed", "synthesis_key", "synthesis_setting"]]
    way = [c for c in CELL if c not in ("student", "protocol")]
    frame = frame[frame["synthesis_key"].notna()].drop_duplicates([*way, "synthesis_setting"])
    name = frame["method"]
    if frame["teacher"].nunique() > 1:
        name = name + " by " + frame["teacher"]
    if frame.duplicated(way).any():
        name = name + " #" + frame["synthesis_setting"]
    frame = frame.assign(name=name).drop_duplicates(["dataset", "ipc", "name"])
    return frame.sort_values(["dataset", "ipc", "name"], kind="stable")


def _open(name: str) -> bool:
    """Whether images of a dataset may be passed on; unknown datasets may not."""
    try:
        return dataset(name).shareable
    except UserError:
        return False


def _opened(store: Store, kind: str, key: str) -> Artifact | None:
    """A verified artifact; None if it is gone or damaged, which `status` reports."""
    try:
        return store.open(kind, key)
    except (FileNotFoundError, DataError):
        return None


def _names(store: Store, artifact: Artifact) -> list[str]:
    """Names of classes, as the prepared dataset has them; their numbers where it is gone."""
    folder = store.home("prepare", str(artifact.manifest["inputs"].get("prepare"))) / "out"
    info = folder / "dataset.json"
    return [str(n) for n in read_json(info)["classes"]] if info.is_file() else []


def _sheet(file: str, artifact: Artifact, ipc: int, names: list[str]) -> tuple[dict[str, Any], bytes]:
    """A contact sheet of a set: a line a class (evenly spread over all), a column an image."""
    images = load_file(artifact.path / "distilled.safetensors")["images"]
    every = images.reshape(-1, ipc, *images.shape[1:]).transpose(0, 1, 3, 4, 2)
    count = len(every)
    kept = sorted({i * count // MAX_CLASSES for i in range(MAX_CLASSES)}) if count > MAX_CLASSES else list(range(count))
    part = every[kept][:, :MAX_IMAGES]
    labels = [[i, clean(names[i], 30) if i < len(names) else str(i)] for i in kept]
    return _png(file, part, labels)


def _png(file: str, images: np.ndarray, labels: list[list[Any]]) -> tuple[dict[str, Any], bytes]:
    """Images uint8 [lines, columns, S, S, 3] as one PNG of lines times columns, reduced to `MAX_SIDE` a side."""
    lines, columns, side = images.shape[:3]
    if side > MAX_SIDE:
        small = [
            [np.asarray(Image.fromarray(x).resize((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)) for x in y]
            for y in images
        ]
        images, side = np.asarray(small), MAX_SIDE
    joined = images.transpose(0, 2, 1, 3, 4).reshape(lines * side, columns * side, 3)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(joined)).save(out, "PNG", optimize=True)
    return {"file": file, "images": columns, "side": side, "classes": labels}, out.getvalue()


def _beside(
    store: Store, artifact: Artifact, sheet: dict[str, Any], real: RealImages, made: Gallery
) -> dict[str, Any] | None:
    """The sheet of real images of the same classes; None where the prepared dataset is gone."""
    key = str(artifact.manifest["inputs"].get("prepare"))
    prepared = _opened(store, "prepare", key)
    if prepared is None:
        return None
    images = real(prepared.path, [i for i, _ in sheet["classes"]], MAX_IMAGES)
    found, png = _png(f"gallery/real-{key}.png", images, sheet["classes"])
    made.files[found["file"]] = png
    return found


def _remarks(shown: list[dict[str, Any]], closed: set[str], left: int) -> list[str]:
    said = []
    if shown:
        terms = {r["dataset"]: _terms(r["dataset"]) for r in shown}
        said.append(
            "The first seed of each set, losslessly as it is stored (larger images reduced to "
            f"{MAX_SIDE} pixels). Terms: {'; '.join(f'{k}: {v}' for k, v in sorted(terms.items()))}."
        )
    if closed:
        named = "; ".join(f"{d} ({_terms(d)})" for d in sorted(closed))
        said.append(
            f"Not shown, since these datasets' terms do not let a page pass images on: {named}. For a page that stays "
            "with you, add --gallery distilled, or --gallery real for real images beside them. Sets of selected images "
            "(random, herding, ...) are real images too."
        )
    if left:
        said.append(
            f"{left:,} sets have no picture: a page has at most {MAX_SHEETS} sheets and {MAX_BYTES // 10**6} MB of "
            "them, and a set that is gone or damaged has none."
        )
    return said


def _terms(name: str) -> str:
    try:
        return dataset(name).licence
    except UserError:
        return "unknown"
