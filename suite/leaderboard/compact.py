"""Compacted rows: many rows in one Parquet file, so that a million of them are read in seconds.

<store>/compact/rows-<32 hex>.parquet      rows of a store, each with the mark of the files that it was made from
reports/<grid>/parquet/rows.parquet        rows of a report, to be kept, sent, compared with (`--rows`, `--against`)

A store's file is a memory, never a source. Its name is the SHA-256 of its bytes, so that one that is half-written, cut
or damaged is recognised and ignored. A row in it counts while the mark of its artifact is what it was when every byte
of the artifact was verified, and while the code that makes rows is the same; all others are made again from their
records. Losing the file loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from suite.errors import DataError
from suite.leaderboard.files import to_parquet
from suite.leaderboard.rows import COLUMNS, typed
from suite.spec.keys import digest
from suite.store import SCHEMA, Store
from suite.store.files import sha256, write_bytes

FOLDER = "compact"
#: Largest file that is believed to be rows: a million are some 60 MB.
MAX_BYTES = 8 << 30
_EXTRA = {"mark": "string", "whole": "boolean", "maker": "string"}


@cache
def maker() -> str:
    """Identifies the code that makes rows from records, and the records' schema."""
    here = Path(__file__).resolve().parent
    sources = b"".join((here / name).read_bytes() for name in ("rows.py", "compact.py"))
    return digest(sources + str(SCHEMA).encode())[:16]


def read_compacted(store: Store) -> pd.DataFrame:
    """Rows that a store remembers: `COLUMNS`, `mark` and `whole`; empty where none can be believed."""
    best: pd.DataFrame | None = None
    for path in sorted((store.root / FOLDER).glob("rows-*.parquet")):
        with suppress(OSError, ValueError, KeyError, pa.ArrowException):
            if path.stat().st_size > MAX_BYTES or sha256(path)[:32] != path.stem.removeprefix("rows-"):
                continue
            frame = _typed(pq.read_table(path).to_pandas(types_mapper=_text), {**COLUMNS, **_EXTRA})
            frame = frame[(frame["maker"] == maker()).to_numpy(dtype=bool, na_value=False)]
            if best is None or len(frame) > len(best):
                best = frame
    if best is None:
        return typed([], {**COLUMNS, **_EXTRA}).drop(columns="maker")
    return best.drop(columns="maker").reset_index(drop=True)


def write_compacted(store: Store, frame: pd.DataFrame) -> None:
    """Remember rows; a store that may not be written to is read row by row the next time.

    Args:
        store: Of the rows.
        frame: `COLUMNS` as `rows.lines_of` makes them, `mark`, and `whole`: whether the row's synthesis was known,
            which its setting depends on.
    """
    data = to_parquet(frame.assign(maker=pd.array([maker()] * len(frame), dtype="string")))
    folder = store.root / FOLDER
    name = f"rows-{digest(data)[:32]}.parquet"
    with suppress(DataError, OSError):
        write_bytes(folder / name, data)
        for old in folder.glob("rows-*.parquet"):
            if old.name != name:
                old.unlink(missing_ok=True)


def read_rows(path: Path) -> pd.DataFrame:
    """Rows of a Parquet file that a report wrote.

    Raises:
        DataError: If it is not such a file, or damaged.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        missing = {"method", "accuracy_last", "key", "commit"} - set(table.column_names)
        if missing:
            raise DataError(f"no column {', '.join(sorted(missing))}: not rows of a report", where=str(path))
        # A million rows are held once: the table is taken apart while the frame is built.
        frame = table.to_pandas(types_mapper=_text, self_destruct=True, split_blocks=True)
        del table
        return _typed(frame, COLUMNS)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(f"not rows of a report ({type(error).__name__})", where=str(path)) from error


def _text(kind: pa.DataType) -> pd.StringDtype | None:
    return pd.StringDtype() if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _typed(frame: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The columns of today, in order; those that a file of an older suite lacks are empty."""
    data = {}
    for name, kind in columns.items():
        column = frame[name] if name in frame else pd.Series([pd.NA] * len(frame))
        data[name] = column if str(column.dtype) == kind else column.astype(kind)  # type: ignore[call-overload]
    return pd.DataFrame(data)


def concatenated(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other; empty ones do not count."""
    kept = [f for f in frames if len(f)]
    return pd.concat(kept, ignore_index=True) if kept else typed([], COLUMNS)
