"""s2sd(): the setting that is recommended, the paper's variants by name, and options that contradict them."""

import pytest
import torch
from pytorch_metric_learning import losses

from pml_s2sd import S2SDEmbedder, S2SDLoss, s2sd

# as the paper has them: auxiliary sizes, feature weight, aggregated pooling
PAPER = {
    "DSD": ((2048,), 0, False),
    "MSD": ((512, 1024, 1536, 2048), 0, False),
    "MSDF": ((512, 1024, 1536, 2048), 50, False),
    "MSDFA": ((512, 1024, 1536, 2048), 50, True),
}


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("spelled", [str.upper, str.lower])
def test_variants_as_in_the_paper(name, spelled):
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), 16, 4, spelled(name))
    found = (embedder.aux_sizes, loss_func.feature_weight, embedder.aggregate_pooling)
    assert found == PAPER[name]
    assert (loss_func.distill_weight, loss_func.temperature, loss_func.feature_delay) == (50, 1, 1000)
    assert loss_func.aux_sizes == embedder.aux_sizes
    assert isinstance(embedder, S2SDEmbedder)
    assert isinstance(loss_func, S2SDLoss)


@pytest.mark.parametrize(("d", "large"), [(4, 1024), (256, 1024), (512, 2048)])
def test_without_options_it_is_the_recommended_setting(d, large):
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), 16, d)
    assert embedder.aux_sizes == loss_func.aux_sizes == (large,)
    assert isinstance(embedder.aux_heads[0], torch.nn.Linear)
    assert (embedder.base_gradient, embedder.aux_gradient, embedder.aggregate_pooling) == (False, True, False)
    found = (loss_func.distill_weight, loss_func.temperature, loss_func.include_diagonal, loss_func.feature_weight)
    assert found == (3200, 0.05, False, 0)


def test_the_papers_embedder_has_no_weight_by_default():
    with pytest.raises(ValueError, match=r"distill_weight is missing; s2sd\(loss, in_features, embedding_size\)"):
        S2SDLoss(losses.ContrastiveLoss(), S2SDEmbedder(16, 4, (6,)))
    assert S2SDLoss(losses.ContrastiveLoss(), S2SDEmbedder(16, 4, (6,), base_gradient=False)).distill_weight == 3200
    assert S2SDLoss(losses.ContrastiveLoss(), S2SDEmbedder(16, 4, ())).temperature == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"aux_sizes": ()}, "there is no auxiliary space"), ({"aux_gradient": False}, "aux_gradient too")],
)
def test_some_space_trains_the_trunk(options, reason):
    with pytest.raises(ValueError, match=f"no space would train the trunk: base_gradient is False, and {reason}"):
        s2sd(losses.ContrastiveLoss(), 16, 4, **options)


def test_options_go_to_the_two_constructors():
    head = torch.nn.Linear(16, 4)
    embedder, loss_func = s2sd(
        losses.ContrastiveLoss(), 16, 4, "msdf", aux_sizes=(6, 8), head=head, temperature=0.5, feature_weight=2.0
    )
    assert embedder.head is head
    assert embedder.aux_sizes == (6, 8)
    assert (loss_func.temperature, loss_func.feature_weight) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("variant", "options", "error", "words"),
    [
        ("MSDX", {}, ValueError, "one of DSD, MSD, MSDF, MSDFA, got 'MSDX'"),
        (3, {}, ValueError, "one of DSD, MSD, MSDF, MSDFA, got 3"),
        ("MSD", {"feature_weight": 5.0}, ValueError, "MSD has no feature distillation.*MSDF"),
        ("DSD", {"aux_sizes": (6, 8)}, ValueError, r"DSD has one auxiliary space, got aux_sizes=\(6, 8\)"),
        ("MSDF", {"aggregate_pooling": True}, TypeError, "unexpected keyword argument 'aggregate_pooling'"),
        (None, {"distill_weight": "auto"}, TypeError, "distill_weight must be a number, got str"),
        ("MSDF", {"distil_weight": 5.0}, TypeError, "unexpected keyword argument 'distil_weight'"),
        ("MSDF", {"aux_sizes": 6}, TypeError, r"write \(6,\)"),
    ],
)
def test_wrong_variants_and_options(variant, options, error, words):
    with pytest.raises(error, match=words):
        s2sd(losses.ContrastiveLoss(), 16, 4, variant, **options)
