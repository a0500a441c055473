"""The `prepare` stage: a dataset's betons or folders, written where the attempt works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.data.ffcv_stream import default_workers
from suite.data.prepare import prepare_into
from suite.stages.context import Outcome, metered

if TYPE_CHECKING:
    from suite.stages.context import Context


def run(context: Context, jobs: int | None = None) -> Outcome:
    """Write the prepared dataset into the attempt's directory.

    Args:
        context: The stage, its directory, and the settings that say where sources lie.
        jobs: Decoding threads; by default the cores at hand, at most 8. No value changes a byte.

    Raises:
        DataError: If the source is missing or is not what the registry says.
        InfraError: If the writer dies or stalls.
    """
    source = context.settings.sources.get(context.dataset.base)
    with metered(context.device) as cost:
        info = prepare_into(
            context.spec,
            Path(source) if source else None,
            context.dir,
            jobs=jobs or default_workers(),
            progress=context.progress,
            timeout=context.settings.loader_timeout,
        )
    return Outcome(cost | {"images": sum(info["train"]) + sum(info["val"])})
