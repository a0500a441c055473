"""What E2D saves, part by part: updates, forward passes and seconds of E2D, EDC, SRe2L and CDA for the same images.

Every method has its paper's ImageNet-1K values (T, K, threshold, rates, batches), whatever the dataset. Beside them
stand the parts of E2D's economy, each alone on EDC: fewer iterations, early stop, precision, start; E2D from other
starts; and `e2d_adaptive` with and without its two parts. Some sets are judged by students of one recipe, over seeds.
All runs through the suite's own stages, one after the other on one device; a given `--store` keeps them, so that
teachers, and whatever else is there already, are not made again.

On two cores, some 15 minutes (estimated from processor time; teachers are networks of seconds, see `--teacher`):
python -m suite.bench economy --source cifar10.tar.xz --threads 2 --json results/measured/economy-cpu-2-cores.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.errors import InfraError, UserError

if TYPE_CHECKING:
    from suite.spec.stages import Stage
    from suite.stages.context import Settings


@dataclass(frozen=True)
class Variant:
    """One way to make the images.

    Attributes:
        name: In the table.
        method: Of the registry.
        values: Where it differs from the method's ImageNet-1K values.
        precision: Of the synthesis; teachers are always `fp32`.
        fixed: All iterations cost the same, and nothing else does: only a part of them is run, and scaled.
        judged: Students are trained on its images.
    """

    name: str
    method: str
    values: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    fixed: bool = False
    judged: bool = False


VARIANTS = (
    Variant("sre2l", "sre2l", fixed=True),
    Variant("cda", "cda", fixed=True),
    Variant("edc", "edc", judged=True),
    Variant("edc, T 200", "edc", {"iterations": 200}),
    Variant("edc, early stop", "e2d", {"iterations": 1000, "explore": 700, "start": "mosaic"}),
    Variant("edc, real start", "edc", {"start": "real"}, fixed=True),
    Variant("edc, real start, bf16", "edc", {"start": "real"}, "bf16", fixed=True),
    Variant("e2d, noise start", "e2d", {"start": "noise"}),
    Variant("e2d, mosaic start", "e2d", {"start": "mosaic"}),
    Variant("e2d", "e2d", judged=True),
    Variant("e2d, bf16", "e2d", precision="bf16"),
    Variant("e2d + patience", "e2d_adaptive", {"continuous": False}, judged=True),
    Variant("e2d + continuous", "e2d_adaptive", {"patience": 0}, judged=True),
    Variant("e2d_adaptive", "e2d_adaptive", judged=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `suite.bench economy`."""
    parser.add_argument("--dataset", default="cifar10-n500", help="as in a grid (default cifar10-n500)")
    parser.add_argument("--source", type=Path, help="raw data; not needed if --store has the prepared dataset")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--teacher", default="convnet3_w32+convnet3_w16", help="teachers in turn, joined by +")
    parser.add_argument("--student", default="convnet3_w16")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the variants that are judged (default 3)")
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--student-steps", type=int, default=300)
    parser.add_argument("--per-class", type=int, default=200, help="real images a class behind the statistics")
    parser.add_argument("--divide", type=int, default=20, help="share of the iterations that `fixed` variants run")
    parser.add_argument("--patience", type=int, help="of e2d_adaptive, instead of its default")
    parser.add_argument("--only", help="names of variants, separated by semicolons")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loader", choices=("ffcv", "torchvision"), default="ffcv")
    parser.add_argument("--store", type=Path, help="keep and reuse stages there; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write the numbers there, e.g. results/measured/economy.json")


def run(arguments: argparse.Namespace) -> int:
    """Make all variants, train students, print the table."""
    for name in ("ipc", "seeds", "teacher_epochs", "student_steps", "per_class", "divide", "threads"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    import torch

    torch.set_num_threads(arguments.threads)
    chosen = _chosen(arguments)
    results = {}
    with tempfile.TemporaryDirectory(prefix="suite-bench-") as scratch:
        bench = Bench(arguments, Path(scratch), arguments.store or Path(scratch) / "store")
        for variant in chosen:
            results[variant.name] = bench.measure(variant)
    _print_table(results)
    if arguments.json:
        _write_json(arguments, results)
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Variant]:
    names = [v.name for v in VARIANTS] if arguments.only is None else [n.strip() for n in arguments.only.split(";")]
    if unknown := set(names) - {v.name for v in VARIANTS}:
        raise UserError(
            f"no variant {min(unknown)!r}", hint=f"--only takes some of: {'; '.join(v.name for v in VARIANTS)}"
        )
    chosen = [v for v in VARIANTS if v.name in names]
    if arguments.patience is None:
        return chosen
    own = {"patience": arguments.patience}
    return [replace(v, values=own | v.values) if v.method == "e2d_adaptive" else v for v in chosen]


@dataclass
class Bench:
    """Runs variants as stages of one store.

    Attributes:
        arguments: Of the command line.
        scratch: For grid files.
        root: Of the store.
    """

    arguments: argparse.Namespace
    scratch: Path
    root: Path

    def measure(self, variant: Variant) -> dict[str, Any]:
        """Make the variant's sets, and judge them if it asks for that."""
        runs = []
        for seed in range(self.arguments.seeds if variant.judged else 1):
            stages = self._stages(variant, seed)
            record = self._finish([s for s in stages if s.kind not in ("relabel", "evaluation")])
            cost = record["cost"]
            run = {name: cost[name] for name in ("image_iterations", "forward_images", "seconds", "images")}
            run |= {"seed": seed, "started": record["started"], "device": record["device"]}
            run["commit"] = record["provenance"].get("commit")
            if variant.judged:
                run["accuracy"] = self._finish(stages)["numbers"]["accuracy_last"]
            runs.append(run)
        return _summary(variant, runs, self.arguments.divide if variant.fixed else 1)

    def _stages(self, variant: Variant, seed: int) -> list[Stage]:
        """The plan of one cell, its synthesis at the variant's precision."""
        from suite.grid import load_plan

        path = self.scratch / "economy.yaml"
        path.write_text(json.dumps(self._grid(variant, seed)))
        return _with_precision(load_plan(path).stages, variant.precision)

    def _grid(self, variant: Variant, seed: int) -> dict[str, Any]:
        from suite.methods import get
        from suite.spec.datasets import dataset

        a, cls = self.arguments, get(variant.method)
        base = dataset(a.dataset).base
        here, paper = cls.for_dataset(base, a.ipc), cls.for_dataset("imagenet1k", a.ipc)
        values = {f.name: getattr(paper, f.name) for f in fields(cls)} | variant.values  # type: ignore[arg-type]
        if variant.fixed:
            values["iterations"] = max(1, values["iterations"] // a.divide)
        if base == "digits" and "flip" in values:
            values["flip"] = False
        own = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v != getattr(here, k)}
        shared = {"teacher.epochs": a.teacher_epochs, "statistics.per_class": a.per_class}
        shared |= {"student.steps": a.student_steps, "student.temperature": 4, "student.evaluations": 1}
        product = {"method": variant.method, "dataset": a.dataset, "ipc": a.ipc}
        return {
            "name": "economy",
            "seeds": [seed],
            "protocol": ["matched"],
            "loader": a.loader,
            "product": product | {"teacher": a.teacher, "student": a.student},
            "override": [{"set": shared}] + ([{"when": {"method": variant.method}, "set": own}] if own else []),
        }

    def _finish(self, stages: list[Stage]) -> dict[str, Any]:
        """Bring stages to their published state; returns the last one's record."""
        from suite.spec.datasets import dataset
        from suite.stages.context import Settings
        from suite.store import Store
        from suite.work import run_stage

        a, store = self.arguments, Store(self.root)
        sources = {dataset(a.dataset).base: str(a.source)} if a.source else {}
        settings: Settings = Settings(str(self.root), sources, threads=a.threads)
        for stage in stages:
            if not (store.home(stage.kind, stage.key) / "out").is_dir() and not run_stage(stage, store, settings):
                raise InfraError(f"{stage.kind} {stage.label()} did not finish", hint="the lines above say why")
        return store.open(stages[-1].kind, stages[-1].key).record().to_json()


def _with_precision(stages: list[Stage], precision: str) -> list[Stage]:
    """The stages with another precision of the synthesis, and all that follow with its new key."""
    from suite.spec.stages import Stage, SynthesisSpec

    made: list[Stage] = []
    renamed: dict[str, str] = {}
    for stage in stages:
        spec = stage.spec
        if isinstance(spec, SynthesisSpec):
            spec = replace(spec, precision=precision)  # type: ignore[arg-type]
        new = Stage.make(stage.kind, spec, {role: renamed.get(key, key) for role, key in stage.inputs.items()})
        renamed[stage.key] = new.key
        made.append(new)
    return made


def _summary(variant: Variant, runs: list[dict[str, Any]], factor: int) -> dict[str, Any]:
    """Means over seeds, an image; accuracies with standard deviation (ddof 1)."""

    def mean(name: str) -> float:
        return statistics.fmean(run[name] / run["images"] for run in runs) * factor

    result: dict[str, Any] = {
        "method": variant.method,
        "values": variant.values,
        "precision": variant.precision,
        "scaled_by": factor,
        "iterations_per_image": mean("image_iterations"),
        "passes_per_image": mean("forward_images"),
        "seconds_per_image": mean("seconds"),
        "runs": runs,
    }
    if variant.judged:
        accuracies = [run["accuracy"] for run in runs]
        result["accuracy"] = statistics.fmean(accuracies)
        result["accuracy_sd"] = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return result


def _print_table(results: dict[str, dict[str, Any]]) -> None:
    print(f"{'':<24}{'updates':>10}{'passes':>10}{'seconds':>10}   an image; accuracy (mean and sd over seeds)")
    for name, r in results.items():
        line = (
            f"{name:<24}{r['iterations_per_image']:>10.1f}{r['passes_per_image']:>10.1f}{r['seconds_per_image']:>10.3f}"
        )
        if "accuracy" in r:
            spread = "" if r["accuracy_sd"] is None else f" +- {r['accuracy_sd']:.2f}"
            line += f"   {r['accuracy']:.2f}{spread} (n = {len(r['runs'])})"
        print(line + (f"   1/{r['scaled_by']} of the iterations were run" if r["scaled_by"] > 1 else ""), flush=True)


def _write_json(arguments: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    import torch

    from suite.provenance import provenance
    from suite.stages.context import device_info
    from suite.store.files import write_json

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = ("dataset", "ipc", "teacher", "student", "seeds", "teacher_epochs", "student_steps", "per_class", "divide")
    value = {
        "benchmark": "economy",
        "settings": {n: getattr(arguments, n) for n in names},
        "device": device_info(device) | {"cores": len(os.sched_getaffinity(0)), "threads": arguments.threads},
        "results": results,
        "provenance": provenance(),
    }
    json.dumps(value)  # refuse before the file is touched
    write_json(arguments.json, value)
    print(f"written to {arguments.json}")
