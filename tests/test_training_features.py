"""`collect_features`: the rows of a plain loop over the loader, in every view; killed runs go on; several processes."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from pml_s2sd import S2SDEmbedder, collect_features, consolidate
from pml_s2sd.training_features import turn

WORKER = Path(__file__).parent / "consolidation_worker.py"
SIDE = 6


class Images(Dataset):
    """Twelve images of four classes; with `shifts` each is another one at each pass, as if augmented."""

    def __init__(self, count=12, shifts=False):
        self.images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(count) // 3
        self.shifts, self.read = shifts, 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read += 1
        return self.images[index] + (self.read // (len(self) + 1)) * self.shifts, int(self.labels[index])


class Trunk(nn.Sequential):
    """Notes how many images it has seen."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


def plain(trunk, images):
    """The average over positions of what the convolution and the frozen batch norm give."""
    conv, norm, _ = trunk
    x = nn.functional.conv2d(images.double(), conv.weight.double(), conv.bias.double())
    x = (x - norm.running_mean.double()[:, None, None]) / (norm.running_var.double()[:, None, None] + norm.eps).sqrt()
    return x.detach()


def close(found, expected):
    torch.testing.assert_close(torch.as_tensor(found).double(), expected, rtol=1e-5, atol=1e-5)


def test_it_is_a_plain_loop_in_eval_mode_and_leaves_the_trunk_alone():
    data, trunk = Images(), Trunk().train()
    trunk[1].eval()
    state = {name: value.clone() for name, value in trunk.state_dict().items()}
    features, labels = collect_features(trunk, DataLoader(data, batch_size=5))
    close(features, plain(trunk, data.images).mean((2, 3)))
    assert torch.equal(labels, data.labels)
    assert [part.training for part in trunk.modules()] == [True, True, False, True]
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())
    assert not features.requires_grad


def test_each_pass_is_a_view_of_its_own():
    data, trunk = Images(shifts=True), Trunk()
    features, labels = collect_features(trunk, DataLoader(data, batch_size=12), views=2)
    assert features.shape == (24, 8) and torch.equal(labels, data.labels.repeat(2))
    close(features[:12], plain(trunk, data.images).mean((2, 3)))
    assert not torch.allclose(features[:12], features[12:])


def test_turned_images_are_classes_of_their_own():
    data, trunk = Images(), Trunk()
    features, labels = collect_features(trunk, DataLoader(data, batch_size=12), turned=True)
    ways = [data.images.numpy(), *(np.rot90(data.images.numpy(), k, (2, 3)) for k in (1, 2, 3))]
    ways += [data.images.numpy()[:, order] for order in ([2, 0, 1], [1, 2, 0])]
    close(features, torch.cat([plain(trunk, torch.from_numpy(images.copy())).mean((2, 3)) for images in ways]))
    assert torch.equal(labels, (data.labels + 2**59 * torch.arange(6)[:, None]).flatten())
    with pytest.raises(ValueError, match="square colour images"):
        collect_features(trunk, [(torch.rand(2, 3, 6, 7), torch.tensor([0, 1]))], turned=True)


def test_turned_images_of_no_known_class_have_none():
    batches = [(torch.rand(2, 3, SIDE, SIDE), torch.tensor([1, -1]))]
    labels = collect_features(Trunk(), batches, turned=True).labels.view(-1, 2)
    assert labels.tolist() == [[1 + way * 2**59, -1] for way in range(6)]


def test_labels_that_turned_images_have_are_refused():
    batches = [(torch.rand(2, 3, SIDE, SIDE), torch.tensor([1, 2**59]))]
    assert collect_features(Trunk(), batches).labels.tolist() == [1, 2**59]
    with pytest.raises(ValueError, match=r"makes labels from 2\^59 on, and the largest is 576460752303423488; number"):
        collect_features(Trunk(), batches, turned=True)


def test_turning_four_times_by_a_quarter_changes_nothing():
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(turn(turn(turn(turn(images, 0), 0), 0), 0), images)
    assert torch.equal(turn(turn(images, 3), 4), images)


def test_the_smallest_maps_that_keep_average_and_maximum():
    data, trunk = Images(), Trunk()
    features, labels = collect_features(trunk, DataLoader(data, batch_size=5), keep_maximum=True)
    maps = plain(trunk, data.images)
    assert features.shape == (12, 8, 1, 2)
    close(features.mean((2, 3)), maps.mean((2, 3)))
    close(features.amax((2, 3)), maps.amax((2, 3)))
    embedder = S2SDEmbedder(8, 2, (4,), aggregate_pooling=True)
    of_maps = consolidate(embedder, maps.float(), labels, steps=20)
    torch.testing.assert_close(
        consolidate(embedder, features, labels, steps=20).head.weight, of_maps.head.weight, rtol=1e-2, atol=1e-3
    )


class KilledError(Exception):
    pass


def killed_after(loader, batches):
    """The loader, which raises after so many batches, in all passes together."""
    left = iter(range(batches))

    class Fragile:
        sampler, batch_size, dataset = loader.sampler, loader.batch_size, loader.dataset

        def __len__(self):
            return len(loader)

        def __iter__(self):
            for batch in loader:
                if next(left, None) is None:
                    raise KilledError
                yield batch

    return Fragile()


@pytest.fixture
def noted_at_once(monkeypatch):
    monkeypatch.setattr("pml_s2sd._kept_features.NOTED_EVERY", -1.0)


@pytest.mark.usefixtures("noted_at_once")
@pytest.mark.parametrize("batches", [1, 3, 5, 6])
def test_a_killed_run_goes_on_after_its_last_batch(tmp_path, batches):
    data, trunk = Images(), Trunk()
    loader = DataLoader(data, batch_size=4)
    expected = collect_features(trunk, loader, views=2)
    with contextlib.suppress(KilledError):
        collect_features(trunk, killed_after(loader, batches), views=2, path=tmp_path)
    trunk.seen = 0
    features, labels = collect_features(trunk, loader, views=2, path=tmp_path)
    assert trunk.seen == 24 - 4 * batches
    assert isinstance(features, np.memmap)
    assert np.array_equal(features, expected.features.numpy()) and torch.equal(labels, expected.labels)


@pytest.mark.usefixtures("noted_at_once")
@pytest.mark.parametrize("by_batches", [False, True])
def test_of_a_loader_that_shuffles_the_last_pass_is_taken_again(tmp_path, by_batches):
    data, trunk = Images(), Trunk()
    order = {"batch_sampler": BatchSampler(RandomSampler(data), 4, False)} if by_batches else {"shuffle": True}
    loader = DataLoader(data, **order if by_batches else {"batch_size": 4, **order})
    with pytest.raises(KilledError):
        collect_features(trunk, killed_after(loader, 5), views=2, path=tmp_path)
    trunk.seen = 0
    features, labels = collect_features(trunk, loader, views=2, path=tmp_path)
    assert trunk.seen == 12
    expected = plain(trunk, data.images).mean((2, 3))
    for first in (0, 12):
        order = torch.cdist(torch.tensor(np.array(features[first : first + 12])).double(), expected).argmin(1)
        assert sorted(order.tolist()) == list(range(12)) and torch.equal(labels[first : first + 12], data.labels[order])


def test_a_folder_of_something_else(tmp_path):
    loader = DataLoader(Images(), batch_size=4)
    collect_features(Trunk(), loader, path=tmp_path)
    with pytest.raises(ValueError, match=re.escape("holds features made with {'views': 1")):
        collect_features(Trunk(), loader, views=2, path=tmp_path)
    path = tmp_path / "features.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"features\.bin is cut short"):
        collect_features(Trunk(), loader, path=tmp_path)
    (tmp_path / "progress.json").write_text('{"made_')
    with pytest.raises(ValueError, match="remove"):
        collect_features(Trunk(), loader, path=tmp_path)


def test_a_sample_of_a_large_set():
    data, trunk = Images(600), Trunk()
    loader = DataLoader(data, batch_size=50)
    features, labels = collect_features(trunk, loader, views=2, rows=300)
    assert 240 < len(features) == trunk.seen < 360
    nearest = torch.cdist(features.double(), plain(trunk, data.images).mean((2, 3))).argmin(1)
    assert torch.equal(labels, data.labels[nearest])
    assert len(nearest.unique()) > 0.8 * len(nearest)
    again = collect_features(trunk, loader, views=2, rows=300)
    assert torch.equal(again.features, features)
    assert not torch.equal(collect_features(trunk, loader, views=2, rows=300, seed=1).labels, labels)
    assert 200 < len(collect_features(trunk, loader, turned=True, rows=300).labels) < 400


def test_other_batches_and_half_precision():
    images = torch.rand(4, 3, SIDE, SIDE)
    batches = [{"pixels": images, "class": torch.tensor([[0], [0], [1], [1]])}]
    trunk = Trunk()
    with pytest.raises(TypeError, match="say how to read it"):
        collect_features(trunk, batches)
    features, labels = collect_features(trunk, batches, read=lambda batch: (batch["pixels"], batch["class"]))
    close(features, plain(trunk, images).mean((2, 3)))
    assert labels.tolist() == [0, 0, 1, 1]
    half = collect_features(trunk.bfloat16(), [(images, labels)]).features
    assert torch.equal(half, collect_features(trunk, [(images.bfloat16(), labels)]).features)
    assert half.dtype == torch.float32 and (half - features).abs().max() < 0.05


def test_a_loader_without_a_length():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from Images()

    data = Images()
    features = collect_features(Trunk(), DataLoader(Stream(), batch_size=5)).features
    close(features, plain(Trunk(), data.images).mean((2, 3)))
    with pytest.raises(TypeError, match="known length"):
        collect_features(Trunk(), DataLoader(Stream(), batch_size=5), rows=4)


BAD = {
    "float labels": ([(torch.rand(2, 3, 6, 6), torch.rand(2))], {}, ValueError, "must be integers of shape (2,)"),
    "too few labels": ([(torch.rand(2, 3, 6, 6), torch.tensor([1]))], {}, ValueError, "got torch.int64 of shape (1,)"),
    "no tensors": ([([1, 2], [1, 2])], {}, TypeError, "must be tensors, got list and list"),
    "no batch": ([], {}, ValueError, "no sample was taken"),
    "no views": ([], {"views": 0}, ValueError, "views must be at least 1"),
    "one row": ([], {"rows": 1}, ValueError, "rows must be at least 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    batches, options, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        collect_features(Trunk(), batches, **options)


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(images)


def test_a_trunk_that_returns_something_else():
    batches = [(torch.rand(2, 3, 6, 6), torch.tensor([0, 1]))]
    with pytest.raises(TypeError, match=re.escape("must return features (2, F)")):
        collect_features(Returns(lambda images: {"features": images}), batches)
    with pytest.raises(TypeError, match=re.escape("got Tensor of shape (2, 3, 6)")):
        collect_features(Returns(lambda images: images[:, :, 0]), batches)
    with pytest.raises(ValueError, match="keep_maximum needs a trunk that returns feature maps"):
        collect_features(Returns(lambda images: images.flatten(1)), batches, keep_maximum=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_consolidate_as_one(tmp_path, mode):
    from test_trunk_input import Language, Texts, embedder_of  # which has its trunk and loaders from here

    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), mode, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one["weight"], two["weight"])
    assert sorted(one["labels"].tolist()) == sorted(Images(24).labels.tolist())
    torch.testing.assert_close(one["weight"], one["expected"], rtol=1e-4, atol=1e-5)
    of_one_process = collect_features(Language(), DataLoader(Texts(), batch_size=5), embedder=embedder_of())
    rows = [*range(0, 24, 2), *range(1, 24, 2)]  # of the first process, then of the second
    for features, labels in (one["texts"], two["texts"]):
        torch.testing.assert_close(features, of_one_process.features[rows])
        assert torch.equal(labels, of_one_process.labels[rows])


def test_a_folder_belongs_to_one_trunk_one_data_set_and_one_batch_size(tmp_path):
    loader, trunk = DataLoader(Images(), batch_size=4), Trunk()
    collect_features(trunk, loader, path=tmp_path)
    other = Trunk()
    with torch.no_grad():
        other[0].bias[0] += 1e-3
    for changed in (
        (other, loader),
        (trunk, DataLoader(Images(15), batch_size=4)),
        (trunk, DataLoader(Images(), batch_size=3)),
        (trunk, DataLoader(Images(), batch_size=4, shuffle=True)),
    ):
        with pytest.raises(ValueError, match="holds features made with"):
            collect_features(*changed, path=tmp_path)


@pytest.mark.usefixtures("noted_at_once")
def test_a_run_that_failed_writes_nothing_later(tmp_path):
    loader, trunk = DataLoader(Images(), batch_size=4), Trunk()
    kept = []
    try:
        collect_features(trunk, killed_after(loader, 2), path=tmp_path)
    except KilledError as error:
        kept.append(error)  # with its frames, and what they hold
    found = collect_features(trunk, loader, path=tmp_path)
    kept.clear()
    assert np.array_equal(found.features, collect_features(trunk, loader).features)
    assert (tmp_path / "labels.bin").stat().st_size == 8 * 12


def test_what_the_trunk_gives_is_copied():
    """Such as a buffer that it uses again, or the first of many tokens."""
    buffer = torch.empty(4, 2)
    trunk = Returns(lambda images: buffer[: len(images)].copy_(images.flatten(1)[:, :2]))
    data = Images()
    features = collect_features(trunk, DataLoader(data, batch_size=4)).features
    assert torch.equal(features, data.images.flatten(1)[:, :2])


def test_turned_images_have_three_colours():
    with pytest.raises(ValueError, match=re.escape("square colour images (B, 3, H, H), got shape (2, 1, 6, 6)")):
        collect_features(Trunk(), [(torch.rand(2, 1, 6, 6), torch.tensor([0, 1]))], turned=True)


def test_a_sample_needs_a_sampler_that_is_known():
    data = Images()
    loader = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, False))
    with pytest.raises(ValueError, match="without a batch_sampler"):
        collect_features(Trunk(), loader, rows=4)


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "features").write_text("")
    with pytest.raises(ValueError, match="a file; give a folder"):
        collect_features(Trunk(), DataLoader(Images(), batch_size=4), path=tmp_path / "features")


def test_grey_images_have_no_colours_to_exchange():
    grey = TensorDataset(torch.rand(6, 1, 4, 4).expand(6, 3, 4, 4), torch.arange(6) // 2)
    with pytest.raises(ValueError, match="all images of a batch are grey"):
        collect_features(torch.nn.Conv2d(3, 5, 3), DataLoader(grey, 3), turned=True)
    assert len(collect_features(torch.nn.Conv2d(3, 5, 3), DataLoader(grey, 3)).labels) == 6
