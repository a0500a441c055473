"""The contract of every registered method, and of the template for new ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import suite.methods
from suite.errors import UserError
from suite.learn.share import Share
from suite.methods import METHODS, Method, broken, discover, get
from suite.spec.datasets import REGISTRY
from tests.methods import contract

FOLDER = Path(suite.methods.__file__).parent
NAMES = sorted(discover())


@pytest.mark.parametrize("name", NAMES)
def test_method_makes_its_images(name: str) -> None:
    contract.check_images(get(name))


@pytest.mark.parametrize("name", NAMES)
def test_shards_make_what_one_process_makes(name: str) -> None:
    fields = {f.name for f in dataclasses.fields(get(name))}  # type: ignore[arg-type]
    contract.check_shards(get(name), **({"batch": 4} if "batch" in fields else {}))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sre2l", {"partition": "class", "batch": 4}),
        ("gvbsm", {"batch": 7, "groups": 2, "dd_weight": 1.0}),
        ("edc", {"batch": 7, "start": "mosaic"}),
        ("edc", {"batch": 4, "flatness": 1.0}),
        ("e2d", {"batch": 4, "branch": "cda"}),
        ("e2d", {"batch": 7, "start": "mosaic"}),
        ("e2d_adaptive", {"batch": 4, "continuous": False}),
        ("sre2l", {"batch": 3, "stack": 6}),
        ("delt", {"batch": 2, "stack": 4}),
        ("cvdd", {"batch": 2, "stack": 6}),
    ],
)
def test_variants_of_methods_are_cut_too(name: str, overrides: dict[str, object]) -> None:
    own = {k: v for k, v in overrides.items() if k != "stack"}
    assert contract.short(get(name), **own).parts(10, 3) >= 5
    contract.check_shards(get(name), (5,), **overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("edc", {"reference_quirks": True}),
        ("e2d", {"reference_quirks": True}),
        ("gvbsm", {"reference_quirks": True}),
        ("e2d_adaptive", {"continuous": True}),
        ("forgetting", {}),
    ],
)
def test_methods_with_state_across_batches_are_not_cut(name: str, overrides: dict[str, object]) -> None:
    """Running averages and counts that go on from batch to batch, one stream, one training: made as one."""
    method = contract.short(get(name), **overrides)
    assert method.parts(10, 3) == 1
    if name != "forgetting":
        with pytest.raises(UserError, match="cannot be cut into shards"):
            method.synthesize(replace(contract.job_for(get(name), ipc=3), share=Share(0, 2)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("classes", "ipc"), [(10, 1), (10, 3), (1000, 50), (7, 11)])
def test_a_method_says_of_how_many_parts_its_images_consist(name: str, classes: int, ipc: int) -> None:
    for base in REGISTRY:
        assert 1 <= get(name).for_dataset(base, ipc).parts(classes, ipc) <= classes * ipc


@pytest.mark.parametrize("name", NAMES)
def test_method_leaves_teachers_as_they_were(name: str) -> None:
    contract.check_teachers_stay(get(name))


@pytest.mark.slow  # a compiler's first look at a network takes seconds
@pytest.mark.parametrize("name", [name for name in NAMES if "compile" in get(name).engine()])
def test_compiled_teachers_give_the_same_images(name: str) -> None:
    contract.check_compiled(get(name))


@pytest.mark.parametrize("name", NAMES)
def test_method_has_facts_for_every_dataset(name: str) -> None:
    contract.check_facts(get(name))


def test_every_method_file_can_be_imported() -> None:
    assert broken() == {}
    baselines = {"random", "random_soft", "herding", "kcenter", "forgetting", "label_worth"}
    family = {"rded", "sre2l", "sre2lpp", "cda", "gvbsm", "wmdd", "delt", "lpld", "cvdd", "edc", "e2d", "e2d_adaptive"}
    assert baselines | family <= set(NAMES)


def test_methods_are_listed_without_heavy_imports() -> None:
    code = """
import sys
from suite.methods import discover
for cls in discover().values():
    cls.for_dataset("imagenet1k", 10).recipe("imagenet1k", 1000, 10, "resnet18")
print([m for m in ("torch", "numpy", "pandas", "ffcv", "submitit", "torchvision", "suite.learn") if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


@pytest.fixture
def filled_in(tmp_path: Path) -> Iterator[type[Method]]:
    """The template, copied and renamed as its first lines ask for."""
    text = (FOLDER / "template.py.txt").read_text()
    path = tmp_path / "my_method.py"
    path.write_text(text.replace('name="template"', 'name="my_method"').replace("class Template", "class MyMethod"))
    spec = importlib.util.spec_from_file_location("suite.methods.my_method", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield METHODS["my_method"]
    finally:
        METHODS.pop("my_method", None)
        del sys.modules[spec.name]


def test_filled_in_template_keeps_the_contract(filled_in: type[Method]) -> None:
    contract.check_facts(filled_in)
    contract.check_images(filled_in)
    contract.check_teachers_stay(filled_in)
    assert filled_in.for_dataset("cifar10", 1) == filled_in(batch=10)  # type: ignore[call-arg]


def test_template_is_typed_and_linted(tmp_path: Path) -> None:
    path = tmp_path / "my_method.py"
    path.write_text((FOLDER / "template.py.txt").read_text())
    config = str(FOLDER.parent.parent / "pyproject.toml")
    for command in (["check", "--config", config, path], ["format", "--check", "--config", config, path]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *map(str, command)], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sre2l", {"iterations": 0}),
        ("sre2l", {"crop": (0.5, 0.1)}),
        ("sre2l", {"roll": (3, 1)}),
        ("rded", {"factor": 0}),
        ("rded", {"crop": (0.0, 1.0)}),
        ("e2d", {"ema": 1.0}),
        ("e2d", {"batch": 0}),
    ],
)
def test_values_without_sense_are_refused_when_planning(name: str, overrides: dict[str, object]) -> None:
    (field,) = overrides
    with pytest.raises(UserError, match=f"{name}: out of range: {field} = "):
        get(name).for_dataset("cifar10", 10, overrides)
