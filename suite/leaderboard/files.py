"""The files of a report that hold its tables: CSV, Parquet, Markdown, LaTeX, and JSON for machines.

| file | what |
|---|---|
| SLUG.csv, SLUG.md | a table, for spreadsheets and for reading |
| parquet/SLUG.parquet | the same table, typed |
| latex/SLUG.tex | the same table, for papers |
| parquet/rows.parquet | every single row with its provenance (`compact`) |
| report.json | all tables, holes and refusals |
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from suite.leaderboard.formats import plain_frame, to_csv, to_markdown
from suite.leaderboard.latex import to_latex
from suite.leaderboard.rows import Rows
from suite.leaderboard.tables import Table

#: Version of the layout of report.json.
SCHEMA = 1
ROWS = "parquet/rows.parquet"


def table_files(name: str, rows: Rows, tables: list[Table]) -> dict[str, bytes]:
    """All of these files: path below the report's folder to content. The same rows give the same bytes.

    Args:
        name: Of the grid.
        rows: What the tables were made from.
        tables: The tables.
    """
    files: dict[str, bytes] = {}
    for table in tables:
        files[f"{table.slug}.csv"] = to_csv(table).encode()
        files[f"{table.slug}.md"] = to_markdown(table, rows, name).encode()
        files[f"latex/{table.slug}.tex"] = to_latex(table, name).encode()
        files[f"parquet/{table.slug}.parquet"] = to_parquet(plain_frame(table))
    files[ROWS] = to_parquet(rows.frame)
    files["report.json"] = to_json(name, rows, tables)
    return files


def to_parquet(frame: pd.DataFrame) -> bytes:
    """A typed frame as Parquet with checksums in its pages; nothing in it tells when or by which pandas."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    kinds = [pa.string() if any(is_(f.type) for is_ in text) else f.type for f in table.schema]
    schema = pa.schema([pa.field(f.name, kind) for f, kind in zip(table.schema, kinds, strict=True)])
    out = io.BytesIO()
    pq.write_table(
        table.cast(schema).replace_schema_metadata(None), out, compression="zstd", write_page_checksum=True,
        store_schema=False,
    )  # fmt: skip
    return out.getvalue()


def to_json(name: str, rows: Rows, tables: list[Table]) -> bytes:
    """Everything that the tables say, for machines; angle brackets and ampersands are spelt out, inert in HTML too."""
    parts = [_table_json(table) for table in tables]
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "holes": [asdict(h) for h in rows.holes],
        "refused": [asdict(r) for r in rows.refused],
        "excluded": [{"cells": n, "why": why} for n, why in rows.excluded],
    }
    text = json.dumps(head)[:-1] + ', "tables": [\n' + ",\n".join(parts) + "\n]}\n"
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


def _table_json(table: Table) -> str:
    columns = [{"name": c.name, "header": c.header, "form": c.form, "help": c.help} for c in table.columns if c.csv]
    head = {"slug": table.slug, "title": table.title, "section": table.section, "caption": table.caption,
            "columns": columns}  # fmt: skip
    lines = plain_frame(table).to_json(orient="records", double_precision=10, lines=False)
    return f'{json.dumps(head)[:-1]}, "lines": {lines}}}'
