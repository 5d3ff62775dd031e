"""Half precision, double precision, and embeddings at the edges of what a number holds."""

import copy

import pytest
import torch
from formula import kl
from formula import s2sd as s2sd_formula
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import CosineSimilarity

from pml_s2sd import S2SDEmbeddings, S2SDLoss, s2sd
from pml_s2sd._similarity import Similarity

B, F, d, AUX = 12, 16, 4, (6, 10)
LABELS = torch.arange(B) // 2
OPTIONS = {"distill_weight": 3.0, "temperature": 0.5, "feature_weight": 2.0, "feature_delay": 0}
# A linear layer's output carries a relative error of about 2^-8 (bfloat16: 8 bits) or 2^-11 (float16: 11 bits).
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.004}


def contrastive():
    """On cosines: PML's default, LpDistance, has no bfloat16 on CPUs."""
    return losses.ContrastiveLoss(pos_margin=1, neg_margin=0, distance=CosineSimilarity())


def made(dtype=torch.float32):
    torch.manual_seed(0)
    embedder, loss_func = s2sd(contrastive(), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
    return embedder.to(dtype), loss_func.to(dtype)


def features(dtype=torch.float32):
    return torch.randn(B, F, generator=torch.Generator().manual_seed(1)).to(dtype)


def gradients(embedder):
    return torch.cat([p.grad.flatten().double() for p in embedder.parameters()])


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def float32_step():
    embedder, loss_func = made()
    loss = loss_func(embedder(features()), LABELS)
    loss.backward()
    return loss.detach(), gradients(embedder)


def assert_close_to_float32(loss, found, tolerance):
    expected_loss, expected = float32_step()
    loss, found = loss.cpu(), found.cpu()
    torch.testing.assert_close(loss.detach().float(), expected_loss, rtol=tolerance, atol=0)
    assert torch.isfinite(found).all()
    assert (found - expected).norm() < 10 * tolerance * expected.norm()  # as ReLUs and thresholds may switch


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_under_autocast(dtype, device):
    embedder, loss_func = (module.to(device) for module in made())
    with torch.autocast(device, dtype=dtype):
        batch = embedder(features().to(device))
        loss = loss_func(batch, LABELS.to(device))
    assert batch.aux[0].dtype == dtype
    loss.backward()
    assert_close_to_float32(loss, gradients(embedder), TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_with_a_gradient_scaler(device):
    embedder, loss_func = (module.to(device) for module in made())
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    optimizer = torch.optim.SGD(embedder.parameters(), lr=0.01)
    before = copy.deepcopy(embedder.state_dict())
    with torch.autocast(device, dtype=torch.float16):
        loss = loss_func(embedder(features().to(device)), LABELS.to(device))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert_close_to_float32(loss, gradients(embedder), TOLERANCE[torch.float16])
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**10  # no gradient overflowed
    assert all((embedder.state_dict()[name] - before[name]).abs().max() > 0 for name in before)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_models_of_half_precision(dtype):
    embedder, loss_func = made(dtype)
    loss = loss_func(embedder(features(dtype)), LABELS)
    loss.backward()
    assert_close_to_float32(loss, gradients(embedder), 2 * TOLERANCE[dtype])


def test_double_precision_is_kept():
    embedder, loss_func = made(torch.float64)
    batch = embedder(features(torch.float64))
    loss = loss_func(batch, LABELS)
    assert loss.dtype == torch.float64
    L = [lambda x: contrastive()(x, LABELS)] * 3
    torch.testing.assert_close(
        loss, s2sd_formula(L, batch.embeddings, batch.aux, batch.features, 3.0, 2.0, 0.5), rtol=1e-10, atol=0
    )


def test_similarities_of_half_precision_are_not_rounded_to_it():
    x = features(torch.bfloat16)
    D = Similarity(CosineSimilarity())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = D(D.prepare(x), D.prepare(x))
    unit = torch.nn.functional.normalize(x.double())
    torch.testing.assert_close(found.double(), unit @ unit.T, rtol=0, atol=1e-6)
    assert (found.bfloat16().double() - unit @ unit.T).abs().max() > 1e-4


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_divergences_of_half_precision_are_not_rounded_to_it(dtype, autocast):
    z, a, phi = (ordinary(columns, columns).to(dtype) for columns in (d, 6, F))
    _, loss_func = s2sd(contrastive(), F, d, "MSDF", aux_sizes=(6,), **OPTIONS)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss = loss_func(S2SDEmbeddings(z, (a,), phi), LABELS)
    assert loss.dtype == torch.float32
    for name, teacher in (("distill", a), ("feature", phi)):
        found, exact = loss_func.terms[name], kl(z.double(), teacher.double(), OPTIONS["temperature"])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
        assert abs(exact.to(dtype).double() - exact) > 3e-5 * exact  # half precision would be seen


def ordinary(columns, seed):
    return torch.randn(B, columns, generator=torch.Generator().manual_seed(seed))


EDGES = {
    "norms of 1e4": lambda x: 1e4 * x,
    "norms of 1e15": lambda x: 1e15 * x,
    "norms of 1e-4": lambda x: 1e-4 * x,
    "norms of 1e-10": lambda x: 1e-10 * x,
    "norms from 1e-3 to 1e4": lambda x: x * torch.logspace(-3, 4, B)[:, None],
    "norms from 1e-6 to 1e15": lambda x: x * torch.logspace(-6, 15, B)[:, None],
    "duplicates": lambda x: x[torch.arange(B) // 3 * 3],
    "all alike": lambda x: x[:1].expand(B, -1),
    "zero vectors": lambda x: x * (torch.arange(B) % 4 > 0)[:, None],
    "nothing but zeros": lambda x: 0 * x,
    "opposite": lambda x: torch.cat([x[: B // 2], -x[: B // 2]]),
    "the largest of float16": lambda x: 65504.0 * x.sign(),
    "below the least normal of float16": lambda x: 2.0**-20 * (x * 10).round(),
}
BEYOND_FLOAT16 = {"norms of 1e15", "norms of 1e-10", "norms from 1e-6 to 1e15"}
# Gradients come in the dtype of the embeddings: relative errors of up to 2^-8 (bfloat16), 2^-11 (float16).
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.01, torch.float16: 0.004}


def edge_step(edge, dtype):
    """The distillation of such a batch, its gradient, and both by the formula in float64."""
    z, a, phi = (edge(ordinary(columns, columns)).to(dtype) for columns in (d, 6, F))
    z.requires_grad_()
    embedder, _ = s2sd(losses.ContrastiveLoss(), F, d, "MSDF", aux_sizes=(6,))
    # the objective is switched off: what is looked at here is the distillation
    loss = S2SDLoss(Nothing(), embedder, **OPTIONS)(S2SDEmbeddings(z, (a,), phi), LABELS)
    loss.backward()
    exact_z = z.detach().double().requires_grad_()
    zero = torch.zeros((), dtype=torch.float64)
    exact = s2sd_formula([lambda x: zero] * 2, exact_z, (a.double(),), phi.double(), 3.0, 2.0, 0.5)
    exact.backward()
    return z, loss.detach().double(), exact.detach(), exact_z.grad


class Nothing(torch.nn.Module):
    def forward(self, embeddings, labels):
        return torch.zeros(())


@pytest.mark.parametrize(
    ("edge", "dtype"),
    [
        (edge, dtype)
        for edge in EDGES
        for dtype in GRADIENT_TOLERANCE
        if not (dtype == torch.float16 and edge in BEYOND_FLOAT16)
    ],
)
def test_edges(edge, dtype):
    z, loss, exact, exact_gradient = edge_step(EDGES[edge], dtype)
    torch.testing.assert_close(loss, exact, rtol=1e-4, atol=1e-6)
    found = z.grad.double()
    norms = z.detach().double().norm(dim=1)
    vectors = norms > 0  # a zero vector has no direction, hence no derivative
    if vectors.any():
        off = (found - exact_gradient)[vectors].norm()
        cancelled = 1e-6 / norms[vectors].min()  # where all are alike the exact gradient is 0
        dtype_step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # between numbers next to 0
        rounded = 0.5 * dtype_step * z.numel() ** 0.5
        assert off < GRADIENT_TOLERANCE[dtype] * exact_gradient[vectors].norm() + cancelled + rounded
    assert not found[~vectors].any()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="PML's normalisation counts norms below 1e-12, and those of which the squares overflow, as zero vectors",
)
@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_at_the_ends_of_what_a_float32_holds(scale, dtype):
    _, loss, exact, _ = edge_step(lambda x: scale * x, dtype)
    torch.testing.assert_close(loss, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_norms_at_those_ends_give_finite_values_and_gradients(scale):
    z, loss, _, _ = edge_step(lambda x: scale * x, torch.float32)
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()
