"""Bytes of labels: the accounting's formulas, the published tables, and real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from suite.data.distilled import DistilledSet
from suite.learn.label_stream import LabelStream, write_stream
from suite.learn.soft_labels import HardLabels, StoredLabels
from suite.learn.teachers import Teacher
from suite.spec.datasets import dataset
from suite.spec.recipes import LabelRecipe, RelabelRecipe
from suite.spec.storage import (
    REFERENCE_CONTAINER,
    hard_label_bytes,
    kept_batches,
    label_bytes,
    reference_stream_bytes,
    stream_bytes,
    vector_bytes,
)
from tests.helpers import golden
from tests.learn.training import CPU, DIGITS, Linear, linear_teacher, some_digits

GIB, KEEP = 2**30, {10: 0.9, 20: 0.95, 30: 0.97, 40: 0.975, 100: 0.99}


@pytest.mark.parametrize(("ipc", "published"), [(10, 5.67), (20, 11.33), (50, 28.33), (100, 56.66), (200, 113.33)])
def test_the_published_sizes_of_whole_streams_are_reproduced(ipc: int, published: float) -> None:
    """LPLD's table of SRe2L's labels on ImageNet-1K: 300 epochs in batches of 1,024. Its "GB" are GiB."""
    assert reference_stream_bytes(300, 1000 * ipc, 1024, 1000) / GIB == pytest.approx(published, rel=0.003)


@pytest.mark.parametrize(
    ("ipc", "kept", "published"),
    [(10, 585, 0.14), (20, 1170, 0.29), (50, 2925, 0.71), (100, 5857, 1.43), (200, 11715, 2.85)],
)
def test_the_published_sizes_of_streams_pruned_40_times_are_reproduced(ipc: int, kept: int, published: float) -> None:
    assert kept_batches(300, 1000 * ipc // 128, 0.975) == kept
    assert reference_stream_bytes(300, 1000 * ipc, 128, 1000, 0.975) / GIB == pytest.approx(published, abs=0.006)


def test_the_accounting_of_every_pruning_is_reproduced() -> None:
    """ImageNet-1K at IPC 10, in GB; and Tiny-ImageNet at IPC 50, which has 11 MB at 40x and 449 MB whole."""
    table = {10: 0.612, 20: 0.306, 30: 0.184, 40: 0.153, 100: 0.061}
    for times, published in table.items():
        ours = reference_stream_bytes(300, 10_000, 128, 1000, KEEP[times]) / 1e9
        assert ours == pytest.approx(published, abs=6e-4), times
    assert kept_batches(100, 10_000 // 64, 0.975) == 390
    assert reference_stream_bytes(100, 10_000, 64, 200, 0.975, mixed=False) / 1e6 == pytest.approx(11, abs=0.5)
    assert reference_stream_bytes(100, 10_000, 64, 200, mixed=False) / 1e6 == pytest.approx(449, rel=0.02)


def test_records_of_the_reference_have_the_bytes_of_the_formula_and_a_container() -> None:
    rows = golden("fkd")["record.B_C_fp16_filebytes_filebytesplain_payload"].tolist()
    assert any(row[0] == 128 and row[1] == 1000 for row in rows)
    for batch, classes, half, file, plain, payload in rows:
        if half:
            formula = reference_stream_bytes(1, batch, batch, classes) - REFERENCE_CONTAINER
            assert formula == pytest.approx(payload, abs=64)
            assert 0 < min(file, plain) - formula < 3_000  # the container depends on the version of torch


@pytest.mark.parametrize(("images", "classes", "size"), [(10, 10, 10), (10_000, 1000, 20_000), (30, 257, 60)])
def test_hard_labels_take_whole_bytes(images: int, classes: int, size: int) -> None:
    assert hard_label_bytes(images, classes) == size == HardLabels(classes, images).ledger()[0]["bytes"]


def test_vectors_on_imagenet_take_what_the_accounting_says() -> None:
    assert [vector_bytes(1000 * ipc, 1000) / 1e6 for ipc in (1, 10, 50, 100, 200)] == [2, 20, 100, 200, 400]
    assert label_bytes("vector", RelabelRecipe(), 1000, 1000) == vector_bytes(1000, 1000)
    assert label_bytes("stored", RelabelRecipe(), 1000, 1000) == stream_bytes(RelabelRecipe(), 1000, 1000)


@pytest.mark.parametrize("prune", [0.0, 0.9, 0.975])
def test_our_streams_are_smaller_than_the_references_and_never_by_what_labels_need(prune: float) -> None:
    """At 1,000 classes and batches of 128: 8 bytes less a view, and no container for each batch."""
    recipe = RelabelRecipe(300, 128, label=LabelRecipe(prune=prune))
    ours, theirs = stream_bytes(recipe, 10_000, 1000), reference_stream_bytes(300, 10_000, 128, 1000, prune)
    assert 0.98 < ours / theirs < 1


@pytest.mark.parametrize("prune", [0.0, 0.975])
def test_files_at_1000_classes_are_within_one_percent_of_the_accounting(tmp_path: Path, prune: float) -> None:
    """Against the references' records without their containers, K B (2C + 25); exactly, against our own formula."""
    facts = replace(dataset("imagenet1k"), size=8)
    images = torch.randint(0, 256, (128, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    recipe = RelabelRecipe(epochs=40 if prune else 2, batch=32, label=LabelRecipe(prune=prune))
    teacher = Teacher("linear", Linear(1000, 8), facts.mean, facts.std)
    path = tmp_path / "labels"
    write_stream(path, DistilledSet(images, torch.arange(128)), [teacher], recipe, 0, facts, CPU)
    stream = LabelStream(path)
    batches = kept_batches(40, 4, prune) if prune else 2 * 4
    assert batches == stream.shape.batches == (4 if prune else 8)
    assert path.stat().st_size == stream.header_bytes + stream_bytes(recipe, 128, 1000)
    assert path.stat().st_size == pytest.approx(batches * 32 * (2 * 1000 + 25), rel=0.01)
    assert sum(e["bytes"] for e in StoredLabels(stream).ledger()) == path.stat().st_size


def test_files_at_10_classes_are_within_one_percent_of_our_formula(tmp_path: Path) -> None:
    for prune in (0.0, 0.975):
        recipe = RelabelRecipe(epochs=40 if prune == 0 else 1600, batch=50, label=LabelRecipe(prune=prune))
        path = tmp_path / f"labels{prune}"
        write_stream(path, some_digits(20), [linear_teacher()], recipe, 0, DIGITS, CPU)
        assert path.stat().st_size == pytest.approx(stream_bytes(recipe, 200, 10), rel=0.01)
