"""Following a run until its stages are published, or nothing will publish them any more."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from suite.cluster.pace import Pace
from suite.cluster.query import SILENCE, QueryFailed, Task, in_flight, user_tasks
from suite.cluster.runs import Run
from suite.cluster.show import plural, say
from suite.errors import InfraError
from suite.spec.stages import Stage, input_kind
from suite.store import Store
from suite.store.attempts import LATE_SECONDS, look_afresh

Node = tuple[str, str]
_POLL, _MAX_POLL = 2.0, 30.0
#: How long tasks may neither run nor wait in the queue before following gives up on them.
_STALE = 1800.0
_LINE_SECONDS = 30.0


class Progress(Protocol):
    """Takes the number of newly published stages."""

    def __call__(self, fresh: int) -> None:
        """Advance."""


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line now and then."""
    if sys.stdout.isatty():
        from rich import progress as rich

        columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
        with rich.Progress(*columns, rich.TimeElapsedColumn()) as bar:
            task = bar.add_task(what, total=total)
            yield lambda fresh: bar.advance(task, fresh)
        return
    begin = last = time.monotonic()
    done = 0

    def line(fresh: int) -> None:
        nonlocal last, done
        done += fresh
        if done == total or time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            say(f"{what}: {done}/{total} stages after {last - begin:.0f} s")

    yield line


def follow_slurm(
    runs: Sequence[Run],
    stages: Sequence[Stage],
    store: Store,
    advance: Progress,
    stale_after: float = _STALE,
    late: float = LATE_SECONDS,
) -> None:
    """Come back when every stage is published, or when Slurm has no task any more that would publish one.

    Args:
        runs: The runs whose tasks the stages are in, newest first.
        stages: What to wait for.
        store: Where it appears.
        advance: Called with the number of newly published stages.
        late: Seconds without a task after which what shows neither an artifact nor a failure has none, though its task
            did not die by Slurm's word: what another node has published may stay invisible for so long.
        stale_after: Seconds after which tasks that neither run nor wait in the queue (requeued and never started
            again, on hold, in a state that nobody knows) are not waited for any longer.

    Raises:
        InfraError: If Slurm does not answer for half an hour, or what is left is stale. The jobs go on.
    """
    waiting = {(s.kind, s.key) for s in stages}
    failures = {node: count for node in waiting if (count := _failures(store, node))}
    died: set[Node] = set()
    pace, empty = Pace(_POLL, _MAX_POLL), 0
    heard = moved = last = time.monotonic()
    while True:
        published = {kind: store.published(kind) for kind in {kind for kind, _ in waiting}}
        fresh = {node for node in waiting if node[1] in published[node[0]]}
        waiting -= fresh
        advance(len(fresh))
        # Twice: the last artifact may be published, or a task requeued, between the two questions.
        if not waiting:
            return
        if empty >= 2 and (time.monotonic() - last >= late or _settled(stages, waiting - died, store, failures, died)):
            return
        try:
            tasks = user_tasks()
            going = in_flight(runs, [t for t in tasks if t.live or t.word == "ending"])
            ended = in_flight(runs, [t for t in tasks if not t.live])
            died = {node for node in waiting & ended.keys() if ended[node].word in ("failed", "cancelled", "preempted")}
            left = [going[node] for node in waiting & going.keys()]
            heard = time.monotonic()
            empty, last = (0, heard) if left else (empty + 1, last)
            for node in () if left else waiting:
                look_afresh(store.home(*node))
            if fresh or not left or any(t.moving for t in left):
                moved = heard
            elif heard - moved > stale_after:
                raise _stale(left, stale_after)
        except QueryFailed as error:
            if time.monotonic() - heard > SILENCE:
                raise InfraError(f"Slurm is silent: {error.what}", hint="jobs go on; see suite.status") from error
        time.sleep(pace.next(bool(fresh or empty)))


def _settled(
    stages: Sequence[Stage], waiting: Collection[Node], store: Store, before: Mapping[Node, int], died: Collection[Node]
) -> bool:
    """Whether each of these stages shows how an attempt ended, or needs one that does, or whose task died."""
    over = set(died)
    for stage in stages:  # in the order of a plan: inputs first
        node = stage.kind, stage.key
        if node in waiting:
            needs = {(input_kind(role), key) for role, key in stage.inputs.items()}
            if needs & over or _failures(store, node) > before.get(node, 0):
                over.add(node)
    return over >= set(waiting)


def _failures(store: Store, node: Node) -> int:
    try:
        return len(os.listdir(store.home(*node) / "failed"))  # noqa: PTH208 - names are enough
    except FileNotFoundError:
        return 0


def _stale(tasks: Sequence[Task], seconds: float) -> InfraError:
    first = tasks[0]
    return InfraError(
        f"{plural(len(tasks), 'stage')} did not move for {seconds:.0f} s: job {first.job}_{first.index} is"
        f" {first.state or 'without a state'} ({first.reason})",
        hint="scontrol release or scancel the job, then launch again",
    )
