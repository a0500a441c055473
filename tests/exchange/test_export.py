"""What an export holds: the pixels and labels of the store, a card that says where they come from, and how to train."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from suite.data.distilled import DistilledSet
from suite.exchange.images import folder_names
from suite.exchange.markdown import text
from suite.learn.label_stream import LabelStream
from tests.exchange.conftest import Command, Made
from tests.helpers import ROOT

pytestmark = pytest.mark.ffcv
FORMS = ["imagefolder", "beton", "safetensors"]


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("policy", ["hard", "vector", "stored", "online"])
@pytest.mark.parametrize("form", FORMS)
def test_the_code_on_the_card_reads_exactly_what_the_store_has(
    made: Made, tmp_path: Path, export: Command, monkeypatch: pytest.MonkeyPatch, policy: str, form: str
) -> None:
    own = made.rows()[policy]
    export(own.key, "--to", form, "--out", tmp_path / "set", "--store", made.store.root)
    monkeypatch.chdir(tmp_path / "set")
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL):
        exec(compile(block, "README.md", "exec"), found)
    stored = DistilledSet.load(
        made.store.open("synthesis", own.inputs["synthesis"]["key"]).path / "distilled.safetensors"
    )
    assert torch.equal(found["images"], stored.images) and torch.equal(found["classes"], stored.labels)
    if policy == "vector":
        assert found["targets"].shape == (20, 10) and torch.allclose(found["targets"].sum(1), torch.ones(20), atol=1e-2)
    if policy == "stored":
        stream = LabelStream(made.store.open("relabel", own.inputs["relabel"]["key"]).path / "labels.safetensors")
        plan = stream.read(0)
        assert torch.equal(found["index"], plan.index) and torch.equal(found["logits"], stream.logits(plan).float())
    if policy == "online":
        assert list(found["teachers"]) == ["0-convnet1_w4", "1-convnet1_w8"]


def test_labels_leave_byte_for_byte(made: Made, tmp_path: Path, export: Command) -> None:
    for policy in ("vector", "stored"):
        relabel = made.store.open("relabel", made.rows()[policy].inputs["relabel"]["key"])
        export(relabel.key, "--to", "imagefolder", "--out", tmp_path / policy, "--store", made.store.root)
        exported = (tmp_path / policy / "labels.safetensors").read_bytes()
        assert exported == (relabel.path / "labels.safetensors").read_bytes()
        assert card_of(tmp_path / policy)["labels"]["policy"] == policy


@pytest.mark.parametrize("form", FORMS)
def test_two_exports_are_the_same_bytes_and_the_manifest_lists_all_of_them(
    made: Made, tmp_path: Path, export: Command, form: str
) -> None:
    key = made.rows()["stored"].key
    for name in ("a", "b"):
        export(key, "--to", form, "--out", tmp_path / name, "--store", made.store.root)
    first, second = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert first == second
    listed = json.loads(first.pop("manifest.json"))["files"]
    assert listed == {name: [len(data), sha256(data).hexdigest()] for name, data in first.items()}
    assert "already exported" in export(key, "--to", form, "--out", tmp_path / "a", "--store", made.store.root)
    (tmp_path / "a" / "README.md").write_text("mine")
    line = export(key, "--to", form, "--out", tmp_path / "a", "--store", made.store.root)
    assert "differs from this export" in line and (tmp_path / "a" / "README.md").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"], "no half-written directory is left"


def test_the_card_says_where_the_set_comes_from(made: Made, tmp_path: Path, export: Command) -> None:
    own = made.rows()["vector"]
    export(own.key, "--to", "imagefolder", "--out", tmp_path / "set", "--store", made.store.root)
    card, readme = card_of(tmp_path / "set"), (tmp_path / "set" / "README.md").read_text()
    assert card["method"]["name"] == "random_soft" and card["method"]["paper"] == "baseline"
    assert card["dataset"]["class_names"] == [str(i) for i in range(10)]
    assert "CC BY 4.0" in card["dataset"]["licence"] and card["dataset"]["licence"] in readme
    assert card["cost"]["synthesis"]["seconds"] > 0 and card["cost"]["relabel"]["device"]
    line = next(x for x in card["accuracy"] if own.key in x["rows"])
    assert line["this_set"]["mean"] == own.numbers["accuracy_last"] and line["this_set"]["n"] == 1
    assert f"{own.numbers['accuracy_last']:.2f}" in readme and "none from one seed" in readme
    assert card["rows"][own.key]["spec"] == own.spec
    assert card["bytes"] == sum(e["bytes"] for e in card["storage"])
    origin = card["provenance"][f"evaluation {own.key}"]
    assert origin["commit"] == own.provenance["commit"] and "host" not in json.dumps(card["provenance"])
    head = yaml.safe_load(readme.split("---")[1])
    assert head["task_categories"] == ["image-classification"]


def test_folders_sort_in_the_order_of_the_classes(made: Made, tmp_path: Path, export: Command) -> None:
    assert folder_names(["ant", "bee"], 2) == ["ant", "bee"]
    for names in (["bee", "ant"], [str(i) for i in range(12)]):
        made_ = folder_names(names, len(names))
        assert made_ == sorted(made_) and made_[1].endswith(f"_{names[1]}")
    for hostile in (["..", "b"], ["a/b", "c"], ["a\nb", "c"], ["", "b"], ["x" * 300, "y"], None):
        assert folder_names(hostile, 2) == ["0000", "0001"]


def test_hostile_text_is_inert_on_the_card() -> None:
    assert text("<script>|[x](y)`\n\x1b[31m") == r"&lt;script&gt;\|\[x\](y)\` \\x1b\[31m"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("ffffffffffffffff", "no synthesis, relabel, evaluation with a key that begins with ffffffffffffffff"),
        ("abc", "'abc' is not the beginning of a key"),
        ("../../etc", "'../../etc' is not the beginning of a key"),
    ],
)
def test_a_key_that_is_none_is_one_line(made: Made, tmp_path: Path, export: Command, key: str, says: str) -> None:
    line = export(key, "--to", "imagefolder", "--out", tmp_path / "set", "--store", made.store.root)
    assert says in line and "--list" in line and not (tmp_path / "set").exists()


def test_list_names_every_key(made: Made, export: Command) -> None:
    listed = export("--list", "--store", made.store.root)
    assert all(s.key in listed for kind in ("synthesis", "relabel", "evaluation") for s in made.stages(kind))


def test_commands_refuse_bad_flags_with_exit_code_2(tmp_path: Path) -> None:
    for words in (["suite.export", "abcd"], ["suite.evaluate", str(tmp_path), "--ipc", "0"]):
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
