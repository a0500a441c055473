"""What of a store nothing needs any more, and how much room everything takes.

Nothing is garbage that a grid references and could still use, that a process or a job works on, or that is younger than
asked for. What cannot be decided, e.g. because Slurm does not answer, is kept.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from suite.cluster.cancel import Flying
from suite.cluster.cancelled import cancelled_stages
from suite.cluster.runs import load_run
from suite.cluster.whereabouts import attempt_host
from suite.spec.stages import KINDS
from suite.store import Store
from suite.store.files import read_json

Node = tuple[str, str]
#: Categories in the order in which they are shown, and what each holds.
WHAT = {
    "attempt": "work that a killed process left behind",
    "failed": "records of failed attempts of stages that are published, or that no grid references",
    "quarantine": "artifacts that were corrupt, stale or superseded",
    "checkpoint": "checkpoints of stages that are published, or that no grid references",
    "temporary": "what killed processes had half written or half deleted",
    "run": "what launches wrote down and tasks printed, of runs that are over",
    "artifact": "published artifacts that no grid references (with --unreferenced), and shards that are merged",
}
#: What is being deleted is called so.
_GOING = ".going-"
_PARTS = {"out": "artifact", "attempts": "attempt", "failed": "failed", "quarantine": "quarantine",
          "checkpoints": "checkpoint"}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """Something that can go.

    Attributes:
        what: One of `WHAT`.
        path: The file or directory.
        size: Bytes.
        why: Why nothing needs it.
        still: Asked again just before it is deleted: whether that is still so.
    """

    what: str
    path: Path
    size: int
    why: str
    still: Callable[[], bool]


@dataclass
class Survey:
    """A store looked through.

    Attributes:
        items: What can go.
        kept: How many things of each category stay although they look like it, by reason.
        usage: Bytes by (stage kind, or `runs` and `nights`; category).
        counts: Number of published artifacts by stage kind.
    """

    items: list[Item] = field(default_factory=list)
    kept: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    usage: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Surveyor:
    """Looks through a store.

    Args:
        store: The store.
        references: Stages that grids reference; None if no grid is known, and all count as referenced.
        flying: Tasks in flight; None if Slurm has runs here and does not answer.
        age: Seconds since the last change below which nothing is touched.
        unreferenced: Whether published artifacts that no grid references can go.
    """

    def __init__(
        self, store: Store, references: set[Node] | None, flying: list[Flying] | None, age: float, unreferenced: bool
    ) -> None:
        self.store, self.references, self.flying = store, references, flying
        self.age, self.unreferenced = age, unreferenced
        self.busy = {node for f in flying or () for node in (*f.nodes, *f.inputs())}
        self.busy_runs = {f.run.path for f in flying or ()}
        self.survey = Survey()

    def look(self) -> Survey:
        """Everything that can go, and what takes how much room."""
        for kind in KINDS:
            if not (self.store.root / kind).is_symlink():  # a night's; what it shares belongs to another store
                for home in _homes(self.store.root / kind):
                    self._home(kind, home)
        for path in sorted((self.store.root / "runs").glob("*/*")):
            self._run(path)
        self.survey.usage["nights", "nights"] = tree(self.store.root / "nights")[0]
        order = list(WHAT)
        self.survey.items.sort(key=lambda i: (order.index(i.what), -i.size, str(i.path)))
        return self.survey

    def _home(self, kind: str, home: Path) -> None:
        whole = _synthesis_of(home) if kind == "shard" else None
        node, published = whole or (kind, home.name), (home / "out").is_dir()
        merged = whole is not None and (self.store.home(*whole) / "out").is_dir()
        known = kind != "shard" or whole is not None
        referenced = self.references is None or node in self.references or not known
        free = "no grid references its stage" if not referenced else "its stage is published" if published else ""
        self.survey.counts[kind] += published

        def still() -> bool:
            return not referenced or (home / "out").is_dir()

        for path in home.iterdir():
            left = path.name.endswith(".tmp") or path.name.startswith(_GOING)
            part = _PARTS.get(path.name) or ("temporary" if left else "")
            if not part:
                continue
            self.survey.usage[kind, part] += tree(path)[0]
            match part:
                case "artifact":
                    if merged:
                        self._offer(part, path, "its synthesis is published", lambda: True, node)
                    elif self.unreferenced and not referenced:
                        self._offer(part, path, "no grid references it", lambda: True, node)
                case "checkpoint":
                    self._offer(part, path, free, still, node)
                case "failed":
                    for record in path.iterdir():
                        self._offer(part, record, free, still, node)
                case "quarantine":
                    for entry in path.iterdir():
                        self._offer(part, entry, f"set aside: {entry.name.partition('-')[0]}", lambda: True, None)
                case "attempt":
                    for attempt in path.iterdir():
                        self._attempt(attempt, node)
                case "temporary":
                    self._offer(part, path, "its process is gone", lambda: True, node)

    def _attempt(self, path: Path, node: Node) -> None:
        host, pid = attempt_host(path)
        in_slurm = path.name.split("-", 2)[1] != "local"
        if host == socket.gethostname():
            self._offer("attempt", path, f"process {pid} is gone", lambda: not Path(f"/proc/{pid}").exists(), node)
        elif in_slurm and self.flying is None:
            self.survey.kept["attempt", "Slurm was not asked"] += 1
        else:  # its host cannot be asked: its job is over, and no file in it was touched for long
            self._offer("attempt", path, f"no job works on it, on {host}", lambda: True, node)

    def _run(self, path: Path) -> None:
        self.survey.usage["runs", "run"] += tree(path)[0]
        run = load_run(path)
        if run is not None and run.cluster == "slurm" and self.flying is None:
            self.survey.kept["run", "Slurm was not asked"] += 1
        elif path in self.busy_runs:
            self.survey.kept["run", "its jobs are in flight"] += 1
        elif self._remembers(path):
            self.survey.kept["run", "it remembers what was cancelled"] += 1
        else:
            self._offer("run", path, "nothing of it is in flight", lambda: True, None)

    def _remembers(self, path: Path) -> bool:
        """Whether a run holds stages back that somebody cancelled and that are still not there."""
        nodes = cancelled_stages(self.store, path.parent.name, path.name)
        return any(not (self.store.home(*node) / "out").is_dir() for node in nodes)

    def _offer(self, what: str, path: Path, why: str, still: Callable[[], bool], node: Node | None) -> None:
        """Take something onto the list if nothing speaks against it."""
        size, changed = tree(path)
        if not why:
            self.survey.kept[what, "a grid may still need it"] += 1
        elif not still():
            self.survey.kept[what, "its process lives"] += 1
        elif node in self.busy:
            self.survey.kept[what, "a job in flight works on its stage, or reads it"] += 1
        elif time.time() - changed < self.age:
            self.survey.kept[what, "changed too recently"] += 1
        else:
            self.survey.items.append(Item(what, path, size, why, lambda: still() and tree(path)[1] == changed))


def _synthesis_of(shard: Path) -> Node | None:
    """What a shard is a part of, from its manifest; None before it is published."""
    try:
        return "synthesis", read_json(shard / "out" / "manifest.json")["of"]
    except (OSError, ValueError, KeyError):
        return None


def _homes(kind: Path) -> Iterator[Path]:
    for fan in sorted(kind.glob("??")):
        yield from sorted(p for p in fan.iterdir() if p.is_dir())


def tree(path: Path) -> tuple[int, float]:
    """Bytes of a file or of everything below a directory, and when the last of it changed (moves included)."""
    size, changed = 0, 0.0
    stack = [os.fspath(path)]
    while stack:
        current = stack.pop()
        try:
            s = os.lstat(current)
            if os.path.isdir(current) and not os.path.islink(current):  # noqa: PTH112, PTH114 - many thousand files
                stack += [e.path for e in os.scandir(current)]
            else:
                size += s.st_size
        except FileNotFoundError:
            continue  # it went meanwhile
        changed = max(changed, last_change(s))
    return size, changed


def last_change(entry: os.stat_result) -> float:
    """When a file's bytes, its name or its place last changed."""
    return max(entry.st_mtime, entry.st_ctime)


def delete(item: Item) -> bool:
    """Delete something; False if it changed since the survey, or somebody else was faster.

    A published artifact first leaves its place by one rename: nobody sees a part of it.

    Raises:
        OSError: If the file system refuses.
    """
    if not item.path.exists() or not item.still():
        return False
    path = item.path
    if item.what in ("artifact", "checkpoint", "run", "attempt"):
        path = path.with_name(f"{_GOING}{path.name}-{os.getpid()}")
        item.path.rename(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    for parent in list(item.path.parents)[:4]:  # empty directories of the stage, up to its fan-out
        if parent.name in KINDS or parent.name == "runs":
            break
        try:
            parent.rmdir()
        except OSError:
            break
    return True
