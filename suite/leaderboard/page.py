"""The page: one HTML file with everything that its tables and plots need, and side files that it loads when asked.

It opens from disk, needs no network and no build step, and allows itself nothing else: its content security policy
names the digests of its one script and its one style sheet.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from suite.leaderboard.details import index, side_files
from suite.leaderboard.embed import embed, facets, script_json
from suite.leaderboard.formats import clean, legend, remarks
from suite.leaderboard.gallery import Gallery
from suite.leaderboard.points import points
from suite.leaderboard.rows import Rows
from suite.leaderboard.statistics import groups, plain_records
from suite.leaderboard.tables import Table
from suite.store import Store

_TEMPLATES = Path(__file__).resolve().parent / "templates"
#: Parts of the page's script, in the order in which they need each other.
_SCRIPTS = ("state.js", "tables.js", "plots.js", "gallery.js", "cell.js", "main.js")
#: Folders beside the page.
FOLDERS = ("rows", "gallery")
#: Headings of the page's sections, in order.
SECTIONS = {"boards": "Leaderboards", "crossings": "Crossings", "papers": "Papers", "history": "History"}


@cache
def _environment() -> jinja2.Environment:
    """Autoescaping, strict about names, and without access to anything but its own templates."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(legend=legend)
    environment.filters["clean"] = clean
    return environment


def site(
    name: str,
    rows: Rows,
    tables: Sequence[Table],
    *,
    store: Store | None = None,
    gallery: Gallery | None = None,
    files: Iterable[str] = (),
    grouped: pd.DataFrame | None = None,
) -> dict[str, bytes]:
    """The page and its side files, by name.

    Args:
        name: Of the grid.
        rows: What the tables were made from.
        tables: The tables, in order.
        store: Where records and logs of single rows lie.
        gallery: Pictures; without them the page has no gallery.
        files: Other files of the report, which the page links to.
        grouped: `statistics.groups` of the rows, where that was done already.
    """
    made = {**side_files(rows, store), **(gallery.files if gallery else {})}
    return {"index.html": page(name, rows, tables, gallery, files, grouped).encode(), **made}


def page(
    name: str,
    rows: Rows,
    tables: Sequence[Table],
    gallery: Gallery | None = None,
    files: Iterable[str] = (),
    grouped: pd.DataFrame | None = None,
) -> str:
    """The page itself; arguments as for `site`."""
    grouped = groups(rows) if grouped is None else grouped
    names = sorted(files)
    data = {
        "tables": [embed(t) for t in tables],
        "facets": facets(rows),
        "points": points(rows, grouped),
        **index(rows),
        "gallery": gallery.body if gallery else None,
    }
    style = _file("page.css")
    script = '"use strict";\n{\n' + "\n".join(_file(s) for s in _SCRIPTS) + "}\n"
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            name=clean(name),
            sections=[(SECTIONS[s], [t for t in tables if t.section == s]) for s in SECTIONS],
            tables=tables,
            downloads={t.slug: _downloads(t.slug, names) for t in tables},
            files=names,
            gallery=gallery,
            facts=facts(rows, grouped),
            remarks=remarks(rows),
            summary=provenance(rows),
            data=script_json(data),
            style=Markup(style),
            style_hash=_digest(style),
            script=Markup(script),
            script_hash=_digest(script),
        )
    )


def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _downloads(slug: str, names: Iterable[str]) -> list[str]:
    """The files of a table, those beside the page first."""
    found = [n for n in names if n.rpartition("/")[2].startswith(f"{slug}.")]
    return sorted(found, key=lambda n: (n.count("/"), n))


def _digest(text: str) -> str:
    """What a content security policy calls a text by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def facts(rows: Rows, grouped: pd.DataFrame) -> list[tuple[str, str]]:
    """The numbers at the head of the page: (label, value)."""
    f = rows.frame
    found: list[tuple[str, int]] = [
        ("methods", f["method"].nunique()),
        ("datasets", f["dataset"].nunique()),
        ("cells", int((grouped["n"] > 0).sum())),
        ("rows", len(f)),
        ("holes", len(rows.holes)),
    ]
    if rows.refused:
        found.append(("refused", len(rows.refused)))
    if uncommitted := int((f["dirty"].fillna("") != "").sum()):
        found.append(("rows from uncommitted code", uncommitted))
    return [(label.removesuffix("s") if count == 1 else label, f"{count:,}") for label, count in found]


def provenance(rows: Rows) -> list[tuple[str, list[tuple[str, int]]]]:
    """Where the rows come from: (what, [(value, number of rows)])."""
    f = rows.frame
    commits = f[["commit", "dirty"]].value_counts(dropna=False).reset_index()
    told = [
        (f"{c['commit']} + uncommitted {c['dirty']}" if c["dirty"] else c["commit"], c["count"])
        for c in plain_records(commits)
    ]
    named: list[tuple[str, Iterable[tuple[Any, int]]]] = [("Code commit", told)]
    for what, name in (
        ("Evaluation device", "evaluation_device"),
        ("Synthesis device", "device"),
        ("Loader", "loader"),
        ("Precision", "precision"),
        ("Versions", "versions"),
    ):
        named.append((what, f[name].value_counts(dropna=name == "device").items()))
    counted = [(what, sorted((clean(v), int(n)) for v, n in values)) for what, values in named]
    return [(what, values) for what, values in counted if values]
