"""`consolidate`: the engine of `compress` with the auxiliary spaces as teachers, for every variant, from any state."""

import copy
import re

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from test_compress import plain_objective
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pml_s2sd import S2SDEmbedder, compress, consolidate, consolidation, s2sd
from pml_s2sd.embedder import Embedder

FEW = {"steps": 20, "subset_rows": 64}
F, D = 12, 4


def features(rows=120, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 20
    centres = torch.randn(20, F, generator=draw)
    return centres[labels] + 0.5 * torch.randn(rows, F, generator=draw), labels


def feature_maps(rows=120, seed=0):
    x, labels = features(rows, seed)
    return x[:, :, None, None] + 0.3 * torch.randn(rows, F, 3, 2, generator=torch.Generator().manual_seed(1)), labels


def embedder(aux_sizes=(16,), seed=0, **options):
    torch.manual_seed(seed)
    return S2SDEmbedder(F, D, aux_sizes, **options)


def weight(deployed):
    return deployed.head.weight.detach()


@pytest.mark.parametrize("aux_head", ["linear", "mlp"])
def test_one_space_is_compress_of_its_embeddings(aux_head):
    made, (x, labels) = embedder(aux_head=aux_head), features()
    deployed = consolidate(made, x, labels, **FEW)
    with torch.no_grad():
        a = made.aux_heads[0](x)
    torch.testing.assert_close(
        weight(deployed), compress(a, D, features=x, labels=labels, **FEW).weight, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        weight(consolidate(made, x, **FEW)), compress(a, D, features=x, **FEW).weight, rtol=1e-5, atol=1e-6
    )


def test_several_spaces_are_followed_alike():
    made, (x, labels) = embedder((16, 24)).double(), features(60)
    x = x.double()
    options = {"steps": 400, "subset_rows": 60, "label_weight": 0.0}
    spaces = [head(x).detach().numpy() for head in made.aux_heads]

    def mean_objective(W):
        return np.mean([plain_objective(W.double().numpy(), x.numpy(), a, None, 0.05, 0.0) for a in spaces])

    of_both = mean_objective(weight(consolidate(made, x, labels, **options)))
    for a in spaces:
        of_one = compress(torch.from_numpy(a), D, features=x, **options).weight.detach()
        assert of_both < mean_objective(of_one) - 1e-5
    assert of_both < 0.9 * mean_objective(weight(consolidate(made, x, labels, steps=0)))


def test_msdfa_teachers_see_both_poolings_and_the_map_the_average():
    made, (maps, labels) = embedder(aggregate_pooling=True), feature_maps()
    average, largest = maps.mean((2, 3)), maps.amax((2, 3))
    with torch.no_grad():
        a = made.aux_heads[0](average + largest)
    expected = compress(a, D, features=average, labels=labels, **FEW).weight
    torch.testing.assert_close(weight(consolidate(made, maps, labels, **FEW)), expected, rtol=1e-5, atol=1e-6)
    smallest = torch.stack([largest, 2 * average - largest], dim=2)[:, :, None]
    torch.testing.assert_close(weight(consolidate(made, smallest, labels, **FEW)), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=re.escape("needs feature maps (N, 12, H, W), got shape (120, 12)")):
        consolidate(made, average, labels)


@pytest.mark.parametrize("variant", ["DSD", "MSD", "MSDF", "MSDFA", None])
def test_every_variant_and_the_head_of_a_plain_linear_layer(variant):
    options = {} if variant is None else {"aux_sizes": (16,) if variant == "DSD" else (16, 24)}
    made, _ = s2sd(losses.MultiSimilarityLoss(), F, D, *([] if variant is None else [variant]), **options)
    maps, labels = feature_maps()
    deployed = consolidate(made, maps, labels, **FEW)
    assert type(deployed) is Embedder and not deployed.training
    linear = nn.Linear(F, D)
    linear.load_state_dict({name: made.state_dict()[f"head.{name}"] for name in ("weight", "bias")})
    linear.load_state_dict(deployed.head.state_dict())
    assert torch.equal(deployed(maps), linear(maps.mean((2, 3))))
    assert not torch.allclose(linear.weight, made.head.weight)


def test_without_auxiliary_spaces_the_base_space_is_the_teacher():
    x, labels = features()
    made = embedder(())
    expected = compress(made.head(x).detach(), 3, features=x, labels=labels, **FEW).weight
    for one in (made, made.deploy()):
        torch.testing.assert_close(weight(consolidate(one, x, labels, size=3, **FEW)), expected, rtol=1e-5, atol=1e-6)


def test_several_sizes_are_those_of_one_each():
    made, (x, labels) = embedder(), features()
    by_size = consolidate(made, x, labels, size=[2, 8], **FEW)
    assert sorted(by_size) == [2, 8]
    for size, deployed in by_size.items():
        assert deployed.embedding_size == size and deployed(x).shape == (120, size)
        torch.testing.assert_close(weight(deployed), weight(consolidate(made, x, labels, size=size, **FEW)))


def test_the_embedder_and_the_random_state_stay_as_they_were():
    made, (x, labels) = embedder((16,), head=nn.Sequential(nn.Dropout(0.5), nn.Linear(F, D))), features()
    made.aux_heads[0].insert(0, nn.Dropout(0.9))
    made.head.eval()
    before = copy.deepcopy(made.state_dict())
    modes = [part.training for part in made.modules()]
    state = torch.get_rng_state()
    first, second = (weight(consolidate(made, x, labels, **FEW)) for _ in range(2))
    assert torch.equal(first, second)  # dropout is off
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in made.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in made.parameters())
    assert not torch.equal(weight(consolidate(made, x, labels, seed=1, **FEW)), first)


def test_from_a_checkpoint(tmp_path):
    made, (x, labels) = embedder(seed=3), features()
    torch.save(made.state_dict(), tmp_path / "embedder.pt")
    other = embedder(seed=4)
    other.load_state_dict(torch.load(tmp_path / "embedder.pt", weights_only=True))
    assert torch.equal(weight(consolidate(other, x, labels, **FEW)), weight(consolidate(made, x, labels, **FEW)))


def test_heads_with_parametrisations():
    made, (x, labels) = embedder(aux_head="linear"), features()
    expected = weight(consolidate(made, x, labels, **FEW))
    weight_norm(made.aux_heads[0])
    torch.testing.assert_close(weight(consolidate(made, x, labels, **FEW)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_is_the_embedders(dtype):
    made, (x, labels) = embedder(aux_head="linear"), features()
    expected = weight(consolidate(made, x, labels, **FEW)).double()
    deployed = consolidate(made.to(dtype), x.to(dtype), labels, **FEW)
    assert weight(deployed).dtype == dtype
    accuracy = {torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    cosine = nn.functional.cosine_similarity(weight(deployed).double().flatten(), expected.flatten(), dim=0)
    assert 1 - cosine < accuracy


def test_arrays_files_and_embeddings_made_at_each_step_give_the_same(tmp_path, monkeypatch):
    made, (x, labels) = embedder(), features()
    expected = weight(consolidate(made, x, labels, **FEW))
    np.save(tmp_path / "features.npy", x.numpy())
    assert torch.equal(weight(consolidate(made, x.numpy(), labels.numpy(), **FEW)), expected)
    assert torch.equal(weight(consolidate(made, tmp_path / "features.npy", labels.tolist(), **FEW)), expected)
    monkeypatch.setattr(consolidation, "KEPT_ENTRIES", 0)
    for matrix in (x, tmp_path / "features.npy"):
        torch.testing.assert_close(weight(consolidate(made, matrix, labels, **FEW)), expected)


def test_labels_that_are_not_known_and_a_generator():
    made, (x, labels) = embedder(), features()
    nobody = torch.full_like(labels, -1)
    torch.testing.assert_close(weight(consolidate(made, x, nobody, **FEW)), weight(consolidate(made, x, **FEW)))
    generator = torch.Generator().manual_seed(5)
    first, second = (weight(consolidate(made, x, seed=generator, **FEW)) for _ in range(2))
    assert not torch.equal(first, second)


BAD = {
    "a model": (lambda: (nn.Sequential(embedder()), features()[0]), {}, TypeError, "pass the embedder itself"),
    "features of another size": (lambda: (embedder(), torch.randn(9, 5)), {}, ValueError, "got shape (1, 5)"),
    "integers": (lambda: (embedder(), torch.ones(9, F, dtype=torch.int64)), {}, TypeError, "got torch.int64"),
    "one row": (lambda: (embedder(), torch.randn(1, F)), {}, ValueError, "features has 1 rows"),
    "no rows": (lambda: (embedder(), torch.randn(0, F)), {}, ValueError, "features must have shape (N, k)"),
    "a list": (lambda: (embedder(), [[1.0] * F] * 9), {}, TypeError, "features must be a tensor or array"),
    "NaN": (lambda: (embedder(), torch.full((9, F), torch.nan)), {}, ValueError, "features has rows that are NaN"),
    "too large": (lambda: (embedder(), features()[0]), {"size": 13}, ValueError, "size must be at most 12"),
    "no size": (lambda: (embedder(), features()[0]), {"size": []}, ValueError, "size is an empty list"),
    "labels": (lambda: (embedder(), features()[0]), {"labels": [1, 2]}, ValueError, "labels must have shape (120,)"),
    "steps": (lambda: (embedder(), features()[0]), {"steps": -1}, ValueError, "steps must be at least 0"),
    "a device": (lambda: (embedder(), features()[0]), {"device": "no"}, ValueError, "cannot use the device"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, options, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        consolidate(*make(), **options)


def test_a_file_that_is_cut_short_or_missing(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, features()[0].numpy())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        consolidate(embedder(), path)
    with pytest.raises(FileNotFoundError, match="no file"):
        consolidate(embedder(), tmp_path / "nothing.npy")


def test_a_head_without_parameters_and_a_compiled_embedder():
    x, labels = features()
    plain = consolidate(Embedder(F, F, nn.Identity()), x, labels, size=3, **FEW)
    torch.testing.assert_close(
        weight(plain), compress(x, 3, features=x, labels=labels, **FEW).weight, rtol=1e-5, atol=1e-6
    )
    made = embedder()
    compiled = consolidate(torch.compile(made), x, labels, **FEW)
    assert torch.equal(weight(compiled), weight(consolidate(made, x, labels, **FEW)))


def test_big_endian_features_and_all_labels_below_zero_are_not_known():
    made, (x, labels) = embedder(), features()
    swapped = x.numpy().astype(">f4")
    assert torch.equal(weight(consolidate(made, swapped, labels, **FEW)), weight(consolidate(made, x, labels, **FEW)))
    some = torch.where(labels < 5, -1, labels)
    others = torch.where(labels < 5, -100 - labels, labels)
    assert torch.equal(weight(consolidate(made, x, others, **FEW)), weight(consolidate(made, x, some, **FEW)))
