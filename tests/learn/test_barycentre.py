"""Barycentres of features: the golden vectors of WMDD, and what every barycentre promises."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.errors import DataError, NumericError
from suite.learn.barycentre import barycentre, optimal_plan
from tests.helpers import golden


def draw(n: int, k: int, width: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=draws).double() * 2 + 1, torch.randn(k, width, generator=draws).double()


def cost(points: torch.Tensor, features: torch.Tensor) -> float:
    return float((optimal_plan(points, features) * torch.cdist(points, features).square()).sum())


@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_barycentre_equals_the_golden_one(k: int) -> None:
    g = golden("wmdd")
    points = barycentre(g["bary.points"], g[f"bary.k{k}.init"])
    assert points.dtype == torch.float64
    assert cost(points, g["bary.points"]) == pytest.approx(float(g[f"bary.k{k}.w2_cost"]), abs=1e-8)
    torch.testing.assert_close(points, g[f"bary.k{k}.out"], atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 24), st.integers(1, 8), st.integers(0, 1000))
def test_mass_is_balanced(n: int, k: int, seed: int) -> None:
    """The mean of the points is the mean of the features, also where k does not divide n."""
    features, start = draw(n, k, seed=seed)
    plan = optimal_plan(start, features)
    torch.testing.assert_close(plan.sum(1), torch.full((k,), 1 / k).double())
    torch.testing.assert_close(plan.sum(0), torch.full((n,), 1 / n).double())
    torch.testing.assert_close(barycentre(features, start).mean(0), features.mean(0))


def test_one_point_is_the_mean_of_the_class() -> None:
    features, start = draw(11, 1)
    torch.testing.assert_close(barycentre(features, start)[0], features.mean(0))


def test_as_many_points_as_features_are_the_features_in_some_order() -> None:
    features, start = draw(9, 9)
    points = barycentre(features, start)
    nearest = torch.cdist(points, features).argmin(1)
    assert sorted(nearest.tolist()) == list(range(9))
    torch.testing.assert_close(points, features[nearest])
    assert cost(points, features) == pytest.approx(0, abs=1e-12)


def test_every_move_makes_transport_cheaper_until_the_points_rest() -> None:
    features, start = draw(60, 6)
    costs = [cost(barycentre(features, start, iterations=i), features) for i in range(6)]
    assert costs[5] < costs[0] and all(b <= a + 1e-12 for a, b in pairwise(costs))
    rest = barycentre(features, start)
    assert torch.equal(barycentre(features, rest), rest)


def test_two_clusters_of_equal_size_are_found() -> None:
    features = torch.cat([draw(20, 1, 3)[0] - 10, draw(20, 1, 3, seed=1)[0] + 10])
    points = barycentre(features, draw(1, 2, 3)[1])
    first, second = sorted(points, key=lambda p: float(p[0]))
    torch.testing.assert_close(first, features[:20].mean(0))
    torch.testing.assert_close(second, features[20:].mean(0))


def test_features_without_sense_are_refused() -> None:
    features, start = draw(4, 2)
    with pytest.raises(DataError, match=r"features \[4, 5\] on points \[2, 4\]"):
        barycentre(features, start[:, :4])
    with pytest.raises(DataError, match=r"features \[0, 5\]"):
        barycentre(features[:0], start)
    features[1, 1] = torch.nan
    with pytest.raises(NumericError, match="not finite"):
        barycentre(features, start)
