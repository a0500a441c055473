"""Counts of torch's profiler: operations that launch a kernel on an accelerator, and waits of the host.

Operations are leaf operators, i.e. `aten` operators without another counted operator inside. Views, allocations and
other bookkeeping (`FREE`) launch none, nor does memory that an operator on the CPU fills for itself, nor the copy of a
number that is its argument. A convolution is one, whatever a CPU without half precision makes of it. Host
synchronisations are operators that read a value of a tensor (`SYNCS`); on CUDA the runtime's waiting calls.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Operators that launch nothing: views, allocations, bookkeeping.
_FREE = """
    view view_as reshape expand expand_as as_strided select slice narrow unsqueeze squeeze transpose t permute unbind
    split split_with_sizes chunk flatten unflatten detach detach_ alias lift_fresh broadcast_tensors movedim unfold
    diagonal _unsafe_view _reshape_alias resolve_conj resolve_neg empty empty_like empty_strided new_empty
    new_empty_strided to contiguous type_as result_type promote_types resize_ as_strided_ set_ item is_nonzero
    _local_scalar_dense
"""
FREE = frozenset(f"aten::{name}" for name in _FREE.split())
#: Operators that fill memory: on their own a kernel, inside other operators scratch memory of the CPU's.
FILLS = frozenset({"aten::zero_", "aten::fill_"})
#: What may stand between them, or the copy of a number that is an operator's argument, and that operator.
WRAPPERS = frozenset(f"aten::{n}" for n in ("zeros", "ones", "full", "new_zeros", "to", "_to_copy"))
#: One kernel each on accelerators.
SINGLE = frozenset({"aten::convolution", "aten::convolution_backward"})
#: Adam's fused step; on the CPU it reads its counter, which lies there on purpose.
OPTIMISER = "aten::_fused_adam_"
#: Operators that make the host wait for a value.
SYNCS = frozenset(f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"))
#: Calls of the CUDA runtime that wait.
CUDA_SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def profiled(device: torch.device) -> AbstractContextManager[Any]:
    """Torch's profiler over the host's operators, and CUDA's calls where there are any."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    return profile(activities=activities, record_shapes=True)


def count(profiler: Any) -> tuple[int, int]:
    """Kernel-launching operations and host synchronisations in a profile; see this module."""
    events = profiler.events()
    operations = sum(_launches(e) for e in events if e.cpu_parent is None)
    if any(e.name.startswith("cuda") for e in events):  # where an operator waits, it does so by a call
        waits = [e.name for e in sorted(events, key=lambda e: e.time_range.start) if e.name in CUDA_SYNCS]
        return operations, len(waits) - (waits[-1:] == ["cudaDeviceSynchronize"])  # the profiler's own, as it ends
    return operations, sum(e.name in SYNCS and not _inside(e, OPTIMISER) for e in events)


def _launches(event: Any) -> int:
    if event.name in SINGLE:
        return 1
    inside = sum(_launches(child) for child in event.cpu_children)
    if inside or not event.name.startswith("aten::") or event.name in FREE | WRAPPERS:
        return inside
    outer = event.cpu_parent
    while outer is not None and outer.name in WRAPPERS | FILLS:
        outer = outer.cpu_parent
    within = outer is not None and outer.name.startswith("aten::")
    constant = event.name == "aten::copy_" and event.input_shapes[:1] == [[]]
    return int(not (within and (event.name in FILLS or constant)))


def _inside(event: Any, name: str) -> bool:
    while event is not None and event.name != name:
        event = event.cpu_parent
    return event is not None
