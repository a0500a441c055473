"""C3, C5: rows while they are written, by many workers at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from suite.leaderboard.gather import from_store
from suite.report import main
from suite.spec.stages import Stage
from suite.store import Attempt, Store
from tests.leaderboard.factory import record_of, stages

WORKERS = 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def evaluations(count: int) -> list[Stage]:
    return [stages("rded", 10, seed)[1] for seed in range(count)]


def publish(stage: Stage, store: Store) -> None:
    with Attempt(store, stage, {}) as attempt:
        (attempt.dir / "metrics.json").write_text("{}" + " " * 5000)
        attempt.publish(record_of(stage))


def forked(work: object) -> int:
    """Run something in a fork of this process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    return pid


def all_well(pids: list[int]) -> bool:
    return all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in pids)


def test_sixty_four_workers_that_finish_in_the_same_second_leave_sixty_four_rows(store: Store) -> None:
    made = evaluations(WORKERS)
    start = time.time() + 2.0

    def worker(stage: Stage) -> None:
        time.sleep(max(0.0, start - time.time()))
        publish(stage, store)

    assert all_well([forked(lambda s=s: worker(s)) for s in made])
    records = list(store.records())
    assert {r.key for r in records} == {s.key for s in made} and len(records) == WORKERS
    expected = {s.key: record_of(s) for s in made}
    for r in records:
        assert r.numbers == expected[r.key].numbers and r.spec == expected[r.key].spec, "no row holds parts of another"
    rows = from_store(store)
    assert len(rows.frame) == WORKERS and not rows.refused and not rows.holes
    assert not [p for s in made for p in store.attempts(s.kind, s.key)], "nothing is left behind"


def test_sixty_four_workers_on_one_stage_leave_one_row(store: Store) -> None:
    (stage,) = evaluations(1)
    start = time.time() + 1.0

    def worker() -> None:
        time.sleep(max(0.0, start - time.time()))
        publish(stage, store)

    assert all_well([forked(worker) for _ in range(WORKERS)])
    assert len(from_store(store).frame) == 1
    assert not store.attempts(stage.kind, stage.key)


def test_a_report_beside_writers_never_sees_a_part_of_a_row(store: Store) -> None:
    """A reader looks as often as it can while rows appear: each look has whole rows, and never fewer than before."""
    made = evaluations(40)

    def writer() -> None:
        for stage in made:
            publish(stage, store)

    pid = forked(writer)
    seen, looks, left = 0, 0, None
    while left is None or left == 0:
        left = os.waitpid(pid, os.WNOHANG)[0] if left is None or left == 0 else left
        rows = from_store(store)
        looks += 1
        assert not rows.refused and not rows.holes
        assert len(rows.frame) >= seen
        assert rows.frame["accuracy_last"].notna().all() and rows.frame["total_bytes"].notna().all()
        seen = len(rows.frame)
    assert seen == len(made) and looks > 3


def test_the_same_rows_give_the_same_bytes_in_whatever_order_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = evaluations(3) + [stages("e2d", 10, seed)[1] for seed in range(3)]
    monkeypatch.chdir(tmp_path)
    written, printed = [], []
    for name, order in (("a", made), ("b", made[::-1])):
        for stage in order:
            publish(stage, Store(tmp_path / name))
        assert main(["--store", name, "--out", f"report-{name}"]) == 0
        printed.append(capsys.readouterr().out.replace(f"report-{name}", "report"))
        folder = tmp_path / f"report-{name}" / "all"
        # Single rows tell when their attempts began, and these were published twice.
        written.append(
            {
                str(p.relative_to(folder)): p.read_bytes()
                for p in folder.rglob("*")
                if p.is_file() and not p.match("rows/*") and p.name not in ("stamp.json", "rows.parquet")
            }
        )
    assert printed[0] == printed[1]
    assert written[0].keys() == written[1].keys() and len(written[0]) >= 8
    assert [f for f in written[0] if written[0][f] != written[1][f]] == []
