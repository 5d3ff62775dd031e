"""S2SDLoss: the authors' values, the plain formula, PML alone when switched off, bad input."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from formula import s2sd as plain_s2sd
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners
from torch.utils import _pytree as pytree

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, S2SDLoss, s2sd

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "s2sd_official.json").read_text())
HEAD_TENSORS = ("0.weight", "0.bias", "2.weight", "2.bias")


@pytest.fixture(scope="module")
def official():
    with np.load(REFERENCE / "s2sd_official.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['case']}-{case['variant']}")
def test_equals_the_authors_code(case, official):
    prefix = f"case{case['case']}"
    maps = official["feature_map"].clone().requires_grad_()
    options = {"feature_weight": case["feature_weight"]} if "f" in case["variant"] else {}
    embedder, loss_func = s2sd(
        losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
        in_features=maps.shape[1],
        embedding_size=len(official["base_weight"]),
        variant=case["variant"],
        aux_sizes=case["aux_sizes"],
        miner=miners.MultiSimilarityMiner(epsilon=0.1),
        distill_weight=case["distill_weight"],
        temperature=case["temperature"],
        feature_delay=case["feature_delay"],
        **options,
    )
    embedder.double()
    # name in our embedder -> name in the reference file
    names = {"head.weight": "base_weight", "head.bias": "base_bias"}
    weights = {ours: official[theirs] for ours, theirs in names.items()}
    for i in range(len(case["aux_sizes"])):
        for tensor in HEAD_TENSORS:
            names[f"aux_heads.{i}.{tensor}"] = f"head{i}/{tensor}"
            weights[f"aux_heads.{i}.{tensor}"] = official[f"{prefix}/head{i}/{tensor}"]
    embedder.load_state_dict(weights)

    for expected in case["losses_at_calls_1_to_4"]:
        embedder.zero_grad()
        maps.grad = None
        loss = loss_func(embedder(maps), official["labels"])
        loss.backward()
        assert abs(loss.item() - expected) < 1e-10

    for ours, theirs in names.items():
        difference = embedder.get_parameter(ours).grad - official[f"{prefix}/grad_{theirs}"]
        assert difference.abs().max() < 1e-10, ours
    assert (maps.grad - official[f"{prefix}/grad_feature_map"]).abs().max() < 1e-10
    assert len(names) == len([name for name in official if name.startswith(f"{prefix}/grad_")]) - 1


def random_batch(B, sizes, F, seed):
    generator = torch.Generator().manual_seed(seed)
    z, *aux = (torch.randn(B, size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes)
    features = torch.randn(B, F, generator=generator, dtype=torch.float64).requires_grad_()
    return S2SDEmbeddings(z, tuple(aux), features)


def leaves(batch):
    return pytree.tree_leaves(batch)


def gradients(loss, *batches):
    tensors = [x for batch in batches for x in leaves(batch)]
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, tensors, strict=True)]


def assert_same_gradients(loss, expected, *batches):
    for found, wanted in zip(gradients(loss, *batches), gradients(expected, *batches), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(2, 6),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    F=st.integers(1, 8),
    gamma=st.sampled_from([0.0, 1.0, 50.0]),
    gamma_f=st.sampled_from([0.0, 3.0]),
    T=st.sampled_from([0.2, 1.0, 4.0]),
    seed=st.integers(0, 2**20),
)
def test_equals_the_plain_formula_over_random_shapes(B, sizes, F, gamma, gamma_f, T, seed):
    d, *aux_sizes = sizes
    batch = random_batch(B, sizes, F, seed)
    labels = torch.arange(B) % 2
    loss_func = S2SDLoss(
        losses.ContrastiveLoss(),
        S2SDEmbedder(F, d, aux_sizes),
        distill_weight=gamma,
        feature_weight=gamma_f,
        feature_delay=0,
        temperature=T,
    )
    loss = loss_func(batch, labels)
    objectives = [lambda x: losses.ContrastiveLoss()(x, labels)] * len(sizes)
    expected = plain_s2sd(objectives, batch.embeddings, batch.aux, batch.features, gamma, gamma_f, T)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-11)
    assert_same_gradients(loss, expected, batch)


def test_ref_emb_compares_each_space_with_its_own_references():
    batch, ref = random_batch(5, (3, 4, 6), 7, 0), random_batch(8, (3, 4, 6), 7, 1)
    labels, ref_labels = torch.arange(5) % 2, torch.arange(8) % 2
    loss_func = S2SDLoss(
        losses.ContrastiveLoss(), S2SDEmbedder(7, 3, (4, 6)), distill_weight=2.0, feature_weight=3.0, feature_delay=0
    )
    loss = loss_func(batch, labels, ref_emb=ref, ref_labels=ref_labels)
    objectives = [
        lambda x, r=r: losses.ContrastiveLoss()(x, labels, ref_emb=r, ref_labels=ref_labels)
        for r in (ref.embeddings, *ref.aux)
    ]
    refs = (ref.embeddings, ref.aux, ref.features)
    expected = plain_s2sd(objectives, batch.embeddings, batch.aux, batch.features, 2.0, 3.0, 1.0, refs)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-11)
    assert_same_gradients(loss, expected, batch, ref)


def test_with_the_batch_as_its_own_reference_the_distillation_is_that_of_the_batch():
    batch = random_batch(6, (3, 4, 6), 7, 0)
    labels, objective = torch.arange(6) % 2, losses.ContrastiveLoss()
    options = {"distill_weight": 2.0, "feature_weight": 3.0, "feature_delay": 0}
    loss_func = S2SDLoss(objective, S2SDEmbedder(7, 3, (4, 6)), **{"distill_weight": 50.0, **options})
    gradients_of, terms = [], []
    for with_ref in (False, True):
        own = [  # what PML makes of it, the diagonal's pairs included where the references have labels
            objective(x, labels, **({"ref_emb": x, "ref_labels": labels} if with_ref else {}))
            for x in (batch.embeddings, *batch.aux)
        ]
        total = loss_func(batch, labels, **({"ref_emb": batch, "ref_labels": labels} if with_ref else {}))
        terms.append(loss_func.terms)
        gradients_of.append(gradients(total - 0.5 * (own[0] + (own[1] + own[2]) / 2), batch))
    for name in ("distill", "feature"):
        torch.testing.assert_close(terms[0][name], terms[1][name], rtol=1e-12, atol=0)
    for found, expected in zip(*gradients_of, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("distance", "similarity"),
    [
        (distances.LpDistance(), lambda x: -torch.cdist(unit(x), unit(x))),
        (distances.LpDistance(normalize_embeddings=False, power=2), lambda x: -(torch.cdist(x, x) ** 2)),
        (distances.DotProductSimilarity(normalize_embeddings=False), lambda x: x @ x.T),
    ],
)
def test_other_distances_become_similarities(distance, similarity):
    batch = random_batch(5, (3, 4), 7, 0)
    loss_func = S2SDLoss(losses.ContrastiveLoss(), S2SDEmbedder(7, 3, (4,)), distill_weight=1.0, distance=distance)
    loss_func(batch, torch.arange(5) % 2)
    p = torch.softmax(similarity(batch.embeddings), 1)
    q = torch.softmax(similarity(batch.aux[0]), 1)
    torch.testing.assert_close(loss_func.terms["distill"], (q * (q / p).log()).sum(1).mean(), check_dtype=False)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def build(loss, aux_sizes=(6, 10), **options):
    embedder = S2SDEmbedder(16, 4, aux_sizes)
    return embedder, S2SDLoss(loss, embedder, **{"distill_weight": 50.0, **options})


FEATURES, LABELS = torch.randn(12, 16, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 3
OBJECTIVES = {
    "multisimilarity": losses.MultiSimilarityLoss,
    "triplet": losses.TripletMarginLoss,
    "ntxent": losses.NTXentLoss,
    "proxyanchor": lambda: losses.ProxyAnchorLoss(4, 4),
    "arcface": lambda: losses.ArcFaceLoss(4, 4),
}


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_switched_off_it_is_pml_alone_bit_for_bit(make):
    objective = make()
    embedder, loss_func = build(copy.deepcopy(objective), aux_sizes=(), distill_weight=0, feature_weight=0)
    plain = torch.nn.Linear(16, 4)
    plain.load_state_dict(embedder.head.state_dict())
    loss, expected = loss_func(embedder(FEATURES), LABELS), objective(plain(FEATURES), LABELS)
    loss.backward()
    expected.backward()
    assert torch.equal(loss, expected)
    pairs = [*zip(embedder.parameters(), plain.parameters(), strict=True)]
    pairs += zip(loss_func.parameters(), objective.parameters(), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_with_weights_0_the_base_head_gets_exactly_half_of_pmls_gradient(make):
    objective = make()
    embedder, loss_func = build(copy.deepcopy(objective), distill_weight=0, feature_weight=0)
    plain = torch.nn.Linear(16, 4)
    plain.load_state_dict(embedder.head.state_dict())
    loss_func(embedder(FEATURES), LABELS).backward()
    objective(plain(FEATURES), LABELS).backward()
    assert torch.equal(2 * embedder.head.weight.grad, plain.weight.grad)
    assert torch.equal(2 * embedder.head.bias.grad, plain.bias.grad)
    assert loss_func.terms["distill"] == 0


def test_teachers_get_no_gradient_from_distillation():
    batch = random_batch(6, (3, 4), 5, 0)
    loss_func = S2SDLoss(
        losses.ContrastiveLoss(), S2SDEmbedder(5, 3, (4,)), distill_weight=7.0, feature_weight=3.0, feature_delay=0
    )
    loss = loss_func(batch, torch.arange(6) % 2)
    _, of_aux, of_features = gradients(loss, batch)
    alone = losses.ContrastiveLoss()(batch.aux[0], torch.arange(6) % 2)
    assert torch.equal(of_aux, 0.5 * torch.autograd.grad(alone, batch.aux[0])[0])
    assert not of_features.any()


def test_terms_are_unweighted_and_add_up():
    embedder, loss_func = build(losses.ContrastiveLoss(), distill_weight=2.0, feature_weight=3.0, feature_delay=1)
    for call in (1, 2):
        loss = loss_func(embedder(FEATURES), LABELS)
        terms = loss_func.terms
        assert not any(term.requires_grad for term in terms.values())
        total = 0.5 * (terms["base"] + terms["aux"]) + 2 * terms["distill"] + 3 * terms["feature"]
        torch.testing.assert_close(total, loss.detach())
        assert (terms["feature"] > 0) == (call == 2)
        assert terms["distill"] > 0


def test_feature_distillation_starts_after_the_delay_and_a_resumed_run_goes_on():
    def fresh():
        return build(losses.ContrastiveLoss(), feature_weight=3.0, feature_delay=3)[1]

    embedder, loss_func = build(losses.ContrastiveLoss(), feature_weight=3.0, feature_delay=3)
    seen = []
    for _ in range(2):
        loss_func(embedder(FEATURES), LABELS)
        seen.append(loss_func.terms["feature"].item() > 0)
    loss_func.eval()
    loss_func(embedder(FEATURES), LABELS)  # not a training call
    resumed = fresh()
    resumed.load_state_dict(loss_func.state_dict())
    for _ in range(3):
        resumed(embedder(FEATURES), LABELS)
        seen.append(resumed.terms["feature"].item() > 0)
    assert seen == [False, False, False, True, True]
    assert resumed.calls == 5


def test_miner_mines_in_each_space_and_indices_tuple_serves_all():
    batch = random_batch(12, (4, 6), 16, 0)
    miner = miners.BatchHardMiner()
    embedder = S2SDEmbedder(16, 4, (6,))
    mined = S2SDLoss(losses.TripletMarginLoss(), embedder, miner=miner, distill_weight=50.0)
    mined(batch, LABELS)
    for x, term in ((batch.embeddings, "base"), (batch.aux[0], "aux")):
        expected = losses.TripletMarginLoss()(x, LABELS, miners.BatchHardMiner()(x, LABELS))
        torch.testing.assert_close(mined.terms[term], expected.detach(), check_dtype=False)

    tuples = miner(batch, LABELS)
    shared = S2SDLoss(losses.TripletMarginLoss(), embedder, distill_weight=50.0)
    shared(batch, LABELS, tuples)
    expected = losses.TripletMarginLoss()(batch.aux[0], LABELS, tuples)
    torch.testing.assert_close(shared.terms["aux"], expected.detach(), check_dtype=False)
    assert shared.terms["aux"] != mined.terms["aux"]


def test_aux_loss_serves_the_auxiliary_spaces():
    embedder, loss_func = build(losses.ContrastiveLoss(), aux_loss=losses.ProxyAnchorLoss(4, 6))
    batch = embedder(FEATURES)
    loss_func(batch, LABELS)
    torch.testing.assert_close(loss_func.terms["base"], losses.ContrastiveLoss()(batch.embeddings, LABELS).detach())
    expected = [loss(a, LABELS) for loss, a in zip(loss_func.aux_losses.values(), batch.aux, strict=True)]
    torch.testing.assert_close(loss_func.terms["aux"], torch.stack(expected).mean().detach())
    assert [tuple(loss.proxies.shape) for loss in loss_func.aux_losses.values()] == [(4, 6), (4, 10)]


def test_eval_mode_is_the_base_objective_alone_on_tensors_and_on_embeddings():
    embedder, loss_func = build(losses.ContrastiveLoss(), feature_weight=1.0)
    loss_func.eval()
    batch = embedder(FEATURES)
    expected = losses.ContrastiveLoss()(batch.embeddings, LABELS)
    assert torch.equal(loss_func(batch.embeddings, LABELS), expected)
    assert torch.equal(loss_func(batch, LABELS), expected)
    assert torch.equal(loss_func(embedder.eval()(FEATURES), LABELS), expected)
    assert loss_func.calls == 0


def test_the_embedder_is_not_a_part_of_the_loss_and_the_instance_given_serves_the_base_space():
    objective = losses.ProxyAnchorLoss(4, 4)
    embedder, loss_func = build(objective)
    assert loss_func.base_loss is objective
    assert [tuple(p.shape) for p in loss_func.parameters()] == [(4, 4), (4, 6), (4, 10)]
    assert set(loss_func.state_dict()) == {
        "calls",
        "base_loss.proxies",
        "aux_losses.a1.proxies",
        "aux_losses.a2.proxies",
        "_extra_state",
    }
    loss_func(embedder(FEATURES), LABELS).backward()
    for parameter in [*loss_func.parameters(), *embedder.parameters()]:
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_give_finite_loss_close_to_float32(dtype):
    embedder, loss_func = build(losses.ContrastiveLoss(), feature_weight=1.0, feature_delay=0)
    expected = loss_func(embedder(FEATURES), LABELS)
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_func(embedder(FEATURES), LABELS)
    loss.backward()
    torch.testing.assert_close(loss.float(), expected, rtol=0.02, atol=0.02)
    assert all(torch.isfinite(p.grad).all() for p in embedder.parameters())


@pytest.mark.parametrize(
    "labels", [torch.zeros(12, dtype=torch.int64), torch.arange(12)], ids=["one class", "no positive pairs"]
)
@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_degenerate_labels_give_finite_loss_and_gradients_everywhere(make, labels):
    objective = make()
    if any(True for _ in objective.parameters()):
        labels = labels % 4
    embedder, loss_func = build(objective, feature_weight=1.0, feature_delay=0)
    loss = loss_func(embedder(FEATURES), labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in embedder.parameters())


def test_one_sample_and_zero_vectors_are_finite():
    embedder, loss_func = build(losses.ContrastiveLoss(), feature_weight=1.0, feature_delay=0)
    for features in (FEATURES[:1], torch.zeros(1, 16)):
        loss = loss_func(embedder(features), LABELS[:1])
        loss.backward()
        assert torch.isfinite(loss)
        assert loss_func.terms["distill"] == 0
    assert all(torch.isfinite(p.grad).all() for p in embedder.parameters())


def test_nan_is_not_hidden():
    embedder, loss_func = build(losses.ContrastiveLoss())
    features = FEATURES.clone()
    features[0, 0] = torch.nan
    assert torch.isnan(loss_func(embedder(features), LABELS))


MADE = {"embeddings": torch.randn(12, 4), "aux": (torch.randn(12, 6), torch.randn(12, 10)), "features": FEATURES}


def made(**changes):
    return S2SDEmbeddings(**{**MADE, **changes})


BAD_INPUT = {
    "plain tensor": ((torch.randn(12, 4), LABELS), TypeError, r"must be the S2SDEmbeddings.*got Tensor.*eval\(\)"),
    "size": (
        (made(embeddings=torch.randn(12, 5)), LABELS),
        ValueError,
        r"embeddings.embeddings.*\(B, 4\), got \(12, 5\)",
    ),
    "spaces": ((made(aux=(torch.randn(12, 6),)), LABELS), ValueError, "has 1 auxiliary spaces, but .* for 2"),
    "aux size": (
        (made(aux=(torch.randn(12, 6), torch.randn(12, 9))), LABELS),
        ValueError,
        r"aux\[1\].*\(12, 10\).*\(12, 9\)",
    ),
    "aux rows": (
        (made(aux=(torch.randn(11, 6), torch.randn(12, 10))), LABELS),
        ValueError,
        r"aux\[0\].*\(12, 6\).*\(11, 6\)",
    ),
    "feature rows": ((made(features=torch.randn(11, 16)), LABELS), ValueError, r"features.*\(12, F\), got \(11, 16\)"),
    "labels": ((made(), LABELS[:5]), ValueError, r"labels must have shape \(12,\).*got \(5,\)"),
    "2-D labels": ((made(), LABELS[:, None]), ValueError, r"labels must have shape \(12,\).*got \(12, 1\)"),
    "labels' type": ((made(), LABELS.tolist()), TypeError, "labels must be a tensor.*got list"),
    "empty": (
        (S2SDEmbeddings(torch.empty(0, 4), (torch.empty(0, 6), torch.empty(0, 10)), torch.empty(0, 16)), LABELS[:0]),
        ValueError,
        "is empty.*drop_last",
    ),
    "integers": ((made(embeddings=torch.ones(12, 4, dtype=torch.int64)), LABELS), TypeError, "floating-point.*int64"),
    "ref_emb": ((made(), LABELS, None, torch.randn(3, 4), LABELS[:3]), TypeError, "ref_emb must be the S2SDEmbeddings"),
    "ref_labels": ((made(), LABELS, None, made(), LABELS[:3]), ValueError, r"ref_labels must have shape \(12,\)"),
    "ref_labels alone": ((made(), LABELS, None, None, LABELS), ValueError, "without ref_emb"),
}


@pytest.mark.parametrize(("arguments", "error", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_named_before_anything_changes(arguments, error, words):
    _, loss_func = build(losses.CrossBatchMemory(losses.ContrastiveLoss(), 4, memory_size=32))
    with pytest.raises(error, match=words):
        loss_func(*arguments)
    assert loss_func.calls == 0
    assert loss_func.base_loss.queue_idx == 0
    assert loss_func.terms == {}


def test_a_miner_and_indices_tuple_exclude_each_other():
    embedder, loss_func = build(losses.TripletMarginLoss(), miner=miners.BatchHardMiner())
    batch = embedder(FEATURES)
    with pytest.raises(ValueError, match="give one or the other"):
        loss_func(batch, LABELS, miners.BatchHardMiner()(batch, LABELS))
    with pytest.raises(ValueError, match="the miner needs labels"):
        loss_func(batch)


BAD_ARGUMENTS = {
    "distill_weight": (-1, ValueError, "distill_weight must be at least 0, got -1"),
    "feature_weight": (float("nan"), ValueError, "feature_weight must be finite, got nan"),
    "temperature": (0, ValueError, "temperature must be above 0, got 0"),
    "feature_delay": (-1, ValueError, "feature_delay must be at least 0, got -1"),
    "miner": (miners.BatchHardMiner, TypeError, "miner must be .* instance"),
    "distance": ("cosine", TypeError, "distance must be a pytorch_metric_learning distance.*'cosine'"),
    "aux_loss": (3, TypeError, "expected a PML objective or a callable"),
}


@pytest.mark.parametrize(("name", "value", "error", "words"), [(n, *rest) for n, rest in BAD_ARGUMENTS.items()])
def test_wrong_arguments(name, value, error, words):
    with pytest.raises(error, match=words):
        build(losses.ContrastiveLoss(), **{name: value})


def test_wrong_loss_or_embedder():
    embedder, loss_func = build(losses.ContrastiveLoss())
    with pytest.raises(TypeError, match="S2SDLoss already"):
        S2SDLoss(loss_func, embedder)
    with pytest.raises(TypeError, match=r"embedder must be the S2SDEmbedder.*got Sequential"):
        S2SDLoss(losses.ContrastiveLoss(), torch.nn.Sequential(embedder))
    with pytest.raises(TypeError, match="temperature must be a number, got str"):
        S2SDLoss(losses.ContrastiveLoss(), embedder, temperature="1", distill_weight=50.0)
