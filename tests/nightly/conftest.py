"""A real Slurm for the nightly that is run for real."""

from __future__ import annotations

from tests.cluster.conftest import slurm_cluster

__all__ = ["slurm_cluster"]
