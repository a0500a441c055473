"""Pictures on the page: from the artifacts, bounded, and only of datasets whose terms allow it unless asked."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from suite.data.examples import examples
from suite.leaderboard.gallery import Gallery, gallery
from suite.leaderboard.gather import from_store
from suite.leaderboard.logs import log_tails
from suite.store import Store
from tests.leaderboard.sites import pictured, site_of


def sheets(store: Store, choice: str) -> Gallery:
    found = gallery(from_store(store), store, choice, examples)
    assert found is not None
    return found


def test_a_sheet_has_the_sets_own_pixels_a_line_a_class(tmp_path: Path) -> None:
    store = pictured(tmp_path, ("rded",))
    body = sheets(store, "open")
    name = next(s["file"] for s in body.body["sheets"] if s["images"] == 2)
    drawn = np.asarray(Image.open(io.BytesIO(body.files[name])))
    key = Path(name).stem
    images = load_file(store.open("synthesis", key).path / "distilled.safetensors")["images"]
    assert drawn.shape == (160, 32, 3)
    for c, i in ((0, 0), (3, 1), (9, 0)):
        cut = drawn[16 * c : 16 * c + 16, 16 * i : 16 * i + 16]
        assert (cut == images[2 * c + i].transpose(1, 2, 0)).all()


def test_classes_have_the_names_of_the_prepared_dataset_and_real_images_stand_beside(tmp_path: Path) -> None:
    found = sheets(pictured(tmp_path, ("rded",)), "open")
    assert found.body["sheets"][0]["classes"][4] == [4, "class 4"]
    real = found.body["real"]["digits"]
    drawn = np.asarray(Image.open(io.BytesIO(found.files[real["file"]])))
    assert (drawn[16 * 7, 16 * 2] == 20 * 7 + 2).all()


def test_by_default_images_are_shown_only_where_the_terms_allow_it(tmp_path: Path) -> None:
    store = pictured(tmp_path, ("rded",), "cifar10")
    closed = sheets(store, "open")
    assert closed.files == {} and "cifar10" in closed.remarks[0] and "--gallery distilled" in closed.remarks[0]
    distilled = sheets(store, "distilled")
    assert len(distilled.files) == 2 and distilled.body["real"] == {}
    assert len(sheets(store, "real").files) == 3
    assert gallery(from_store(store), store, "none", examples) is None


def test_a_gallery_is_bounded_and_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.leaderboard.gallery.MAX_SHEETS", 1)
    monkeypatch.setattr("suite.leaderboard.gallery.MAX_CLASSES", 4)
    monkeypatch.setattr("suite.leaderboard.gallery.MAX_SIDE", 8)
    found = sheets(pictured(tmp_path), "open")
    (sheet,) = found.body["sheets"]
    assert [c for c, _ in sheet["classes"]] == [0, 2, 5, 7], "spread over all classes"
    assert Image.open(io.BytesIO(found.files[sheet["file"]])).size == (8, 32)
    assert any(r.startswith("3 sets have no picture") for r in found.remarks)


def test_a_damaged_set_has_no_picture(tmp_path: Path) -> None:
    store = pictured(tmp_path, ("rded",))
    for key in store.published("synthesis"):
        path = store.home("synthesis", key) / "out" / "distilled.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert sheets(store, "open").body["count"] == 0


def test_a_second_site_has_the_same_bytes(tmp_path: Path) -> None:
    store = pictured(tmp_path)
    first = site_of(store)
    assert first == site_of(store)
    assert {n.partition("/")[0] for n in first} == {"index.html", "rows", "gallery"}


def test_a_row_has_the_end_of_its_own_part_of_the_log(tmp_path: Path) -> None:
    store = pictured(tmp_path, ("rded",))
    tails = log_tails(store, store.published("evaluation"))
    assert len(tails) == 2
    texts = ["\n".join(lines) for _, lines in tails.values()]
    assert sum("published after 25.4 s" in t for t in texts) == 1
    assert sum("alert" in t for t in texts) == 1
    assert not any("submitit" in t for t in texts)


def test_the_newest_log_of_a_row_counts(tmp_path: Path) -> None:
    store = pictured(tmp_path, ("rded",))
    key = sorted(log_tails(store, store.published("evaluation")))[0]
    newer = store.root / "runs" / "a_grid" / "20270101T000000Z-000000" / "logs" / "0000-evaluation" / "2_0_log.out"
    newer.parent.mkdir(parents=True)
    newer.write_text(f"[07:40:25] evaluation {key} rded\n" + "".join(f"line {i}\n" for i in range(99)))
    path, lines = log_tails(store, {key})[key]
    assert path.endswith("2_0_log.out") and len(lines) == 20 and lines[-1] == "line 98"


def test_details_of_a_row_in_a_store_have_its_specification_and_storage(tmp_path: Path) -> None:
    script = site_of(pictured(tmp_path, ("rded",)))["rows/000.js"].decode()
    part = json.loads(re.sub(r"^ROW_DETAILS\[0\] = |;\n$", "", script))
    headings = [p["heading"] for p in next(iter(part.values()))]
    assert headings[:6] == ["Provenance", "Student", "Costs", "Storage", "Accuracy while training", "Specification"]
