"""Show how far a grid is: which stages are done, run, wait or failed, and why.

    python -m suite.status GRID [--json]

Right from artifacts alone; where Slurm answers, its word is added, by one query.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from suite.cluster.profile import find_profile, load_profile
from suite.cluster.show import clean, plural, say, table
from suite.cluster.states import STATES, State, states
from suite.errors import Parser, guarded
from suite.grid import MAX_CELLS, load_plan
from suite.spec.stages import KINDS
from suite.store import Store

_SHOWN = 20


def main() -> int:
    """Parse, look, print. Returns 0 whatever the state: it was shown."""
    parser = Parser(prog="python -m suite.status", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", type=Path, metavar="GRID")
    parser.add_argument("--variant", metavar="NAME", help="one of the grid's variants")
    parser.add_argument("--profile", default="local", metavar="NAME", help="site profile: slurm/NAME.yaml, or a file")
    parser.add_argument("--store", metavar="DIR", help="root of the store, instead of the profile's")
    parser.add_argument("--json", action="store_true", help="every stage, for programs")
    parser.add_argument("--all", action="store_true", help=f"list every open stage, not the first {_SHOWN}")
    arguments = parser.parse_args()
    profile = load_profile(find_profile(arguments.profile), store=arguments.store)
    plan = load_plan(arguments.grid, variant=arguments.variant, max_cells=MAX_CELLS)
    found, note = states(plan, Store(Path(profile.store).absolute()))
    if arguments.json:
        print(json.dumps(as_json(plan.name, found, note), indent=1))
    else:
        show(plan.name, found, note, None if arguments.all else _SHOWN)
    return 0


def as_json(name: str, found: list[State], note: str) -> dict[str, object]:
    """The state of a grid for programs."""
    stages = [
        {"kind": s.stage.kind, "key": s.stage.key, "label": s.stage.label(), "state": s.state, "detail": s.detail}
        for s in found
    ]
    return {"schema": 1, "grid": name, "note": note, "counts": Counter(s.state for s in found), "stages": stages}


def show(name: str, found: list[State], note: str, limit: int | None) -> None:
    """Print counts by kind and the stages that are not done."""
    counts = Counter((s.stage.kind, s.state) for s in found)
    present = [state for state in STATES if any(s.state == state for s in found)]
    kinds = [k for k in KINDS if any(s.stage.kind == k for s in found)]
    say(f"{name}: {plural(len(found), 'stage')}")
    table(["stage", *present], [[kind, *(counts[kind, state] for state in present)] for kind in kinds])
    rank = {state: i for i, state in enumerate(("failed", "diverged", "running", "pending", "blocked", "missing"))}
    left = sorted((s for s in found if s.state != "done"), key=lambda s: rank[s.state])
    if left:
        rows = [[s.state, s.stage.kind, s.stage.key, s.stage.label(), clean(s.detail)] for s in left[:limit]]
        table(["state", "stage", "key", "", "detail"], rows)
        if len(left) > len(rows):
            say(f"... and {len(left) - len(rows)} more; --all lists them")
    if note:
        say(note)


if __name__ == "__main__":
    guarded(main)
