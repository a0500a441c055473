"""Reports on disk for the tests of the page: a dozen made-up rows, and real ones through a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from suite.leaderboard.boards import leaderboards
from suite.leaderboard.gallery import gallery
from suite.leaderboard.gather import from_store
from suite.leaderboard.page import site
from suite.leaderboard.rows import Rows
from suite.spec.datasets import dataset as registered
from suite.spec.stages import PrepareSpec, Stage
from suite.store import Artifact, Attempt, Record, Store
from suite.store.files import write_bytes, write_json
from tests.leaderboard.factory import record_of, stages

LOG = """\
submitit INFO (2026-01-01 00:00:00,657) - Starting
[07:40:25] evaluation {0} rded digits ipc1
[07:40:43]   evaluation 50/150
[07:40:51]   published after 25.4 s
[07:40:51] evaluation {1} rded digits ipc10
[07:41:01]   <script>alert(1)</script>
"""


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write a site and return its page."""
    for name, data in files.items():
        write_bytes(folder / name, data)
    return folder / "index.html"


def written(folder: Path, rows: Rows, name: str = "sample", **more: Any) -> Path:
    """The site of some rows, without a store."""
    return write(folder, site(name, rows, leaderboards(rows), **more))


def pictured(root: Path, methods: tuple[str, ...] = ("rded", "random"), dataset: str = "digits") -> Store:
    """A store with a prepared dataset in folders, sets with images, rows and a log."""
    store, rng = Store(root), np.random.default_rng(0)
    made = []
    for method in methods:
        for ipc in (1, 2):
            for seed in (0, 1):
                synthesis, evaluation = stages(method, ipc, seed, dataset=dataset, student="convnet3_w32")
                made.append(evaluation.key)
                images = rng.integers(0, 256, (10 * ipc, 3, 16, 16), dtype=np.uint8)
                inputs = {r: {"key": k, "digest": k * 4} for r, k in synthesis.inputs.items()}
                with Attempt(store, synthesis, {}) as attempt:
                    save_file(
                        {"images": images, "labels": np.repeat(np.arange(10, dtype=np.uint8), ipc)},
                        attempt.dir / "distilled.safetensors",
                    )
                    attempt.inputs = inputs
                    attempt.publish(Record("synthesis", synthesis.key, "", "done", synthesis.to_json()["spec"]))
                _publish(store, evaluation)
    prepare(store, synthesis.inputs["prepare"], dataset)
    logs = store.root / "runs" / "grid" / "20260101T000000Z-abcdef" / "logs" / "0000-evaluation"
    logs.mkdir(parents=True)
    (logs / "1_0_log.out").write_text(LOG.format(*made))
    return store


def _publish(store: Store, evaluation: Stage) -> None:
    record = record_of(evaluation)
    with Attempt(store, evaluation, {}) as attempt:
        attempt.inputs = record.inputs
        attempt.publish(record)


def prepare(store: Store, key: str, dataset: str) -> Artifact:
    """A prepared dataset of ten classes with three images each, under a given key."""
    from suite.store.artifacts import MANIFEST, build_manifest

    facts = registered(dataset)
    spec = PrepareSpec(facts.name, facts.classes, facts.size, facts.stored, facts.per_class, "folder")
    stage = Stage("prepare", spec, {}, key)  # the rows of the factory name this key
    out = store.home("prepare", key) / "out"
    for c in range(10):
        for i in range(3):
            path = out / "train" / f"class {c}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), 20 * c + i, np.uint8)).save(path)
    info = {"format": "folder", "classes": [f"class {c}" for c in range(10)], "train": [3] * 10, "stored": 16}
    write_json(out / "dataset.json", info)
    write_json(out / "record.json", Record("prepare", key, "a", "done", {}).to_json())
    write_json(out / MANIFEST, build_manifest(stage, "a", {}, out))
    return store.open("prepare", key)


def site_of(store: Store, choice: str = "open") -> dict[str, bytes]:
    """Everything of the page of all rows of a store."""
    from suite.data.examples import examples

    rows = from_store(store)
    return site(
        "all",
        rows,
        leaderboards(rows),
        store=store,
        gallery=gallery(rows, store, choice, examples),
        files=["accuracy.csv"],
    )
