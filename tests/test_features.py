"""What an embedder takes of a trunk, in which dtype it computes, and what it says of anything else."""

import collections
import dataclasses

import numpy as np
import pytest
import torch

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings

C = 32
HALF = [torch.float16, torch.bfloat16]


class ModelOutput(collections.OrderedDict):
    """As Hugging Face's: a dict whose keys are attributes too."""

    def __init__(self, **entries):
        super().__init__(entries)
        vars(self).update(entries)


@dataclasses.dataclass
class Pyramid:
    deep: torch.Tensor
    sizes: list


Inception = collections.namedtuple("Inception", "logits aux_logits")
TOKENS, POOLED, MAPS = torch.randn(4, 10, C), torch.randn(4, C), torch.randn(4, C, 7, 7)

# A trunk's output, what the error calls it, and every way that it offers, with what each gives.
OUTPUTS = {
    "tokens": (
        TOKENS,
        "got shape (4, 10, 32)",
        {'s2sd(…, tokens="class")': TOKENS[:, 0], 's2sd(…, tokens="mean")': TOKENS.mean(1)},
    ),
    "sequence": (TOKENS.mT, "got shape (4, 32, 10)", {"embedder(features.flatten(2).mean(dim=2))": TOKENS.mean(1)}),
    "video": (
        torch.stack([MAPS, MAPS], dim=2),
        "got shape (4, 32, 2, 7, 7)",
        {"embedder(features.flatten(2).mean(dim=2))": MAPS.mean((2, 3))},
    ),
    "video, channels last": (
        torch.stack([MAPS, MAPS], dim=2).movedim(1, -1),
        "got shape (4, 2, 7, 7, 32)",
        {"embedder(features.movedim(-1, 1).flatten(2).unsqueeze(3))": MAPS.mean((2, 3))},
    ),
    "one sample": (POOLED[0], "got shape (32,)", {"embedder(features[None])": POOLED[:1]}),
    "one sample's maps": (MAPS[0], "got shape (32, 7, 7)", {"embedder(features[None])": MAPS[:1].mean((2, 3))}),
    "model output": (
        ModelOutput(last_hidden_state=TOKENS, pooler_output=POOLED, hidden_states=(TOKENS,)),
        "got ModelOutput of .last_hidden_state (4, 10, 32), .pooler_output (4, 32), .hidden_states tuple",
        {
            's2sd(…, field="last_hidden_state", tokens="class")': TOKENS[:, 0],
            's2sd(…, field="last_hidden_state", tokens="mean")': TOKENS.mean(1),
            's2sd(…, field="pooler_output")': POOLED,
        },
    ),
    "dict": (
        {"layer3": torch.randn(4, 16, 14, 14), "layer4": MAPS},
        "got dict of ['layer3'] (4, 16, 14, 14), ['layer4'] (4, 32, 7, 7)",
        {'s2sd(…, field="layer4")': MAPS.mean((2, 3))},
    ),
    "tuple": ((None, POOLED), "got tuple of [0] NoneType, [1] (4, 32)", {"s2sd(…, field=1)": POOLED}),
    "list of many": (
        [torch.randn(4, 16, 9, 9)] * 9 + [MAPS],
        "got list of [6] (4, 16, 9, 9), [7] (4, 16, 9, 9), [8] (4, 16, 9, 9), [9] (4, 32, 7, 7)",
        {"s2sd(…, field=9)": MAPS.mean((2, 3))},
    ),
    "named tuple": (
        Inception(POOLED, None),
        "got Inception of .logits (4, 32), .aux_logits NoneType",
        {'s2sd(…, field="logits")': POOLED},
    ),
    "dataclass": (
        Pyramid(MAPS, [7]),
        "got Pyramid of .deep (4, 32, 7, 7), .sizes list",
        {'s2sd(…, field="deep")': MAPS.mean((2, 3))},
    ),
    "array": (POOLED.numpy(), "got ndarray", {"embedder(torch.as_tensor(features))": POOLED}),
}


def followed(way, features, **options):
    """What an embedder makes of a trunk's output where its error has been heeded."""
    if way.startswith("s2sd(…, "):
        return S2SDEmbedder(C, 4, (6,), **options, **eval(way.replace("s2sd(…, ", "dict(")))(features)
    embedder = S2SDEmbedder(C, 4, (6,), **options)
    return eval(way, {"features": features, "torch": torch, "embedder": embedder})


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("training", [True, False])
def test_another_output_of_a_trunk_is_named_with_what_to_write(name, training):
    features, words, ways = OUTPUTS[name]
    embedder = S2SDEmbedder(C, 4, (6,)).train(training)
    with pytest.raises((TypeError, ValueError)) as raised:
        embedder(features)
    text = str(raised.value)
    assert text.startswith("expected features of shape (B, 32) or feature maps of shape (B, 32, H, W), " + words)
    assert text.count("embedder(") + text.count("s2sd(") == len(ways)
    for way, meant in ways.items():
        assert way in text
        torch.testing.assert_close(followed(way, features).features, meant)


@pytest.mark.parametrize(
    ("features", "way", "meant"),
    [
        (TOKENS, 's2sd(…, tokens="mean")', TOKENS),
        (TOKENS.mT, "embedder(features.flatten(2).unsqueeze(3))", TOKENS),
        ([POOLED, MAPS], "s2sd(…, field=1)", MAPS.flatten(2).mT),
    ],
)
def test_aggregate_pooling_is_offered_maps_alone(features, way, meant):
    embedder = S2SDEmbedder(C, 4, (6,), aggregate_pooling=True)
    with pytest.raises((TypeError, ValueError), match="expected feature maps") as raised:
        embedder(features)
    assert f"; write {way}" in str(raised.value)
    assert str(raised.value).count("embedder(") + str(raised.value).count("s2sd(") == 1
    batch = followed(way, features, aggregate_pooling=True)
    torch.testing.assert_close(batch.features, meant.mean(1) + meant.max(1).values)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.randn(4, 30), "in_features must be the trunk's number of channels"),
        (torch.randn(4, 7, 7, 30), "in_features must be the trunk's number of channels"),
        (torch.randn(4, 10, 30), "in_features must be the trunk's number of channels"),
        (torch.zeros(4, C, dtype=torch.uint8), r"features.float\(\)"),
        (np.zeros(3), "got ndarray"),
        ({"loss": 1.0}, r"got dict of \['loss'\] float$"),
        (None, "got NoneType$"),
        ([], "got list$"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_no_way_is_made_up(features, words):
    with pytest.raises((TypeError, ValueError), match=words) as raised:
        S2SDEmbedder(C, 4, (6,))(features)
    assert "embedder(features" not in str(raised.value) and "s2sd(" not in str(raised.value)


def exactly(features, linear):
    return features.double() @ linear.weight.double().T + linear.bias.double()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("aggregate_pooling", [False, True])
def test_half_precision_features_are_computed_in_the_heads_dtype(dtype, aggregate_pooling):
    """A frozen trunk of half precision under a head of float32; its maps are averaged in float32 too."""
    embedder = S2SDEmbedder(C, 4, (6,), aggregate_pooling=aggregate_pooling, aux_head="linear")
    maps = MAPS.to(dtype)
    average = maps.double().mean((2, 3))
    seen = average + maps.double().amax((2, 3)) if aggregate_pooling else average
    batch = embedder(maps)
    tolerance = {"check_dtype": False, "rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(batch.embeddings, exactly(average, embedder.head), **tolerance)
    torch.testing.assert_close(batch.aux[0], exactly(seen, embedder.aux_heads[0]), **tolerance)
    torch.testing.assert_close(batch.features, seen, **tolerance)
    assert {batch.embeddings.dtype, batch.aux[0].dtype, batch.features.dtype} == {torch.float32}
    for module in (embedder.eval(), embedder.deploy()):
        torch.testing.assert_close(module(maps), batch.embeddings, rtol=0, atol=0)
        torch.testing.assert_close(module(average.to(dtype)), exactly(average.to(dtype), embedder.head), **tolerance)


@pytest.mark.parametrize("aggregate_pooling", [False, True])
def test_a_head_of_half_precision_takes_float32(aggregate_pooling):
    embedder = S2SDEmbedder(C, 4, (6,), aggregate_pooling=aggregate_pooling).bfloat16()
    batch = embedder(MAPS)
    assert {batch.embeddings.dtype, batch.aux[0].dtype, batch.features.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_under_autocast_its_own_conversions_stay(dtype):
    embedder = S2SDEmbedder(C, 4, (6,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = embedder(POOLED.to(dtype))
        expected = embedder.head(POOLED.to(dtype))
    assert torch.equal(batch.embeddings, expected)
    assert batch.embeddings.dtype == torch.bfloat16
    assert batch.features.dtype == dtype


def test_float64_features_are_converted_under_autocast_which_does_not():
    embedder = S2SDEmbedder(C, 4, (6,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(embedder(POOLED.double()).embeddings, embedder.head(POOLED))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_gradients_go_back_in_the_trunks_dtype(dtype):
    embedder = S2SDEmbedder(C, 4, ())
    maps = MAPS.to(dtype, copy=True).requires_grad_()
    embedder(maps).embeddings.sum().backward()
    expected = (embedder.head.weight.sum(0) / 49).view(1, C, 1, 1).expand_as(maps)
    torch.testing.assert_close(maps.grad, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_conversion_is_exported_and_compiled(dtype):
    deployed = S2SDEmbedder(C, 4, (6,)).deploy()
    features = POOLED.to(dtype)
    program = torch.export.export(deployed, (features,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(features[:3]), deployed(features[:3]))
    conversions = [node for node in program.graph.nodes if "to" in str(node.target)]
    assert len(conversions) == (dtype != torch.float32)
    embedder = S2SDEmbedder(C, 4, (6,))
    batch = torch.compile(embedder, fullgraph=True, backend="eager")(features)
    assert isinstance(batch, S2SDEmbeddings)
    assert torch.equal(batch.aux[0], embedder(features).aux[0])


def test_heads_without_parameters_take_features_as_they_are():
    assert S2SDEmbedder(C, C, (), head=torch.nn.Identity())(POOLED.half()).dtype == torch.float16
