"""Compacted rows: read instead of records while nothing has changed, and never believed when in doubt."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from suite.errors import DataError
from suite.leaderboard import gather
from suite.leaderboard.compact import FOLDER, read_compacted, read_rows
from suite.leaderboard.files import to_parquet
from suite.leaderboard.gather import from_file, from_store
from suite.leaderboard.rows import collect
from suite.store import Attempt, Record, Store
from tests.leaderboard.factory import record, record_of, stages


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three rows with their syntheses."""
    store = Store(tmp_path / "store")
    for seed in range(3):
        publish(store, seed)
    return store


def publish(store: Store, seed: int) -> None:
    made, evaluation = stages(seed=seed)
    with Attempt(store, made, {}) as attempt:
        attempt.publish(Record("synthesis", made.key, "", "done", made.to_json()["spec"]))
    found = record_of(evaluation)
    with Attempt(store, evaluation, {}) as attempt:
        attempt.inputs = found.inputs
        attempt.publish(found)


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the evaluations that are opened from now on."""
    keys: list[str] = []
    real = Store.open

    def spy(self: Store, kind: str, key: str) -> object:
        keys.append(key)
        return real(self, kind, key)

    monkeypatch.setattr(Store, "open", spy)
    return keys


def test_the_second_report_reads_no_record_and_says_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = from_store(store)
    keys = opened(monkeypatch)
    second = from_store(store)
    assert keys == [] and len(first.frame) == 3
    pd.testing.assert_frame_equal(second.frame, first.frame)


def test_only_new_rows_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from_store(store)
    publish(store, 7)
    keys = opened(monkeypatch)
    assert sorted(from_store(store).frame["seed"]) == [0, 1, 2, 7]
    assert keys == [stages(seed=7)[1].key]
    assert len(list((store.root / FOLDER).iterdir())) == 1


def test_a_damaged_artifact_is_noticed_although_its_row_is_remembered(store: Store) -> None:
    from_store(store)
    path = store.home("evaluation", stages(seed=1)[1].key) / "out" / "record.json"
    path.write_bytes(path.read_bytes().replace(b"accuracy_last", b"accuracy_LAST"))
    rows = from_store(store)
    assert sorted(rows.frame["seed"]) == [0, 2]
    assert [r.reason for r in rows.refused] == ["corrupt artifact: SHA-256 differs from the manifest"]


def test_a_row_that_is_gone_is_not_remembered(store: Store) -> None:
    from_store(store)
    store.quarantine("evaluation", stages(seed=1)[1].key, "test")
    assert sorted(from_store(store).frame["seed"]) == [0, 2]


@pytest.mark.parametrize("cut", [0, 10, -1, "flip", "name"])
def test_a_half_written_or_damaged_file_is_not_believed(
    store: Store, monkeypatch: pytest.MonkeyPatch, cut: int | str
) -> None:
    whole = from_store(store).frame
    (path,) = (store.root / FOLDER).iterdir()
    data = path.read_bytes()
    if cut == "name":
        path.rename(path.with_name(f"rows-{'0' * 32}.parquet"))
    elif cut == "flip":
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    else:
        path.write_bytes(data[:cut])
    assert read_compacted(store).empty
    keys = opened(monkeypatch)
    pd.testing.assert_frame_equal(from_store(store).frame, whole)
    assert len(set(keys)) == 3, "all rows come from their records again"


def test_rows_of_other_code_are_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from_store(store)
    monkeypatch.setattr("suite.leaderboard.compact.maker", lambda: "another")
    assert read_compacted(store).empty


def test_the_setting_follows_a_synthesis_that_was_not_there(store: Store) -> None:
    before = from_store(store).frame["setting"].unique()
    for seed in range(3):
        store.quarantine("synthesis", stages(seed=seed)[0].key, "test")
    after = from_store(store).frame["setting"].unique()
    assert len(before) == 1 and not set(before) & set(after)


def test_many_records_are_read_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "CHUNK", 2)
    assert sorted(from_store(store).frame["seed"]) == [0, 1, 2]


def test_rows_of_a_report_are_read_back_and_without_provenance_refused(tmp_path: Path) -> None:
    rows = collect([record(seed=s) for s in range(3)])
    path = tmp_path / "rows.parquet"
    path.write_bytes(to_parquet(rows.frame))
    pd.testing.assert_frame_equal(from_file(path).frame, rows.frame)
    path.write_bytes(to_parquet(rows.frame.assign(commit=["a", "", None])))
    found = from_file(path)
    assert found.frame["seed"].tolist() == [0] and len(found.refused) == 2
    assert {r.reason for r in found.refused} == {"no provenance: commit"}


@pytest.mark.parametrize("data", [b"", b"PAR1", b"key,method\n"])
def test_what_is_no_file_of_rows_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not rows of a report"):
        read_rows(path)
