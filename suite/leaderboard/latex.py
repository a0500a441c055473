r"""Tables as LaTeX: booktabs, the best value of a block bold, the second underlined.

A file compiles as it is (`pdflatex accuracy.tex`, with nothing but LaTeX's own packages and booktabs), and can be
`\input` in a paper that loads booktabs, longtable and array: what only a document of its own needs is skipped there.
"""

from __future__ import annotations

from typing import Any

from suite.leaderboard.formats import HOLE, clean, shown
from suite.leaderboard.tables import Column, Table

#: Lines of a LaTeX table; CSV and Parquet files have all.
MAX_LINES = 300
#: Text columns that are wider than this many characters are set as paragraphs.
_WIDE = 30
_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\^{}", "~": r"\~{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"''",
    "`": r"\`{}", "-": r"-{}", "[": r"{[}", "]": r"{]}", "±": r"$\pm$", "×": r"$\times$", "µ": r"$\mu$",
    "→": r"$\rightarrow$",
}  # fmt: skip
_HEAD = r"""\makeatletter
\ifx\documentclass\@twoclasseserror\def\suiteend{}\else\def\suiteend{\end{document}}
\documentclass{article}
\usepackage[a3paper,landscape,margin=12mm]{geometry}
\usepackage{booktabs,longtable,array}
\begin{document}
\fi\makeatother
"""


def latex_text(text: Any, longest: int = 300) -> str:
    """Text that LaTeX prints as it is: no command, no group, no comment; what its fonts may lack becomes `U+1F600`."""
    plain = clean(text, longest)
    return "".join(_ESCAPES.get(c) or (c if c.isascii() else f"U+{ord(c):04X}") for c in plain)


def to_latex(table: Table, name: str) -> str:
    """A table as LaTeX: at most `MAX_LINES` lines, what is the same on all of them in the caption, notes below it."""
    lines = table.lines(0, MAX_LINES)
    constant = table.constant()
    columns = [
        c
        for c in table.columns
        if c.shown and c.name not in constant and any(line[c.name] not in (None, "", []) for line in lines)
    ] or [table.columns[0]]
    texts = [[_cell(c, line[c.name]) for c in columns] for line in lines]
    for j, column in enumerate(columns):
        for i, command in _marks(table, column, lines).items():
            texts[i][j] = f"\\{command}{{{texts[i][j]}}}"
    head = " & ".join(latex_text(c.header) for c in columns) + r" \\"
    same = [f"{c.header} {shown(c, constant[c.name])}" for c in table.columns if c.shown and c.name in constant]
    caption = ". ".join([f"{table.title}: {name}", *([", ".join(same)] if same else [])]) + ". " + table.caption
    body = [f"% {clean(table.title)}: compiles as it is; or \\input it with booktabs, longtable and array loaded"]
    body += [_HEAD.rstrip(), r"\begingroup\small\setlength{\tabcolsep}{4pt}", r"\setlength{\LTcapwidth}{\linewidth}"]
    body += [rf"\begin{{longtable}}{{{''.join(_alignment(c, lines) for c in columns)}}}"]
    body += [rf"\caption{{{latex_text(caption, 2000)}}}\\", r"\toprule", head, r"\midrule\endfirsthead"]
    body += [r"\toprule", head, r"\midrule\endhead", r"\bottomrule\endfoot"]
    for line, cells in zip(lines, texts, strict=True):
        body += [*([r"\midrule"] if line["break"] else []), " & ".join(cells) + r" \\"]
    body += [r"\end{longtable}", *_below(table, lines), r"\par\endgroup", r"\suiteend"]
    return "\n".join(body) + "\n"


def _cell(column: Column, value: Any) -> str:
    text = shown(column, value)
    return "--" if text == HOLE else latex_text(text, 2 * column.longest)


def _alignment(column: Column, lines: list[dict[str, Any]]) -> str:
    if column.numeric and column.form != "notes":
        return "r"
    widest = max((len(shown(column, line[column.name])) for line in lines), default=0)
    return "l" if widest <= _WIDE else r">{\raggedright\arraybackslash}p{50mm}"


def _below(table: Table, lines: list[dict[str, Any]]) -> list[str]:
    found = []
    if len(table) > len(lines):
        found.append(rf"\noindent The first {len(lines)} of {len(table)} lines.\par")
    used = sorted({number for line in lines for number in line["notes"]})
    return found + [rf"\noindent {n}: {latex_text(table.footnotes[n - 1])}\par" for n in used]


def _marks(table: Table, column: Column, lines: list[dict[str, Any]]) -> dict[int, str]:
    """Lines whose value is the best of its block, or the second; equal as they are shown is equal."""
    found: dict[int, str] = {}
    if not column.best:
        return found
    blocks: list[list[int]] = []
    for i, line in enumerate(lines):
        if not blocks or line["break"]:
            blocks.append([])
        if line[column.name] is not None:
            blocks[-1].append(i)
    for block in blocks:
        order: dict[str, list[int]] = {}
        for i in sorted(block, key=lambda i: lines[i][column.name], reverse=column.best == "max"):
            order.setdefault(shown(column, lines[i][column.name]), []).append(i)
        if len(order) > 1:
            for command, same in zip(("textbf", "underline"), order.values(), strict=False):
                found |= dict.fromkeys(same, command)
    return found
