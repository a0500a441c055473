"""What is done and what has to run: a plan compared with the store, verified byte by byte.

The artifact decides. A stage is done if its artifact verifies, was made from exactly the present artifacts of its
inputs, and all its inputs are done. Everything else runs again, for a reason that is printed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from suite.spec.stages import Stage, input_kind
from suite.store import Store
from suite.store.artifacts import Corrupt
from suite.store.retries import decide

if TYPE_CHECKING:
    from suite.grid import Plan

Why = Literal["new", "failed", "corrupt", "stale", "diverged", "cancelled", "blocked"]
Node = tuple[str, str]
_NONE: Mapping[Node, str] = {}


@dataclass(frozen=True, slots=True)
class Todo:
    """A stage that is not done.

    Attributes:
        index: Position in the plan's stages.
        why: `new`, `failed`, `corrupt` or `stale` for stages that run; `failed`, `diverged` or `blocked` for those
            held back.
        detail: The failure, the damage, or the input that changed.
        published: Whether an artifact stands in its place and has to be moved away first.
        exclude_nodes: Nodes of the cluster where it failed, to be avoided.
        kind: Kind of its own newest failure; empty where it has none.
        attempt: The attempt that made the published artifact; empty where the damage hides it.
    """

    index: int
    why: Why
    detail: str = ""
    published: bool = False
    exclude_nodes: tuple[str, ...] = ()
    kind: str = ""
    attempt: str = ""

    @property
    def reason(self) -> str:
        """The reason as it is printed."""
        return f"{self.why} ({self.detail})" if self.detail else self.why


@dataclass(slots=True)
class Reconciled:
    """A plan compared with a store.

    Attributes:
        todo: Stages to run, in the plan's order.
        done: Positions of stages that are done.
        held: Stages that are neither: those that would fail again in the same way, and those that need them.
    """

    todo: list[Todo] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    held: list[Todo] = field(default_factory=list)


def reconcile(
    plan: Plan, store: Store, retry: Collection[str] = (), cancelled: Mapping[Node, str] = _NONE
) -> Reconciled:
    """Compare a plan with the store.

    Failed stages run again where `decide` says so. The others, e.g. those that diverged, are held back, and so is what
    needs them: the hole in the leaderboard is their result until a person asks.

    Args:
        plan: Stages in `KINDS` order, so that inputs come before what needs them.
        store: The store.
        retry: Failure kinds that run again although they are held back; `cancelled` for what was cancelled.
        cancelled: Stages that a person cancelled, and how; they are held back while they are not published.

    Returns:
        What to run, what is done, what is held back.
    """
    result = Reconciled()
    wanted: dict[str, set[str]] = {}
    for stage in plan.stages:
        wanted.setdefault(stage.kind, set()).add(stage.key)
    published = {kind: store.published(kind, keys) for kind, keys in wanted.items()}
    tried = {kind: store.attempted(kind, keys) for kind, keys in wanted.items()}
    digests: dict[Node, str] = {}
    waiting: dict[Node, Todo] = {}
    causes: dict[Node, str] = {}  # of stages that are held back: the one whose failure it is, and how it failed
    for index, stage in enumerate(plan.stages):
        here, runs = stage.key in published[stage.kind], True
        todo: Todo | None
        if here:
            todo = _check(index, stage, store, digests, waiting)
        elif (stage.kind, stage.key) in cancelled and "cancelled" not in retry:
            todo, runs = Todo(index, "cancelled", cancelled[stage.kind, stage.key], kind="cancelled"), False
        elif stage.key in tried[stage.kind]:
            todo, runs = _unpublished(index, stage, store, retry)
        else:
            todo = Todo(index, "new")
        if todo is None:
            result.done.add(index)
            continue
        node, held = (stage.kind, stage.key), not runs
        cause = next((c for n in _inputs(stage) if (c := causes.get(n))), "") if causes else ""
        if cause:
            todo, held = Todo(index, "blocked", cause, here), True
        if held:
            causes[node] = cause or f"{stage.kind} {stage.key} {todo.reason}"
        waiting[node] = todo
        (result.held if held else result.todo).append(todo)
    return result


def _inputs(stage: Stage) -> list[Node]:
    return [(input_kind(role), key) for role, key in stage.inputs.items()]


def _check(index: int, stage: Stage, store: Store, digests: dict[Node, str], waiting: dict[Node, Todo]) -> Todo | None:
    """Why a published stage has to run again; None if it is done."""
    try:
        artifact = store.open(stage.kind, stage.key)
    except FileNotFoundError:  # another launch moved it away after the scan
        return Todo(index, "new")
    except Corrupt as error:
        return Todo(index, "corrupt", error.what, published=True)
    found, attempt = artifact.manifest["input_digests"], artifact.manifest["attempt"]
    for role, key in stage.inputs.items():
        node = (input_kind(role), key)
        if node in waiting:
            return Todo(index, "stale", f"input {role} {key} runs again", published=True, attempt=attempt)
        if node not in digests:
            digests[node] = store.open(*node).digest  # an input that the plan does not list
        if found.get(role) != digests[node]:
            return Todo(index, "stale", f"input {role} {key} changed", published=True, attempt=attempt)
    if set(found) != set(stage.inputs):
        return Todo(index, "stale", "made from other inputs", published=True, attempt=attempt)
    digests[stage.kind, stage.key] = artifact.digest
    return None


def _unpublished(index: int, stage: Stage, store: Store, retry: Collection[str]) -> tuple[Todo, bool]:
    """A stage that was attempted and has no artifact, and whether it runs again."""
    try:
        own = [r for r in store.failures(stage.kind, stage.key) if not r.blocked]
    except (OSError, ValueError, TypeError) as error:
        return Todo(index, "failed", f"infra: the record of a failed attempt cannot be read: {error}"), True
    last = own[-1].failure if own else None
    if last is None:
        return Todo(index, "new"), True
    decision = decide(own, retry)
    if last["kind"] == "numeric" and not decision.retry:
        return Todo(index, "diverged", last["message"], kind="numeric"), False
    detail = f"{last['kind']}: {last['message']}"
    return Todo(index, "failed", detail, False, decision.exclude_nodes, last["kind"]), decision.retry


def clear_published(plan: Plan, store: Store, todo: Sequence[Todo]) -> int:
    """Move the corrupt and superseded artifacts of stages that will run out of their places.

    What another launch has published in the meantime stays: it is not what was looked at.

    Returns:
        How many.
    """
    moved = 0
    for item in todo:
        if item.published:
            stage = plan.stages[item.index]
            try:
                if store.open(stage.kind, stage.key).manifest["attempt"] != item.attempt:
                    continue
            except Corrupt:
                pass
            except FileNotFoundError:
                continue
            why = item.why if item.why in ("corrupt", "stale") else "superseded"
            moved += store.quarantine(stage.kind, stage.key, why) is not None
    return moved
