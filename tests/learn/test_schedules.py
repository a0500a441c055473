"""Learning-rate factors: exact on the references' schedules, and equal for epochs and steps."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.errors import UserError
from suite.learn.schedules import factor
from suite.spec.recipes import Schedule
from tests.helpers import golden


@pytest.mark.parametrize(
    ("topic", "tensor", "name", "base"),
    [
        ("students_labels", "sre2l_cos_E300_base1e-3", "cosine", 1e-3),
        ("students_labels", "wmdd_cos_E300_base1e-3", "cosine", 1e-3),
        ("students_labels", "cvdd_eta1_E300", "cosine", 1.0),
        ("students_labels", "cvdd_eta2_E300", "cosine_half", 1.0),
        ("students_labels", "delt_E300", "cosine_half", 1.0),
        ("students_labels", "lpld_smooth_E300", "cosine_half", 1.0),
        ("students_labels", "edc_Tiny_ImageNet_cos_st2_E300", "cosine_half", 1.0),
        ("students_labels", "edc_CIFAR_100_cos2_st2_E1000", "cos2", 1.0),
        ("students_labels", "edc_ImageNet1k_cos_as_shipped_st2_E300", "linear_half", 1.0),
        ("rded", "lr_cos_E300", "cosine_half", 1.0),
        ("e2d_trace", "lr_cos2_E300_st2", "cos2", 1.0),
        ("e2d_trace", "lr_cos_as_shipped_E300_st2", "linear_half", 1.0),
        ("e2d_trace", "lr_cos_as_shipped_E60_st1", "linear", 1.0),
    ],
)
def test_schedules_equal_the_references(topic: str, tensor: str, name: Schedule, base: float) -> None:
    expected = golden(topic)[tensor]
    ours = torch.tensor([base * factor(name, e, len(expected)) for e in range(len(expected))], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


def test_warm_up_equals_the_reference() -> None:
    expected = golden("students_labels")["lpld_tiny_warm5_cos_E100_base0p2"]
    ours = torch.tensor([0.2 * factor("cosine", e, 100, warmup=5) for e in range(100)], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("topic", "tensor", "base", "milestones", "gamma"),
    [
        ("students_labels", "edc_CIFAR_10_multisteplr_E1000", 1.0, (800, 900, 950), 0.5),
        ("students_labels", "label_worth_sgd_E3000_base1e-2", 0.01, (750, 1500, 2250, 3000), 0.3),
        ("dc_dsa_dm", "eval_lr_E1000", 0.01, (502,), 0.1),
    ],
)
def test_steps_drop_at_the_references_epochs(
    topic: str, tensor: str, base: float, milestones: tuple[int, ...], gamma: float
) -> None:
    expected = golden(topic)[tensor]
    total = len(expected)
    shares = [m / total for m in milestones]
    ours = [base * factor("step", e, total, milestones=shares, gamma=gamma) for e in range(total)]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected, atol=1e-12, rtol=0)


@given(st.integers(1, 5000), st.data())
def test_a_milestone_falls_on_its_own_epoch(total: int, data: st.DataObject) -> None:
    drop = data.draw(st.integers(1, total))
    steps = [factor("step", e, total, milestones=(drop / total,), gamma=0.5) for e in (drop - 1, drop)]
    assert steps == [1, 0.5]


@given(st.sampled_from(get_args(Schedule)), st.integers(1, 500), st.integers(1, 50))
def test_the_schedule_runs_over_what_the_warm_up_leaves(name: Schedule, left: int, warmup: int) -> None:
    total = left + warmup
    rise = [factor(name, e, total, warmup) for e in range(warmup)]
    assert rise[0] == 0.01 and rise == sorted(rise) and rise[-1] < 1
    assert factor(name, warmup, total, warmup) == 1
    assert [factor(name, e + warmup, total, warmup) for e in range(left)] == [
        factor(name, e, left) for e in range(left)
    ]


def test_cos2_jumps_after_five_sixths_as_the_sheet_says() -> None:
    assert factor("cos2", 250, 300) == pytest.approx(0.6294, abs=1e-4)
    assert factor("cos2", 251, 300) == pytest.approx(0.1028, abs=1e-4)


@given(st.sampled_from(get_args(Schedule)), st.integers(1, 5000), st.data())
def test_factor_is_between_0_and_1_and_starts_at_1(name: Schedule, total: int, data: st.DataObject) -> None:
    done = data.draw(st.integers(0, total - 1))
    assert 0 < factor(name, done, total) <= 1
    assert factor(name, 0, total) == 1


@pytest.mark.parametrize("name", [s for s in get_args(Schedule) if s != "cos2"])
def test_factors_never_rise(name: Schedule) -> None:
    values = [factor(name, e, 97) for e in range(97)]
    assert values == sorted(values, reverse=True)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="cosine"):
        factor("cosin", 0, 1)  # type: ignore[arg-type]
