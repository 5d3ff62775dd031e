"""The Grocery Store data set, in a small folder of its layout: which pictures, split how, and what is wrong with it."""

import groceries
import pytest
import torch
from groceries import GroceriesDataset
from PIL import Image

CLASSES = ["Golden-Delicious", "Granny-Smith", "Pink-Lady", "Lemon", "Oat-Milk"]
COARSE = [0, 0, 0, 1, 2]
PICTURES = {"train": [0, 0, 1, 2, 3, 4], "val": [1, 4], "test": [0, 3, 3, 2]}
"""The fine classes of each list's pictures."""


def colour(split, place):
    return (40 * place, {"train": 0, "val": 100, "test": 200}[split], 255)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "dataset"
    for split, fine in PICTURES.items():
        lines = []
        for place, number in enumerate(fine):
            name = f"{split}/Fruit/{CLASSES[number]}/{CLASSES[number]}_{place:03}.jpg"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 30), colour(split, place)).save(root / name, quality=100, subsampling=0)
            lines.append(f"{name}, {number}, {COARSE[number]}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    header = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)"
    rows = [f"{name},{number},Of {COARSE[number]},{COARSE[number]}" for number, name in enumerate(CLASSES)]
    (root / "classes.csv").write_text("\n".join([header, *rows]) + "\n")
    return tmp_path


def test_even_classes_are_trained_on_odd_ones_tested(folder):
    train, test = (GroceriesDataset(folder, train, side=8) for train in (True, False))
    assert train.names == ["Golden-Delicious", "Pink-Lady", "Oat-Milk"]
    assert test.names == ["Granny-Smith", "Lemon"]
    assert train.labels.tolist() == [0, 0, 1, 2, 2, 0, 1]  # 0 0 2 4 of train, 4 of val, 0 2 of test
    assert test.labels.tolist() == [0, 1, 0, 1, 1]
    assert [file.name for file in test.files[:2]] == ["Granny-Smith_002.jpg", "Lemon_004.jpg"]
    assert len(train) + len(test) == sum(map(len, PICTURES.values()))


def test_pictures_are_squares_of_the_side(folder):
    test = GroceriesDataset(folder, train=False, side=8)
    expected = [colour("train", 2), colour("train", 4), colour("val", 0), colour("test", 1), colour("test", 2)]
    expected = torch.tensor(expected)[:, :, None, None].expand(5, 3, 8, 8)
    assert test.images.dtype == torch.uint8
    assert (test.images.int() - expected).abs().max() <= 2  # JPEG
    image, label = test[3]
    assert label == 1
    torch.testing.assert_close(image, test.images[3] / 255)


@pytest.mark.parametrize("name", ["val.txt", "classes.csv"])
def test_a_folder_without_a_list_says_how_to_get_the_data(folder, name):
    (folder / "dataset" / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"no {name} in .*dataset; expected .*git clone {groceries.REPOSITORY}"
    ):
        GroceriesDataset(folder, train=True, side=8)
    with pytest.raises(FileNotFoundError, match=r"no train.txt, val.txt, test.txt, classes.csv in .*nowhere"):
        GroceriesDataset(folder / "nowhere", train=True, side=8)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (-12, r"train.txt, line 6: expected \"path, fine class, coarse class\".*got .*cut short"),
        (-2, r"train.txt, line 6: .*got \"train/Fruit/Oat-Milk/Oat-Milk_005.jpg, 4, \""),
    ],
)
def test_a_line_cut_short_is_named(folder, kept, message):
    path = folder / "dataset" / "train.txt"
    path.write_text(path.read_text()[:kept])
    with pytest.raises(ValueError, match=message):
        GroceriesDataset(folder, train=True, side=8)


def test_a_list_cut_short_between_lines_is_noticed(folder):
    path = folder / "dataset" / "train.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        ValueError, match=r"train.txt names 5 pictures, and 6 are there; .*Oat-Milk_005.jpg; the list may"
    ):
        GroceriesDataset(folder, train=True, side=8)


def test_a_missing_picture_is_named(folder):
    (folder / "dataset/val/Fruit/Oat-Milk/Oat-Milk_001.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of the 2 pictures of .*val.txt are missing: .*Oat-Milk_001.jpg; rest"
    ):
        GroceriesDataset(folder, train=False, side=8)


def test_a_broken_picture_is_named(folder):
    (folder / "dataset/val/Fruit/Oat-Milk/Oat-Milk_001.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read the image .*Oat-Milk_001.jpg"):
        GroceriesDataset(folder, train=True, side=8).images  # noqa: B018


def test_a_class_that_the_table_lacks_and_a_table_of_other_columns(folder):
    path = folder / "dataset" / "classes.csv"
    text = path.read_text()
    path.write_text(text.replace("Oat-Milk,4,Of 2,2\n", ""))
    with pytest.raises(ValueError, match=r"line 6: .*one of the 4 of classes.csv, got"):
        GroceriesDataset(folder, train=True, side=8)
    path.write_text(text.replace("Class ID (int)", "Number", 1))
    with pytest.raises(
        ValueError, match=r"classes.csv: expected .*\"Class ID \(int\)\".*found \['Class Name \(str\)', 'Num"
    ):
        GroceriesDataset(folder, train=True, side=8)
