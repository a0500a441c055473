"""Nights of a small grid whose artifacts are published without computing anything."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from suite.grid import Plan, load_plan
from suite.nights.places import begin, nights_folder
from suite.spec.stages import Stage
from suite.store import Attempt, Store
from suite.store.attempts import open_inputs
from tests.cluster.toys import fail, record

GRID = """\
name: watched
seeds: [0, 1, 2]
protocol: [matched]
product:
  method: [random, rded]
  dataset: [digits]
  ipc: [1]
  teacher: [convnet3_w16]
  student: [convnet3_w16]
"""
COMMIT = "4f0c2d9be1a7aaaa"


def write_grid(folder: Path, text: str = GRID) -> Path:
    path = folder / "watched.yaml"
    path.write_text(text)
    return path


def publish_night(
    grid: Path,
    site: Store,
    *,
    accuracy: dict[str, float] | None = None,
    seconds: dict[str, float] | None = None,
    size: int = 1000,
    failed: Collection[str] = (),
) -> Plan:
    """Begin a night and publish its stages, as if its launch had run; the nightly that follows goes on with it.

    Args:
        grid: The grid file.
        site: The site's store.
        accuracy: Mean by method; 40 by default. Seeds are half a point apart.
        seconds: Duration by method of the synthesis; 10 by default.
        size: Bytes of each distilled set.
        failed: Keys of stages that fail; what needs them is not published.
    """
    plan = load_plan(grid)
    place = begin(nights_folder(site, plan.name), site, ("prepare",))
    gone = set(failed)
    for stage in plan.stages:
        if stage.key in failed:
            fail(stage, place.store, "user", "ValueError: planted")
        elif gone & set(stage.inputs.values()):
            gone.add(stage.key)
        elif stage.key not in place.store.published(stage.kind):
            _publish(stage, place.store, accuracy or {}, seconds or {}, size)
    return plan


def _publish(stage: Stage, store: Store, accuracy: dict[str, float], seconds: dict[str, float], size: int) -> None:
    with Attempt(store, stage, open_inputs(store, stage)) as attempt:
        (attempt.dir / "data.bin").write_text(stage.key)
        r = record(stage)
        method, seed = getattr(stage.spec, "method", ""), getattr(stage.spec, "seed", 0)
        r.provenance = {"commit": COMMIT, "dirty": ""}
        r.device = {"name": "a CPU"}
        r.seconds = 12.0
        r.cost = {"seconds": seconds.get(method, 10.0) if stage.kind == "synthesis" else 10.0}
        r.numbers = {"accuracy_last": accuracy.get(method, 40.0) + 0.5 * seed}
        r.storage = [{"name": "images", "kind": "image", "bytes": size, "shipped": True, "needed_for": "train"}]
        attempt.publish(r)
