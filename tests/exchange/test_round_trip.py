"""A set that is exported, and then scored as if it came from elsewhere, gives the numbers of its own row exactly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from suite.leaderboard.gather import from_store
from suite.leaderboard.statistics import plain_records
from suite.store import Record, Store
from tests.exchange.conftest import Command, Made

pytestmark = pytest.mark.ffcv

ROWS = ["hard", "paper", "vector", "stored", "pruned", "online"]
FORMS = ["imagefolder", "beton", "safetensors"]
#: Each policy in one form and each form with two policies; the other pairs are slow. Forms and labels are independent:
#: that every form of every policy holds the store's pixels and labels is tested in `test_export`.
PAIRS = [
    pytest.param(policy, form, marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
    for i, policy in enumerate(ROWS)
    for j, form in enumerate(FORMS)
]


def row_of(output: str, store: Store) -> Record:
    """The row that `suite.evaluate` says it made."""
    match = re.search(r"^row ([0-9a-f]{16}) .*\(external\)", output, re.MULTILINE)
    assert match, output
    return store.open("evaluation", match[1]).record()


def delivered(folder: Path) -> int:
    """Bytes of the files that a student needs."""
    about = {"README.md", "card.json", "manifest.json"}
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name not in about)


def board(store: Store) -> dict[str, dict[str, Any]]:
    return {line["key"]: line for line in plain_records(from_store(store).frame)}


@pytest.mark.parametrize(("policy", "form"), PAIRS)
def test_an_exported_row_scores_exactly_as_its_own(
    made: Made, tmp_path: Path, export: Command, evaluate: Command, policy: str, form: str
) -> None:
    own = made.rows()[policy]
    assert not own.numbers["constant_prediction"] and len({point[1] for point in own.numbers["curve"]}) > 1
    folder = tmp_path / f"{policy}-{form}"
    export(own.key, "--to", form, "--out", folder, "--store", made.store.root)
    output = evaluate(folder, "--row", own.key[:8], "--store", made.store.root)
    row = row_of(output, made.store)
    assert "the same" in output
    assert row.numbers == own.numbers, "accuracy, best epoch and the whole curve"
    assert row.spec == {**own.spec, "method": folder.name}
    assert row.key != own.key
    line = board(made.store)[row.key]
    assert line["method"] == f"{folder.name} (external)" and line["external"] is True
    assert line["total_bytes"] == delivered(folder), "each delivered byte that training needs, once"
    for unknown in ("synthesis_seconds", "teacher_seconds", "statistics_seconds", "image_iterations"):
        assert line[unknown] is None, "unknown is never zero"
    assert row.provenance["external"] is True and row.provenance["commit"]


def test_somebody_else_gets_the_same_numbers(made: Made, tmp_path: Path, export: Command, evaluate: Command) -> None:
    own = made.rows()["online"]
    export(own.key, "--to", "safetensors", "--out", tmp_path / "set", "--store", made.store.root)
    elsewhere = Store(tmp_path / "elsewhere")
    row = row_of(evaluate(tmp_path / "set", "--row", own.key, "--store", elsewhere.root), elsewhere)
    assert row.numbers == own.numbers


def test_flags_say_the_same_as_a_row(made: Made, tmp_path: Path, export: Command, evaluate: Command) -> None:
    own = made.rows()["hard"]
    key = own.inputs["synthesis"]["key"]
    export(key, "--to", "imagefolder", "--out", tmp_path / "plain", "--store", made.store.root)
    (tmp_path / "plain" / "card.json").unlink()
    (tmp_path / "plain" / "manifest.json").unlink()
    flags = ["--dataset", "digits", "--ipc", 2, "--student", "convnet2_w8", "--store", made.store.root]
    matched = ["--protocol", "matched", "--set", "student.steps=60", "student.batch=8", "student.evaluations=6"]
    assert row_of(evaluate(tmp_path / "plain", *flags, *matched), made.store).numbers == own.numbers
    paper = ["--protocol", "paper", "--recipe", "random", "--set", "student.epochs=30"]
    assert row_of(evaluate(tmp_path / "plain", *flags, *paper), made.store).numbers == made.rows()["paper"].numbers


@pytest.mark.parametrize("policy", ["online", "vector", "stored"])
def test_labels_can_be_made_here_by_teachers_of_the_store_or_from_files(
    made: Made, tmp_path: Path, export: Command, evaluate: Command, policy: str
) -> None:
    own = made.rows()[policy]
    store, teachers = made.store, made.stages("teacher")
    out = tmp_path / f"images-{policy}"
    export(own.inputs["synthesis"]["key"], "--to", "safetensors", "--out", out, "--store", store.root)
    settings = ["--set", "student.steps=60", "student.batch=8", "student.evaluations=6"]
    flags = [
        out, "--dataset", "digits", "--ipc", own.spec["ipc"], "--student", "convnet2_w8", "--protocol", "matched",
        *settings, "--labels", policy, "--store", store.root, "--teacher",
    ]  # fmt: skip
    by_key = row_of(evaluate(*flags, *(t.key[:10] for t in teachers)), store)
    assert by_key.numbers == own.numbers
    files = [f"{t.spec.arch}={store.open('teacher', t.key).path / 'weights.safetensors'}" for t in teachers]
    by_file = row_of(evaluate(*flags, *files), store)
    assert by_file.numbers == own.numbers
    assert by_file.spec["teacher"] == own.spec["teacher"]
    backwards = row_of(evaluate(*flags[:-1], "--name", "backwards", "--teacher", *reversed(files)), store)
    assert backwards.key != by_file.key, "other files, another set"


def test_the_same_files_are_the_same_set(made: Made, tmp_path: Path, export: Command, evaluate: Command) -> None:
    own = made.rows()["vector"]
    rows = []
    for name in ("here", "there"):
        export(own.key, "--to", "imagefolder", "--out", tmp_path / name, "--store", made.store.root)
        rows.append(
            row_of(evaluate(tmp_path / name, "--row", own.key, "--name", "one", "--store", made.store.root), made.store)
        )
    assert rows[0].key == rows[1].key
    (tmp_path / "there" / "manifest.json").unlink()
    digit = tmp_path / "there" / "train" / "7" / "00001.png"
    digit.write_bytes(digit.with_name("00000.png").read_bytes())
    changed = row_of(
        evaluate(tmp_path / "there", "--row", own.key, "--name", "one", "--store", made.store.root), made.store
    )
    assert changed.key != rows[0].key and changed.inputs["synthesis"]["key"] != rows[0].inputs["synthesis"]["key"]


def test_several_seeds_make_several_rows(made: Made, tmp_path: Path, export: Command, evaluate: Command) -> None:
    own = made.rows()["hard"]
    export(own.key, "--to", "safetensors", "--out", tmp_path / "seeds", "--store", made.store.root)
    output = evaluate(tmp_path / "seeds", "--row", own.key, "--seed", 0, 1, "--store", made.store.root)
    keys = re.findall(r"^row ([0-9a-f]{16})", output, re.MULTILINE)
    lines = board(made.store)
    assert [lines[k]["seed"] for k in keys] == [0, 1]
    assert len({lines[k]["setting"] for k in keys}) == 1, "they are averaged"
    curves = [made.store.open("evaluation", k).record().numbers["curve"] for k in keys]
    assert curves[0] == own.numbers["curve"] != curves[1]
