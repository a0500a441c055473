"""How many tasks may be in Slurm: what the profile says, and what refusals teach."""

from __future__ import annotations

import pytest

from suite.cluster import window
from suite.cluster.profile import Profile
from suite.cluster.query import QueryFailed, Task
from suite.cluster.sbatch import NoRoom
from suite.cluster.window import Window


class Site:
    """A queue with a limit that the profile does not name; one task in it ends at every pause.

    Attributes:
        others: Tasks of other users, which count for the limit; one of them ends at every second pause.
        every: One task ends at every so many pauses.
        silent: Questions that get no answer.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, limit: int, there: int, moving: bool = True, others: int = 0
    ) -> None:
        self.limit, self.there, self.moving, self.others, self.silent, self.every = limit, there, moving, others, 0, 1
        self.queries = self.pauses = 0
        monkeypatch.setattr(window, "live_tasks", self.tasks)
        monkeypatch.setattr(window.time, "sleep", self.sleep)
        monkeypatch.setattr(window.time, "monotonic", lambda: float(self.pauses))

    def tasks(self) -> list[Task]:
        self.queries += 1
        if self.silent:
            self.silent -= 1
            raise QueryFailed("slurm_load_jobs error: Unable to contact slurm controller")
        return [Task("1", i, "RUNNING", "None", "suite-other-x") for i in range(self.there)]

    def sleep(self, seconds: float) -> None:
        self.pauses += 1
        self.there -= self.moving and self.there > 0 and self.pauses % self.every == 0
        self.others -= self.others > 0 and self.pauses % 2 == 0

    def submit(self, size: int) -> bool:
        if self.there + size + self.others > self.limit:
            return False
        self.there += size
        return True


def place(site: Site, size: int, **profile: int) -> list[int]:
    """Sizes of the pieces in which some tasks were submitted; sbatch was called at most twice as often."""
    w = Window("r", Profile(cluster="slurm", **profile), patience=50.0)  # type: ignore[arg-type]
    pieces: list[int] = []
    refused = 0
    while size:
        piece = w.room(size)
        if site.submit(piece):
            w.accepted(piece)
            pieces.append(piece)
            size -= piece
        else:
            w.refused(piece, NoRoom("limit"))
            refused += 1
    assert refused <= len(pieces) + site.pauses + 12
    return pieces


def test_without_limits_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, 10_000, 0)
    assert place(site, 1000) == [1000]
    assert not site.queries


@pytest.mark.parametrize("limit", [1, 2, 5, 100, 999])
def test_a_limit_that_nobody_named_is_learnt(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    site = Site(monkeypatch, limit, 0)
    assert sum(place(site, 1000)) == 1000


def test_a_window_is_kept_without_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, 50, 0)
    pieces = place(site, 200, in_flight_per_user=50)
    assert pieces[0] == 50 and max(pieces) <= 50
    assert all(p >= 5 for p in pieces[:-1]), "a tenth of the window at least: calls are few"


@pytest.mark.parametrize("named", [True, False])
def test_where_tasks_end_rarely_calls_stay_few(monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    site = Site(monkeypatch, 100, 0)
    site.every = 3
    pieces = place(site, 600, **({"in_flight_per_user": 100} if named else {}))
    assert sum(pieces) == 600 and len(pieces) <= 70


def test_tasks_of_other_runs_do_not_count_for_a_runs_window(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, 1000, 70)
    assert place(site, 40, in_flight_per_run=40) == [40]


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, 5, 5, moving=False)
    with pytest.raises(NoRoom, match="no room for 3 more tasks"):
        place(site, 3, in_flight_per_user=5)
    with pytest.raises(NoRoom, match="no room"):
        place(site, 3)


def test_free_room_beside_a_task_that_stays_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrontab job or a notebook is always there: what fits beside it is found by halving, without a pause."""
    site = Site(monkeypatch, 500, 1, moving=False)
    assert sum(place(site, 400)) == 400 and not site.pauses
    site = Site(monkeypatch, 500, 10, moving=False)
    with pytest.raises(NoRoom, match=r"no room for \d more tasks: 500 are in Slurm \(limit\)"):
        place(site, 495)
    assert site.there == 500, "the last free place, too"


def test_a_limit_that_colleagues_fill_is_tried_again_until_they_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, 20, 0, moving=False, others=20)
    assert sum(place(site, 15)) == 15


def test_a_site_that_takes_nothing_is_left_after_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, 0, 0)
    with pytest.raises(NoRoom, match="limit"):
        place(site, 8)
    assert site.pauses == 50


def test_a_controller_that_restarts_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, 50, 0)
    site.silent = 20
    assert sum(place(site, 60, in_flight_per_user=50)) == 60
    site.silent = 1000
    with pytest.raises(QueryFailed, match="contact"):
        place(site, 60, in_flight_per_user=50)
