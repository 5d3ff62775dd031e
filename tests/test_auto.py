"""distill_weight="auto": the balance of gradients, and teachers that are followed only where they retrieve better."""

import copy

import pytest
import torch
from formula import kl
from plain_objective import BatchContrastive
from pytorch_metric_learning import losses, miners

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, S2SDLoss, _distillation_in_blocks, distillation, s2sd
from pml_s2sd._automatic_weights import RATIO
from pml_s2sd._gradient_balance import GradientBalance
from pml_s2sd._teacher_selection import TeacherSelection, reciprocal_ranks

LABELS = torch.arange(12) // 2


def make(variant="MSD", **options):
    torch.manual_seed(0)
    embedder, loss_func = s2sd(
        losses.MultiSimilarityLoss(), 16, 4, variant, aux_sizes=(6, 10), distill_weight="auto", **options
    )
    return embedder, loss_func, torch.randn(12, 16)


def follow_all(loss_func, weights=(0.5, 0.5)):
    loss_func.weights.selection.forward = lambda *_, **__: torch.tensor(weights)


def gradients(embedder, loss_func, x, scale=1.0):
    embedder.zero_grad()
    (scale * loss_func(embedder(x), LABELS)).backward()
    return {name: p.grad.clone() for name, p in embedder.named_parameters()}


def gradients_apart(loss_func, batch):
    """Of the objective, and of each distillation term by the plain formula without the diagonal, into z."""
    z = batch.embeddings.detach().double().requires_grad_()
    teachers = [[a.double() for a in batch.aux], [batch.features.double()]]
    values = [losses.MultiSimilarityLoss()(z, LABELS)]
    for group in teachers[: 1 + (loss_func.feature_weight != 0)]:
        values.append(sum(kl_to_the_others(z, t, loss_func.temperature) for t in group) / len(group))
    return [torch.autograd.grad(value, z)[0].float() for value in values]


def kl_to_the_others(z, t, T):
    others = [[r for r in range(len(z)) if r != b] for b in range(len(z))]
    return sum(kl(z[[b]], t[[b]], T, z[rest], t[rest]) for b, rest in enumerate(others)) / len(z)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.15, 0.15)])
def test_the_gradient_is_the_objectives_and_as_much_of_the_distillations(weights):
    embedder, loss_func, x = make()
    follow_all(loss_func, weights)
    batch = embedder(x)
    z = batch.embeddings.detach().requires_grad_()
    loss_func(S2SDEmbeddings(z, batch.aux, batch.features), LABELS).backward()

    g, from_aux = gradients_apart(loss_func, batch)
    weight = RATIO * g.norm() / from_aux.norm()  # of a term that is sum(weights) of the mean over teachers
    torch.testing.assert_close(z.grad, g + weight * sum(weights) * from_aux, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(loss_func.terms["distill_weight"], weight, rtol=1e-4, atol=0)


def test_a_common_factor_of_the_loss_scales_the_gradient_and_leaves_the_weight():
    """As a GradScaler's, and gradient accumulation's."""
    embedder, loss_func, x = make()
    follow_all(loss_func)
    once = gradients(embedder, loss_func, x)
    weight = loss_func.terms["distill_weight"].clone()
    scaled = gradients(embedder, loss_func, x, scale=1024.0)
    torch.testing.assert_close(loss_func.terms["distill_weight"], weight)
    for name, gradient in once.items():
        torch.testing.assert_close(scaled[name], 1024 * gradient, rtol=1e-4, atol=1e-5)


def test_when_no_teacher_is_better_the_step_is_the_objectives_alone():
    embedder, loss_func, x = make()
    follow_all(loss_func, (0.0, 0.0))
    features = x.clone().requires_grad_()
    loss_func(embedder(features), LABELS).backward()
    alone = x.clone().requires_grad_()
    head = copy.deepcopy(embedder.head)
    head.zero_grad()
    losses.MultiSimilarityLoss()(head(alone), LABELS).backward()
    assert torch.equal(features.grad, alone.grad)
    assert torch.equal(embedder.head.weight.grad, head.weight.grad)
    assert loss_func.terms["distill_weight"] == 0


def test_the_value_is_the_sum_of_the_terms():
    embedder, loss_func, x = make("MSDF", feature_delay=0, feature_weight=3.0)
    follow_all(loss_func)
    value = loss_func(embedder(x), LABELS)
    t = loss_func.terms
    torch.testing.assert_close(value.detach(), t["base"] + t["aux"] + t["distill"] + 3 * t["feature"])
    value.backward()
    assert t["distill_weight"] > 0


def test_a_fixed_weight_beside_an_automatic_one_is_that_weight():
    embedder, loss_func, x = make("MSDF", feature_delay=0, feature_weight=3.0)
    follow_all(loss_func)
    batch = embedder(x)
    z = batch.embeddings.detach().requires_grad_()
    loss_func(S2SDEmbeddings(z, batch.aux, batch.features), LABELS).backward()
    g, from_aux, from_features = gradients_apart(loss_func, batch)
    torch.testing.assert_close(
        z.grad, g + RATIO * g.norm() / from_aux.norm() * from_aux + 3.0 * from_features, rtol=1e-4, atol=1e-7
    )
    assert "feature_weight" not in loss_func.terms


def test_the_defaults_that_come_with_it_and_the_papers():
    embedder, loss_func, _ = make()
    assert isinstance(embedder.aux_heads[0], torch.nn.Linear) and not embedder.aux_gradient
    assert (loss_func.temperature, loss_func.include_diagonal) == (0.05, False)
    embedder, loss_func = s2sd(losses.MultiSimilarityLoss(), 16, 4, "MSD")
    assert len(embedder.aux_heads[0]) == 3 and embedder.aux_gradient
    assert (loss_func.temperature, loss_func.include_diagonal) == (1.0, True)
    assert set(loss_func.state_dict()) == {"calls", "_extra_state"}


def test_heads_that_make_poor_teachers_are_warned_of(recwarn):
    S2SDLoss(losses.TripletMarginLoss(), S2SDEmbedder(8, 2, (4,), aux_head="linear"), distill_weight="auto")
    S2SDLoss(losses.TripletMarginLoss(), S2SDEmbedder(8, 2, (4,)))
    assert not recwarn.list
    with pytest.warns(UserWarning, match='aux_head="linear", aux_gradient=False'):
        S2SDLoss(losses.TripletMarginLoss(), S2SDEmbedder(8, 2, (4,)), distill_weight="auto")


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="must be a number or \"auto\", got 'often'"):
        S2SDLoss(losses.TripletMarginLoss(), S2SDEmbedder(8, 2, (4,)), distill_weight="often")
    with pytest.raises(ValueError, match="aux_head must be one of mlp, linear"):
        S2SDEmbedder(8, 2, (4,), aux_head="deep")


def plain_reciprocal_ranks(D, labels, ref_labels, own):
    total = count = 0
    for b, row in enumerate(D.tolist()):
        others = [
            (value, int(label)) for r, (value, label) in enumerate(zip(row, ref_labels, strict=True)) if r != own(b)
        ]
        same = [value for value, label in others if label == labels[b]]
        if same:
            total += 1 / (1 + sum(value >= max(same) for value, label in others if label != labels[b]))
            count += 1
    return total, count


@pytest.mark.parametrize("first_self", [0, 3, None])
def test_scores_are_the_mean_reciprocal_rank_by_a_plain_loop(first_self):
    torch.manual_seed(0)
    ref_labels = torch.tensor([0, 1, 0, 2, 3, 1, 2, 2, 4])
    rows = 6
    start = first_self or 0
    labels = ref_labels[start : start + rows] if first_self is not None else torch.tensor([0, 1, 2, 3, 4, 9])
    D = torch.randn(rows, 9).round(decimals=0)  # with ties
    columns = torch.full((rows,), -1) if first_self is None else first_self + torch.arange(rows)
    found = reciprocal_ranks(D, labels, ref_labels, columns)
    own = (lambda b: b + first_self) if first_self is not None else (lambda b: None)
    torch.testing.assert_close(found, torch.tensor(plain_reciprocal_ranks(D, labels, ref_labels, own)).float())


def test_only_better_teachers_are_followed_and_the_mean_runs_on():
    selection = TeacherSelection(2)
    right = (LABELS[:, None] == LABELS).float()
    unsure = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    assert selection([unsure, right, -right], LABELS, LABELS, torch.arange(12)).tolist() == [1.0, 0.0]
    of_unsure = selection.scores[0].clone()
    for _ in range(2):
        selection([unsure, right, -right], LABELS, LABELS, torch.arange(12))
    # one batch of several does not turn it
    assert selection([right, unsure, unsure], LABELS, LABELS, torch.arange(12)).tolist() == [1.0, 0.0]
    past = 0.98 + 0.98**2 + 0.98**3
    torch.testing.assert_close(selection.scores[0], (past * of_unsure + 1) / (past + 1))
    assert TeacherSelection(1)([right, right], LABELS, LABELS, torch.arange(12)).tolist() == [0.0]


@pytest.mark.parametrize(
    ("scores", "weights"),
    [
        ([0.2, 0.32, 0.1], [0.5, 0.0]),  # the lead is (0.12 + 0) / 2 of 0.8: 0.075
        ([0.2, 0.27, 0.27], [0.375, 0.375]),  # 0.0875
        ([0.2, 0.26, 0.2], [0.0, 0.0]),  # 0.0375
        ([0.9, 0.95, 0.95], [0.5, 0.5]),  # half of what is left
        ([1.0, 1.0, 1.0], [0.0, 0.0]),
    ],
)
def test_a_small_lead_is_not_followed_and_a_larger_one_in_part(scores, weights):
    selection = TeacherSelection(2)
    selection.sums.copy_(torch.stack([torch.tensor(scores), torch.ones(3)], dim=1))
    lone = torch.arange(12)  # no pair: the scores stay
    found = selection([torch.randn(12, 12)] * 3, lone, lone, torch.arange(12))
    torch.testing.assert_close(found, torch.tensor(weights), rtol=1e-4, atol=1e-6)


def test_a_collapsed_space_is_not_followed():
    unsure = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    assert TeacherSelection(1)([unsure, torch.ones(12, 12)], LABELS, LABELS, torch.arange(12)).tolist() == [0.0]


def test_a_space_that_is_not_a_number_is_not_followed_in_that_step_and_after():
    unsure = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    selection = TeacherSelection(1)
    assert selection([unsure, torch.full((12, 12), torch.nan)], LABELS, LABELS, torch.arange(12)).tolist() == [0.0]
    assert selection([unsure, torch.zeros(12, 12)], LABELS, LABELS, torch.arange(12)).tolist() == [0.0]


def test_scores_are_where_the_similarities_are():
    """Also when nobody moved the loss: PML's own losses need no moving."""
    D, labels = torch.empty(4, 4, device="meta"), torch.arange(4) // 2
    selection = TeacherSelection(1)
    assert selection([D, D], labels, labels, torch.arange(4)).device.type == "meta"
    assert selection.scores.device.type == "meta"


def test_scores_run_on_in_float32_in_a_loss_of_half_precision():
    right = (LABELS[:, None] == LABELS).float()
    selections = TeacherSelection(1), TeacherSelection(1).to(torch.bfloat16)
    for selection in selections:
        selection([-right, right], LABELS, LABELS, torch.arange(12))
        for _ in range(300):  # towards the opposite, in steps that bfloat16 would round off
            selection([right, -right], LABELS, LABELS, torch.arange(12))
    assert torch.equal(*(selection.scores for selection in selections))
    assert selections[0].scores[0] > 0.99


def test_a_batch_without_a_pair_does_not_count():
    selection = TeacherSelection(1)
    right = (LABELS[:, None] == LABELS).float()
    selection([-right, right], LABELS, LABELS, torch.arange(12))
    before = selection.scores.clone()
    lone = torch.arange(12)
    assert selection([right, -right], lone, lone, torch.arange(12)).tolist() == [1.0]
    assert torch.equal(selection.scores, before)


@pytest.mark.parametrize("blocks", [False, True])
def test_teachers_are_weighed_once_by_the_similarities_that_are_distilled(blocks, monkeypatch):
    if blocks:
        monkeypatch.setattr(distillation, "WHOLE_ENTRIES", 0)
        monkeypatch.setattr(_distillation_in_blocks, "BLOCK_ENTRIES", 12 * 5)  # five rows at a time
    embedder, loss_func, x = make()
    weighed = []
    weigh = loss_func.weights.selection.forward
    loss_func.weights.selection.forward = lambda D, *classes, **known: weighed.append(D) or weigh(D, *classes, **known)
    batch = embedder(x)
    loss_func(batch, LABELS)
    (found,) = weighed
    for D, space in zip(found, (batch.embeddings, *batch.aux), strict=True):
        unit = torch.nn.functional.normalize(space)
        torch.testing.assert_close(D, (unit @ unit.T)[:: 3 if blocks else 1])  # as many as a block has, spread evenly


def test_the_balance_of_nothing_is_nothing():
    balance = GradientBalance(1.0)
    x = torch.ones(2, 3, requires_grad=True)
    first, second = balance.split(x)
    (first.sum() + 0 * second.sum()).backward()
    assert torch.equal(x.grad, torch.ones(2, 3)) and balance.weight == 0


def test_low_precision_gradients_are_balanced_in_float32():
    balance = GradientBalance(1.0)
    x = torch.ones(64, 64, dtype=torch.float16, requires_grad=True)
    first, second = balance.split(x)
    (60000 * first.mean() + 100 * second.sum()).backward()  # squares overflow float16
    expected = 2 * 60000 / 64**2
    torch.testing.assert_close(x.grad.float(), torch.full((64, 64), expected), rtol=2e-3, atol=0)


@pytest.mark.parametrize("variant", ["MSD", "MSDF", "MSDFA"])
def test_compiled_steps_equal_eager_ones(variant):
    def steps(compiling):
        torch.manual_seed(0)
        embedder, loss_func = s2sd(BatchContrastive(), 16, 4, variant, aux_sizes=(6, 10), distill_weight="auto")
        x = torch.randn((12, 16, 2, 2) if variant == "MSDFA" else (12, 16))
        step = compiling(lambda x: loss_func(embedder(x), LABELS))
        for _ in range(3):
            embedder.zero_grad()
            value = step(x)
            value.backward()
        return value.detach(), [p.grad for p in embedder.parameters()], loss_func.terms["distill_weight"]

    torch._dynamo.reset()
    torch.testing.assert_close(steps(lambda f: torch.compile(f, backend="aot_eager")), steps(lambda f: f))


def test_references_get_the_objectives_gradient_alone():
    embedder, loss_func, x = make()
    follow_all(loss_func)
    batch, ref = embedder(x), embedder(torch.randn(12, 16))
    z_ref = ref.embeddings.detach().requires_grad_()
    ref = S2SDEmbeddings(z_ref, ref.aux, ref.features)
    loss_func(batch, LABELS, ref_emb=ref, ref_labels=LABELS.clone()).backward()
    alone = z_ref.detach().requires_grad_()
    losses.MultiSimilarityLoss()(batch.embeddings.detach(), LABELS, ref_emb=alone, ref_labels=LABELS.clone()).backward()
    torch.testing.assert_close(z_ref.grad, alone.grad)


def test_a_fixed_weight_beside_an_automatic_one_reaches_references():
    embedder, loss_func, x = make("MSDF", feature_delay=0, feature_weight=3.0)
    follow_all(loss_func)
    batch, ref = embedder(x), embedder(x.flip(1))
    z_ref = ref.embeddings.detach().requires_grad_()
    ref = S2SDEmbeddings(z_ref, ref.aux, ref.features)
    loss_func(batch, LABELS, ref_emb=ref, ref_labels=LABELS.clone()).backward()

    alone = z_ref.detach().double().requires_grad_()
    z = batch.embeddings.detach().double()
    objective = losses.MultiSimilarityLoss()(z, LABELS, ref_emb=alone, ref_labels=LABELS.clone())
    features = batch.features.double(), ref.features.double()
    expected = objective + 3.0 * kl(z, features[0], loss_func.temperature, alone, features[1])
    expected.backward()
    torch.testing.assert_close(z_ref.grad, alone.grad.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ref_labels", [LABELS, LABELS.clone()], ids=["the same labels", "a copy of them"])
def test_the_batch_as_its_own_reference_teaches_as_it_does_without(ref_labels):
    embedder, loss_func, x = make("MSDF", feature_delay=0, feature_weight=3.0)
    batch = embedder(x)
    loss_func(batch, LABELS)
    without = loss_func.terms, loss_func.weights.selection.scores
    loss_func.weights.selection.sums.zero_()
    loss_func(batch, LABELS, ref_emb=batch, ref_labels=ref_labels)
    for term in ("distill", "feature"):
        torch.testing.assert_close(loss_func.terms[term], without[0][term], rtol=0, atol=0)
    assert torch.equal(loss_func.weights.selection.scores, without[1])


def scores_with(references):
    embedder, loss_func, x = make()
    batch, others = embedder(x), embedder(torch.randn(8, 16, generator=torch.Generator().manual_seed(5)))
    loss_func(batch, LABELS, **references(batch, others))
    return loss_func.weights.selection.scores, loss_func.terms["distill"]


@pytest.mark.parametrize(
    "copies",
    [lambda batch: batch[:], lambda batch: batch.detach(), lambda batch: batch.clone().detach()],
    ids=["a slice", "detached", "a copy"],
)
def test_a_sample_is_not_its_own_neighbour_among_references(copies):
    """It would be found first in every space, so that no space were ever better."""
    alone = scores_with(lambda batch, others: {})
    found = scores_with(lambda batch, others: {"ref_emb": copies(batch), "ref_labels": LABELS.clone()})
    torch.testing.assert_close(found, alone)
    assert (found[0] < 1).all()


def test_nor_among_those_of_a_queue():
    others_labels = torch.arange(8) % 6

    def queue(batch, others):
        return {"ref_emb": torch.cat([others, batch.detach()]), "ref_labels": torch.cat([others_labels, LABELS])}

    found, _ = scores_with(queue)
    embedder, _, x = make()
    batch, others = embedder(x), embedder(torch.randn(8, 16, generator=torch.Generator().manual_seed(5)))
    for score, own, more in zip(found, (batch.embeddings, *batch.aux), (others.embeddings, *others.aux), strict=True):
        own, more = torch.nn.functional.normalize(own), torch.nn.functional.normalize(more)
        total, rows = plain_reciprocal_ranks(
            own @ torch.cat([more, own]).T, LABELS, torch.cat([others_labels, LABELS]), lambda b: 8 + b
        )
        torch.testing.assert_close(score.item(), total / rows, rtol=1e-5, atol=0)


def test_without_labels_a_sample_and_its_other_view_are_of_one_class():
    torch.manual_seed(0)
    loss = losses.SelfSupervisedLoss(losses.NTXentLoss())
    embedder, loss_func = s2sd(loss, 16, 4, "MSD", aux_sizes=(6, 10), distill_weight="auto")
    batch, ref = embedder(torch.randn(12, 16)), embedder(torch.randn(12, 16))
    loss_func(batch, ref_emb=ref)
    unit = [torch.nn.functional.normalize(x) for x in (batch.embeddings, *batch.aux)]
    of_ref = [torch.nn.functional.normalize(x) for x in (ref.embeddings, *ref.aux)]
    views = torch.arange(12)
    for score, x, y in zip(loss_func.weights.selection.scores, unit, of_ref, strict=True):
        total, rows = plain_reciprocal_ranks(x @ y.T, views, views, lambda b: None)
        torch.testing.assert_close(score.item(), total / rows, rtol=1e-5, atol=0)


def test_who_retrieves_better_has_to_be_told_from_labels():
    torch.manual_seed(0)
    embedder, loss_func = s2sd(BatchContrastive(), 16, 4, "MSDF", aux_sizes=(6,), distill_weight="auto")
    batch = embedder(torch.randn(12, 16))
    pairs = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))
    for given in ({}, {"ref_emb": batch[:8]}, {"ref_emb": batch}, {"ref_emb": batch[:], "indices_tuple": pairs}):
        with pytest.raises(ValueError, match="an automatic weight needs labels, or as many references as samples"):
            loss_func(batch, **given)
    with pytest.raises(ValueError, match="an automatic weight needs ref_labels"):
        loss_func(batch, LABELS, ref_emb=batch[:8])
    assert loss_func.calls == 0


def test_without_auxiliary_spaces_nobody_has_to_be_judged():
    loss_func = S2SDLoss(losses.SelfSupervisedLoss(losses.NTXentLoss()), S2SDEmbedder(16, 4, ()), distill_weight="auto")
    batch, ref = (S2SDEmbeddings(torch.randn(n, 4), (), torch.randn(n, 16)) for n in (6, 6))
    assert loss_func(batch, ref_emb=ref) == loss_func.base_loss(batch.embeddings, ref.embeddings)


def test_a_resumed_run_knows_its_scores():
    embedder, loss_func, x = make(miner=miners.MultiSimilarityMiner())
    loss_func(embedder(x), LABELS)
    _, other, _ = make(miner=miners.MultiSimilarityMiner())
    other.load_state_dict(loss_func.state_dict())
    assert torch.equal(other.weights.selection.scores, loss_func.weights.selection.scores)
