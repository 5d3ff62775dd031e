"""python -m pml_s2sd.evaluate on images of a few colours: metrics, galleries, broken images, and what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx_models import mean_colour
from PIL import Image

from pml_s2sd.evaluation.accuracy import RetrievalAccuracyCalculator
from pml_s2sd.evaluation.evaluate_folder import main


class MeanColour(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3)) - 0.4


class Nothing(torch.nn.Module):
    def forward(self, images):
        return images.mean()


class Undefined(torch.nn.Module):
    def forward(self, images):
        return torch.log(images.mean(dim=(2, 3)) - 2)


def export(path, model):
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 4, 4),), dynamic_shapes=batch), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return export(tmp_path_factory.mktemp("models") / "colour.pt2", MeanColour())


def paint(folder, per_class, seed=0, classes="abcdef"):
    """Images of one colour each, about their class's; what they are in [0, 1], and their classes."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(7).integers(40, 216, (26, 3))
    colours, labels = [], []
    for name in sorted(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            colour = (centres[ord(name) - ord("a")] + generator.integers(-40, 40, 3)).astype(np.uint8)
            Image.fromarray(np.broadcast_to(colour, (5, 7, 3)).copy()).save(folder / name / f"{i}.png")
            colours.append(colour / 255)
            labels.append(ord(name))
    return torch.tensor(np.array(colours), dtype=torch.float32), torch.tensor(labels)


def embed(colours, mean=0.0, std=1.0):
    shifted = (colours - torch.as_tensor(mean)) / torch.as_tensor(std) - 0.4
    return torch.nn.functional.normalize(shifted)


def expected_metrics(*given, **options):
    return RetrievalAccuracyCalculator(device=torch.device("cpu"), **options).get_accuracy(*given)


def run(*arguments):
    main([str(argument) for argument in arguments])


def test_every_metric_of_a_folder_searched_in_itself(checkpoint, tmp_path, capsys):
    colours, labels = paint(tmp_path / "images", 5)
    output = tmp_path / "found.json"
    run("--checkpoint", checkpoint, "--images", tmp_path / "images", "--output", output, "--batch-size", 7)
    results = json.loads(output.read_text())
    expected = expected_metrics(embed(colours), labels)
    assert results["metrics"] == pytest.approx(expected, abs=1e-5)
    assert 0.2 < results["metrics"]["precision_at_1"] < 1
    assert (results["queries"], results["references"], results["query_classes"]) == (30, 30, 6)
    assert results["image_size"] == [4, 4]
    assert results["broken"] == results["classes_without_reference"] == []
    printed = capsys.readouterr().out
    assert "30 images of 6 classes, each among the others" in printed
    for name, value in results["metrics"].items():
        assert f"{name:32} {value:.4f}" in printed
    assert not list(tmp_path.glob("*.tmp"))


def test_an_onnx_model_gives_the_same_metrics(checkpoint, tmp_path):
    colours, labels = paint(tmp_path / "images", 5)
    run("--checkpoint", mean_colour(tmp_path / "colour.onnx"), "--images", tmp_path / "images")
    results = json.loads((tmp_path / "colour.evaluation.json").read_text())
    assert results["metrics"] == pytest.approx(expected_metrics(embed(colours), labels), abs=1e-5)
    assert results["image_size"] == [4, 4]


def test_a_gallery_with_other_classes_besides_normalisation_and_recalls(checkpoint, tmp_path, capsys):
    colours, labels = paint(tmp_path / "queries", 3, seed=1, classes="abcx")
    gallery = paint(tmp_path / "gallery", 6, seed=2, classes="abcde")
    normalised = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    options = [part for name, values in normalised.items() for part in (f"--{name}", *values)]
    output = tmp_path / "found.json"
    folders = ("--images", tmp_path / "queries", "--gallery", tmp_path / "gallery")
    run("--checkpoint", checkpoint, *folders, *options, "--recall-at", 1, 3, "--output", output)
    results = json.loads(output.read_text())
    x, references = embed(colours, **normalised), embed(gallery[0], **normalised)
    expected = expected_metrics(x, labels, references, gallery[1], recall_at=(1, 3))
    assert results["metrics"] == pytest.approx(expected, abs=1e-5)
    assert {"recall_at_1", "recall_at_3"} <= results["metrics"].keys()
    assert "recall_at_2" not in results["metrics"]
    assert (results["queries"], results["references"], results["reference_classes"]) == (12, 30, 5)
    assert (results["classes_without_reference"], results["queries_without_reference"]) == (["x"], 3)
    printed = capsys.readouterr().out
    assert "12 images of 4 classes, in 30 of 5 classes" in printed
    assert "3 images have nothing of their class to find, and count in no metric over queries: x" in printed


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_broken_images_are_named_and_do_not_count(workers, checkpoint, tmp_path, capsys):
    colours, labels = paint(tmp_path / "images", 4)
    (tmp_path / "images" / "c" / "2.png").write_bytes(b"\x89PNG cut short")
    output = tmp_path / "found.json"
    run("--checkpoint", checkpoint, "--images", tmp_path / "images", "--output", output, "--workers", workers)
    results = json.loads(output.read_text())
    whole = [i for i in range(24) if i != 10]
    assert results["metrics"] == pytest.approx(expected_metrics(embed(colours)[whole], labels[whole]), abs=1e-5)
    assert results["queries"] == 23
    (message,) = results["broken"]
    assert str(tmp_path / "images" / "c" / "2.png") in message
    printed = capsys.readouterr()
    assert f"left out: {message}" in printed.err
    assert "left out: 1 images that cannot be read" in printed.out


def test_what_is_no_image_of_a_class_is_named_and_not_waited_for(checkpoint, tmp_path, capsys):
    colours, labels = paint(tmp_path / "images", 3)
    os.mkfifo(tmp_path / "images" / "a" / "pipe.png")
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / "b" / "up.png").symlink_to("..")
    output = tmp_path / "found.json"
    run("--checkpoint", checkpoint, "--images", tmp_path / "images", "--output", output)
    results = json.loads(output.read_text())
    assert results["metrics"] == pytest.approx(expected_metrics(embed(colours), labels), abs=1e-5)
    assert results["broken"] == []
    assert results["left_out"] == [
        f"{tmp_path / 'images' / '.hidden'}: hidden",
        f"{tmp_path / 'images' / 'a' / 'pipe.png'}: no regular file",
        f"{tmp_path / 'images' / 'b' / 'up.png'}: a link back into the folder of images, or above it",
    ]
    printed = capsys.readouterr().out
    assert "left out: 3 entries that are no images of a class" in printed
    assert "pipe.png: no regular file, " in printed


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_prints_and_keeps_the_recall_it_costs(kind, checkpoint, tmp_path, capsys):
    paint(tmp_path / "images", 5)
    output = tmp_path / "found.json"
    arguments = ("--checkpoint", checkpoint, "--images", tmp_path / "images", "--output", output)
    run(*arguments)
    exact = json.loads(output.read_text())
    run(*arguments, "--index", kind, "--effort", 30)
    found = json.loads(output.read_text())
    assert found["index"] == {"kind": kind, "effort": 30, "recall": 1.0}
    assert exact["index"] == {"kind": "flat"}
    assert found["metrics"] == pytest.approx(exact["metrics"], abs=1e-6)
    assert f"{kind}: 1.000 of the" in capsys.readouterr().out


def test_what_json_lacks_becomes_null(checkpoint, tmp_path, capsys):
    for name in "ab":  # no spread within the plane of greys: some directions are not used
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            shade = 150 + 20 * (name == "b") + i
            Image.new("RGB", (4, 4), (shade, shade, shade)).save(tmp_path / "images" / name / f"{i}.png")
    output = tmp_path / "found.json"
    run("--checkpoint", checkpoint, "--images", tmp_path / "images", "--output", output)
    assert json.loads(output.read_text())["metrics"]["spectral_decay"] is None
    assert f"{'spectral_decay':32} inf" in capsys.readouterr().out


def refused(*arguments):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    message = str(error.value)
    assert message.startswith("evaluate: ")
    return message


def test_bad_days_end_in_a_sentence(checkpoint, tmp_path):
    images = tmp_path / "images"
    paint(images, 2)
    given = ("--output", tmp_path / "found.json", "--checkpoint", checkpoint)
    missing = refused("--output", tmp_path / "found.json", "--checkpoint", tmp_path / "no.pt2", "--images", images)
    assert "no checkpoint" in missing
    (tmp_path / "cut.pt2").write_bytes(checkpoint.read_bytes()[:900])
    assert "it is cut short" in refused("--checkpoint", tmp_path / "cut.pt2", "--images", images)
    assert "no folder" in refused(*given, "--images", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images in" in refused(*given, "--images", tmp_path / "empty")
    paint(tmp_path / "one", 3, classes="q")
    assert "are of one class alone, 'q', in which whatever is found is right" in refused(
        *given, "--images", tmp_path / "one"
    )
    assert "the gallery are of one class alone" in refused(*given, "--images", images, "--gallery", tmp_path / "one")
    paint(tmp_path / "single", 1)
    assert "every class has a single image" in refused(*given, "--images", tmp_path / "single")
    paint(tmp_path / "others", 2, classes="uvwxyz")
    assert (
        "no class of the queries (a, b, c, d, e, and 1 more) is among those of the gallery (u, v, w, x, y, and 1 more)"
        in refused(*given, "--images", images, "--gallery", tmp_path / "others")
    )
    assert "leave --gallery out" in refused(*given, "--images", images, "--gallery", images)
    assert "--batch-size must be at least 1, got 0" in refused(*given, "--images", images, "--batch-size", 0)
    assert "--effort must be at least 1, got 0" in refused(*given, "--images", images, "--effort", 0)
    assert "--workers must be at least 0, got -1" in refused(*given, "--images", images, "--workers", -1)
    assert "each of recall_at must be at least 1, got 0" in refused(*given, "--images", images, "--recall-at", 0)
    assert "each of --std must be above 0" in refused(*given, "--images", images, "--std", 1, 0, 1)
    assert "takes images of 4 × 4; leave --image-size out" in refused(*given, "--images", images, "--image-size", 8)
    nowhere = tmp_path / "no" / "found.json"
    assert "no folder" in refused("--checkpoint", checkpoint, "--images", images, "--output", nowhere)
    assert not (tmp_path / "found.json").exists()


def test_broken_images_can_leave_nothing_to_evaluate(checkpoint, tmp_path):
    paint(tmp_path / "images", 2, classes="ab")
    for file in (tmp_path / "images" / "b").iterdir():
        file.write_bytes(b"")
    message = refused("--checkpoint", checkpoint, "--images", tmp_path / "images")
    assert "are of one class alone, 'a'" in message
    for file in (tmp_path / "images" / "a").iterdir():
        file.write_bytes(b"")
    assert "none of the 4 images in" in refused("--checkpoint", checkpoint, "--images", tmp_path / "images")


def test_models_that_give_no_embeddings(tmp_path):
    paint(tmp_path / "images", 2)
    nothing = export(tmp_path / "nothing.pt2", Nothing())
    assert "returned a tensor of shape () for 12 images, expected embeddings" in refused(
        "--checkpoint", nothing, "--images", tmp_path / "images"
    )
    undefined = export(tmp_path / "undefined.pt2", Undefined())
    assert "12 embeddings of 12 that are NaN or infinite" in refused(
        "--checkpoint", undefined, "--images", tmp_path / "images"
    )


@pytest.mark.parametrize("outputs", [1, 2])
def test_an_onnx_model_that_gives_no_embeddings_or_fails(outputs, tmp_path):
    paint(tmp_path / "images", 2)
    given = ("--images", tmp_path / "images", "--checkpoint")
    message = refused(*given, mean_colour(tmp_path / "a.onnx", outputs=outputs, keep=1))
    found = "a tensor of shape (12, 3, 1, 1)" if outputs == 1 else "tuple"
    assert f"a.onnx returned {found} for 12 images, expected embeddings" in message


def test_a_model_that_fails_ends_in_a_sentence(checkpoint, tmp_path, monkeypatch):
    paint(tmp_path / "images", 2)
    fails = (
        "pml_s2sd.evaluation._exported_model.open_onnx",
        lambda path, device: (raising, [(None, 3, 4, 4)], torch.half),
    )
    monkeypatch.setattr(*fails)

    def raising(images):
        raise RuntimeError(f"no {images.dtype} here")

    message = refused("--checkpoint", mean_colour(tmp_path / "a.onnx"), "--images", tmp_path / "images")
    assert "a.onnx fails on images of shape (12, 3, 4, 4): no torch.float16 here; export it for any number" in message


def test_the_help_says_which_files_to_trust(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "WARNING: loading a .pt2 file runs code that its maker put into it; load only files that you trust" in text
    assert "MODEL.onnx is ONNX, which is data: ask for it where a model comes from others" in text


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_of_any_bytes_are_printed_and_written(encoding, checkpoint, tmp_path):
    """A class in Latin-1 and one in UTF-8, each with one image, one broken, so that they are named."""
    paint(tmp_path / "images", 3, classes="ab")
    for name in (b"caf\xe9", "日本".encode()):
        folder = os.fsencode(tmp_path / "images") + b"/" + name
        os.mkdir(folder)
        for i in range(2):
            with open(folder + b"/%d.png" % i, "wb") as file:
                Image.new("RGB", (4, 4), (90 + 9 * i, 80, 70)).save(file, format="PNG")
    with open(os.fsencode(tmp_path / "images") + b"/caf\xe9/1.png", "wb") as file:
        file.write(b"")
    with open(os.fsencode(tmp_path / "images") + b"/\xff.txt", "wb") as file:
        file.write(b"")
    command = [sys.executable, "-m", "pml_s2sd.evaluate", "--checkpoint", str(checkpoint), "--images"]
    output = tmp_path / "found.json"
    done = subprocess.run(
        [*command, str(tmp_path / "images"), "--output", str(output)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr.decode()
    printed = done.stdout.decode(encoding.split(":")[0])
    assert r"count in no metric over queries: caf\udce9" in printed
    assert r"\udcff.txt: no folder" in printed
    results = json.loads(output.read_bytes().decode("ascii"))
    assert results["classes_without_reference"] == [r"caf\udce9"]
    assert results["queries"] == 9
    json.dumps(results, ensure_ascii=False).encode("utf-8")
    assert r"caf\udce9/1.png" in results["broken"][0]


@pytest.mark.slow
def test_as_a_command(checkpoint, tmp_path):
    paint(tmp_path / "images", 3)
    own = tmp_path / "mine.pt2"
    own.write_bytes(checkpoint.read_bytes())
    command = [sys.executable, "-m", "pml_s2sd.evaluate", "--checkpoint", str(own), "--images"]
    done = subprocess.run([*command, str(tmp_path / "images")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"written to {tmp_path / 'mine.evaluation.json'}" in done.stdout
    results = json.loads((tmp_path / "mine.evaluation.json").read_text())
    assert results["queries"] == 18
    done = subprocess.run([*command, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("evaluate: no folder")
