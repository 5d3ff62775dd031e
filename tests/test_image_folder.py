"""Folders of images: what is found in them, what an image becomes, broken ones."""

import builtins

import numpy as np
import pytest
import torch
from PIL import Image

from pml_s2sd.evaluation.image_folder import ImageFolder, files_by_class, read_image, together


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/x.webp", "a/notes.txt"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".txt":
            Image.new("RGB", (6, 4), (255, 0, 51)).save(path)
    (tmp_path / "set" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "set" / "empty").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "set" / "of_no_class.png")
    return tmp_path / "set"


def test_files_are_found_by_class_in_order(folder):
    found = files_by_class(folder)
    names = {name: [file.name for file in files] for name, files in found.items()}
    assert names == {"a": ["x.webp"], "b": ["1.JPG", "2.png"], "empty": []}
    assert list(found) == ["a", "b", "empty"]


def test_samples_of_a_folder(folder):
    images = ImageFolder(folder, (3, 5))
    assert images.classes == ["a", "b", "b"]
    index, image = images[2]
    assert index == 2
    expected = torch.tensor([1, 0, 0.2]).view(3, 1, 1).expand(3, 3, 5)
    torch.testing.assert_close(image, expected)


def test_an_image_is_stretched_bilinearly_and_becomes_rgb(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(grey).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png", (6, 8))
    assert torch.equal(image, torch.from_numpy(grey).float().div(255).expand(3, 6, 8))
    smaller = read_image(tmp_path / "grey.png", (3, 4))
    assert smaller.shape == (3, 3, 4)
    assert smaller.mean().item() == pytest.approx(grey.mean() / 255, abs=0.01)


def broken_files(folder):
    (folder / "a" / "text.png").write_text("no image")
    (folder / "a" / "nothing.png").write_bytes(b"")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for ending in ("png", "jpg", "bmp"):
        noise.save(folder / "a" / f"whole.{ending}")
        content = (folder / "a" / f"whole.{ending}").read_bytes()
        (folder / "a" / f"cut.{ending}").write_bytes(content[: len(content) // 2])
    return {"text.png", "nothing.png", "cut.png", "cut.jpg", "cut.bmp"}


def test_broken_images_are_named_and_left_out(folder):
    broken = broken_files(folder)
    images = ImageFolder(folder, (4, 4))
    indices, read, messages = together([images[index] for index in range(len(images))])
    assert [images.files[index].name in broken for index in indices] == [False] * 6
    assert len(read) == 6
    assert len(messages) == 5
    for name in broken:
        (message,) = [message for message in messages if f"{name}:" in message]
        assert message.startswith(f"cannot read the image {folder / 'a' / name}: ")
        assert message.endswith("; mend or remove it")


def test_no_folder_and_no_images(folder):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; expected images laid out as .*/class/name.png"):
        ImageFolder(folder / "nowhere", (4, 4))
    with pytest.raises(ValueError, match=r"no images in .*/a, in its 0 class folders; expected .*/a/class/name.png"):
        ImageFolder(folder / "a", (4, 4))


def test_without_pillow_the_error_says_what_to_install(folder, monkeypatch):
    real = builtins.__import__

    def without_pillow(name, *arguments, **options):
        if name == "PIL":
            raise ImportError("No module named 'PIL'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(ImportError, match=r'pip install "pml-s2sd\[examples\]"'):
        ImageFolder(folder, (4, 4))[0]
