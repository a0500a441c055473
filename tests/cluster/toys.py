"""Small plans, and artifacts that are published without computing anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from suite.grid import Plan
from suite.spec.keys import plain
from suite.spec.recipes import LabelRecipe, RelabelRecipe, StudentRecipe
from suite.spec.stages import (
    EvaluationSpec,
    PrepareSpec,
    RelabelSpec,
    Stage,
    StatisticsSpec,
    SynthesisSpec,
    TeacherSpec,
)
from suite.store import Attempt, Record, Store
from suite.store.attempts import open_inputs

ROOT = Path(__file__).resolve().parents[2]
NET = "convnet3_w16"

#: Prepare, synthesis, evaluation on the digits: the shortest real grid there is.
TINY = """
name: tiny
seeds: [0]
protocol: [matched]
product:
  method: [random]
  dataset: [digits]
  ipc: [1]
  teacher: [convnet3_w16]
  student: [convnet3_w16]
override:
  - set: {student.steps: 20}
"""


def prepare(dataset: str = "digits") -> Stage:
    """A prepare stage."""
    return Stage.make("prepare", PrepareSpec(dataset, 10, 16, 16, None, "folder"))


def diamond(dataset: str = "digits") -> Plan:
    """Every kind of stage; two syntheses that share a teacher, and one that needs only the images."""
    p = prepare(dataset)
    t = Stage.make(
        "teacher", TeacherSpec(dataset, NET, "pretrained", None, 0, "torchvision", "fp32"), {"prepare": p.key}
    )
    s = Stage.make(
        "statistics",
        StatisticsSpec(dataset, NET, None, (1.0, 1.0), True, 4, 256, 0, "torchvision"),
        {"prepare": p.key, "teacher": t.key},
    )
    alone = synthesis("random", {"prepare": p.key}, (), dataset)
    matched = synthesis("sre2l", {"teacher.0": t.key}, (NET,), dataset)
    full = synthesis("e2d", {"prepare": p.key, "teacher.0": t.key, "statistics.0": s.key}, (NET,), dataset)
    r = Stage.make(
        "relabel",
        RelabelSpec("stored", dataset, 1, (NET,), RelabelRecipe(epochs=2), 0, "fp32"),
        {"synthesis": full.key, "teacher.0": t.key},
    )
    evaluations = [
        evaluation("random", {"prepare": p.key, "synthesis": alone.key}, dataset),
        evaluation("sre2l", {"prepare": p.key, "synthesis": matched.key, "teacher.0": t.key}, dataset),
        evaluation("e2d", {"prepare": p.key, "synthesis": full.key, "relabel": r.key}, dataset),
    ]
    return Plan("diamond", [p, t, s, alone, matched, full, r, *evaluations])


def synthesis(method: str, inputs: dict[str, str], teachers: tuple[str, ...], dataset: str = "digits") -> Stage:
    """A synthesis stage."""
    return Stage.make("synthesis", SynthesisSpec(method, 1, {}, dataset, 1, teachers, 0, "torchvision", "fp32"), inputs)


def evaluation(method: str, inputs: dict[str, str], dataset: str = "digits", seed: int = 0) -> Stage:
    """An evaluation stage."""
    recipe = StudentRecipe(epochs=None, steps=10)
    spec = EvaluationSpec(
        method, dataset, 1, NET, NET, "matched", seed, "hard", LabelRecipe(), recipe, "torchvision", "fp32"
    )
    return Stage.make("evaluation", spec, inputs)


def record(stage: Stage, status: str = "done") -> Record:
    """An empty record."""
    return Record(stage.kind, stage.key, "", status, plain(stage.spec))  # type: ignore[arg-type]


def publish(stage: Stage, store: Store, content: str = "") -> None:
    """Publish an artifact of two small files."""
    with Attempt(store, stage, open_inputs(store, stage)) as attempt:
        (attempt.dir / "data.bin").write_text(f"{stage.kind} {stage.key} {content}")
        (attempt.dir / "sub").mkdir()
        (attempt.dir / "sub" / "more.json").write_text("{}")
        attempt.publish(record(stage))


def publish_all(plan: Plan, store: Store) -> None:
    """Publish every stage of a plan."""
    for stage in plan.stages:
        publish(stage, store)


def fail(stage: Stage, store: Store, kind: str, message: str = "it broke") -> None:
    """Leave the record of a failed attempt."""
    r = record(stage, "diverged" if kind == "numeric" else "failed")
    r.failure = {"kind": kind, "message": message}
    Attempt(store, stage, {}).fail(r)


def descendants(plan: Plan, stage: Stage) -> set[str]:
    """Keys of a stage and of everything that needs it."""
    found = {stage.key}
    for s in plan.stages:  # inputs come before what needs them
        if found & set(s.inputs.values()):
            found.add(s.key)
    return found


def command(module: str, *words: object) -> list[str]:
    """A command line of the suite."""
    return [sys.executable, "-m", module, *map(str, words)]


def run(module: str, *words: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the suite from the repository's root."""
    return subprocess.run(
        command(module, *words),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )


def toy_grid(folder: Path, seeds: int, ipc: int = 1, name: str = "toy", long: bool = False) -> Path:
    """A grid file of seeds x ipc syntheses and as many evaluations, behind one `prepare`.

    Args:
        folder: Where it is written.
        seeds: Number of seeds.
        ipc: Number of IPCs.
        name: Its name.
        long: Give syntheses and students an estimate of a quarter of an hour, so that each has a task of its own; a
            teacher is then needed, too.
    """
    text = TINY.replace("name: tiny", f"name: {name}").replace("seeds: [0]", f"seeds: {list(range(seeds))}")
    if long:
        text = text.replace("[random]", "[sre2l]").replace("steps: 20", "steps: 100000, iterations: 100000")
    path = folder / f"{name}.yaml"
    path.write_text(text.replace("ipc: [1]", f"ipc: {list(range(1, ipc + 1))}"))
    return path


def toy_profile(folder: Path, **fields: object) -> Path:
    """A profile of the test cluster whose workers compute nothing (see `toy_worker`)."""
    import yaml

    interpreter = folder / "toy-python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "cluster" / "toy_worker.py"} "$@"\n')
    interpreter.chmod(0o755)
    body = yaml.safe_load((ROOT / "slurm" / "testcluster.yaml").read_text())
    body |= {"python": str(interpreter), "mem": "300M", "gpus": 0, "pack_minutes": 1} | fields
    body.pop("gpu_type")
    path = folder / "toy-profile.yaml"
    path.write_text(yaml.safe_dump(body))
    return path
