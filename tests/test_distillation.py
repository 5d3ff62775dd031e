"""Similarities and KL: against the plain formula, laws that hold, numbers at the edges."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from formula import kl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance

from pml_s2sd import _distillation_in_blocks, distillation
from pml_s2sd._similarity import Similarity
from pml_s2sd.distillation import Comparison, columns_of_copies, mean_divergences

cosine = Similarity(CosineSimilarity())


def space(x, ref=None, D=cosine):
    x = D.prepare(x)
    return Comparison(x, x if ref is None else D.prepare(ref))


def distil(student, teacher, temperature, student_ref=None, teacher_ref=None, self_columns=None):
    group = [space(teacher, teacher_ref)]
    return mean_divergences(cosine, space(student, student_ref), [group], temperature, self_columns)[0]


@pytest.fixture
def in_blocks(monkeypatch):
    """Every matrix is handled in blocks, of about seven entries."""
    monkeypatch.setattr(distillation, "WHOLE_ENTRIES", 0)
    monkeypatch.setattr(_distillation_in_blocks, "BLOCK_ENTRIES", 7)


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


def test_mean_over_the_teachers_of_each_group():
    z, teachers = random_batch(6, 3, 0), [random_batch(6, d, d) for d in (4, 5, 6)]
    groups = [[space(t) for t in teachers], [space(teachers[1])]]
    found = mean_divergences(cosine, space(z), groups, 0.5)
    expected = [sum(kl(z, t, 0.5) for t in teachers) / 3, kl(z, teachers[1], 0.5)]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), columns, columns, temperatures, seeds)
def test_without_the_diagonal_the_softmax_is_over_the_others(B, d, d_t, T, seed):
    z, t = random_batch(B, d, seed).requires_grad_(), random_batch(B, d_t, seed + 1)
    found = distil(z, t, T, self_columns=torch.arange(B))
    expected = 0.0
    for b in range(B):
        others = [r for r in range(B) if r != b]
        expected = expected + kl(z[[b]], t[[b]], T, z[others], t[others]) / B
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(rows, rows, st.integers(2, 9), seeds)
def test_copies_are_found_wherever_they_are_and_nothing_else_is(B, R, d, seed):
    x, others = random_batch(B, d, seed, torch.float32), random_batch(R, d, seed + 1, torch.float32)
    order = torch.randperm(B + R, generator=torch.Generator().manual_seed(seed))
    ref = torch.cat([x, others])[order]
    assert columns_of_copies(x, ref).tolist() == [order.tolist().index(b) for b in range(B)]
    assert columns_of_copies(x, others).tolist() == [-1] * B
    assert columns_of_copies(x, 1.01 * x).tolist() == [-1] * B


def test_only_the_named_columns_are_left_out():
    z, t = random_batch(3, 4, 0), random_batch(3, 5, 1)
    found = distil(z, t, 0.5, self_columns=torch.tensor([2, -1, 0]))
    expected = kl(z[[0]], t[[0]], 0.5, z[[0, 1]], t[[0, 1]]) + kl(z[[1]], t[[1]], 0.5, z, t)
    expected = expected + kl(z[[2]], t[[2]], 0.5, z[[1, 2]], t[[1, 2]])
    torch.testing.assert_close(found, expected / 3)


DISTANCES = {
    "cosine": CosineSimilarity(),
    "dot product": DotProductSimilarity(normalize_embeddings=False),
    "Lp": LpDistance(power=2),
    "SNR": SNRDistance(),
}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("R", [None, 3, 9])
@pytest.mark.parametrize("teachers_sizes", [[[4]], [[4, 5], [6]]], ids=["one group", "two groups"])
@pytest.mark.parametrize("left_out", [False, True], ids=["whole", "without diagonal"])
def test_blocks_give_the_plain_value_and_gradient(distance, R, teachers_sizes, left_out, in_blocks, monkeypatch):
    self_columns = torch.arange(8) if left_out and R is None else None
    D = Similarity(DISTANCES[distance])
    samples = [random_batch(8, d, d) for d in (3, 4, 5, 6)]
    refs = [None if R is None else random_batch(R, d, 10 + d) for d in (3, 4, 5, 6)]

    def values_and_gradients():
        z = samples[0].clone().requires_grad_()
        z_ref = None if R is None else refs[0].clone().requires_grad_()
        groups = [[space(samples[d - 3], refs[d - 3], D) for d in sizes] for sizes in teachers_sizes]
        values = mean_divergences(D, space(z, z_ref, D), groups, 0.3, self_columns)
        inputs = [z] if R is None else [z, z_ref]
        weighted = sum((k + 2) * value for k, value in enumerate(values))
        return values, torch.autograd.grad(weighted, inputs)

    found = values_and_gradients()
    monkeypatch.setattr(distillation, "WHOLE_ENTRIES", 1000)
    torch.testing.assert_close(found, values_and_gradients(), rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, columns, columns, temperatures, seeds)
def test_blocks_equal_the_plain_formula(in_blocks, B, d, d_t, T, seed):
    z, t = random_batch(B, d, seed).requires_grad_(), random_batch(B, d_t, seed + 1)
    found, expected = distil(z, t, T), kl(z, t, T)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)


def test_blocks_without_gradient(in_blocks):
    z, t = random_batch(6, 3, 0), random_batch(6, 4, 1)
    torch.testing.assert_close(distil(z, t, 0.5), kl(z, t, 0.5))
    with torch.no_grad():
        assert not distil(z.requires_grad_(), t, 0.5).requires_grad


def test_blocks_under_autocast_in_a_compiled_step_and_with_nan(in_blocks):
    z, t = random_batch(6, 3, 0, torch.float32).requires_grad_(), random_batch(6, 4, 1, torch.float32)
    expected = kl(z.double(), t.double(), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(distil(z, t, 0.5), expected.float(), rtol=1e-4, atol=1e-6)
    compiled = torch.compile(distil, backend="aot_eager")
    torch.testing.assert_close(compiled(z, t, 0.5), expected.float(), rtol=1e-4, atol=1e-6)
    t[2, 1] = torch.nan
    assert torch.isnan(distil(z, t, 0.5))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_large_batch_grows_with_b_and_not_with_its_square():
    """Peak memory of processes of their own, above that of a process that only makes the batch."""
    script = Path(__file__).parent / "distillation_memory.py"

    def mebibytes(rows):
        done = subprocess.run([sys.executable, script, str(rows)], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert 2 * 4 * 8192**2 / 2**20 == 512  # two of the plain computation's matrices; it holds more than ten
    smaller, larger = mebibytes(4096), mebibytes(8192)
    assert larger < 400
    assert larger < 3 * smaller


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast_too(dtype):
    x = random_batch(8, 4, 0, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cosine(*space(x))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cosine(*space(x.float())))


def test_float64_stays_float64():
    assert cosine(*space(random_batch(3, 2, 0))).dtype == torch.float64


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
