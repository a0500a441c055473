"""A real Slurm, and toy grids on it, for faults of launchers and schedulers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.conftest import SlurmCluster, slurm_cluster  # noqa: F401 - a fixture
from tests.faults.toy_site import ToySite


@pytest.fixture
def site(slurm_cluster: SlurmCluster, tmp_path: Path) -> ToySite:  # noqa: F811
    """The test cluster with countable commands in front, and workers that compute nothing."""
    return ToySite(tmp_path, slurm_cluster)
