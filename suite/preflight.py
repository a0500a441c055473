"""What can be checked before anything is submitted: datasets are there and whole, weights have a place."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from suite.cluster.profile import Profile
from suite.cluster.show import say
from suite.errors import DataError, UserError
from suite.spec.datasets import dataset
from suite.spec.stages import Stage


def preflight(stages: Iterable[Stage], profile: Profile) -> None:
    """Look at what some stages will need from the site.

    Raises:
        UserError: If a dataset is neither prepared nor has a whole source, or weights have no place.
    """
    for stage in stages:
        if stage.kind == "prepare":
            _source(stage, profile)
        elif getattr(stage.spec, "weights", "") == "file" and not profile.weights:
            raise UserError(f"{stage.label()} takes its weights from a file", hint="set `weights: DIR` in the profile")


def tell_missing(stages: Iterable[Stage], profile: Profile) -> None:
    """Say the first thing that is missing, for a dry run."""
    try:
        preflight(stages, profile)
    except UserError as error:
        say(f"before it can run: {error}")


def _source(stage: Stage, profile: Profile) -> None:
    name, form = stage.spec.dataset, getattr(stage.spec, "format", "beton")
    base = dataset(name).base
    flags = ["--store", profile.store, *(["--format", form] if form != "beton" else [])]
    command = f"python -m suite.prepare {name} --source DIR {shlex.join(flags)}"
    hint = f"{command}, or `sources: {{{base}: DIR}}` in the profile"
    if base not in profile.sources:
        if base != "digits":
            raise UserError(f"dataset {name!r} is not prepared and has no source", hint=hint)
        return
    source = Path(profile.sources[base])
    if not source.exists():
        raise UserError(f"the source of dataset {base!r} does not exist", where=str(source), hint=hint)
    _look_at(name, source)


def _look_at(name: str, source: Path) -> None:
    """A cheap look at a dataset's source, so that a task does not wait for hours to find it incomplete."""
    from suite.data.listing import check_listing

    try:
        check_listing(dataset(name), source)
    except DataError as error:
        raise UserError(error.what, where=error.where, hint=error.hint) from error
