"""The files of a report: LaTeX that compiles, equal bytes, and hostile text that stays text in each of them."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.leaderboard.files import ROWS, table_files, to_parquet
from suite.leaderboard.formats import csv_text
from suite.leaderboard.latex import latex_text, to_latex
from suite.leaderboard.make import Beside, make
from suite.leaderboard.published import Published
from suite.leaderboard.rows import Rows, collect
from tests.leaderboard.factory import grid, record
from tests.leaderboard.test_formats import hostile_rows, sample

PAPERS = Published(Path(__file__).resolve().parents[2] / "results" / "published.csv")
WORST = [
    "<script>alert(1)</script>",
    "\\input{/etc/passwd}",
    "=cmd()",
    "\x1b[31mred",
    "$x_1^2$ & 50 % #1 ~ | -- {[",
    "é中🎉",
]
TEX = shutil.which("pdflatex")


def everything() -> tuple[Rows, dict[str, bytes]]:
    matched = [record(m, 10, s, protocol="matched") for m in ("rded", "e2d") for s in range(2)]
    rows = collect([*grid(students=("resnet18", "mobilenet_v2")), *matched])
    keys = {key: 0.5 for key in rows.frame["synthesis_key"].unique()}
    return rows, table_files("sample", rows, make(rows, Beside(PAPERS, {"resnet18": keys})))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return everything()[1]


def worst() -> dict[str, bytes]:
    rows = hostile_rows()
    for column, text in zip(("method", "dataset", "teacher", "student", "protocol", "device"), WORST, strict=True):
        rows.frame[column] = pd.array([text] * len(rows.frame), dtype="string")
    double = pd.concat([rows.frame, rows.frame.assign(student=WORST[0], method=WORST[2])], ignore_index=True)
    return table_files(WORST[1], Rows(double, rows.holes, rows.refused, rows.excluded), make(Rows(double, rows.holes)))


def test_every_table_has_every_format(files: dict[str, bytes]) -> None:
    slugs = {"accuracy", "synthesis_time", "storage", "equal_bytes", "accuracy_time", "generalisation", "protocols",
             "diversity", "published", "contradictions"}  # fmt: skip
    assert set(files) == {ROWS, "report.json"} | {
        name for s in slugs for name in (f"{s}.csv", f"{s}.md", f"latex/{s}.tex", f"parquet/{s}.parquet")
    }


def test_a_second_run_gives_the_same_bytes(files: dict[str, bytes]) -> None:
    again = everything()[1]
    assert {n for n in files if files[n] != again[n]} == set()


def test_parquet_and_json_say_what_the_csv_says(files: dict[str, bytes]) -> None:
    csv = pd.read_csv(io.BytesIO(files["accuracy.csv"]))
    typed = pq.read_table(io.BytesIO(files["parquet/accuracy.parquet"])).to_pandas()
    assert list(csv.columns) == list(typed.columns) and len(csv) == len(typed)
    assert typed["mean"].to_numpy() == pytest.approx(csv["mean"].to_numpy(), rel=1e-9)
    tables = {t["slug"]: t for t in json.loads(files["report.json"])["tables"]}
    assert [x["mean"] for x in tables["accuracy"]["lines"]] == pytest.approx(csv["mean"].tolist(), rel=1e-9)
    assert [c["name"] for c in tables["accuracy"]["columns"]] == list(csv.columns)


def test_rows_are_in_parquet_with_their_provenance(files: dict[str, bytes]) -> None:
    rows = pq.read_table(io.BytesIO(files[ROWS])).to_pandas()
    assert {"key", "commit", "seed", "loader", "evaluation_device", "versions"} <= set(rows.columns)
    assert not rows[["key", "commit", "loader"]].isna().any().any()


def test_the_best_of_a_block_is_bold_and_the_second_underlined() -> None:
    rows = collect(
        [record(m, accuracy=a) for m, a in (("e2d", 50.0), ("rded", 50.001), ("random", 20.0), ("cda", 10.0))]
    )
    text = to_latex(make(rows)[0], "x")
    assert text.count(r"\textbf{50.00}") == 2, "equal as they are shown"
    assert text.count(r"\underline{20.00}") == 1 and r"{10.00}" not in text


@pytest.mark.skipif(TEX is None, reason="no pdflatex; Debian: .ci/system-packages tex")
@pytest.mark.parametrize("hostile", [False, True])
def test_latex_compiles_as_it_is_and_as_a_part(files: dict[str, bytes], tmp_path: Path, hostile: bool) -> None:
    found = {Path(n).stem: b for n, b in (worst() if hostile else files).items() if n.endswith(".tex")}
    assert len(found) >= 5
    for name, data in found.items():
        (tmp_path / f"{name}.tex").write_bytes(data)
    inputs = "\n".join(rf"\input{{{name}.tex}}" for name in found)
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,longtable,array}\\begin{document}\n"
        + inputs
        + "\n\\end{document}"
    )
    for name in ("accuracy", "generalisation" if not hostile else "storage", "paper"):
        done = subprocess.run(
            [str(TEX), "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", f"{name}.tex"],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, errors="replace",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-1500:]
        assert "passwd" not in re.sub(r"\s", "", "".join(re.findall(r"\(([^()\s]+)", done.stdout)))
        assert (tmp_path / f"{name}.pdf").stat().st_size > 1000


def test_hostile_names_are_inert_in_every_file() -> None:
    for name, data in worst().items():
        if name.endswith(".parquet"):
            continue  # typed bytes; nothing shows or runs them
        text = data.decode()
        assert "\x1b" not in text and "\u202e" not in text, name
        if not name.endswith((".tex", ".csv")):
            assert "<script" not in text, name
        if name.endswith(".csv"):
            cells = re.split(r"[,\n]", text.replace('"', ""))
            assert not [c for c in cells if c.lstrip()[:1] in ("=", "@", "+")], name
        if name.endswith(".tex"):
            assert r"\input{/etc" not in text and "<script" not in text, name


#: What a LaTeX text may hold besides plain characters: escapes that this module writes.
_SAFE = re.compile(
    r"\\text(?:backslash|less|greater|bar)\{\}|\\[{}$&#%_]|\\[\^~`]\{\}|\{[\[\]]\}|-\{\}|\$\\(?:pm|times|mu|rightarrow)\$"
)


@given(st.text(max_size=80))
def test_latex_text_has_no_command_but_escapes(text: str) -> None:
    rest = _SAFE.sub("", latex_text(text))
    assert rest.isascii() and not re.search(r"[\\{}$&#%_^~<>|\"`]", rest.replace("''", ""))


@given(st.text(max_size=60))
def test_no_csv_text_is_a_formula(text: str) -> None:
    assert csv_text(text).lstrip()[:1] not in ("=", "+", "-", "@", "\\", "\t", "\r")


def test_parquet_has_neither_time_nor_host() -> None:
    data = to_parquet(sample().frame)
    assert pq.read_schema(io.BytesIO(data)).metadata is None
    assert data == to_parquet(sample().frame)
