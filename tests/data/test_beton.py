from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from suite.data.beton import ALLOCATION, FIELD, HEADER, SAMPLE, check_beton
from suite.data.sources import DigitsSource, select
from suite.data.writer import Samples, write_beton
from suite.errors import DataError
from suite.spec.datasets import REGISTRY

pytestmark = pytest.mark.ffcv
META = HEADER.itemsize + 2 * FIELD.itemsize


class Opened:
    """The parts of a beton, to be changed and written back."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        self.header = np.frombuffer(self.data, HEADER, 1)
        self.fields = np.frombuffer(self.data, FIELD, 2, HEADER.itemsize)
        count = int(self.header["samples"][0])
        self.samples = np.frombuffer(self.data, SAMPLE, count, META)
        self.table = np.frombuffer(self.data, ALLOCATION, count, int(self.header["table"][0]))


def put(array: np.ndarray, field: str, index: int, value: int) -> None:
    array[field][index] = value


DAMAGE: dict[str, Callable[[Opened], object]] = {
    "other version": lambda o: put(o.header, "version", 0, 1),
    "three fields": lambda o: put(o.header, "fields", 0, 3),
    "other field name": lambda o: put(o.fields["name"][0], slice(None), 0, 65),  # type: ignore[arg-type]
    "other field type": lambda o: put(o.fields, "type", 1, 0),
    "no page size": lambda o: put(o.header, "page", 0, 0),
    "odd page size": lambda o: put(o.header, "page", 0, (2 << 20) + 1),
    "no allocation table": lambda o: put(o.header, "table", 0, 0),
    "table in the metadata": lambda o: put(o.header, "table", 0, META),
    "table behind the end": lambda o: put(o.header, "table", 0, 1 << 60),
    "no samples": lambda o: put(o.header, "samples", 0, 0),
    "a sample less": lambda o: put(o.header, "samples", 0, 1441),
    "2**60 samples": lambda o: put(o.header, "samples", 0, 1 << 60),
    "label too large": lambda o: put(o.samples, "label", 7, 10),
    "label negative": lambda o: put(o.samples, "label", 7, -1),
    "image not square": lambda o: put(o.samples["image"], "width", 3, 17),
    "unknown coding": lambda o: put(o.samples["image"], "mode", 3, 2),
    "address outside": lambda o: put(o.samples["image"], "pointer", 3, 1 << 40),
    "address of another": lambda o: put(o.samples["image"], "pointer", 3, int(o.samples["image"]["pointer"][4])),
    "allocation outside": lambda o: put(o.table, "pointer", 5, 1 << 40),
    "allocation too large": lambda o: put(o.table, "size", 5, 1 << 40),
    "allocation too small": lambda o: put(o.table, "size", 5, 767),
    "sample listed twice": lambda o: put(o.table, "sample", 5, 4),
    "sample out of range": lambda o: put(o.table, "sample", 5, 1 << 40),
}


def test_a_written_beton_passes_and_gives_its_labels(digits: Path):
    beton = check_beton(digits / "train.beton", classes=10, samples=1442, stored=16)
    labels = [int(i.label) for i in select(REGISTRY["digits"], DigitsSource()).train]
    assert beton.labels.tolist() == labels
    assert (beton.stored, beton.jpeg) == (16, False)


def test_our_layout_is_ffcvs():
    from ffcv.fields import IntField, RGBImageField
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type

    from suite.data.beton import VERSION

    assert VERSION == CURRENT_VERSION
    pairs = [(HEADER, HeaderType), (FIELD, FieldDescType), (ALLOCATION, ALLOC_TABLE_TYPE)]
    for ours, theirs in [*pairs, (SAMPLE, get_metadata_type([RGBImageField(), IntField()]))]:
        assert ours.itemsize == theirs.itemsize
        assert [ours.fields[n][1] for n in ours.names] == [theirs.fields[n][1] for n in theirs.names]


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_betons_are_refused_in_one_line(digits: Path, tmp_path: Path, name: str):
    opened = Opened(digits / "train.beton")
    DAMAGE[name](opened)
    path = tmp_path / "train.beton"
    path.write_bytes(opened.data)
    with pytest.raises(DataError) as error:
        check_beton(path, classes=10, samples=None, stored=16)
    assert "\n" not in error.value.line()
    assert str(path) in error.value.line()


@pytest.mark.parametrize("keep", [0, 1, 24, META - 1, META, 0.1, 0.5, 0.99, -24, -1])
def test_truncated_betons_are_refused(digits: Path, tmp_path: Path, keep: float):
    data = (digits / "train.beton").read_bytes()
    length = int(keep * len(data)) if isinstance(keep, float) else keep
    path = tmp_path / "train.beton"
    path.write_bytes(data[:length])
    with pytest.raises(DataError, match=r"beton (is empty|is truncated|has an allocation table)"):
        check_beton(path, classes=10)


def test_a_missing_beton_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        check_beton(tmp_path / "train.beton", classes=10)


@pytest.mark.parametrize("percent", [10, 50, 99])
def test_betons_whose_writer_stopped_midway_are_refused(tmp_path: Path, percent: int):
    class Stopping(Samples):
        def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
            for n, sample in enumerate(super().__iter__()):
                if n == len(self) * percent // 100:
                    raise KeyboardInterrupt
                yield sample

    source = DigitsSource()
    items = select(REGISTRY["digits"], source).train
    samples = Stopping(source, items, [0] * len(items), 96, 2, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        write_beton(tmp_path / "half.beton", samples, "raw")
    assert (tmp_path / "half.beton").stat().st_size > 0
    with pytest.raises(DataError, match="half-written"):
        check_beton(tmp_path / "half.beton", classes=10)


def test_a_beton_of_other_counts_classes_or_size_is_refused(digits: Path):
    path = digits / "val.beton"
    for expected, what in (({"samples": 354}, "355 images"), ({"stored": 32}, "16-pixel"), ({"classes": 9}, "label 9")):
        with pytest.raises(DataError, match=what):
            check_beton(path, **({"classes": 10} | expected))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_beton_of_150_gigabytes_is_checked_at_once(tmp_path: Path, damaged: bool):
    count, page, each = 1_281_167, 8 << 20, 115_000
    per_page = page // each
    first = -(-(META + count * SAMPLE.itemsize) // page) * page
    table = first + -(-count // per_page) * page
    places = np.arange(count)
    samples = np.zeros(count, SAMPLE)
    allocations = np.zeros(count, ALLOCATION)
    samples["image"]["width"] = samples["image"]["height"] = 256
    allocations["pointer"] = first + places // per_page * page + places % per_page * each
    samples["image"]["pointer"] = allocations["pointer"]
    samples["label"] = places % 1000
    allocations["sample"], allocations["size"] = places, each
    header = np.array([(2, 2, page, count, table)], HEADER)
    fields = np.zeros(2, FIELD)
    for k, (name, kind) in enumerate((("image", 2), ("label", 1))):
        fields["type"][k] = kind
        fields["name"][k][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    if damaged:
        allocations["pointer"][-1] -= 1
    path = tmp_path / "large.beton"
    with path.open("wb") as f:  # the pages stay a hole
        f.write(header.tobytes() + fields.tobytes() + samples.tobytes())
        f.seek(table)
        f.write(allocations.tobytes())
    assert path.stat().st_size > 140e9
    begin = time.monotonic()
    if damaged:
        with pytest.raises(DataError, match="image addresses"):
            check_beton(path, classes=1000)
    else:
        assert len(check_beton(path, classes=1000, samples=count, stored=256).labels) == count
    assert time.monotonic() - begin < 4  # under 1 s on idle cores
