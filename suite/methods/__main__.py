"""What methods there are, and what they do by default: every one in a few lines, or some in full.

python -m suite.methods [NAME ...] [--json]
"""

from __future__ import annotations

import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from textwrap import fill
from typing import Any

from suite.errors import Parser, guarded, one_line
from suite.methods import Method, broken, discover, get, parameters
from suite.spec.datasets import REGISTRY
from suite.spec.keys import plain

WIDTH = 120
#: The cell whose student recipe is shown, on every dataset.
SHOWN_IPC, SHOWN_STUDENT = 10, "resnet18"


def facts(cls: type[Method]) -> dict[str, Any]:
    """What there is to say about a method, as JSON types; all of it is read from the class."""
    policies = {base: cls.label_policy(base, "paper") for base in REGISTRY}
    return {
        "name": cls.name,
        "paper": cls.paper,
        "version": cls.version,
        "summary": summary(cls),
        "needs": sorted(cls.needs),
        "deterministic": cls.deterministic,
        "labels": cls.labels,
        "labels_by_dataset": {base: policy for base, policy in policies.items() if policy != cls.labels},
        "stages": list(cls.stages(cls.labels)),
        "stages_matched": list(cls.stages("hard" if cls.labels == "hard" else "online")),
        "defaults": plain(parameters(cls)),
        "paper_values": [
            {"dataset": base, "ipc": ipc, "values": plain(values)} for (base, ipc), values in cls.paper_values.items()
        ],
        "teachers": plain(dict(cls.paper_teachers)),
        "label_teachers": plain(dict(cls.paper_label_teachers)),
        "image_iterations": {base: cls.for_dataset(base, SHOWN_IPC).image_iterations(SHOWN_IPC) for base in REGISTRY},
        "label_teacher_recipe": by_dataset(lambda m, base: dict(m.label_teacher(base, SHOWN_IPC)), cls),
        "label_recipe": by_dataset(
            lambda m, base: changes(m.label_recipe(base, REGISTRY[base].classes, SHOWN_IPC)), cls
        ),
        "student_recipe": by_dataset(
            lambda m, base: changes(m.recipe(base, REGISTRY[base].classes, SHOWN_IPC, SHOWN_STUDENT)), cls
        ),
    }


def by_dataset(read: Any, cls: type[Method]) -> dict[str, Any]:
    """What a method says about each dataset at IPC 10, as JSON types; nothing for datasets on which it says nothing."""
    found = {base: plain(read(cls.for_dataset(base, SHOWN_IPC), base)) for base in REGISTRY}
    return {base: value for base, value in found.items() if value}


def changes(recipe: Any) -> dict[str, Any]:
    """The fields of a recipe that differ from its defaults."""
    default = type(recipe)()
    return {
        f.name: getattr(recipe, f.name) for f in fields(recipe) if getattr(recipe, f.name) != getattr(default, f.name)
    }


def summary(cls: type[Method]) -> str:
    """The first paragraph of the docstring, in one line."""
    return one_line(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0])


def words(values: Mapping[str, Any]) -> str:
    """`lr=0.1 crop=[0.08,1]`: values as a grid writes them."""
    return " ".join(f"{name}={word(value)}" for name, value in values.items()) or "-"


def word(value: Any) -> str:
    """One value without spaces, so that lines wrap between values."""
    return (one_line(value) or "''") if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def entry(label: str, text: str) -> str:
    """A labelled, wrapped line of a method's block."""
    head = f"  {label:<10}"
    return fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def brief(about: Mapping[str, Any]) -> str:
    """A method in a few lines."""
    labels = "; ".join([about["labels"], *(f"{p} on {b}" for p, b in grouped(about["labels_by_dataset"]))])
    return "\n".join(
        [
            f"{about['name']}  {about['paper']}  version {about['version']}",
            entry("", about["summary"]),
            entry("stages", " -> ".join(about["stages"])),
            entry("needs", ", ".join(about["needs"]) or "nothing"),
            entry("labels", labels),
            entry("defaults", words(about["defaults"])),
        ]
    )


def full(cls: type[Method]) -> str:
    """A method with its docstring and what its paper says, dataset by dataset."""
    about = facts(cls)
    lines = [
        f"{cls.name}  {cls.paper}  version {cls.version}  {cls.__module__.replace('.', '/')}.py",
        "",
        inspect.cleandoc(cls.__doc__ or ""),
    ]
    runs = {f"protocol {p}": " -> ".join(about[key]) for p, key in (("paper", "stages"), ("matched", "stages_matched"))}
    lines += section("stages", runs.items())
    lines += section("defaults", [("*", words(about["defaults"]))])
    rows = [
        (v["dataset"] + (f" ipc {v['ipc']}" if v["ipc"] is not None else ""), words(v["values"]))
        for v in about["paper_values"]
    ]
    lines += section("paper values", rows)
    policies = [(bases, policy) for policy, bases in grouped(about["labels_by_dataset"])]
    if any(about["image_iterations"].values()):
        counts = [(bases, count) for count, bases in grouped(about["image_iterations"])]
        lines += section(f"updates of an image, IPC {SHOWN_IPC}", counts)
    lines += section("labels", [("*", cls.labels), *policies])
    for name in ("teachers", "label_teachers"):
        lines += section(
            name.replace("_", " "), [(bases, ", ".join(json.loads(a))) for a, bases in grouped(about[name])]
        )
    for name in ("label_teacher_recipe", "label_recipe", "student_recipe"):
        title = f"{name.replace('_', ' ')}, as it differs from the default, IPC {SHOWN_IPC}"
        lines += section(title, [(bases, words(json.loads(v))) for v, bases in grouped(about[name])])
    return "\n".join(lines)


def grouped(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Values (as JSON where they are not text) and the datasets that share each."""
    found: dict[str, list[str]] = defaultdict(list)
    for base, value in table.items():
        found[value if isinstance(value, str) else json.dumps(value)].append(base)
    return [(value, ", ".join(bases)) for value, bases in found.items()]


def section(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    """A titled list of datasets and what holds on them; nothing where there is nothing to say."""
    lines: list[str] = []
    for where, text in rows:
        if len(where) > 22:
            lines += [f"  {where}", fill(text, WIDTH, initial_indent=" " * 26, subsequent_indent=" " * 26)]
        else:
            lines.append(fill(text, WIDTH, initial_indent=f"  {where:<24}", subsequent_indent=" " * 26))
    return ["", title, *lines] if lines else []


def list_methods(names: Iterable[str] = (), *, as_json: bool = False) -> None:
    """Print every method, or some in full; files that cannot be imported are named on standard error.

    Raises:
        UserError: If a name is unknown.
    """
    wanted = [get(name) for name in names]
    chosen = wanted or [cls for _, cls in sorted(discover().items())]
    if as_json:
        print(json.dumps([facts(cls) for cls in chosen], indent=2))
    else:
        print(
            ("\n\n" + "-" * WIDTH + "\n").join(map(full, chosen))
            if wanted
            else "\n\n".join(map(brief, map(facts, chosen)))
        )
    for name, why in broken().items():
        print(f"suite/methods/{name}.py cannot be imported: {one_line(why)}", file=sys.stderr)


def main() -> int:
    """The command line."""
    parser = Parser(prog="python -m suite.methods", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods to show in full; all of them briefly if none")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    list_methods(arguments.names, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    guarded(main)
