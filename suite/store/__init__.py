"""Artifacts, manifests and records; the only code that publishes files.

The artifact decides: a stage is done if and only if its published directory holds a manifest, written last, whose sizes
and SHA-256 sums verify. Publishing is one rename; nothing half-written is ever visible under a published name.
"""

from suite.store.artifacts import Artifact, Store
from suite.store.attempts import Attempt
from suite.store.records import SCHEMA, Record

__all__ = ["SCHEMA", "Artifact", "Attempt", "Record", "Store"]
