"""The files of a frozen front's activations: what is in them, when they are made, what is drawn from them."""

import numpy as np
import pretrained
import pytest
import torch
from activations import activations_of, key_of
from images import EmojiDataset, ImageFolderDataset
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

CPU = torch.device("cpu")


class Front(nn.Module):
    """A convolution that counts the images it has seen."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(3, 4, 8, stride=8)
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return self.convolution(images)


class Few(EmojiDataset):
    """Of some of the classes."""

    def __init__(self, train, classes=9):
        super().__init__(train)
        chosen = self.labels < classes
        self.images, self.labels, self.names = self.images[chosen], self.labels[chosen], self.names[:classes]


@pytest.fixture(scope="module")
def halves():
    return Few(train=True), Few(train=False)


def made(front, halves, folder, views=3, turned=True):
    return activations_of(front, halves, folder, views=views, turned=turned, device=CPU)


def test_the_first_view_is_the_images_the_others_are_augmented_and_the_turned_ones_turned(halves, tmp_path):
    front = Front()
    train, test = made(front, halves, tmp_path)
    images = [half.images.float() / 255 for half in halves]
    with torch.no_grad():
        as_they_are = [front.convolution(x).numpy() for x in images]
        upside_down = front.convolution(images[0].flip(2).flip(3)).numpy()
        colours_exchanged = front.convolution(images[0][:, [2, 0, 1]]).numpy()
    assert [len(train.views), len(train.turned), len(test.views)] == [3, 5, 1]
    assert train.views[0].dtype == np.float16
    np.testing.assert_allclose(train.views[0], as_they_are[0], atol=2e-3)
    np.testing.assert_allclose(test.views[0], as_they_are[1], atol=2e-3)
    np.testing.assert_allclose(train.turned[1], upside_down, atol=2e-3)
    np.testing.assert_allclose(train.turned[3], colours_exchanged, atol=2e-3)
    differences = [np.abs(train.views[i] - train.views[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(differences) > 0.01
    assert max(differences) < np.abs(as_they_are[0] - as_they_are[0][::-1]).mean()  # nearer than another image


def test_a_sample_is_one_of_the_views_and_consolidation_sees_each(halves, tmp_path):
    train, test = made(Front(), halves, tmp_path)
    drawn = {float(train[7][0].sum()) for _ in range(50)}
    assert drawn == {float(torch.from_numpy(view[7].astype(np.float32)).sum()) for view in train.views}
    assert train[7][1] == int(halves[0].labels[7])
    assert (len(train), len(test)) == tuple(map(len, halves))
    x, y = zip(*DataLoader(train.all_of_them(), batch_size=50), strict=True)
    x, y = torch.cat(x), torch.cat(y)
    expected = np.concatenate([*train.views, *train.turned]).astype(np.float32)
    assert np.array_equal(x.numpy(), expected)
    n, classes = len(halves[0]), len(halves[0].names)
    ways = torch.arange(8).sub(2).clamp(min=0).repeat_interleave(n)  # three views of one way, then five ways
    assert torch.equal(y, halves[0].labels.repeat(8) + 2**59 * ways)
    assert len(y.unique()) == 6 * classes


def test_files_that_are_there_are_not_made_again_and_those_that_are_missing_are_made_alike(halves, tmp_path):
    front = Front()
    first, _ = made(front, halves, tmp_path, turned=False)
    n, tested = map(len, halves)
    assert front.seen == 3 * n + tested
    views = [np.array(view) for view in first.views]
    next(tmp_path.rglob("train-view1.npy")).unlink()  # as after a run that was killed
    state = torch.get_rng_state()
    again, _ = made(front, halves, tmp_path, turned=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert front.seen == 4 * n + tested
    assert all(np.array_equal(a, b) for a, b in zip(again.views, views, strict=True))
    made(front, halves, tmp_path, turned=True)
    assert front.seen == 9 * n + tested
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_that_is_stopped_leaves_no_half_of_a_file(halves, tmp_path):
    front = Front()

    def stop(*_):
        if front.seen > 2 * len(halves[0]):
            raise KeyboardInterrupt

    front.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        made(front, halves, tmp_path)
    assert {path.name for path in tmp_path.rglob("*.*")} == {"train-view0.npy", "train-view1.npy"}


def test_another_side_of_the_pretrained_trunk_has_files_of_its_own(halves):
    pytest.importorskip("efficientnet_lite_pytorch", reason="make test installs it")
    assert key_of(pretrained.Front(64), halves) != key_of(pretrained.Front(96), halves)


def test_other_weights_other_images_and_another_size_have_files_of_their_own(halves, tmp_path):
    for number in range(2):
        for name in "abcd":
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(tmp_path / name / f"{number}.png")

    def folder(side):
        return [ImageFolderDataset(tmp_path, train, side) for train in (True, False)]

    keys = [
        key_of(Front(), halves),
        key_of(Front(seed=1), halves),
        key_of(Front(), halves[::-1]),
        key_of(Front(), folder(8)),
        key_of(Front(), folder(16)),
    ]
    assert key_of(Front(), halves) == keys[0]
    assert key_of(Front(), folder(8)) == keys[3]
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "0.png")
    keys.append(key_of(Front(), folder(8)))
    assert len(set(keys)) == 6
