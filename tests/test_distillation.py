"""Similarities and KL: against the plain formula, laws that hold, numbers at the edges."""

import pytest
import torch
from formula import kl
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity

from pml_s2sd.distillation import divergence, mean_divergence, row_log_probs, similarity

cosine = CosineSimilarity()


def distil(student, teacher, temperature, student_ref=None, teacher_ref=None):
    log_probs = row_log_probs(similarity(cosine, student, student_ref), temperature)
    return divergence(log_probs, similarity(cosine, teacher, teacher_ref), temperature)


def random_batch(rows, columns, seed, dtype=torch.float64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


seeds = st.integers(0, 2**20)
rows = st.integers(1, 7)
columns = st.integers(1, 9)
temperatures = st.sampled_from([0.1, 0.5, 1.0, 4.0])


@settings(max_examples=40, deadline=None)
@given(rows, columns, columns, temperatures, seeds)
def test_value_and_gradient_equal_the_plain_formula(B, d, d_t, T, seed):
    z, t = random_batch(B, d, seed).requires_grad_(), random_batch(B, d_t, seed + 1)
    found, expected = distil(z, t, T), kl(z, t, T)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(rows, rows, columns, temperatures, seeds)
def test_query_by_reference_equals_the_plain_formula(B, R, d, T, seed):
    z, t, z_ref, t_ref = (random_batch(n, d, seed + i) for i, n in enumerate((B, B, R, R)))
    torch.testing.assert_close(distil(z, t, T, z_ref, t_ref), kl(z, t, T, z_ref, t_ref), rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(rows, columns, temperatures, seeds, st.floats(1e-3, 1e3))
def test_laws(B, d, T, seed, scale):
    z, t = random_batch(B, d, seed), random_batch(B, d, seed + 1)
    value = distil(z, t, T)
    assert value >= -1e-12
    torch.testing.assert_close(distil(z, scale * z, T), torch.zeros((), dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(distil(scale * z, t, T), value, rtol=1e-7, atol=1e-12)  # scale of cosine
    order = torch.randperm(B, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(distil(z[order], t[order], T), value, rtol=1e-9, atol=1e-12)


def test_mean_over_teachers():
    z, teachers = random_batch(6, 3, 0), [random_batch(6, d, d) for d in (4, 5, 6)]
    log_probs = row_log_probs(similarity(cosine, z), 0.5)
    found = mean_divergence(log_probs, [similarity(cosine, t) for t in teachers], 0.5)
    torch.testing.assert_close(found, sum(kl(z, t, 0.5) for t in teachers) / 3, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast_too(dtype):
    x = random_batch(8, 4, 0, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity(cosine, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, similarity(cosine, x.float()))


def test_float64_stays_float64():
    assert similarity(cosine, random_batch(3, 2, 0)).dtype == torch.float64


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(4, 3),
        torch.ones(4, 3),
        torch.randn(1, 3),
        1e-20 * torch.ones(4, 3),
        1e18 * torch.randn(4, 3),
        torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]),
    ],
    ids=["zeros", "duplicates", "one row", "tiny", "large", "mixed"],
)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_degenerate_batches_give_finite_values_and_gradients(z, temperature):
    z = z.clone().requires_grad_()
    value = distil(z, random_batch(len(z), 5, 0, torch.float32), temperature)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


def test_nan_is_not_hidden():
    z = torch.randn(4, 3)
    z[1, 2] = torch.nan
    assert torch.isnan(distil(z, torch.randn(4, 5), 1.0))
    assert torch.isnan(distil(torch.randn(4, 5), z, 1.0))
