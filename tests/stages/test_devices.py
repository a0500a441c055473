"""What a worker makes of its device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STEPS = """
import resource, torch
from suite.stages.devices import free_memory, usable_device

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.empty(2**24, dtype=torch.uint8).fill_(1) for _ in range(8)]
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
#: Pages of the eight maps.
PAGES = 2**27 // 4096


def steps(**environment: str) -> tuple[int, int]:
    """Pages that a step of eight maps fetches from the kernel after some before it, and pages given back at the end."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | environment
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=variables)
    faults, returned = map(int, done.stdout.split())
    return faults, returned


def test_a_worker_on_a_cpu_uses_its_memory_again_and_gives_it_back_when_asked() -> None:
    faults, returned = steps()
    assert faults < PAGES / 8 and returned > PAGES / 2


def test_the_sites_own_settings_of_the_allocator_stand() -> None:
    faults, _ = steps(MALLOC_MMAP_THRESHOLD_="1000000")
    assert faults > PAGES / 2 or "[always]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
