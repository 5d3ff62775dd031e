"""The study's settings: what is trained on, held out and shown to the trunk, of activations made up here."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from study import pretrained
from study.cuts import Trained
from study.pretrained import FEATURES, VIEWS
from study.settings import EMOJI, SETTINGS, Setting, cache_of
from study.training import batches
from torch import nn

from pml_s2sd.training_features import TURNS

CLASSES, EACH = 41, 5


@pytest.fixture
def cache(tmp_path):
    path = cache_of("photos", tmp_path)
    generator = torch.Generator().manual_seed(0)
    count = CLASSES * EACH
    made = {"train_labels": torch.arange(count) % CLASSES, "test_labels": torch.arange(6) // 2}
    for part, of_part in (("train", (VIEWS, count)), ("turned", (TURNS, count)), ("test", (6,))):
        made[part] = torch.rand(*of_part, 2, 1, 1, generator=generator).half()
        made[f"{part}_features"] = torch.rand(*of_part, 3, generator=generator)
    torch.save(made, path)
    return path


def test_photographs_have_a_file_of_their_own(tmp_path):
    assert {cache_of(name, tmp_path) for name in EMOJI} == {tmp_path / "study-activations.pt"}
    assert cache_of("icons", tmp_path) == tmp_path / "icons-activations.pt"
    others = set(SETTINGS) - {*EMOJI, "icons"}
    assert {cache_of(name, tmp_path) for name in others} == {tmp_path / "photos-activations.pt"}


def test_a_frozen_trunk_is_shown_features_a_tuned_one_activations(cache):
    made = torch.load(cache)
    frozen, tuned = Setting("photos", cache), Setting("photos tuned", cache)
    torch.testing.assert_close(torch.cat(frozen.train_batches(2)), made["train_features"][2])
    torch.testing.assert_close(torch.cat(tuned.train_batches(2)), made["train"][2].float())
    torch.testing.assert_close(torch.cat(tuned.turned_batches(3)), made["turned"][3].float())
    torch.testing.assert_close(torch.cat(frozen.test_batches()), made["test_features"])
    assert frozen.kind.features == tuned.kind.features == FEATURES
    assert isinstance(frozen.trunk(), torch.nn.Identity)


def test_a_batch_shows_each_sample_in_one_of_its_views(cache):
    setting, made = Setting("photos", cache), torch.load(cache)
    samples = torch.arange(40)
    x = setting.batch(samples)
    views = [(x == made["train_features"][view, samples]).all(1) for view in range(VIEWS)]
    assert torch.stack(views).sum(0).tolist() == [1] * 40
    assert all(view.any() for view in views)


def test_every_fourth_training_class_stands_in_for_the_unseen_ones(cache):
    setting, made = Setting("photos", cache, choosing=True), torch.load(cache)
    held_out = made["train_labels"] % 4 == 0
    torch.testing.assert_close(setting.test, made["train_features"][0, held_out])
    assert setting.test_labels.unique().tolist() == list(range(0, CLASSES, 4))
    torch.testing.assert_close(setting.train, made["train_features"][:, ~held_out])
    torch.testing.assert_close(setting.turned, made["turned_features"][:, ~held_out])
    assert setting.train_labels.unique().tolist() == list(range(30))


def test_batches_of_photographs_have_four_of_a_class(cache):
    for choosing in (False, True):
        setting = Setting("photos", cache, choosing=choosing)
        (samples,) = batches(setting, 1)
        assert torch.bincount(setting.train_labels[samples]).unique().tolist() in ([0, 4], [4])


def test_without_activations_the_folder_of_photographs_is_asked_for(tmp_path):
    with pytest.raises(
        ValueError, match=r"no activations of the photographs in .*--photos FOLDER, .* a clone of https"
    ):
        Setting("photos", cache_of("photos", tmp_path))


@pytest.fixture
def few_icons(monkeypatch):
    """Six grey images of three classes, and a trunk whose features tell in which direction they look."""
    halves = {}
    for train in (True, False):
        grey = torch.randint(256, (6, 1, 12, 12), dtype=torch.uint8)
        halves[train] = SimpleNamespace(images=grey.expand(-1, 3, -1, -1), labels=torch.arange(6) // 2)
    convolution = nn.Conv2d(3, 4, 5).requires_grad_(False)
    monkeypatch.setattr(pretrained, "IconsDataset", lambda train, folder: halves[train])
    monkeypatch.setattr(pretrained, "Front", lambda side: convolution)
    monkeypatch.setattr(pretrained, "LastBlocks", nn.ReLU)
    monkeypatch.setattr(pretrained, "make_augmentation", lambda: torch.sqrt)
    return halves, lambda x: convolution(x).half().float().relu().mean((2, 3))


def test_of_icons_features_alone_are_kept_and_three_ways_to_turn(few_icons, tmp_path):
    halves, features = few_icons
    setting = Setting("icons", cache_of("icons", tmp_path), icons=tmp_path)
    made = torch.load(cache_of("icons", tmp_path))
    assert set(made) == {"train_features", "turned_features", "test_features", "train_labels", "test_labels"}
    images = halves[True].images / 255
    torch.testing.assert_close(setting.train, torch.stack([features(images), *[features(images.sqrt())] * (VIEWS - 1)]))
    torch.testing.assert_close(setting.turned, torch.stack([features(images.rot90(k, (2, 3))) for k in (1, 2, 3)]))
    torch.testing.assert_close(setting.test, features(halves[False].images / 255))
    again = Setting("icons", cache_of("icons", tmp_path), icons=tmp_path / "gone", epochs=3)
    torch.testing.assert_close(again.train, setting.train)

    rows, labels = Trained(nn.Sequential(nn.Identity(), nn.Linear(4, 2)), setting, seed=0).with_turned
    torch.testing.assert_close(rows.features, torch.cat([*setting.train, *setting.turned]))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] * VIEWS + [
        label + way * 2**59 for way in (1, 2, 3) for label in (0, 0, 1, 1, 2, 2)
    ]


def test_without_icons_the_command_that_draws_them_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*index.csv; expected .* make icons"):
        Setting("icons", cache_of("icons", tmp_path), icons=tmp_path)


def test_emoji_from_scratch_are_augmented_anew():
    setting = Setting("scratch", Path("not needed"), epochs=1)
    plain, again = setting.train_batches()[0], setting.train_batches(1)[0]
    assert plain.shape == again.shape == (512, 3, 32, 32)
    torch.testing.assert_close(plain, setting.train[0, :512] / 255)
    assert 0.01 < (plain - again).abs().mean() < 0.5
