"""Slurm's commands with a script in front: it counts calls, and makes faults that a real Slurm cannot be asked for."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("sbatch", "squeue", "scontrol", "sacct", "scancel", "sacctmgr", "sinfo")


@dataclass
class Commands:
    """A folder to put in front of PATH.

    Attributes:
        folder: Holds the scripts.
        alone: Whether there is nothing behind them: a site that exists in these scripts only.
        real: The commands behind them.
    """

    folder: Path
    alone: bool = False
    real: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        # Before these scripts stand in front of them.
        self.real = {name: path for name in NAMES if not self.alone and (path := shutil.which(name))}
        for name in NAMES:
            if self.alone or name in self.real:
                self.fault(name, "exit 1" if self.alone else "")

    def fault(self, name: str, code: str) -> None:
        """Let a command run shell code first: `$n` is the number of this call, `real` runs the real command."""
        real = shlex.quote(self.real.get(name, "/bin/false"))
        log = shlex.quote(str(self.folder / f"{name}.calls"))
        text = f"""#!/bin/bash
exec 8>>{log}.lock; flock 8
echo "$*" >> {log}
n=$(wc -l < {log})
exec 8>&-
real() {{ {real} "$@"; }}
{code}
exec {real} "$@"
"""
        path = self.folder / name
        fresh = path.with_name(f".{name}")
        fresh.write_text(text)
        fresh.chmod(0o755)
        fresh.replace(path)

    def calls(self, name: str) -> list[str]:
        """Arguments of each call so far."""
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def path(self) -> str:
        """PATH with these in front."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"
