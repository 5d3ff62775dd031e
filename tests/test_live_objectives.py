"""What a user changes on a live loss reaches every space, or is refused with the way to do it."""

import copy
import gc
import weakref

import pytest
import torch
from plain_objective import BatchContrastive
from pytorch_metric_learning import distances, losses, miners

from pml_s2sd import _shared_similarities, s2sd

LABELS = torch.arange(12) // 2
FEATURES = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))


def make(loss, **options):
    torch.manual_seed(0)
    return s2sd(loss, 16, 4, "MSD", aux_sizes=(6, 10), distill_weight=1.0, **options)


def objectives(loss_func):
    return [loss_func.base_loss, *loss_func.aux_losses.values()]


def value(embedder, loss_func):
    return loss_func(embedder(FEATURES), LABELS)


@pytest.mark.parametrize("copied", [False, True], ids=["as made", "a copy"])
def test_a_margin_on_a_schedule_reaches_every_space(copied):
    embedder, loss_func = make(losses.TripletMarginLoss(margin=0.1), miner=miners.TripletMarginMiner(margin=0.2))
    loss_func = copy.deepcopy(loss_func) if copied else loss_func
    value(embedder, loss_func)
    loss_func.base_loss.margin, loss_func.miner.margin = 0.7, 5.0
    _, made_with_it = make(losses.TripletMarginLoss(margin=0.7), miner=miners.TripletMarginMiner(margin=5.0))
    assert torch.equal(value(embedder, loss_func), value(embedder, made_with_it))
    assert [loss.margin for loss in objectives(loss_func)] == [0.7] * 3


def test_a_margin_that_pml_keeps_as_a_number_of_numpy_reaches_every_space():
    torch.manual_seed(0)
    embedder, loss_func = make(losses.ArcFaceLoss(6, 4, margin=28.6))
    before = value(embedder, loss_func)
    loss_func.base_loss.margin = 0.1
    assert value(embedder, loss_func) < before
    assert [loss.margin for loss in objectives(loss_func)] == [0.1] * 3


def test_a_value_inside_a_wrapper_reaches_every_space():
    embedder, loss_func = make(losses.CrossBatchMemory(losses.ContrastiveLoss(pos_margin=0.0), 4, 64))
    value(embedder, loss_func)
    loss_func.base_loss.loss.pos_margin = 0.3
    value(embedder, loss_func)
    assert [memory.loss.pos_margin for memory in objectives(loss_func)] == [0.3] * 3


def test_an_emptied_memory_is_empty_in_every_space():
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 4, 64)
    embedder, loss_func = make(memory)
    for _ in range(2):
        value(embedder, loss_func)
    memory.reset_queue()
    value(embedder, loss_func)
    assert [memory.queue_idx for memory in objectives(loss_func)] == [12] * 3


class Scaled(BatchContrastive):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, embeddings, labels, **others):
        return self.scale * super().forward(embeddings, labels)


def test_compiled_steps_see_it_too():
    embedder, loss_func = make(Scaled(1.0))
    torch._dynamo.reset()
    step = torch.compile(lambda x: loss_func(embedder(x), LABELS), backend="aot_eager", fullgraph=True)
    before = step(FEATURES).detach()
    loss_func.base_loss.scale = 2.0
    step(FEATURES)
    assert [loss.scale for loss in objectives(loss_func)] == [2.0] * 3
    assert step(FEATURES) > before


def test_what_an_objective_changes_in_itself_is_its_own():
    class Counting(BatchContrastive):
        def __init__(self):
            super().__init__()
            self.largest = 0.0

        def forward(self, embeddings, labels, **others):
            self.largest = embeddings.detach().abs().max().item()
            return super().forward(embeddings, labels)

    embedder, loss_func = make(Counting())
    for _ in range(2):
        batch = embedder(FEATURES)
        loss_func(batch, LABELS)
        spaces = (batch.embeddings, *batch.aux)
        assert [loss.largest for loss in objectives(loss_func)] == [x.abs().max().item() for x in spaces]


def test_what_an_objective_keeps_of_a_call_is_neither_compared_nor_kept():
    class Remembering(BatchContrastive):
        def __init__(self):
            super().__init__()
            self.last = None

        def forward(self, embeddings, labels, **others):
            self.last = embeddings
            return super().forward(embeddings, labels)

    embedder, loss_func = make(Remembering())
    for _ in range(3):
        value(embedder, loss_func)
    last = weakref.ref(loss_func.base_loss.last)
    for objective in objectives(loss_func):
        objective.last = None
    gc.collect()
    assert last() is None


def test_a_miner_put_into_a_memory_is_refused_with_the_way_to_do_it():
    embedder, loss_func = make(losses.CrossBatchMemory(losses.TripletMarginLoss(), 4, 64))
    value(embedder, loss_func)
    loss_func.base_loss.miner = miners.TripletMarginMiner()
    with pytest.raises(
        ValueError, match=r"CrossBatchMemory.miner was set from None to a TripletMarginMiner.*change_obj"
    ):
        value(embedder, loss_func)
    loss_func.change_objectives(lambda memory, size: setattr(memory, "miner", miners.TripletMarginMiner()))
    assert torch.isfinite(value(embedder, loss_func))


def test_another_distance_is_refused_before_anything_changes():
    embedder, loss_func = make(losses.TripletMarginLoss(margin=0.1))
    value(embedder, loss_func)
    loss_func.base_loss.distance = distances.CosineSimilarity()
    loss_func.base_loss.margin = 0.7
    with pytest.raises(ValueError, match=r"TripletMarginLoss.distance was replaced by a CosineSim.*change_objectives"):
        value(embedder, loss_func)
    assert loss_func.calls == 1 and loss_func.aux_losses["a1"].margin == 0.1
    loss_func.change_objectives(lambda loss, _: setattr(loss, "distance", distances.CosineSimilarity()))
    loss_func.change_objectives(lambda loss, _: setattr(loss, "margin", 0.7))
    _, made_with_it = make(losses.TripletMarginLoss(margin=0.7, distance=distances.CosineSimilarity()))
    torch.testing.assert_close(value(embedder, loss_func), value(embedder, made_with_it))


def test_spaces_of_other_objectives_cannot_follow():
    embedder, loss_func = make(losses.TripletMarginLoss(margin=0.1), aux_loss=losses.TripletMarginLoss(margin=0.2))
    loss_func.base_loss.margin = 0.7
    with pytest.raises(ValueError, match=r"TripletMarginLoss.margin was set from 0.1 to 0.7.*change_objectives"):
        value(embedder, loss_func)
    loss_func.change_objectives(lambda loss, size: setattr(loss, "margin", 0.7 if size == 4 else 0.2))
    assert torch.isfinite(value(embedder, loss_func))


@pytest.mark.parametrize("first", [miners.TripletMarginMiner(margin=10.0), None])
@pytest.mark.parametrize("second", [miners.BatchHardMiner(), None])
def test_another_miner_mines_in_every_space(first, second):
    embedder, loss_func = make(losses.TripletMarginLoss(), miner=first)
    value(embedder, loss_func)
    loss_func.miner = second
    _, made_with_it = make(losses.TripletMarginLoss(), miner=second)
    assert torch.equal(value(embedder, loss_func), value(embedder, made_with_it))
    with pytest.raises(TypeError, match="miner must be a pytorch_metric_learning miner"):
        loss_func.miner = miners.BatchHardMiner
    assert torch.equal(value(embedder, loss_func), value(embedder, made_with_it))


def test_another_miner_shares_similarities_with_the_objective_as_the_first_did(monkeypatch):
    embedder, loss_func = make(losses.MultiSimilarityLoss(), miner=miners.MultiSimilarityMiner())
    loss_func.miner = miners.MultiSimilarityMiner(epsilon=0.3)
    computed = []
    cosines = _shared_similarities.cosines
    monkeypatch.setattr(_shared_similarities, "cosines", lambda x: computed.append(x.shape[1]) or cosines(x))
    value(embedder, loss_func)
    assert computed == [6, 10]


def test_a_memory_after_the_warm_up_is_one_in_every_space():
    embedder, loss_func = make(losses.ContrastiveLoss())
    value(embedder, loss_func)
    with pytest.raises(AttributeError, match=r"one of several objectives.*change_objectives"):
        loss_func.base_loss = losses.CrossBatchMemory(loss_func.base_loss, 4, 64)
    loss_func.change_objectives(lambda loss, size: losses.CrossBatchMemory(loss, size, 64))
    _, made_with_it = make(losses.CrossBatchMemory(losses.ContrastiveLoss(), 4, 64))
    for _ in range(2):
        assert torch.equal(value(embedder, loss_func), value(embedder, made_with_it))
    assert loss_func.state_dict().keys() == made_with_it.state_dict().keys()


def test_change_objectives_refuses_what_is_no_objective():
    _, loss_func = make(losses.ContrastiveLoss())
    before = objectives(loss_func)
    with pytest.raises(TypeError, match="what change returns must be"):
        loss_func.change_objectives(lambda loss, size: losses.CrossBatchMemory)
    assert all(a is b for a, b in zip(objectives(loss_func), before, strict=True))


def test_weights_may_become_other_numbers_and_nothing_else():
    embedder, loss_func = make(losses.ContrastiveLoss())
    without = value(embedder, loss_func) - 1.0 * loss_func.terms["distill"]
    loss_func.distill_weight = 7.0
    torch.testing.assert_close(value(embedder, loss_func), without + 7.0 * loss_func.terms["distill"])
    for weight, error in (("auto", TypeError), (-1.0, ValueError), (None, TypeError)):
        with pytest.raises(error, match="distill_weight"):
            loss_func.distill_weight = weight
    with pytest.raises(ValueError, match="feature_weight must be at least 0"):
        loss_func.feature_weight = -1.0
    assert (loss_func.distill_weight, loss_func.feature_weight) == (7.0, 0.0)
