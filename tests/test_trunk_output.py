"""Named fields and tokens of what a trunk returns, padding left out, channels last; kept wherever the embedder goes."""

import collections
import copy
import dataclasses
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_objective import BatchContrastive
from test_synchronisation import HostReads
from torch.nn.parallel import DataParallel

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, consolidate, s2sd
from pml_s2sd._trunk_output import mean_of_kept
from pml_s2sd.embedder import Embedder

B, N, C = 4, 9, 24
HALF = [torch.float16, torch.bfloat16]
LABELS = torch.tensor([0, 0, 1, 1])
LENGTHS = (3, 9, 5, 1)


class ModelOutput(collections.OrderedDict):
    """As Hugging Face's: a dict whose keys are attributes too."""

    def __init__(self, **entries):
        super().__init__(entries)
        vars(self).update(entries)


@dataclasses.dataclass
class Output:
    tokens: torch.Tensor


Pair = collections.namedtuple("Pair", "logits tokens")


class Attributes:
    """Neither a dict nor a dataclass."""

    def __init__(self, tokens):
        self.tokens = tokens


@pytest.fixture
def tokens():
    return torch.randn(B, N, C)


@pytest.fixture
def maps():
    return torch.randn(B, C, 3, 5)


def mask_of(lengths=LENGTHS, left=False, dtype=torch.int64):
    mask = (torch.arange(N) < torch.tensor(lengths)[:, None]).to(dtype)
    return mask.flip(1) if left else mask


def one_by_one(tokens, mask, meant):
    """What is meant of the tokens of each sample that count, in float64."""
    return torch.stack([meant(x[keep.bool()].double()) for x, keep in zip(tokens, mask, strict=True)])


def mean(x):
    return x.mean(0)


def mean_and_maximum(x):
    return x.mean(0) + x.max(0).values


OUTPUTS = {
    "dict": ("tokens", lambda tokens: {"loss": 1.0, "tokens": tokens}),
    "model output": ("tokens", lambda tokens: ModelOutput(tokens=tokens, attentions=None)),
    "dataclass": ("tokens", Output),
    "named tuple": ("tokens", lambda tokens: Pair(None, tokens)),
    "attributes": ("tokens", Attributes),
    "tuple": (1, lambda tokens: (None, tokens)),
    "list": (-1, lambda tokens: [None, tokens]),
    "int keys": (7, lambda tokens: {7: tokens}),
    "the tensor itself": ("tokens", lambda tokens: tokens),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_field_is_found(name, tokens):
    field, made = OUTPUTS[name]
    embedder = S2SDEmbedder(C, 2, (6,), field=field, tokens="mean")
    torch.testing.assert_close(embedder(made(tokens)).features, tokens.mean(1))
    embedder = S2SDEmbedder(C, 2, (6,), field=field)
    assert torch.equal(embedder(made(tokens[:, 3])).features, tokens[:, 3])


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"tokens": "class"}, lambda tokens: tokens[:, 0]),
        ({"tokens": "mean"}, lambda tokens: tokens.mean(1)),
        ({"tokens": "mean", "aggregate_pooling": True}, lambda tokens: tokens.mean(1) + tokens.max(1).values),
    ],
)
def test_tokens_are_pooled_and_their_gradients_go_back(options, meant, tokens):
    embedder = S2SDEmbedder(C, 2, (6,), aux_head="linear", **options)
    tokens.requires_grad_()
    batch = embedder(tokens)
    torch.testing.assert_close(batch.features, meant(tokens))
    torch.testing.assert_close(batch.aux[0], embedder.aux_heads[0](meant(tokens)))
    base = tokens[:, 0] if options["tokens"] == "class" else tokens.mean(1)
    torch.testing.assert_close(batch.embeddings, embedder.head(base))
    torch.testing.assert_close(embedder.eval()(tokens), embedder.head(base))
    (found,) = torch.autograd.grad(batch.aux[0].square().sum(), tokens)
    (expected,) = torch.autograd.grad(embedder.aux_heads[0](meant(tokens)).square().sum(), tokens)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("aggregate_pooling", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_padding_has_no_part(left, dtype, aggregate_pooling, beside, tokens):
    embedder = S2SDEmbedder(C, 2, (6,), aggregate_pooling=aggregate_pooling, field="token_embeddings", tokens="mean")
    mask = mask_of(left=left, dtype=dtype)
    output = {"token_embeddings": tokens}
    given = [{**output, "attention_mask": mask}] if beside else [output, mask]
    meant = mean_and_maximum if aggregate_pooling else mean
    batch = embedder(*given)
    torch.testing.assert_close(batch.features, one_by_one(tokens, mask, meant).float())
    expected = embedder.head(one_by_one(tokens, mask, mean).float())
    torch.testing.assert_close(batch.embeddings, expected)
    for deployed in (embedder.deploy(), embedder.eval()):
        torch.testing.assert_close(deployed(*given), expected)


def test_the_mask_beside_the_field_goes_before_the_argument(tokens):
    """That of the tokens that are returned, before that of what the trunk was given."""
    embedder = S2SDEmbedder(C, 2, (6,), field="tokens", tokens="mean")
    found = embedder({"tokens": tokens, "attention_mask": mask_of()}, torch.ones(B, 2, dtype=torch.int64)).features
    torch.testing.assert_close(found, one_by_one(tokens, mask_of(), mean).float())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6),
    st.integers(0, 2**31),
    st.sampled_from([torch.float64, torch.float32, *HALF]),
    st.sampled_from([0.0, 1e3, float("nan"), float("inf")]),
)
def test_mean_and_maximum_are_those_of_the_rows_that_count(mask, seed, dtype, padding):
    """One by one, in float64; whatever padding holds; 0 where nothing counts. Gradients alike."""
    mask = torch.tensor(mask)
    tokens = torch.randn(*mask.shape, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    tokens = tokens.masked_fill(~mask[:, :, None], padding).requires_grad_()
    zero = torch.zeros(3, dtype=torch.float64)
    tolerance = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    for with_maximum in (False, True):
        found = mean_of_kept(tokens, mask[:, :, None], with_maximum=with_maximum)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        average = found.mean((2, 3)) if with_maximum else found
        expected = torch.stack([x[m].double().mean(0) if m.any() else zero for x, m in zip(tokens, mask, strict=True)])
        torch.testing.assert_close(average, expected, **tolerance)
        if with_maximum:
            largest = [x[m].double().max(0).values if m.any() else zero for x, m in zip(tokens, mask, strict=True)]
            torch.testing.assert_close(found.amax((2, 3)), torch.stack(largest), **tolerance)
        (gradient,) = torch.autograd.grad(average.sum(), tokens)
        weights = mask.double() / mask.sum(1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(gradient, weights[:, :, None].expand_as(gradient).to(dtype))


def test_a_text_without_a_token_gives_finite_losses_and_gradients(tokens):
    embedder, loss_func = s2sd(BatchContrastive(), C, 2, "MSDFA", aux_sizes=(6,), tokens="mean", feature_delay=0)
    tokens.requires_grad_()
    loss = loss_func(embedder(tokens, mask_of((3, 0, 5, 1))), LABELS)
    loss.backward()
    assert loss.isfinite() and tokens.grad.isfinite().all()
    assert not tokens.grad[1].any() and tokens.grad[0, :3].any() and not tokens.grad[0, 3:].any()


def test_maps_with_channels_last_are_told_by_their_shape(maps):
    embedder = S2SDEmbedder(C, 2, (6,), aggregate_pooling=True)
    last, expected = maps.movedim(1, 3), embedder(maps)
    for found in (embedder(last), embedder(last.contiguous())):
        torch.testing.assert_close(found.features, maps.mean((2, 3)) + maps.amax((2, 3)))
        torch.testing.assert_close(found.embeddings, expected.embeddings)
    torch.testing.assert_close(embedder.eval()(last), embedder.head(maps.mean((2, 3))))
    torch.testing.assert_close(embedder.deploy()(last), embedder.head(maps.mean((2, 3))))


def test_maps_as_high_as_they_have_channels_have_these_first():
    maps = torch.randn(B, C, 3, C)
    torch.testing.assert_close(S2SDEmbedder(C, 2, ())(maps).features, maps.mean((2, 3)))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("aggregate_pooling", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_tokens_are_pooled_in_float32(dtype, aggregate_pooling, masked, tokens):
    tokens, mask = tokens.to(dtype), mask_of() if masked else mask_of((N,) * B)
    embedder = S2SDEmbedder(C, 2, (6,), aggregate_pooling=aggregate_pooling, tokens="mean")
    batch = embedder(tokens, mask if masked else None)
    expected = one_by_one(tokens, mask, mean_and_maximum if aggregate_pooling else mean)
    torch.testing.assert_close(batch.features, expected.float(), rtol=1e-5, atol=1e-5)
    of_half = S2SDEmbedder(C, 2, (6,), aggregate_pooling=aggregate_pooling, tokens="mean").to(dtype)
    batch = of_half(tokens, mask if masked else None)
    assert {batch.embeddings.dtype, batch.aux[0].dtype, batch.features.dtype} == {dtype}
    torch.testing.assert_close(batch.features, expected.to(dtype), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_class_tokens_and_maps_with_channels_last(dtype, tokens, maps):
    embedder = S2SDEmbedder(C, 2, (6,), tokens="class")
    assert torch.equal(embedder(tokens.to(dtype)).features, tokens[:, 0].to(dtype).float())
    found = S2SDEmbedder(C, 2, ())(maps.movedim(1, 3).to(dtype)).features
    torch.testing.assert_close(found, maps.to(dtype).double().mean((2, 3)).float(), rtol=1e-5, atol=1e-5)


def test_under_autocast_a_masked_mean_is_float32(tokens):
    embedder = S2SDEmbedder(C, 2, (6,), tokens="mean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = embedder(tokens.bfloat16(), mask_of())
    assert (batch.features.dtype, batch.embeddings.dtype) == (torch.float32, torch.bfloat16)


def saved(embedder):
    file = io.BytesIO()
    torch.save(embedder, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


KEPT_BY = {
    "deploy": S2SDEmbedder.deploy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda embedder: pickle.loads(pickle.dumps(embedder)),
    "torch.save": saved,
    "consolidate": lambda embedder: consolidate(embedder, torch.randn(20, C), steps=2),
    "sizes": lambda embedder: consolidate(embedder, torch.randn(20, C), steps=2, size=[2, 3])[2],
    "state dict": lambda embedder: loaded(embedder, field="hidden", tokens="mean"),
}


def loaded(embedder, **options):
    other = S2SDEmbedder(C, 2, (6,), aux_head="linear", **options)
    other.load_state_dict(embedder.state_dict())
    return other


@pytest.mark.parametrize("name", KEPT_BY)
def test_the_settings_are_kept(name, tokens):
    embedder, _ = s2sd(BatchContrastive(), C, 2, aux_sizes=(6,), field="hidden", tokens="mean")
    kept = KEPT_BY[name](embedder).eval()
    expected = kept.head(one_by_one(tokens, mask_of(), mean).float())
    torch.testing.assert_close(kept({"hidden": tokens, "attention_mask": mask_of()}), expected)
    assert "in_features=24, embedding_size=2, field='hidden', tokens='mean'" in repr(kept)


def test_settings_are_no_state_and_only_those_given_are_shown():
    plain, named = S2SDEmbedder(C, 2, (6,)), S2SDEmbedder(C, 2, (6,), field="hidden", tokens="mean")
    assert plain.state_dict().keys() == named.state_dict().keys()
    assert "field" not in repr(plain) and "tokens" not in repr(plain)
    assert "tokens" not in repr(Embedder(C, 2, field=1)) and "field=1" in repr(Embedder(C, 2, field=1))


def output_of(tokens, masked):
    mask = {"attention_mask": (torch.arange(tokens.shape[1]) < 3)[None].expand(B, -1)} if masked else {}
    return {"hidden": tokens, **mask}


@pytest.mark.parametrize("variant", ["MSDF", "MSDFA"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_reads_nothing_on_the_host(variant, masked):
    embedder, loss_func = s2sd(
        BatchContrastive(), C, 2, variant, aux_sizes=(6,), field="hidden", tokens="mean", feature_delay=0
    )
    output = output_of(torch.randn(B, N, C, requires_grad=True), masked)
    with HostReads() as reads:
        loss_func(embedder(output), LABELS).backward()
    assert reads.seen == []


@pytest.mark.parametrize("options", [{"tokens": "mean"}, {"tokens": "mean", "aggregate_pooling": True}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_one_graph_and_other_lengths_compile_once_more(options, masked):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    embedder = S2SDEmbedder(C, 2, (6,), field="hidden", **options)
    compiled = torch.compile(embedder, backend="eager", fullgraph=True)
    for n in (N, N, N + 2, N + 5, N + 1):
        output = output_of(torch.randn(B, n, C), masked)
        torch.testing.assert_close(compiled(output).features, embedder(output).features)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("options", [{"tokens": "mean"}, {"tokens": "class"}], ids=str)
def test_tokens_of_any_number_are_exported(options, tokens):
    deployed = S2SDEmbedder(C, 2, (6,), **options).deploy()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    program = torch.export.export(deployed, (tokens,), dynamic_shapes=(dims,))
    torch.testing.assert_close(program.module()(tokens[:3, :5]), deployed(tokens[:3, :5]))


def test_a_dict_with_its_mask_is_exported(tokens):
    deployed = S2SDEmbedder(C, 2, (6,), field="hidden", tokens="mean").deploy()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    output = {"hidden": tokens, "attention_mask": mask_of()}
    program = torch.export.export(deployed, (output,), dynamic_shapes=({"hidden": dims, "attention_mask": dims},))
    less = {name: x[:3, :5] for name, x in output.items()}
    torch.testing.assert_close(program.module()(less), deployed(less))


def test_maps_with_channels_last_of_any_size_are_exported(maps):
    deployed, last = S2SDEmbedder(C, 2, (6,)).deploy(), maps.movedim(1, 3)
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("width")}
    program = torch.export.export(deployed, (last,), dynamic_shapes=(dims,))
    torch.testing.assert_close(program.module()(last[:3, :, :2]), deployed(last[:3, :, :2]))


def test_replicas_of_data_parallel_read_alike(tokens):
    embedder = S2SDEmbedder(C, 2, (6,), field="hidden", tokens="mean")
    batch = DataParallel(embedder)({"hidden": tokens}, mask_of())
    assert isinstance(batch, S2SDEmbeddings)
    torch.testing.assert_close(batch.features, one_by_one(tokens, mask_of(), mean).float())


TOKENS = torch.zeros(B, N, C)
BAD = {
    "no such field": (
        {"field": "pooled"},
        [ModelOutput(hidden=TOKENS, pooler=TOKENS[:, 0])],
        TypeError,
        r"field='pooled' must name a tensor .*there is none; got ModelOutput of .hidden \(4, 9, 24\), .pooler ",
    ),
    "no such place": ({"field": 2}, [(TOKENS, TOKENS)], TypeError, r"there is none; got tuple of \[0\] \(4, 9, 24\)"),
    "several": (
        {"field": "hidden_states"},
        [{"hidden_states": (TOKENS, TOKENS)}],
        TypeError,
        r"field='hidden_states' .*it is a tuple of \[0\] \(4, 9, 24\), \[1\]",
    ),
    "tokens not said": ({"field": "a"}, [{"a": TOKENS}], ValueError, r'got shape \(4, 9, 24\); write .*tokens="class"'),
    "tokens alone": ({"tokens": "mean"}, [{"a": TOKENS}], TypeError, r'write .*s2sd\(…, field="a", tokens="mean"\)'),
    "another size": (
        {"tokens": "mean"},
        [TOKENS[:, :, :23]],
        ValueError,
        r"expected token sequences of shape \(B, N, 24\), got shape \(4, 9, 23\); in_features must be the size",
    ),
    "tokens last": (
        {"tokens": "mean"},
        [TOKENS.mT],
        ValueError,
        r"write embedder\(features.flatten\(2\).mean\(dim=2\)",
    ),
    "no token": ({"tokens": "class"}, [TOKENS[:, :0]], ValueError, r"got shape \(4, 0, 24\)"),
    "maps": ({"tokens": "class"}, [torch.zeros(B, C, 2, 2)], ValueError, "leave tokens out"),
    "short mask": (
        {"tokens": "mean"},
        [TOKENS, mask_of()[:, 1:]],
        ValueError,
        r"attention_mask must be a tensor of shape \(4, 9\), one entry a token, got shape \(4, 8\)",
    ),
    "list as mask": ({"tokens": "mean"}, [TOKENS, mask_of().tolist()], ValueError, r"attention_mask .*got list"),
    "added mask": ({"tokens": "mean"}, [TOKENS, mask_of().float()], TypeError, "integers or bool, got torch.float32"),
    "integers": ({"tokens": "mean"}, [TOKENS.long()], TypeError, r"features.float\(\)"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("training", [True, False])
def test_what_does_not_fit_is_told(name, training):
    options, given, error, words = BAD[name]
    embedder = S2SDEmbedder(C, 2, (6,), **options).train(training)
    with pytest.raises(error, match=words):
        embedder(*given)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tokens": "max"}, ValueError, "tokens must be one of class, mean, got 'max'"),
        ({"field": 1.0}, TypeError, r"field must be a name, or a position, .*got float \(1.0\)"),
        ({"field": True}, TypeError, "got bool"),
        ({"tokens": "class", "aggregate_pooling": True}, ValueError, 'choose tokens="mean", or the variant MSDF'),
    ],
)
def test_settings_that_there_are_not(options, error, words):
    with pytest.raises(error, match=words):
        S2SDEmbedder(C, 2, (6,), **options)


def test_the_trunk_in_place_of_its_number_of_features():
    with pytest.raises(TypeError, match=r"number of the trunk's features, got a Conv2d; write count_features\(trunk"):
        s2sd(BatchContrastive(), torch.nn.Conv2d(3, 4, 1), 2)
