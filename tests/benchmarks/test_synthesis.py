"""The benchmark of the engine: what it counts, and that engine and eager baseline compute the same thing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from suite import bench
from suite.benchmarks.eager import EagerStep
from suite.benchmarks.operations import count, profiled
from suite.benchmarks.synthesis import Setting, eager, make_job, measure, objective_of
from suite.errors import UserError
from suite.learn.critics import bn_critic, class_bn_critic, feature_critics
from suite.methods import get

torch.set_num_threads(1)
#: ResNet-18 whose maps have as many different sizes in patches as at 224 px.
SMALL = Setting(size=160, batch=4, arch="resnet18", steps=1, baseline=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "most"), [("e2d", 450), ("sre2l", 250)])
def test_a_step_launches_few_operations_and_never_waits(method: str, most: int, precision: str) -> None:
    row = measure(method, precision, SMALL)
    assert 100 < row["operations"] <= most
    assert row["host_synchronisations"] == 0
    assert row["images"] == 4 and row["image_iterations_per_second"] > 0


def test_the_eager_step_launches_many_and_waits() -> None:
    row = measure("e2d", "fp32", Setting(size=32, batch=4, arch="resnet18_cifar_w16", steps=1))
    assert row["baseline"]["operations"] > 4 * row["operations"]
    assert row["baseline"]["host_synchronisations"] > 20
    assert row["ratio"] > 0


@pytest.mark.parametrize("name", ["sre2l", "wmdd", "e2d"])
def test_engine_and_eager_step_compute_the_same_loss_and_gradient(name: str) -> None:
    method = get(name)(batch=6)  # type: ignore[call-arg]
    job = make_job(Setting(size=40, batch=6, arch="resnet18_cifar_w16"), method, "fp32")
    plan = objective_of(name, method)
    job.teachers[0].model.double()  # in float32 a rounding moves values over the kinks of ReLUs
    step: EagerStep = eager(job, plan, 6, 0.1)
    teacher, slots = job.teachers[0], torch.arange(6)
    if plan.kind == "bn":
        critic = bn_critic(teacher, plan.weight, plan.first)
    elif plan.kind == "classes":
        critic = class_bn_critic(teacher, job.statistics[0], plan.weight, plan.first)
    else:
        (critic,) = feature_critics(job, plan.weight, plan.first, plan.ema, False, plan.class_weight)
    critic.reset(0)
    for shift in (0.0, 0.3):  # the second time, averages matter
        views = (step.x.detach().double() + shift).requires_grad_()
        theirs, their_ce = step.loss(views)
        (their_gradient,) = torch.autograd.grad(theirs, views)
        ce, term = critic.judge(views, step.labels, slots, "fp32")
        ours = ce.mean() + term
        (gradient,) = torch.autograd.grad(ours, views)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(ce, their_ce)
        largest = float(their_gradient.abs().max())
        torch.testing.assert_close(gradient / largest, their_gradient / largest)
    step.close()


def test_views_and_bookkeeping_are_no_operations_and_reading_a_value_is_a_wait() -> None:
    x = torch.ones(3, 4)
    with profiled(torch.device("cpu")) as profiler:
        y = (x.t()[1:] - 0.5).relu_()
        torch.zeros(3)
        y.sum().item()
    operations, syncs = count(profiler)
    assert operations == 4  # subtraction, relu, zeros, sum
    assert syncs == 1


def test_the_benchmark_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "synthesis.json"
    words = f"synthesis --method sre2l --size 32 --batch 4 --arch convnet3_w16 --steps 2 --threads 1 --json {out}"
    monkeypatch.setattr(sys, "argv", ["suite.bench", *words.split()])
    assert bench.main() == 0
    value = json.loads(out.read_text())
    assert value["settings"]["threads"] == 1 and value["torch"] == torch.__version__
    assert {"device", "provenance"} <= set(value)
    (row,) = value["results"]
    assert row["ratio"] > 0 and row["peak_bytes"] > 0
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--steps 0", "--method rded", "--method sre2"])
def test_what_cannot_be_measured_is_refused(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["suite.bench", "synthesis", *words.split()])
    with pytest.raises(UserError):
        bench.main()


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["suite.bench", "synthesis", "--json", str(tmp_path / "file/x.json")])
    with pytest.raises(UserError, match="cannot make"):
        bench.main()


@pytest.mark.parametrize(
    ("names", "waits"),
    [
        (["aten::item", "cudaLaunchKernel", "cudaDeviceSynchronize"], 0),
        (["aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize"], 1),
        (["cudaDeviceSynchronize", "cudaLaunchKernel", "cudaStreamSynchronize"], 2),
        (["aten::_local_scalar_dense", "aten::equal"], 2),
    ],
)
def test_each_wait_of_the_host_counts_once_and_the_profilers_own_does_not(names: list[str], waits: int) -> None:
    """Profiles as CUDA writes them (an operator waits by a call), and as the CPU does."""
    events = [
        SimpleNamespace(name=n, cpu_parent=None, cpu_children=[], input_shapes=[], time_range=SimpleNamespace(start=i))
        for i, n in enumerate(names)
    ]
    assert count(SimpleNamespace(events=lambda: events[::-1]))[1] == waits
