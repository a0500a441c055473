"""What every task but the first does: it computes what that one orders, and writes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from suite.failures import classified
from suite.learn.checkpoint import Never
from suite.spec.stages import Stage
from suite.stages.context import Context, Settings, compute
from suite.stages.devices import free_memory, usable_device
from suite.stages.tasks import Tasks
from suite.store import Store
from suite.store.attempts import open_inputs, patience


def follow(stage: Stage, store: Store, settings: Settings, tasks: Tasks) -> bool:
    """Train a stage with the first task, as often as it tries. Returns whether it has published the stage.

    Raises:
        InfraError: If the first task is gone.
        Preempted: If a task was asked to leave.
    """
    while (order := tasks.next_order()).micro_batches:
        try:
            _train(stage, store, settings, tasks, order.micro_batches)
        except Exception as error:
            tasks.notice.leave()
            # The first task learns of it where it waits for this one; the record is its own.
            tasks.failed(error)
            failure = classified(error)
            print(f"  {stage.kind} {stage.key}: {failure.kind}: {failure.line()}", file=sys.stderr, flush=True)
        free_memory()
    return order.published


def _train(stage: Stage, store: Store, settings: Settings, tasks: Tasks, micro_batches: int) -> None:
    device = usable_device(settings.device, tasks.gpu)
    context = Context(
        stage,
        open_inputs(store, stage, patience()),
        Path(os.devnull),
        settings,
        device,
        lambda done, total: None,
        micro_batches,
        Never(stage.kind, tasks.notice),
        tasks,
    )
    compute(context)
