"""What a worker makes of its device."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource, torch
from suite.stages.devices import free_memory, usable_device

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(2**26, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1])

usable_device("cpu")
for _ in range(6):
    faults()
again, held = faults(), resident()
free_memory()
print(again, held - resident())
"""


def test_a_worker_on_a_cpu_uses_its_memory_again_and_gives_it_back_when_asked() -> None:
    """Maps of 64 MiB in turn: each would fetch 16,384 pages from the kernel. Five, after some that make room."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    faults, returned = map(int, done.stdout.split())
    assert faults < 2 * 16_384 and returned > 16_384 / 2
