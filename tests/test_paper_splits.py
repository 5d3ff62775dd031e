"""The paper's data sets: splits of the published size, from the real layouts; what is said of broken ones.

The images are generated and the published number of images is spread evenly over the published number of classes: the
archives, and with them the true counts of each class, are not at hand here.
"""

import numpy as np
import pytest
import torch
from paper.generated import FIRST_TEST_CLASS, write_dataset, write_small_dataset
from paper.splits import SOURCES, Split, check_sampling
from PIL import Image

PUBLISHED = {
    "cub200": {"train": (100, 5864), "test": (100, 5924)},
    "cars196": {"train": (98, 8054), "test": (98, 8131)},
    "sop": {"train": (11318, 59551), "test": (11316, 60502)},
}


def spread(first, classes, images):
    return {first + i: images // classes + (i < images % classes) for i in range(classes)}


def whole(name):
    published = PUBLISHED[name]
    return spread(1, *published["train"]) | spread(FIRST_TEST_CLASS[name], *published["test"])


@pytest.mark.parametrize("name", SOURCES)
def test_splits_have_the_published_sizes_and_share_no_class(name, tmp_path):
    write_dataset(name, tmp_path, whole(name), lambda path, number: path.touch())
    splits = {part: Split(name, tmp_path, part, np.array) for part in ("train", "test")}
    for part, (classes, images) in PUBLISHED[name].items():
        split = splits[part]
        assert (split.classes, len(split), len(set(split.paths))) == (classes, images, images)
        assert torch.equal(split.labels.unique(), torch.arange(classes))
        assert sorted(torch.bincount(split.labels).unique().tolist()) == [images // classes, images // classes + 1]
    assert not set(splits["train"].paths) & set(splits["test"].paths)
    check_sampling(splits["train"], 2, 112)


@pytest.mark.parametrize("name", SOURCES)
def test_the_first_classes_are_trained_on_and_labels_count_from_0(name, tmp_path):
    write_small_dataset(name, tmp_path)
    train, test = (Split(name, tmp_path, part, np.array, complete=False) for part in ("train", "test"))
    assert (train.classes, len(train), test.classes, len(test)) == (8, 24, 4, 12)
    of_path = {path: int(label) for path, label in zip(train.paths, train.labels, strict=True)}
    class_of = {"cub200": lambda p: int(p.parent.name[:3]), "cars196": lambda p: int(p.parent.name.split()[2])}
    class_of["sop"] = lambda p: int(p.name.split("_")[0])
    assert all(class_of[name](path) == label + 1 for path, label in of_path.items())
    assert {class_of[name](path) for path in test.paths} == {FIRST_TEST_CLASS[name] + i for i in range(4)}


def test_images_are_read_in_rgb_grey_ones_too(tmp_path):
    write_small_dataset("cub200", tmp_path)
    dataset = Split("cub200", tmp_path, "train", np.array, complete=False)
    modes = {Image.open(path).mode for path in dataset.paths}
    assert modes == {"RGB", "L"}
    assert {dataset[i][0].shape for i in range(len(dataset))} == {(72, 90, 3)}
    image, label = dataset[23]
    assert label == 7
    assert np.array_equal(image, np.array(Image.open(dataset.paths[23]).convert("RGB")))


@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_data_set_is_told_with_the_file_and_the_layout(name, tmp_path):
    file = SOURCES[name].index_files[0]
    with pytest.raises(FileNotFoundError, match=rf"no file .*{file}; --data is the folder that holds the unpacked"):
        Split(name, tmp_path / "nowhere", "train", np.array)


def test_the_folder_inside_is_a_wrong_folder(tmp_path):
    write_small_dataset("cub200", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*CUB_200_2011/CUB_200_2011/images.txt"):
        Split("cub200", tmp_path / "CUB_200_2011", "train", np.array)


@pytest.mark.parametrize("name", SOURCES)
def test_images_that_a_truncated_archive_lacks_are_told(name, tmp_path):
    write_small_dataset(name, tmp_path)
    lost = Split(name, tmp_path, "train", np.array, complete=False).paths[4:]
    for path in lost:
        path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        Split(name, tmp_path, "train", np.array, complete=False)
    assert "20 of the 24 images" in str(error.value)
    assert f"the first is {lost[0]}; the archive may be cut short" in str(error.value)


@pytest.mark.parametrize("name", SOURCES)
def test_an_index_that_is_cut_short_is_told(name, tmp_path):
    write_small_dataset(name, tmp_path)
    with pytest.raises(ValueError, match=r"list 24 images of 8 classes to train on, expected [\d,]+ of [\d,]+; they"):
        Split(name, tmp_path, "train", np.array)
    index = tmp_path / SOURCES[name].index_files[1]
    index.write_bytes(index.read_bytes()[:-2] if name == "cars196" else index.read_bytes()[:-6])
    with pytest.raises(ValueError, match=r"they may be cut short: unpack the archive again"):
        for part in ("train", "test"):
            Split(name, tmp_path, part, np.array)


def test_an_image_that_is_cut_short_is_told(tmp_path):
    write_small_dataset("sop", tmp_path)
    dataset = Split("sop", tmp_path, "test", np.array, complete=False)
    path = dataset.paths[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"cannot read the image .*{path.name} .*unpack the data set's archive again"):
        dataset[1]


def test_too_few_images_of_a_class_are_told(tmp_path):
    write_dataset("cub200", tmp_path, {1: 3, 2: 1, 101: 2})
    dataset = Split("cub200", tmp_path, "train", np.array, complete=False)
    with pytest.raises(ValueError, match=r"the class of .*002.Bird_2.* has 1 training images, the sampler takes 2"):
        check_sampling(dataset, 2, 4)


def test_too_few_classes_are_told(tmp_path):
    write_small_dataset("cub200", tmp_path)
    dataset = Split("cub200", tmp_path, "train", np.array, complete=False)
    check_sampling(dataset, 2, 16)
    with pytest.raises(ValueError, match="a batch of 18 with 2 of a class needs 9 classes, there are 8 to train on"):
        check_sampling(dataset, 2, 18)
