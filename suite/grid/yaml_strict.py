"""Strict YAML: a safe subset of YAML 1.2, read through PyYAML's event parser, with the position of every value.

What YAML 1.1 turns into something else than it looks like is read as it looks (`no`, `1e-3`), or is refused in one line
(`10:30`, `010`, `1_000`). So is what can be used against a program that reads files of other people: aliases, tags,
deep nesting, devices.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.reader import Reader

from suite.errors import UserError, did_you_mean

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 50_000
_SMALLER = "make it smaller; in a grid, prefer products to explicit cells"

#: Keys and indices from the root to a value.
Location = tuple[str | int, ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_REFUSED = (
    (
        re.compile(r"[-+]?0[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?"),
        "has a leading zero",
        "write it without the zero, or quote it if it is text",
    ),
    (
        re.compile(r"[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[oO][0-7_]+|[-+]?0[bB][01_]+"),
        "is not decimal",
        "write it in decimal, or quote it",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"),
        "is a number with underscores",
        "write the digits only, or quote it if it is text",
    ),
    (
        re.compile(r"[-+]?[0-9]+(?::[0-9]+)+(?:\.[0-9]*)?"),
        "is a base-60 number in YAML 1.1",
        "quote it, or write 90m, 12h or 1-12:00:00",
    ),
    (re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE), "is not a finite number", "numbers here are finite"),
)
_BAD_CHARACTERS = {
    "\x00": ("a NUL character", "the file is damaged or not text"),
    "\t": ("a tab character", "indent and separate with spaces"),
    "\r": ("a carriage return", "convert the line ends to LF: sed -i 's/\\r$//' FILE"),
    "\x85": ("a NEL character as a line end", "convert the line ends to LF"),
    "\u2028": ("a U+2028 line separator", "convert the line ends to LF"),
    "\u2029": ("a U+2029 paragraph separator", "convert the line ends to LF"),
    "\ufeff": ("a byte order mark", "save the file as UTF-8 without BOM"),
}
_SUSPICIOUS = re.compile("|".join([*map(re.escape, _BAD_CHARACTERS), Reader.NON_PRINTABLE.pattern]))


@dataclass(frozen=True)
class Document:
    """A parsed file: its value and where each part of it stands.

    Attributes:
        file: The name that errors show.
        value: dicts with text keys, lists, and scalars (str, int, float, bool, None).
        values: Line and column, from 1, of every value, by its location.
        keys: Line and column of every mapping key, by the location of its value.
    """

    file: str
    value: Any
    values: dict[Location, tuple[int, int]] = field(repr=False)
    keys: dict[Location, tuple[int, int]] = field(repr=False)

    def resolve(self, location: Iterable[str | int]) -> Location:
        """The longest location that exists, leaving out parts that the file does not have (`[0]` of a single value)."""
        value: Any = self.value
        found: Location = ()
        for part in location:
            fits = isinstance(part, int) and isinstance(value, list) and 0 <= part < len(value)
            if fits or (isinstance(value, dict) and part in value):
                value, found = value[part], (*found, part)
        return found

    def position(self, location: Iterable[str | int], key: bool = False) -> tuple[int, int]:
        """Line and column of a value, or of its key."""
        found = self.resolve(location)
        return (self.keys if key and found in self.keys else self.values)[found]

    def where(self, location: Iterable[str | int], key: bool = False) -> str:
        """`file:line:col` of a value, or of its key."""
        line, column = self.position(location, key)
        return f"{self.file}:{line}:{column}"


def load_yaml(path: Path) -> Document:
    """Read a small regular file as strict YAML.

    Raises:
        UserError: If it cannot be read, is not a regular file, is too large, or is not strict YAML.
    """
    return parse_yaml(_read(path), str(path))


def parse_yaml(data: bytes, file: str) -> Document:
    """Parse bytes as strict YAML; `file` is the name that errors show.

    Raises:
        UserError: With `file:line:col` of the first thing that is refused.
    """
    if len(data) > MAX_BYTES:
        _refuse(
            file,
            1,
            1,
            f"the file is larger than {MAX_BYTES:,} bytes",
            _SMALLER,
        )
    text = _decode(data, file)
    try:
        return _Builder(file).build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = f"not YAML: {error.problem or error.context}"
        if error.context and error.problem and "found character" not in error.problem:
            what += f" ({error.context})"
        _refuse(file, line, column, what, "check indentation, colons, quotes and brackets here")
    except yaml.YAMLError as error:
        _refuse(file, 1, 1, f"not YAML: {error}", "check indentation, colons, quotes and brackets")


def _read(path: Path) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`; never blocks on a FIFO or a device."""
    try:
        _check_regular(path, path.stat())
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _check_regular(path, os.fstat(descriptor))  # it may have been replaced since
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) if siblings else "give the path of a grid"
        raise UserError("no such file", where=str(path), hint=hint) from None
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot be read: {what}", where=ascii(str(path))[1:-1], hint="give a readable file") from None


def _check_regular(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        what = "is a directory" if stat.S_ISDIR(info.st_mode) else "is not a regular file"
        raise UserError(what, where=str(path), hint="give a YAML file")
    if info.st_size > MAX_BYTES:
        raise UserError(
            f"the file has {info.st_size:,} bytes, more than {MAX_BYTES:,}",
            where=f"{path}:1:1",
            hint=_SMALLER,
        )


def _decode(data: bytes, file: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\x00" in data[:4] and data.strip(b"\x00")):
        _refuse(file, 1, 1, "the file is UTF-16 or UTF-32", "save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        _refuse(file, before.count(b"\n") + 1, column, "the file is not UTF-8", "save it as UTF-8")
    if bad := _SUSPICIOUS.search(text):
        what, hint = _BAD_CHARACTERS.get(bad[0], (f"a control character (U+{ord(bad[0]):04X})", "remove it"))
        start = bad.start()
        _refuse(file, text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start), f"{what} in the file", hint)
    return text


def _refuse(file: str, line: int, column: int, what: str, hint: str) -> NoReturn:
    raise UserError(what, where=f"{file}:{line}:{column}", hint=hint) from None


_NO_KEY: Any = object()


class _Frame:
    """A collection that is being filled."""

    __slots__ = ("key", "location", "value")

    def __init__(self, value: dict[str, Any] | list[Any], location: Location) -> None:
        self.value, self.location, self.key = value, location, _NO_KEY


class _Builder:
    """Turns events into values without recursion, so that depth cannot exhaust the interpreter's stack."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.values: dict[Location, tuple[int, int]] = {}
        self.keys: dict[Location, tuple[int, int]] = {}
        self.stack: list[_Frame] = []
        self.nodes = self.documents = 0
        self.root: Any = _NO_KEY

    def build(self, events: Iterator[Any]) -> Document:
        """Consume the events of one document."""
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.document(event)
            elif isinstance(event, yaml.NodeEvent):
                self.node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.stack.pop()
        if not self.documents or (self.root is None and self.nodes == 1):
            _refuse(self.file, 1, 1, "the file is empty", "write at least one key with a value")
        return Document(self.file, self.root, self.values, self.keys)

    def refuse(self, event: Any, what: str, hint: str) -> NoReturn:
        """Raise at the place of an event."""
        _refuse(self.file, *_at(event), what, hint)

    def document(self, event: Any) -> None:
        """Allow one document without directives."""
        self.documents += 1
        if self.documents > 1:
            self.refuse(event, "a second document starts here", "one file holds one document")
        if event.version or event.tags:
            self.refuse(event, "a YAML directive", "remove lines that start with %")

    def node(self, event: Any) -> None:
        """Place one scalar, or open one collection."""
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent):
            self.refuse(event, f"an alias {_short(str(event.anchor))}", "write the value out; aliases are not allowed")
        if event.anchor is not None:
            self.refuse(event, f"an anchor {_short(event.anchor)}", "write values out; anchors are not allowed")
        if event.tag is not None:
            self.refuse(event, f"a tag {_short(event.tag)}", "remove it; values have the type that they look like")
        if self.nodes > MAX_NODES:
            self.refuse(
                event,
                f"more than {MAX_NODES:,} values",
                _SMALLER,
            )
        frame = self.stack[-1] if self.stack else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is _NO_KEY:
            frame.key = self.key(event, frame)
            return
        scalar = isinstance(event, yaml.ScalarEvent)
        value: Any = self.scalar(event) if scalar else {} if isinstance(event, yaml.MappingStartEvent) else []
        location = self.place(frame, value)
        self.values[location] = _at(event)
        if not scalar:
            if len(self.stack) >= MAX_DEPTH:
                self.refuse(event, f"nested deeper than {MAX_DEPTH} levels", "four or five are enough")
            self.stack.append(_Frame(value, location))

    def place(self, frame: _Frame | None, value: Any) -> Location:
        """Put a value into the open collection and return where that is."""
        if frame is None:
            self.root = value
            return ()
        if isinstance(frame.value, list):
            frame.value.append(value)
            return (*frame.location, len(frame.value) - 1)
        frame.value[frame.key] = value
        location = (*frame.location, frame.key)
        frame.key = _NO_KEY
        return location

    def key(self, event: Any, frame: _Frame) -> str:
        """Check a mapping key: text, and new."""
        if not isinstance(event, yaml.ScalarEvent):
            self.refuse(event, "a list or mapping as a key", "keys are words")
        name = self.scalar(event)
        if not isinstance(name, str):
            self.refuse(event, f"the key {_short(event.value)} is not text", "keys are words; quote it if it is one")
        if name == "<<" and event.implicit[0]:
            self.refuse(event, "a merge key (<<)", "write the values out")
        location = (*frame.location, name)
        if location in self.keys:
            first, here = self.keys[location][0], _at(event)[0]
            self.refuse(event, f"key {_short(name)} on line {here} is already on line {first}", "remove one of the two")
        self.keys[location] = _at(event)
        return name

    def scalar(self, event: Any) -> Any:
        """The value of a scalar by YAML 1.2 rules, less what is easily misread."""
        text = event.value
        if bad := Reader.NON_PRINTABLE.search(text) or re.search("[\x00\x85\u2028\u2029\ufeff]", text):
            self.refuse(event, f"an escaped control character (U+{ord(bad[0]):04X})", "remove it")
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        for pattern, what, hint in _REFUSED:
            if pattern.fullmatch(text):
                self.refuse(event, f"{_short(text)} {what}", hint)
        if _INT.fullmatch(text):
            if len(text) > 19:
                self.refuse(event, f"{_short(text)} is too large", "at most 18 digits")
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if not math.isfinite(number):
                self.refuse(event, f"{_short(text)} is too large for a float", "at most 1.7e308")
            return number
        return text


def _at(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
