"""Batches that are no images: dicts passed as keywords, tuples as arguments, their tokens read as the embedder does."""

import collections
import contextlib

import numpy as np
import pytest
import torch
from test_training_features import KilledError, Trunk, killed_after, noted_at_once  # noqa: F401
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pml_s2sd import S2SDEmbedder, collect_features, consolidate
from pml_s2sd.evaluation import embed_spaces

F, LONGEST = 8, 6


class Texts(Dataset):
    """Twenty-four texts of one to six tokens, of four classes, as a Hugging Face collator gives them."""

    def __init__(self, count=24):
        draw = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, LONGEST + 1, (count, 1), generator=draw)
        self.mask = (torch.arange(LONGEST) < lengths).long()
        self.ids = torch.randint(1, 50, (count, LONGEST), generator=draw) * self.mask
        self.labels = torch.arange(count) // 6

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i]}


class Language(nn.Module):
    """Tokens that do not depend on the mask, so that padding would show."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.dropout, self.seen = nn.Embedding(50, F), nn.Dropout(0.5), 0

    def forward(self, input_ids, attention_mask=None, labels=None):
        assert labels is None
        self.seen += len(input_ids)
        return {"hidden": self.dropout(self.table(input_ids))}


class Whole(Language):
    """As sentence-transformers: it takes the dict whole, and writes into it."""

    def forward(self, features):
        features |= super().forward(features["input_ids"])
        return features


def embedder_of(aggregate_pooling=False):
    return S2SDEmbedder(F, 2, (4,), field="hidden", tokens="mean", aggregate_pooling=aggregate_pooling)


def pooled(trunk, data, meant):
    """What is meant of the tokens of each text, the padded ones cut off."""
    rows = zip(trunk.table.weight[data.ids].detach().double(), data.mask.sum(1), strict=True)
    return torch.stack([meant(x[: int(length)]) for x, length in rows])


def mean(x):
    return x.mean(0)


def maximum(x):
    return x.max(0).values


def close(found, expected):
    torch.testing.assert_close(torch.as_tensor(found).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_dict_is_passed_as_keywords_and_its_mask_to_the_embedder():
    data, trunk = Texts(), Language().train()
    features, labels = collect_features(trunk, DataLoader(data, batch_size=5), embedder=embedder_of(), views=2)
    close(features, pooled(trunk, data, mean).repeat(2, 1))
    assert torch.equal(labels, data.labels.repeat(2))
    assert trunk.training


def test_dicts_of_other_kinds():
    """Hugging Face's BatchEncoding is a UserDict."""
    data, trunk = Texts(), Language()
    batches = [collections.UserDict(batch) for batch in DataLoader(data, batch_size=5)]
    close(collect_features(trunk, batches, embedder=embedder_of()).features, pooled(trunk, data, mean))


def test_a_tuple_is_passed_as_arguments_and_the_loaders_dict_stays_as_it_was():
    data, trunk = Texts(), Whole()
    batches = [{"inputs": {"input_ids": data.ids, "attention_mask": data.mask, "modality": "text"}, "y": data.labels}]
    features, _ = collect_features(
        trunk, batches, embedder=embedder_of(), read=lambda batch: ((batch["inputs"],), batch["y"])
    )
    close(features, pooled(trunk, data, mean))
    assert batches[0]["inputs"].keys() == {"input_ids", "attention_mask", "modality"}


def test_aggregate_pooling_keeps_the_maximum_too():
    data, trunk, embedder = Texts(), Language(), embedder_of(aggregate_pooling=True)
    features, labels = collect_features(trunk, DataLoader(data, batch_size=5), embedder=embedder)
    assert features.shape == (24, F, 1, 2)
    close(features.mean((2, 3)), pooled(trunk, data, mean))
    close(features.amax((2, 3)), pooled(trunk, data, maximum))
    batch = embedder({"hidden": trunk.table(data.ids)}, data.mask)
    torch.testing.assert_close(embedder(features).features, batch.features)
    deployed = consolidate(embedder, features, labels, steps=5)
    torch.testing.assert_close(deployed({"hidden": trunk.table(data.ids)}, data.mask), deployed(features))
    average = collect_features(trunk, DataLoader(data, batch_size=5), embedder=embedder, keep_maximum=False).features
    close(average, pooled(trunk, data, mean))


@pytest.mark.usefixtures("noted_at_once")
def test_a_killed_run_goes_on_and_belongs_to_one_way_of_reading(tmp_path):
    data, trunk = Texts(), Language()
    loader = DataLoader(data, batch_size=4)
    with contextlib.suppress(KilledError):
        collect_features(trunk, killed_after(loader, 4), embedder=embedder_of(), path=tmp_path)
    trunk.seen = 0
    features, _ = collect_features(trunk, loader, embedder=embedder_of(), path=tmp_path)
    assert trunk.seen == 24 - 16
    close(np.array(features), pooled(trunk, data, mean))
    other = S2SDEmbedder(F, 2, (4,), field="hidden", tokens="class")
    with pytest.raises(ValueError, match=r"'tokens': 'mean'.*'tokens': 'class'"):
        collect_features(trunk, loader, embedder=other, path=tmp_path)


@pytest.mark.usefixtures("noted_at_once")
def test_a_folder_made_without_an_embedder_goes_on_with_a_plain_one(tmp_path):
    batches = DataLoader([(torch.rand(3, 6, 6), 0), (torch.rand(3, 6, 6), 1)], batch_size=1)
    trunk = Trunk()
    first = collect_features(trunk, batches, path=tmp_path).features
    again = collect_features(trunk, batches, path=tmp_path, embedder=S2SDEmbedder(8, 2, (4,))).features
    assert trunk.seen == 2 and np.array_equal(first, again)


def test_a_sample_of_a_large_set():
    data, trunk = Texts(600), Language()
    loader = DataLoader(data, batch_size=50)
    features, labels = collect_features(trunk, loader, embedder=embedder_of(), rows=300)
    assert 240 < len(features) == trunk.seen < 360
    nearest = torch.cdist(features.double(), pooled(trunk, data, mean)).min(1)
    assert nearest.values.max() < 1e-6
    assert len(set(labels.tolist()) - set(data.labels.tolist())) == 0
    packed = [{"input_ids": data.ids, "grid": torch.ones(7, 3), "labels": data.labels}]
    with pytest.raises(ValueError, match=r"every tensor of a batch, \(600, …\); got shapes \(600, 6\), \(7, 3\)"):
        collect_features(trunk, Counted(packed), embedder=embedder_of(), rows=300)


class Counted(list):
    """A loader that says how many samples it has."""

    @property
    def sampler(self):
        return range(600)


def test_maps_with_channels_last_are_told_where_the_embedder_is_given():
    images, labels = torch.rand(6, 3, 6, 6), torch.arange(6)
    last = nn.Sequential(nn.Conv2d(3, F, 3), nn.Flatten(2), nn.Unflatten(2, (4, 4)), Permute(0, 2, 3, 1))
    expected = last[0](images).mean((2, 3)).detach()
    found = collect_features(last, [(images, labels)], embedder=S2SDEmbedder(F, 2, (4,)), turned=True).features
    torch.testing.assert_close(found[:6], expected)
    torch.testing.assert_close(found[6:12], last[0](images.rot90(1, (2, 3))).mean((2, 3)).detach())
    maps = last(images).detach()
    with_maximum = S2SDEmbedder(F, 2, (4,), aggregate_pooling=True)
    torch.testing.assert_close(
        consolidate(with_maximum, maps, labels, steps=5).head.weight,
        consolidate(with_maximum, maps.movedim(3, 1), labels, steps=5).head.weight,
    )


class Permute(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.permute(self.dims)


def test_every_space_of_a_set_of_texts():
    data, trunk, embedder = Texts(), Language(), embedder_of()
    embeddings, labels = embed_spaces(trunk, embedder, DataLoader(data, batch_size=5))
    close(embeddings.features, pooled(trunk, data, mean))
    torch.testing.assert_close(embeddings.aux[0], embedder.aux_heads[0](embeddings.features).detach())
    assert torch.equal(labels, data.labels)


BAD = {
    "turned": ({"turned": True}, TypeError, "turned needs a tensor of images, got dict; leave it out"),
    "no embedder": ({"embedder": None}, TypeError, r"got dict; give embedder=, made with the field or tokens"),
    "another embedder": ({"embedder": nn.Linear(8, 2)}, TypeError, "must be the S2SDEmbedder .*got Linear; pass"),
    "other features": (
        {"embedder": S2SDEmbedder(9, 2, (4,), field="hidden", tokens="mean")},
        ValueError,
        r"expected token sequences of shape \(B, N, 9\), got shape \(24, 6, 8\)",
    ),
    "labels of another number": (
        {"read": lambda batch: ({"input_ids": batch["input_ids"]}, batch["labels"].float())},
        ValueError,
        "must be integers of shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, error, words = BAD[name]
    with pytest.raises(error, match=words):
        collect_features(Language(), DataLoader(Texts(), batch_size=24), **{"embedder": embedder_of(), **options})
