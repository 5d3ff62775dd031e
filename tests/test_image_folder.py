"""Folders of images: what is found in them, what an image becomes, broken ones."""

import builtins
import os
import socket
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from pml_s2sd.evaluation.image_folder import ImageFolder, files_by_class, find_images, read_image, together


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
    with pytest.raises(ImportError, match="pip install pillow"):
        ImageFolder(folder, (4, 4))[0]


RAMP = np.linspace(0, 1, 600).reshape(20, 30)


def whole_range(dtype, white):
    return (white * RAMP).round().astype(dtype)


DEPTHS = {
    "8 bits.png": whole_range(np.uint8, 255),
    "16 bits.png": whole_range(np.uint16, 65535),
    "16 bits.tif": whole_range(np.uint16, 65535),
    "16 bits, big-endian.tif": whole_range(">u2", 65535),
    "floats.tif": RAMP.astype(np.float32),
    "16 bits in int32.tif": whole_range(np.int32, 65535),
    "16 bits in a darker int32.tif": whole_range(np.int32, 300),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_an_image_of_any_depth_goes_from_black_to_white(name, tmp_path):
    values = DEPTHS[name]
    Image.fromarray(values).save(tmp_path / name)
    x = read_image(tmp_path / name, (20, 30))
    assert x.dtype == torch.float32
    scale = 300 / 65535 if "darker" in name else 1
    np.testing.assert_allclose(x, np.broadcast_to(scale * RAMP, (3, 20, 30)), atol=0.5 / 255 if "8" in name else 1e-5)
    smaller = read_image(tmp_path / name, (10, 15))
    np.testing.assert_allclose(smaller.mean(), scale * RAMP.mean(), atol=3e-3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_png_of_16_bits_and_several_channels(mode, tmp_path):
    """By hand, for pillow writes none: red, green, blue and opacity go up along the rows."""
    channels = {"RGB": 3, "RGBA": 4, "LA": 2}[mode]
    values = np.repeat(whole_range(">u2", 65535)[..., None], channels, axis=2)
    if mode != "RGB":
        values[..., -1] = 65535
    write_png(tmp_path / "a.png", values, {"RGB": 2, "RGBA": 6, "LA": 4}[mode])
    x = read_image(tmp_path / "a.png", (20, 30))
    np.testing.assert_allclose(x, np.broadcast_to(RAMP, (3, 20, 30)), atol=1 / 255)


def write_png(path, values, colour_type):
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", zlib.crc32(kind + content)))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_tiff_whose_0_is_white(dtype, tmp_path):
    white = 65535 if dtype == np.uint16 else 1
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    Image.fromarray(whole_range(np.uint16, white) if white > 1 else RAMP.astype(dtype)).save(
        tmp_path / "a.tif", tiffinfo=tags
    )
    with Image.open(tmp_path / "a.tif") as written:
        if written.tag_v2[262] != 0:
            pytest.skip("this pillow writes no such file")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", (20, 30))[0], 1 - RAMP, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a.tif", 255 * RAMP.astype(np.float32), r"lie from 0 to 255, of which white is not known; expected floats"),
        ("a.tif", RAMP.astype(np.float32) - 0.5, r"lie from -0.5 to 0.5, .* expected floats from 0 to 1"),
        ("a.tif", np.where(RAMP > 0.9, np.nan, RAMP).astype(np.float32), r"lie from nan to nan, of which"),
        ("a.tif", np.where(RAMP > 0.9, np.inf, RAMP).astype(np.float32), r"lie from 0 to inf, of which"),
        ("a.tif", whole_range(np.int32, 255), r"lie from 0 to 255, .* expected unsigned integers of 8 or 16 bits"),
        ("a.tif", whole_range(np.int32, 2**20), r"lie from 0 to 1.04858e\+06, of which"),
        ("a.tif", whole_range(np.int32, 65535) - 7, r"lie from -7 to 65528, of which"),
    ],
)
def test_an_image_whose_white_is_not_known_is_refused(name, values, message, tmp_path):
    Image.fromarray(values).save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"cannot read the image .*{name}: its values {message}"):
        read_image(tmp_path / name, (20, 30))


COLOURS = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_an_image_is_turned_as_its_exif_says(orientation, ending, tmp_path):
    """Where row 0 and column 0 of the pixels are, by the table of the EXIF standard."""
    upright = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: COLOURS[::-1].transpose(1, 0, 2),
        7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
        8: COLOURS[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    exactly = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    Image.fromarray(COLOURS).save(tmp_path / f"a.{ending}", exif=exif, **exactly)
    found = read_image(tmp_path / f"a.{ending}", upright.shape[:2])
    np.testing.assert_allclose((255 * found).permute(1, 2, 0), upright, atol=8 if ending == "jpg" else 1e-3)


def test_a_wide_image_is_turned_and_a_broken_exif_is_not_an_image_s_end(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(whole_range(np.uint16, 65535)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(read_image(tmp_path / "a.png", (20, 30))[0], RAMP[::-1, ::-1], atol=1e-5)
    for content in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b""):
        Image.fromarray(COLOURS).save(tmp_path / "b.png", exif=content)
        found = read_image(tmp_path / "b.png", (6, 8))
        np.testing.assert_array_equal((255 * found).round().permute(1, 2, 0), COLOURS)


def test_what_is_transparent_is_white_whatever_colour_lies_under_it(tmp_path):
    opacity = np.array([0, 51, 255], dtype=np.uint8).repeat(2)[:, None].repeat(8, 1)
    over_white = COLOURS * (opacity / 255)[..., None] + 255 * (1 - opacity / 255)[..., None]
    Image.fromarray(np.dstack([COLOURS, opacity])).save(tmp_path / "rgba.png")
    np.testing.assert_allclose(255 * read_image(tmp_path / "rgba.png", (6, 8)).permute(1, 2, 0), over_white, atol=1)
    grey = COLOURS[..., 0]
    Image.fromarray(np.dstack([grey, opacity])).save(tmp_path / "la.png")
    np.testing.assert_allclose(
        255 * read_image(tmp_path / "la.png", (6, 8)),
        np.broadcast_to(grey * (opacity / 255) + 255 * (1 - opacity / 255), (3, 6, 8)),
        atol=1,
    )
    opaque = np.dstack([COLOURS, np.full((6, 8), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "opaque.webp", lossless=True)
    found = read_image(tmp_path / "opaque.webp", (6, 8))
    np.testing.assert_array_equal((255 * found).round().permute(1, 2, 0), COLOURS)


def test_palettes_with_and_without_a_transparent_entry(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3, mode="P")
    palette = np.array([[250, 0, 0], [0, 240, 0], [0, 0, 230]], dtype=np.uint8)
    image.putpalette(palette.tobytes())
    expected = palette[np.arange(48).reshape(6, 8) % 3]
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal((255 * read_image(tmp_path / "a.png", (6, 8))).round().permute(1, 2, 0), expected)
    expected[np.arange(48).reshape(6, 8) % 3 == 1] = 255
    for name in ("b.png", "b.gif"):
        image.save(tmp_path / name, transparency=1)
        np.testing.assert_array_equal((255 * read_image(tmp_path / name, (6, 8))).round().permute(1, 2, 0), expected)


def test_a_single_transparent_value_of_grey_and_colour(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "grey.png", transparency=5)
    expected = np.where(grey == 5, 255, grey)
    np.testing.assert_array_equal((255 * read_image(tmp_path / "grey.png", (6, 8))[0]).round(), expected)
    Image.fromarray(grey.astype(np.uint16) * 256).save(tmp_path / "wide.png", transparency=5 * 256)
    expected = np.where(grey == 5, 1, grey / 65535 * 256)
    np.testing.assert_allclose(read_image(tmp_path / "wide.png", (6, 8))[0], expected, atol=1e-5)


def test_one_bit_cmyk_and_several_frames(tmp_path):
    checks = np.indices((6, 8)).sum(0) % 2 == 0
    for name in ("a.png", "a.tif"):
        Image.fromarray(checks).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name, (6, 8)), np.broadcast_to(checks, (3, 6, 8)))
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)  # no cyan: red
    red = read_image(tmp_path / "a.jpg", (6, 8)).mean(dim=(1, 2))
    np.testing.assert_allclose(red, [1, 0, 0], atol=0.02)
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    for name in ("b.gif", "b.png", "b.webp", "b.tif"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if "w" in name else {})
        )
        np.testing.assert_allclose(read_image(tmp_path / name, (6, 8)).mean(dim=(1, 2)), [1, 0, 0], atol=1e-6)


def test_only_the_formats_that_are_named_are_decoded(tmp_path):
    """pillow hands PostScript to another program, whatever the file is called."""
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n")
    with pytest.raises(ValueError, match=r"a.png: cannot identify image file"):
        read_image(tmp_path / "a.png", (6, 8))
    Image.fromarray(COLOURS).save(tmp_path / "b.ppm")
    (tmp_path / "b.ppm").rename(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png: cannot identify image file"):
        read_image(tmp_path / "b.png", (6, 8))
    Image.fromarray(COLOURS).save(tmp_path / "c.bmp")
    (tmp_path / "c.bmp").rename(tmp_path / "c.png")  # of another ending, but one that is read
    np.testing.assert_array_equal((255 * read_image(tmp_path / "c.png", (6, 8))).round().permute(1, 2, 0), COLOURS)


@pytest.fixture
def odd_folder(folder, tmp_path):
    """With everything that is no image of a class."""
    inside, elsewhere = folder / "a", tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (6, 4)).save(elsewhere / "y.png")
    os.mkfifo(inside / "pipe.png")
    (folder / "b" / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        place = os.getcwd()
        os.chdir(inside)  # a socket's path has to be short
        bound.bind("socket.png")
        os.chdir(place)
    (inside / "nested.png").mkdir()
    (inside / "gone.png").symlink_to("nowhere.png")
    (inside / "itself.png").symlink_to("itself.png")
    (inside / "up.png").symlink_to("..")
    (inside / "again.png").symlink_to("x.webp")
    (inside / ".hidden.png").write_bytes((elsewhere / "y.png").read_bytes())
    (folder / ".git").mkdir()
    (folder / ".git" / "z.png").write_bytes((elsewhere / "y.png").read_bytes())
    (folder / "parent").symlink_to("..")
    (folder / "whole").symlink_to(".")
    (folder / "copy of a").symlink_to("a")
    os.mkfifo(folder / "class pipe")
    (folder / "linked").symlink_to(elsewhere)  # a class that lies elsewhere: taken
    (folder / "b" / "linked.png").symlink_to(elsewhere / "y.png")
    return folder


def test_only_regular_images_of_a_class_are_taken_and_the_rest_is_named(odd_folder):
    found, left_out = find_images(odd_folder)
    names = {name: [file.name for file in files] for name, files in found.items()}
    assert names == {"a": ["x.webp"], "b": ["1.JPG", "2.png", "linked.png"], "empty": [], "linked": ["y.png"]}
    assert files_by_class(odd_folder) == found
    back = "a link back into the folder of images, or above it"
    expected = {
        **{"a/pipe.png": "no regular file", "b/device.png": "no regular file", "a/socket.png": "no regular file"},
        **{"a/nested.png": "a folder within a class", "a/gone.png": back, "a/itself.png": back, "a/up.png": back},
        **{"a/again.png": back, "a/.hidden.png": "hidden", ".git": "hidden", "parent": back, "whole": back},
        **{"copy of a": back, "class pipe": "no folder", "a/notes.txt": "no image by its name"},
        "of_no_class.png": "an image of no class",
    }
    assert sorted(left_out) == sorted(f"{odd_folder / name}: {why}" for name, why in expected.items())
    images = ImageFolder(odd_folder, (4, 4))
    assert len(images.files) == 5
    assert sorted(images.left_out) == sorted([*left_out, f"{odd_folder / 'empty'}: a class without images"])
    assert len(together([images[i] for i in range(5)])[1]) == 5


def test_a_pipe_given_for_an_image_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match=r"cannot read the image .*: it is no regular file; mend or remove it"):
            read_image(path, (4, 4))


def test_where_there_are_no_images_what_there_is_is_named(odd_folder):
    with pytest.raises(ValueError, match=r"no images in .*; found .*pipe.png|; found .*gone.png.*, and \d+ more"):
        ImageFolder(odd_folder / "a", (4, 4))
