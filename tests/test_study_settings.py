"""The study's settings: what is trained on, held out and shown to the trunk, of activations made up here."""

from pathlib import Path

import pytest
import torch
from study.pretrained import FEATURES, VIEWS
from study.settings import EMOJI, SETTINGS, Setting, cache_of
from study.training import batches

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
    assert {cache_of(name, tmp_path) for name in set(SETTINGS) - set(EMOJI)} == {tmp_path / "photos-activations.pt"}


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


def test_emoji_from_scratch_are_augmented_anew():
    setting = Setting("scratch", Path("not needed"), epochs=1)
    plain, again = setting.train_batches()[0], setting.train_batches(1)[0]
    assert plain.shape == again.shape == (512, 3, 32, 32)
    torch.testing.assert_close(plain, setting.train[0, :512] / 255)
    assert 0.01 < (plain - again).abs().mean() < 0.5
