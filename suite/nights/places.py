"""Where nights live: a fresh store each, so that a night measures again what a finished grid would not submit.

<store>/nights/<grid>/<night>/store/       artifacts of this night alone
<store>/nights/<grid>/<night>/store/prepare -> <store>/prepare      kinds that nights reuse
<store>/nights/<grid>/<night>/night.json   when it began
<store>/nights/<grid>/<night>/launch.log   what the launch printed
<store>/nights/<grid>/<night>/summary.txt  what the night reported

Keys are those of the grid itself: the rows of a night are ordinary rows that stand in a store of their own, and no
leaderboard of the site's store mixes with them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from suite.errors import InfraError
from suite.store import Store
from suite.store.files import read_json, write_json

_MOST = 99  # nights of one date


@dataclass(frozen=True)
class Place:
    """The directory of one night.

    Attributes:
        path: The directory; its name is the night's.
        started: UTC.
    """

    path: Path
    started: datetime

    @property
    def name(self) -> str:
        """The night: a UTC date, and a number for a second one on that date."""
        return self.path.name

    @property
    def store(self) -> Store:
        """Its own store."""
        return Store(self.path / "store")

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return (datetime.now(UTC) - self.started).total_seconds()


def nights_folder(store: Store, grid: str) -> Path:
    """Where all nights of a grid are."""
    return store.root / "nights" / grid


def open_night(folder: Path) -> Place | None:
    """The newest night, if it has not got into the history: it still runs, or its process was killed."""
    places = _places(folder)
    if not places or (folder / "history" / f"{places[-1].name}.json").exists():
        return None
    return places[-1]


def _places(folder: Path) -> list[Place]:
    found = []
    for path in sorted(folder.glob("*/night.json"), key=lambda p: p.parent.name):
        try:
            found.append(Place(path.parent, datetime.fromisoformat(read_json(path)["started"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InfraError(f"not a night: {error}", where=str(path), hint="move its directory away") from error
    return found


def begin(folder: Path, site: Store, reuse: tuple[str, ...]) -> Place:
    """Make the directory of a new night.

    Args:
        folder: Where all nights of the grid are.
        site: The site's store.
        reuse: Stage kinds whose artifacts are taken from there, and put there.
    """
    now = datetime.now(UTC)
    date = f"{now:%Y-%m-%d}"
    for name in (date, *(f"{date}.{n:02d}" for n in range(2, _MOST + 1))):
        path = folder / name
        if (folder / "history" / f"{name}.json").exists():
            continue  # its artifacts went, its name stays its own
        try:
            (path / "store").mkdir(parents=True)
        except FileExistsError:
            continue
        for kind in reuse:
            (site.root / kind).mkdir(parents=True, exist_ok=True)
            (path / "store" / kind).symlink_to(
                os.path.relpath((site.root / kind).resolve(), (path / "store").resolve())
            )
        write_json(path / "night.json", {"schema": 1, "started": now.isoformat(timespec="seconds")})
        return Place(path, now)
    raise InfraError(f"{_MOST} nights on one date", where=str(folder), hint="is it scheduled every few minutes?")


def prune(folder: Path, keep: int) -> list[str]:
    """Delete the artifacts of all but the newest nights that are in the history; returns the nights that went."""
    done = [p for p in _places(folder) if (folder / "history" / f"{p.name}.json").exists()]
    gone = done[:-keep]
    for place in gone:
        shutil.rmtree(place.path)
    return [p.name for p in gone]
