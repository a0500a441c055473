"""One exception family: what is wrong, where, what is allowed, and the next command.

Every failure that the suite foresees is a `SuiteError` with a kind. The kind decides what happens next
(retry, row, block), the exit code tells a shell, and the message is one line. `SUITE_DEBUG=1` shows tracebacks.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn


class SuiteError(Exception):
    """A failure that the suite understands.

    Args:
        what: What is wrong, in one line.
        where: File, line, dataset or stage that it concerns.
        hint: What is allowed, or the command to type next.
    """

    kind = "infra"
    exit_code = 1
    #: Node and job in which it happened, if not here.
    place = ("", "")
    #: Whether it may be the node's doing; storage that all nodes share is not.
    of_node = True

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = one_line(what), one_line(where), one_line(hint)
        super().__init__(self.line())

    def line(self) -> str:
        """The message as one line: `where: what - hint`."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} - {self.hint}" if self.hint else text


class UserError(SuiteError):
    """Bad input: a grid, a flag, a name. Never retried."""

    kind = "user"
    exit_code = 2


class DataError(SuiteError):
    """Missing, corrupt or unexpected data. Not retried; blocks what depends on it."""

    kind = "data"


class OutOfMemory(SuiteError):
    """The device or the host ran out of memory."""

    kind = "oom"


class NumericError(SuiteError):
    """NaN or Inf where numbers were expected: the attempt becomes a row with status `diverged`."""

    kind = "numeric"


class InfraError(SuiteError):
    """Scheduler, file system, stalled loader: worth a retry."""

    kind = "infra"


def one_line(text: object) -> str:
    """Text as one line that a terminal can be shown: unprintable characters become escapes.

    Messages quote names of files, of members of archives and of classes, which may hold anything.
    """
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """A hint that names the closest allowed word, else the first allowed ones."""
    names = sorted(str(a) for a in allowed)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"allowed: {shown}" if names else "nothing is allowed here"


class Parser(argparse.ArgumentParser):
    """A command line whose bad flags are one line and exit code 2, like all bad input."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong; argparse would print the usage as well."""
        raise UserError(message, where=self.prog, hint=f"{self.prog} --help")


def directory(text: str) -> Path:
    """The type of a flag that names a directory: `~` is the home directory, nothing is not a name."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name is not a directory")
    return Path(text).expanduser()


def debug() -> bool:
    """Whether tracebacks are wanted (`SUITE_DEBUG=1`)."""
    return os.environ.get("SUITE_DEBUG", "") not in ("", "0")


def exit_with(error: SuiteError) -> NoReturn:
    """Print the one line of an error and leave with its exit code."""
    if debug():
        traceback.print_exception(error)
    print(f"error: {error.line()}", file=sys.stderr)
    raise SystemExit(error.exit_code)


def guarded(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's main: one line for foreseen errors, 130/143 for interruptions, 141-free pipes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _standard_streams()
    try:
        code = main() or 0
        sys.stdout.flush()
    except SuiteError as error:
        exit_with(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        _drop_stdout()
        raise SystemExit(0) from None
    except OSError as error:
        # What no caller expected of the file system: a full disk, a directory that may not be read, an I/O error.
        where = str(error.filename or "standard output, or an open file")
        try:
            sys.stdout.flush()
        except OSError:
            _drop_stdout()
        failure = InfraError(error.strerror or str(error), where=where, hint="SUITE_DEBUG=1 shows where it happened")
        failure.__cause__ = error
        exit_with(failure)
    raise SystemExit(code)


def _standard_streams() -> None:
    """Make printing possible everywhere: closed streams lead nowhere, unprintable characters become escapes."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # takes the place of a closed 0, 1 or 2, which the next file that is opened would otherwise get
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115 - open until the end
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Lead standard output nowhere, so that the interpreter does not fail at flushing it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
