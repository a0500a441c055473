"""Show how far a grid is: which stages are done, run, wait or failed, and why.

    python -m suite.status GRID [--only method=e2d,ipc=10] [--watch] [--json]

Right from artifacts alone; where Slurm answers, its word is added, by one query.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections import Counter
from pathlib import Path

from suite.cluster.pace import Pace
from suite.cluster.profile import find_profile, load_profile
from suite.cluster.show import clean, plural, printed
from suite.cluster.states import STATES, Picture, State, states
from suite.errors import Parser, guarded
from suite.grid import MAX_CELLS, load_plan
from suite.grid.subset import subset
from suite.spec.stages import KINDS
from suite.store import Store

_SHOWN = 20
#: Seconds between two looks of `--watch`: after a change, and at most.
_WATCH = (30.0, 300.0)
#: What needs a person comes first.
_RANK = {s: i for i, s in enumerate(("failed", "diverged", "cancelled", "on hold", "preempted", "unknown"))}


def main() -> int:
    """Parse, look, print. Returns 0 whatever the state: it was shown."""
    parser = Parser(prog="python -m suite.status", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", type=Path, metavar="GRID")
    parser.add_argument("--variant", metavar="NAME", help="one of the grid's variants")
    parser.add_argument("--only", action="append", default=[], metavar="AXIS=VALUE,...", help="some of the cells")
    parser.add_argument("--profile", default="local", metavar="NAME", help="site profile: slurm/NAME.yaml, or a file")
    parser.add_argument("--store", metavar="DIR", help="root of the store, instead of the profile's")
    parser.add_argument("--all", action="store_true", help=f"list every open stage, not the first {_SHOWN}")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--json", action="store_true", help="every stage, for programs")
    action.add_argument("--watch", action="store_true", help="show again what changes, until nothing is in flight")
    arguments = parser.parse_args()
    if not arguments.watch:
        gc.disable()  # one look, and everything goes with the process
    profile = load_profile(find_profile(arguments.profile), store=arguments.store)
    plan = subset(load_plan(arguments.grid, variant=arguments.variant, max_cells=MAX_CELLS), arguments.only)
    store = Store(Path(profile.store).absolute())
    limit = None if arguments.all else _SHOWN
    if arguments.watch:
        from suite.cluster.watch import watch

        watch(lambda: states(plan, store), lambda picture: tables(picture, limit), Pace(*_WATCH), time.sleep)
    elif arguments.json:
        print(json.dumps(as_json(states(plan, store)), indent=1))
    else:
        printed(tables(states(plan, store), limit), sys.stdout)
    return 0


def as_json(picture: Picture) -> dict[str, object]:
    """The state of a grid for programs."""
    stages = [
        {
            "kind": s.stage.kind,
            "key": s.stage.key,
            "label": s.stage.label(),
            "state": s.state,
            "detail": s.detail,
            "job": s.job,
        }
        for s in picture.states
    ]
    return {
        "schema": 1,
        "grid": picture.name,
        "note": picture.note,
        "counts": Counter(s.state for s in picture.states),
        "excluded_nodes": picture.excluded,
        "stages": stages,
    }


def tables(picture: Picture, limit: int | None) -> list[object]:
    """What a person sees: counts by kind, the stages that are not done and why, and notes.

    Args:
        picture: The plan at one moment.
        limit: Most stages that are listed; None for all.

    Returns:
        Lines of text and (header, rows) of tables, in order.
    """
    found = picture.states
    counts = Counter((s.stage.kind, s.state) for s in found)
    totals = Counter(s.state for s in found)
    present = [state for state in STATES if totals[state]]
    kinds = [k for k in KINDS if any(counts[k, state] for state in present)]
    rows: list[list[object]] = [[kind, *(counts[kind, state] for state in present)] for kind in kinds]
    if len(kinds) > 1:
        rows.append(["total", *(totals[state] for state in present)])
    parts: list[object] = [f"{picture.name}: {plural(len(found), 'stage')}", (["stage", *present], rows)]
    left = sorted((s for s in found if s.state != "done"), key=_rank)
    if left:
        listed = [[s.state, s.stage.kind, s.stage.key, s.stage.label(), clean(s.detail)] for s in left[:limit]]
        parts.append((["state", "stage", "key", "", "why"], listed))
        if len(left) > len(listed):
            parts.append(f"... and {len(left) - len(listed):,} more; --all lists them")
    if picture.excluded:
        parts.append(f"nodes that failed stages avoid: {', '.join(picture.excluded)}")
    if picture.note:
        parts.append(picture.note)
    return parts


def _rank(state: State) -> int:
    return _RANK.get(state.state, len(_RANK) + STATES.index(state.state))


if __name__ == "__main__":
    guarded(main)
