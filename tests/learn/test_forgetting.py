"""Forgetting events, counted by hand and by training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from suite.errors import NumericError
from suite.learn.forgetting import ForgettingEvents, forgetting_counts, most_forgotten
from suite.spec.recipes import TeacherRecipe
from tests.learn.synthesis_parts import DigitImages, tiny_job

#: What a network thought of an image over six presentations, and how often it forgot it.
HISTORIES = {
    "000000": torch.inf,  # never learnt
    "111111": 0,  # unforgettable
    "000111": 0,
    "000001": 0,
    "100000": 1,
    "101010": 3,
    "010101": 2,
    "110011": 1,
    "011010": 2,
}
RECIPE = TeacherRecipe(epochs=3, batch=64, lr=0.05, pad=1, flip=False)


def test_events_of_histories_made_by_hand() -> None:
    """Batches of changing composition, as a training gives them."""
    found, draws = ForgettingEvents(len(HISTORIES)), torch.Generator().manual_seed(0)
    rights = torch.tensor([[c == "1" for c in history] for history in HISTORIES])
    for epoch in range(6):
        for indices in torch.randperm(len(HISTORIES), generator=draws).split(4):
            found.observe(indices, rights[indices, epoch])
    assert found.counts().tolist() == list(HISTORIES.values())


def test_the_most_forgotten_come_first_and_never_learnt_images_before_them() -> None:
    counts = torch.tensor([0.0, 3, torch.inf, 1, 3, 0])
    ties = torch.tensor([0.5, 0.9, 0.1, 0.1, 0.2, 0.4])
    assert most_forgotten(counts, ties, 6).tolist() == [2, 4, 1, 3, 5, 0]
    assert most_forgotten(counts, 1 - ties, 4).tolist() == [2, 1, 4, 3]


def test_counts_equal_a_history_that_is_written_down() -> None:
    """The training itself, watched from outside, gives the same histories."""
    from suite.data.loader import permutation
    from suite.learn import models
    from suite.learn.teachers import train_epochs
    from suite.learn.validation import seeded

    job, real = tiny_job(seed=5), DigitImages()
    counts = forgetting_counts(job, "convnet1_w4", RECIPE)
    assert job.counters.forward_images == 3 * len(real)
    history = torch.zeros(3, len(real), dtype=torch.bool)

    def watch(epoch: int, number: int, logits: torch.Tensor, labels: torch.Tensor) -> None:
        seen = permutation(len(real), 5, epoch)[64 * number : 64 * number + 64]
        assert torch.equal(real.labels[seen], labels)
        history[epoch, seen] = logits.argmax(1) == labels

    with seeded(5, "forgetting", job.device):
        model = models.build("convnet1_w4", 10, 16).train()
        list(train_epochs(model, RECIPE, job.dataset, real, job.device, seed=5, watch=watch))  # type: ignore[arg-type]
    expected = (history[:-1] & ~history[1:]).sum(0).double()
    expected[~history.any(0)] = torch.inf
    assert torch.equal(counts, expected)
    assert counts.isinf().any() and (counts == 1).any() and (counts == 0).any()


def test_counts_depend_on_the_seed_alone() -> None:
    first = forgetting_counts(tiny_job(seed=1), "convnet1_w4", RECIPE)
    torch.manual_seed(99)
    assert torch.equal(forgetting_counts(tiny_job(seed=1), "convnet1_w4", RECIPE), first)
    assert not torch.equal(forgetting_counts(tiny_job(seed=2), "convnet1_w4", RECIPE), first)


def test_a_network_that_knows_its_images_forgets_few_of_them() -> None:
    """More epochs of training leave fewer images that were never learnt."""
    few, more = (
        forgetting_counts(tiny_job(), "convnet2_w8", replace(RECIPE, epochs=n)).isinf().float().mean() for n in (1, 6)
    )
    assert more < few / 2


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(NumericError, match="diverged"):
        forgetting_counts(tiny_job(), "convnet1_w4", replace(RECIPE, lr=1e20))
