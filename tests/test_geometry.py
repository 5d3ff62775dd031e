"""The geometry of a space: against numpy and loops over all pairs, and spaces whose geometry is known."""

import math

import metrics as plain
import numpy as np
import pytest
import torch

from pml_s2sd.evaluation import geometry
from pml_s2sd.evaluation.geometry import effective_rank, embedding_density, singular_values, spectral_decay


@pytest.mark.parametrize(("rows", "d"), [(50, 6), (4, 6), (6, 6), (1, 3)])
def test_singular_values_are_numpys(rows, d, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK_ROWS", 8)
    x = torch.randn(rows, d)
    expected = np.linalg.svd(x.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(singular_values(x), expected, rtol=1e-12)


def test_decay_and_rank_equal_a_plain_computation():
    x = torch.randn(40, 7) * torch.tensor([5.0, 3, 2, 1, 1, 0.5, 0.1])
    values = singular_values(x)
    assert spectral_decay(values) == pytest.approx(plain.spectral_decay(x.numpy()), abs=1e-9)
    assert effective_rank(values) == pytest.approx(plain.effective_rank(x.numpy()), abs=1e-9)


def test_every_direction_alike():
    values = singular_values(torch.eye(5).repeat(3, 1))
    assert spectral_decay(values) == pytest.approx(0, abs=1e-12)
    assert effective_rank(values) == pytest.approx(5)


def test_two_directions_of_known_strength():
    """σ = 3, 1: p = 3/4, 1/4."""
    values = singular_values(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    assert spectral_decay(values) == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert effective_rank(values) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_a_direction_that_is_not_used():
    values = singular_values(torch.randn(30, 2) @ torch.tensor([[1.0, 0, 1], [0, 1, 0]]))
    assert values[-1] == 0
    assert spectral_decay(values) == math.inf
    assert 1 < effective_rank(values) <= 2
    assert effective_rank(singular_values(torch.ones(9, 4))) == pytest.approx(1)


def test_scale_does_not_matter():
    x = torch.randn(30, 4)
    assert spectral_decay(singular_values(x)) == pytest.approx(spectral_decay(singular_values(1e-3 * x)), rel=1e-5)


def test_all_zero_is_nan():
    assert math.isnan(spectral_decay(singular_values(torch.zeros(4, 3))))


@pytest.mark.parametrize("block_rows", [4096, 7])
def test_density_equals_loops_over_pairs(block_rows, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK_ROWS", block_rows)
    x, labels = torch.randn(50, 6), torch.randint(0, 15, (50,))
    labels[:2] = torch.tensor([90, -3])  # classes of one member
    expected = plain.embedding_density(x.numpy(), labels.tolist())
    assert embedding_density(x, labels) == pytest.approx(expected, abs=1e-10)


def test_two_classes_at_right_angles():
    """Members at ±30° about the axes: within a class 1 - cos 60°, between centres 1 - cos 90°."""
    angles = torch.deg2rad(torch.tensor([-30.0, 30.0, 60.0, 120.0], dtype=torch.float64))
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert embedding_density(3 * x, torch.tensor([4, 4, 7, 7])) == pytest.approx(0.5)


def test_collapsed_classes_have_density_0():
    x = torch.eye(3).repeat_interleave(4, dim=0)
    assert embedding_density(x, torch.arange(12) // 4) == pytest.approx(0, abs=1e-12)


def test_where_density_is_not_defined():
    assert math.isnan(embedding_density(torch.randn(5, 3), torch.arange(5)))
    assert math.isnan(embedding_density(torch.randn(5, 3), torch.zeros(5, dtype=torch.long)))
