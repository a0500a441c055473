"""Where golden vectors and real image packs lie, for tests that need them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SUITE_SHARED", ROOT.parent / "shared"))


def golden(topic: str) -> dict[str, Any]:
    """Tensors of one golden-vector file by name; skips where the folder is absent."""
    path = Path(os.environ.get("SUITE_FIXTURES", SHARED / "fixtures")) / f"{topic}.safetensors"
    if not path.is_file():
        pytest.skip(f"golden vectors are absent: {path}")
    from safetensors.torch import load_file

    return load_file(path)


def data_pack(name: str) -> Path:
    """A pack of real images; skips where it is absent."""
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"real images are absent: {path}")
    return path
