"""python -m pml_s2sd.evaluate on folders of real image files and a program of torch.export."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoints import save_program
from metrics import over_queries
from network import SmallResNet
from PIL import Image

from pml_s2sd import S2SDEmbedder
from pml_s2sd.evaluate import Embedded, embed_folder, evaluate, load_program, main, measure, parse_arguments
from pml_s2sd.image_folder import ImageFolder

COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 30), "red": (200, 30, 20)}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Mean colours, through a deployed head that is the identity."""
    embedder = S2SDEmbedder(3, 3, (8,))
    embedder.head.weight.data, embedder.head.bias.data = torch.eye(3), torch.zeros(3)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), embedder.deploy()).eval()
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: batch},)), path)
    return path


def fill(folder, each=4, seed=0, noise=60, classes=COLOURS):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.normal(COLOURS[name], noise, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_the_command_prints_and_writes_every_metric(program, tmp_path):
    images = fill(tmp_path / "images")
    command = [sys.executable, "-m", "pml_s2sd.evaluate", "--checkpoint", program, "--images", images]
    done = subprocess.run([*map(str, command), "--output", str(tmp_path / "out.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["queries"], found["references"], found["classes"], found["embedding_size"]) == (12, 12, 3, 3)
    assert found["metrics"]["recall_at_1"] == found["metrics"]["NMI"] == 1.0  # three colours apart
    assert f"{'recall_at_1':32} 1.0000" in done.stdout and "12 queries of 3 classes" in done.stdout
    assert not list(tmp_path.glob("*.tmp"))


def test_metrics_are_those_of_the_images(program, tmp_path):
    images = fill(tmp_path / "images", noise=4000)  # colours hardly show
    found = evaluate(parse_arguments(["--checkpoint", str(program), "--images", str(images)]))
    embedded = []
    for file in sorted(images.glob("*/*.png")):
        pixels = np.array(Image.open(file).resize((16, 16), Image.Resampling.BILINEAR)) / 255
        embedded.append(pixels.mean((0, 1)) / np.linalg.norm(pixels.mean((0, 1))))
    x, labels = np.array(embedded), np.repeat(np.arange(3), 4)
    nearest = [max((r for r in range(12) if r != q), key=lambda r, q=q: x[q] @ x[r]) for q in range(12)]
    assert found["metrics"]["recall_at_1"] == pytest.approx(np.mean(labels[nearest] == labels))
    assert found["metrics"]["mean_average_precision_at_r"] == pytest.approx(
        over_queries("mean_average_precision_at_r", x, labels, x, labels, True), abs=1e-6
    )


def test_a_broken_image_is_named_and_not_counted(program, tmp_path, capsys):
    images = fill(tmp_path / "images")
    whole = (images / "red" / "0.png").read_bytes()
    (images / "red" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "red" / "text.jpg").write_text("no image")
    (images / "red" / "notes.txt").write_text("not looked at")
    main(["--checkpoint", str(program), "--images", str(images), "--output", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["queries"] == 12 and found["metrics"]["recall_at_1"] == 1.0
    assert [problem.split(":")[0].rsplit("/")[-1] for problem in found["left_out"]] == ["cut.png", "text.jpg"]
    printed = capsys.readouterr().out
    assert "cut.png" in printed and "text.jpg" in printed and "2 left out" in printed


@pytest.mark.parametrize("index", ["exact", "hnsw", "ivf"])
def test_a_gallery_of_its_own(index, program, tmp_path):
    queries, gallery = fill(tmp_path / "queries", 2), fill(tmp_path / "gallery", 5, seed=1)
    arguments = ["--checkpoint", program, "--images", queries, "--gallery", gallery, "--index", index]
    found = evaluate(parse_arguments([*map(str, arguments), "--recall-at", "1", "5"]))
    assert (found["queries"], found["references"]) == (6, 15)
    assert found["metrics"]["recall_at_1"] == found["metrics"]["recall_at_5"] == 1.0
    assert found["metrics"]["r_precision"] == 1.0
    assert found["index_recall"] == (None if index == "exact" else pytest.approx(1.0))


def test_resize_and_centre_crop_and_normalisation(tmp_path):
    folder = fill(tmp_path / "images", 1)
    plain = ImageFolder(folder, 16, resize=20)[0].image
    image = Image.open(folder / "blue" / "0.png")  # 24 × 20: the shorter side is 20 already
    expected = torch.from_numpy(np.array(image.crop((4, 2, 20, 18)))).permute(2, 0, 1) / 255
    torch.testing.assert_close(plain, expected)
    scaled = ImageFolder(folder, 16, resize=20, mean=(0.5, 0.4, 0.3), std=(2, 4, 8))[0].image
    torch.testing.assert_close(scaled[2], (expected[2] - 0.3) / 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_order_and_classes_do_not_depend_on_batches(workers, program, tmp_path):
    images = ImageFolder(fill(tmp_path / "images"), 16)
    model, side = load_program(program)
    assert side == 16
    small = embed_folder(model, images, batch_size=5, workers=workers)
    torch.testing.assert_close(small.embeddings, embed_folder(model, images, batch_size=12).embeddings)
    assert small.classes == ["blue"] * 4 + ["green"] * 4 + ["red"] * 4


def test_the_program_that_the_example_writes_is_the_deployed_model(tmp_path):
    torch.manual_seed(0)
    embedder = S2SDEmbedder(SmallResNet.out_channels, 4, (8,))
    model = torch.nn.Sequential(SmallResNet(), embedder.deploy()).eval()
    save_program(tmp_path / "model.pt2", model, torch.rand(2, 3, 32, 32))
    loaded, side = load_program(tmp_path / "model.pt2")
    x = torch.rand(5, 3, 32, 32)
    assert side == 32 and not list(tmp_path.glob("*.tmp"))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), model(x))


def test_what_cannot_be_used_ends_with_a_sentence(program, tmp_path):
    images = fill(tmp_path / "images")
    one = fill(tmp_path / "one", classes=["red"])
    other = fill(tmp_path / "other", classes=["red"])
    (other / "red").rename(other / "crimson")
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    (broken / "a").mkdir(parents=True)
    (broken / "a" / "x.png").write_text("")
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(program.read_bytes()[:-2000])
    state = tmp_path / "state.pt"
    torch.save({"weight": torch.ones(2)}, state)
    for arguments, message in {
        ("nowhere.pt2", images): "no file nowhere.pt2",
        (cut, images): "is cut short, or no program",
        (state, images): "is no program of torch.export",
        (program, tmp_path / "nowhere"): "no folder",
        (program, empty): "no image with an ending",
        (program, broken): "none of the 1 images can be read",
        (program, one): "all images are of one class, 'red'",
        (program, images, "--gallery", other): "no class is in both folders",
        (program, images, "--resize", "8"): "resize must be at least the image size 16",
    }.items():
        checkpoint, folder, *more = map(str, arguments)
        with pytest.raises(SystemExit, match=message):
            main(["--checkpoint", checkpoint, "--images", folder, *more])


def test_a_model_that_returns_no_embeddings_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"returned \(3, 16, 16\) for 3 images"):
        embed_folder(lambda x: x[:, 0], ImageFolder(fill(tmp_path / "images", 1), 16))


def test_queries_without_a_match_are_left_out_as_in_pml():
    x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 1.0]]))
    queries = Embedded(x, ["a", "b", "lone"], [])
    found = measure(queries, Embedded(x[:2].flip(1), ["a", "b"], []), recall_at=(1, 2))
    assert (found["recall_at_1"], found["recall_at_2"]) == (0.0, 1.0)
