"""Embedding density: against loops over all pairs, and spaces whose density is known."""

import math

import metrics as plain
import pytest
import torch

from pml_s2sd import density
from pml_s2sd.density import embedding_density


@pytest.mark.parametrize("block_rows", [4096, 7])
def test_density_equals_loops_over_pairs(block_rows, monkeypatch):
    monkeypatch.setattr(density, "BLOCK_ROWS", block_rows)
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


def test_where_it_is_not_defined():
    assert math.isnan(embedding_density(torch.randn(5, 3), torch.arange(5)))
    assert math.isnan(embedding_density(torch.randn(5, 3), torch.zeros(5, dtype=torch.long)))
