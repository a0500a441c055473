"""Any exception as a failure of one of the kinds: what PyTorch, CUDA and the operating system say, put in our words."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from suite.errors import DataError, InfraError, OutOfMemory, SuiteError, UserError

#: What allocators say; PyTorch raises a class of its own for one of them only.
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "std::bad_alloc")
#: What a CUDA program says about a machine that another one would not say.
_PLACE = (
    "ecc", "xid", "initialization error", "driver", "hardware", "no cuda-capable device", "device unavailable",
    "devices are busy", "launch failure", "fallen off the bus", "nvlink", "system not yet initialized",
    "system not initialized", "no nvidia", "nccl error", "connection closed by peer", "connection reset by peer",
)  # fmt: skip
#: What storage says that all nodes share, as stores are: the next node would say it, too.
_SHARED = (errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EACCES)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SUGGESTION = "a GPU with more memory, or in the profile another `gpu_type` or `mem`"


def classified(error: BaseException) -> SuiteError:
    """Give any exception one of the failure kinds.

    What is not known is the user's: code and spec stay the same, and so would the next attempt fail.
    """
    found = _classified(error)
    found.of_node = found.of_node and not any(isinstance(e, OSError) and e.errno in _SHARED for e in _chain(error))
    return found


def _classified(error: BaseException) -> SuiteError:
    if isinstance(error, SuiteError):
        return error
    text = f"{type(error).__name__}: {error}".rstrip(".")
    known = " ".join(f"{type(e).__name__}: {e}" for e in _chain(error)).lower()
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM or _any(_MEMORY, known):
        return OutOfMemory(text, hint=SUGGESTION)
    if isinstance(error, OSError):
        return _of_the_file_system(error)
    if "no kernel image" in known:
        return UserError(text, hint="this build of PyTorch has no code for this GPU: install one, or set `gpu_type`")
    if type(error).__name__ == "SafetensorError":  # writing says which error of the system it was, reading does not
        io = "i/o error" in known or "os error" in known
        return InfraError(text) if io else DataError(text)
    if ("cuda" in known or "nccl" in known or "nvidia" in known or "gloo" in known) and _any(_PLACE, known):
        return InfraError(text, hint="another node, and a look at `dmesg` on this one")
    return UserError(text)


def _of_the_file_system(error: OSError) -> InfraError:
    hint = {
        **dict.fromkeys(_FULL, "make room: `df -h`, `df -i`, `quota`; the same launch then goes on"),
        errno.EACCES: "who owns it, and may this account read it? `ls -l`",
        errno.EROFS: "the file system is mounted read-only; choose another `--store`",
        errno.ESTALE: "the file server changed it meanwhile; the same launch tries again",
    }.get(error.errno or 0, "")
    names = [str(f) for f in (error.filename, error.filename2) if f is not None]
    return InfraError(error.strerror or f"{type(error).__name__}: {error}", where=" -> ".join(names), hint=hint)


def _any(words: tuple[str, ...], text: str) -> bool:
    return any(w in text for w in words)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that caused it."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__
