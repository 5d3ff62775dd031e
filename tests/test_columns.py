"""columns=: distillation against columns drawn at random, against the formula written out for the same draw."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from columns_reference import drawn_kl, kl_of_rows
from formula import kl
from plain_objective import BatchContrastive
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance

from pml_s2sd import S2SDEmbeddings, _distillation_in_blocks, consolidate, distillation, s2sd

B, SIZES, F, T = 12, (6, 10), 7, 0.3
LABELS = torch.arange(B) // 2
WORKER = Path(__file__).parent / "columns_worker.py"


@pytest.fixture
def in_blocks(monkeypatch):
    """Every matrix is handled in blocks, of a few rows."""
    monkeypatch.setattr(distillation, "WHOLE_ENTRIES", 0)
    monkeypatch.setattr(_distillation_in_blocks, "BLOCK_ENTRIES", 30)


def random_batch(rows, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z, *aux, features = (torch.randn(rows, d, generator=generator, dtype=dtype) for d in (4, *SIZES, F))
    return S2SDEmbeddings(z.requires_grad_(), tuple(aux), features)


def made(objective=BatchContrastive, variant="MSDF", **options):
    options = {"aux_sizes": SIZES, "temperature": T, "feature_delay": 0, **options}
    return s2sd(objective(), F, 4, variant, **options)[1]


def distilled(loss_func, batch, seed, **references):
    """The distillation's two terms, weighted with 1 and 2, and the gradient into z."""
    loss_func.distill_weight, loss_func.feature_weight = 1.0, 2.0
    torch.manual_seed(seed)
    total = loss_func(batch, LABELS, **references)
    of_objectives = (loss_func.terms["base"] + loss_func.terms["aux"]) / 2
    value = total.detach() - of_objectives
    loss_func.distill_weight, loss_func.feature_weight = 0.0, 0.0
    rest = torch.autograd.grad(total - loss_func(batch, LABELS, **references), batch.embeddings)[0]
    return value, rest


def expected(z, teachers, drawn, own, keep_own, ref=None, teacher_refs=None):
    ref = z if ref is None else ref
    teacher_refs = teachers if teacher_refs is None else teacher_refs
    *aux, features = [
        drawn_kl(z, t, ref, t_ref, drawn, own, keep_own, T) for t, t_ref in zip(teachers, teacher_refs, strict=True)
    ]
    value = sum(aux) / len(aux) + 2 * features
    return value.detach(), torch.autograd.grad(value, z)[0]


OBJECTIVES = {
    "cosines not known": BatchContrastive,
    "cosines known": lambda: losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("keep_own", [True, False], ids=["own kept", "own left out"])
@pytest.mark.parametrize("columns", [2, 5, 11])
def test_value_and_gradient_equal_the_formula_with_the_same_columns(objective, keep_own, columns):
    batch = random_batch(B)
    loss_func = made(OBJECTIVES[objective], columns=columns, include_diagonal=keep_own)
    for seed in (1, 2):
        found = distilled(loss_func, batch, seed)
        torch.manual_seed(seed)
        drawn = torch.randperm(B)[:columns].tolist()
        wanted = expected(batch.embeddings, (*batch.aux, batch.features), drawn, list(range(B)), keep_own)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("keep_own", [True, False], ids=["own kept", "own left out"])
def test_blocks_of_rows_too(keep_own, in_blocks):
    test_value_and_gradient_equal_the_formula_with_the_same_columns("cosines known", keep_own, 7)


@pytest.mark.parametrize("keep_own", [True, False], ids=["own kept", "own left out"])
def test_references_are_drawn_and_copies_among_them_count_as_own(keep_own):
    batch, others = random_batch(B), random_batch(9, seed=1)
    references = torch.cat([others[:4], batch[:6], others[4:]])
    own = [4 + b if b < 6 else -1 for b in range(B)]
    loss_func = made(columns=6, include_diagonal=keep_own)
    labels = torch.arange(15) // 3
    found = distilled(loss_func, batch, 3, ref_emb=references, ref_labels=labels)
    torch.manual_seed(3)
    drawn = torch.randperm(15)[:6].tolist()
    assert {*drawn} & {*range(4, 10)} and not {*range(4, 10)} <= {*drawn}  # copies that are drawn, and that are not
    teachers, teacher_refs = ((*x.aux, x.features) for x in (batch, references))
    wanted = expected(batch.embeddings, teachers, drawn, own, keep_own, references.embeddings, teacher_refs)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_references_get_their_gradient():
    batch, references = random_batch(B), random_batch(9, seed=1)
    loss_func = made(columns=4)
    torch.manual_seed(0)
    loss_func(batch, LABELS, ref_emb=references, ref_labels=torch.arange(9)).backward()
    torch.manual_seed(0)
    drawn = torch.randperm(9)[:4]
    assert (references.embeddings.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == sorted(drawn.tolist())


@pytest.mark.parametrize("columns", [B, B + 1, 10**6])
@pytest.mark.parametrize("keep_own", [True, False], ids=["own kept", "own left out"])
def test_as_many_as_there_are_is_as_without_and_draws_nothing(columns, keep_own):
    batch = random_batch(B, dtype=torch.float32)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = distilled(made(columns=columns, include_diagonal=keep_own), batch, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(found, distilled(made(include_diagonal=keep_own), batch, 0), rtol=0, atol=0)


@pytest.mark.parametrize("keep_own", [True, False], ids=["own kept", "own left out"])
def test_the_mean_over_draws_is_near_all_columns(keep_own):
    """At a temperature at which a row's own column, where it is kept, has most of the softmax."""
    torch.manual_seed(0)
    teacher = torch.randn(96, 24, dtype=torch.float64)
    z = (teacher[:, :4] + 0.3 * torch.randn(96, 4, dtype=torch.float64)).requires_grad_()
    loss_func = made(variant="DSD", aux_sizes=(24,), temperature=0.2, include_diagonal=keep_own)
    batch = S2SDEmbeddings(z, (teacher,), torch.zeros(96, F, dtype=torch.float64))

    def value_and_gradient(columns):
        loss_func.columns = columns
        total = loss_func(batch, torch.arange(96) // 2)
        (gradient,) = torch.autograd.grad(total, z)
        return loss_func.terms["distill"], gradient - objective

    loss_func.distill_weight = 0.0
    (objective,) = torch.autograd.grad(loss_func(batch, torch.arange(96) // 2), z)
    loss_func.distill_weight = 1.0
    whole, gradient = value_and_gradient(None)
    draws = [value_and_gradient(32) for _ in range(300)]
    mean = torch.stack([g for _, g in draws]).mean(0)
    value = torch.stack([v for v, _ in draws]).mean()
    one = torch.stack([(g - gradient).norm() for _, g in draws]).mean() / gradient.norm()
    assert 0.93 < value / whole < 1.0
    assert (mean - gradient).norm() < 0.1 * gradient.norm()
    assert one > 0.3  # a draw is far from it, and the mean of them is not


def test_a_distance_where_small_is_similar_keeps_its_sign():
    batch = random_batch(B)
    loss_func = made(columns=5, distance=LpDistance(power=2), include_diagonal=True)
    found, _ = distilled(loss_func, batch, 1)
    torch.manual_seed(1)
    drawn = torch.randperm(B)[:5].tolist()

    def minus_squared_distance(x, y):
        x, y = (t / t.square().sum().sqrt() for t in (x, y))
        return -(x - y).square().sum()

    z, teachers = batch.embeddings.detach(), (*batch.aux, batch.features)
    *aux, features = [drawn_kl(z, t, z, t, drawn, list(range(B)), True, T, minus_squared_distance) for t in teachers]
    torch.testing.assert_close(found, sum(aux) / len(aux) + 2 * features, rtol=1e-6, atol=1e-8)


def test_a_resumed_run_draws_what_it_would_have_drawn():
    batch = random_batch(B)
    torch.manual_seed(5)
    loss_func = made(columns=4)
    loss_func(batch, LABELS)
    saved = loss_func.state_dict(), torch.get_rng_state()
    went_on = [loss_func(batch, LABELS).item() for _ in range(3)]
    torch.manual_seed(99)
    resumed = made(columns=4)
    resumed.load_state_dict(saved[0])
    torch.set_rng_state(saved[1])
    assert [resumed(batch, LABELS).item() for _ in range(3)] == went_on
    assert len(set(went_on)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("keep_own", [True, False], ids=["own kept", "own left out"])
def test_a_compiled_step_draws_anew_without_compiling_anew(keep_own):
    batch, loss_func = random_batch(B), made(columns=4, include_diagonal=keep_own)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(lambda x: loss_func(x, LABELS), backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [compiled(batch) for _ in range(4)]
    torch.manual_seed(0)
    values = [loss_func(batch, LABELS) for _ in range(4)]
    torch.testing.assert_close(found, values)
    assert len({value.item() for value in values}) == 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_what_consolidate_makes_of_the_recommended_setting_does_not_depend_on_it():
    def consolidated(columns):
        torch.manual_seed(0)
        embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, 4, aux_sizes=(6,), columns=columns)
        optimizer = torch.optim.SGD(embedder.parameters(), lr=0.1)
        features = torch.randn(B, F)
        for _ in range(3):
            optimizer.zero_grad()
            loss_func(embedder(features), LABELS).backward()
            optimizer.step()
        return embedder.head.weight.detach(), consolidate(embedder, features, LABELS, steps=3).head.weight

    (head, made_of_all), (head_of_drawn, made_of_drawn) = consolidated(None), consolidated(4)
    assert (head - head_of_drawn).abs().max() > 1e-3
    torch.testing.assert_close(made_of_all, made_of_drawn, rtol=0, atol=0)


def test_half_precision_and_nan():
    batch = random_batch(B, dtype=torch.float32)
    wanted = distilled(made(columns=5), batch, 0)[0]
    half = S2SDEmbeddings(batch.embeddings.bfloat16(), batch.aux, batch.features)
    assert made(columns=5)(half, LABELS).isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert abs(distilled(made(columns=5), batch, 0)[0] - wanted) < 0.02 * abs(wanted) + 0.02
    batch.aux[0][3] = torch.nan
    assert distilled(made(columns=5), batch, 0)[0].isnan()


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (1, ValueError, "columns must be at least 2, got 1"),
        (0, ValueError, "columns must be at least 2, got 0"),
        (True, TypeError, r"columns must be an int, got bool \(True\)"),
        (512.0, TypeError, r"columns must be an int, got float \(512.0\)"),
        ("all", TypeError, r"columns must be an int, got str \('all'\)"),
    ],
)
def test_what_is_no_number_of_columns_is_refused(columns, error, message):
    with pytest.raises(error, match=message):
        made(columns=columns)


@pytest.mark.slow
def test_each_of_two_processes_draws_from_the_columns_of_both(tmp_path):
    """DistributedDataParallel's gradient against the formula, each process's rows with its own draw; uneven batches."""
    command = [sys.executable, str(WORKER)]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(tmp_path / "found.json")])
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"own kept", "own left out"}
    for differences in found.values():
        assert differences["largest gradient"] > 1e-3
        assert differences["gradient"] < 1e-12
        assert differences["distill"] < 1e-12


def test_the_reference_itself_is_the_whole_formula_where_all_are_drawn():
    z, t = random_batch(5).embeddings.detach(), random_batch(5).features
    everyone = list(range(5))
    torch.testing.assert_close(drawn_kl(z, t, z, t, everyone, everyone, True, T), kl(z, t, T))
    torch.testing.assert_close(kl_of_rows(z, t, range(5), everyone, True, T).mean(), kl(z, t, T))
