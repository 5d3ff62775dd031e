"""The examples: the emoji data set, folders of images, a short run of the training script, the table of seeds."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import images
import numpy as np
import pytest
import torch
from images import EMOJI_FOLDER, EmojiDataset, ImageFolderDataset, make_augmentation, split_classes
from measures import evaluate
from models import build
from network import SmallResNet
from objectives import OBJECTIVES
from options import describe, parse_arguments
from PIL import Image
from results import METRICS, print_further_metrics, print_table, write_json
from seeds import earlier_run, mean_and_deviation, results_of, summarize

from pml_s2sd.evaluation._exported_model import load_exported_model
from pml_s2sd.report.run_folder import PERCENTAGES, PROPERTIES

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def emoji():
    return EmojiDataset(train=True), EmojiDataset(train=False)


def test_emoji_halves_share_no_class_and_hold_everything(emoji):
    train_set, test_set = emoji
    assert not set(train_set.names) & set(test_set.names)
    assert (len(train_set.names), len(test_set.names)) == (613, 613)
    assert len(train_set) + len(test_set) == 6754
    for dataset in emoji:
        counts = torch.bincount(dataset.labels)
        assert len(counts) == len(dataset.names)
        assert counts.min() >= 4
        assert counts.max() <= 7
        assert dataset.images.shape[1:] == (3, 32, 32)


def test_emoji_images_are_those_of_the_index(emoji):
    dataset = emoji[1]
    with (EMOJI_FOLDER / "index.csv").open(newline="") as file:
        position = {(row["class"], row["style"]): int(row["position"]) for row in csv.DictReader(file)}
    for index in (0, 17, len(dataset) - 1):
        image, label = dataset[index]
        row, column = divmod(position[dataset.names[label], dataset.styles[index]], 40)
        with Image.open(EMOJI_FOLDER / f"{dataset.styles[index]}.webp") as sheet:
            tile = sheet.convert("RGB").crop((32 * column, 32 * row, 32 * column + 32, 32 * row + 32))
        assert np.array_equal((255 * image).round().byte().permute(1, 2, 0).numpy(), np.array(tile))
    assert not (dataset.images.flatten(1).float().std(1) == 0).sum() > 2  # "white large square" is blank by two vendors


def test_emoji_sheets_are_small_and_every_set_is_attributed():
    sheets = sorted(EMOJI_FOLDER.glob("*.webp"))
    assert sum(sheet.stat().st_size for sheet in sheets) <= 4_000_000
    text = (EMOJI_FOLDER / "ATTRIBUTION.md").read_text()
    for sheet in sheets:
        assert f"| {sheet.name} |" in text
    assert text.count("Apache 2.0") == text.count("CC BY 4.0") == 3
    assert text.count("MIT") == 1


def test_a_sheet_that_is_cut_short_is_named(tmp_path, monkeypatch):
    shutil.copytree(EMOJI_FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "noto.webp").write_bytes((EMOJI_FOLDER / "noto.webp").read_bytes()[:20_000])
    monkeypatch.setattr(images, "EMOJI_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the sheet of drawings .*noto.webp .*git checkout"):
        EmojiDataset(train=True)


def test_the_split_depends_on_the_names_alone():
    names = [f"class{i}" for i in range(9)]
    train, test = split_classes(names, True), split_classes(names[::-1], False)
    assert (len(train), len(test)) == (5, 4)
    assert sorted(train + test) == names


@pytest.fixture
def folder(tmp_path, emoji):
    """Real images, laid out as a user's: FOLDER/class/name.png."""
    dataset = emoji[1]
    root = tmp_path / "images"
    for index in torch.where(dataset.labels < 12)[0].tolist():
        image, label = dataset[index]
        target = root / dataset.names[label] / f"{dataset.styles[index]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy()).save(target)
    return root


def test_image_folder(folder):
    halves = [ImageFolderDataset(folder, train, side=24) for train in (True, False)]
    assert sorted(halves[0].names + halves[1].names) == sorted(path.name for path in folder.iterdir())
    assert len(halves[0]) + len(halves[1]) == len(list(folder.rglob("*.png")))
    image, label = halves[0][3]
    assert image.shape == (3, 24, 24)
    assert 0 <= image.min() < image.max() <= 1
    assert halves[0].files[3].parent.name == halves[0].names[label]


def test_image_folder_errors_name_the_folder_or_the_file(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; expected images laid out as"):
        ImageFolderDataset(tmp_path / "nowhere", True, 32)
    with pytest.raises(ValueError, match="holds 1 class folders; expected at least 4"):
        ImageFolderDataset(tmp_path, True, 32)
    (folder / "lonely").mkdir()
    with pytest.raises(ValueError, match=r"lonely holds 0 images; a class needs at least 2"):
        ImageFolderDataset(folder, True, 32)
    (folder / "lonely").rmdir()
    dataset = ImageFolderDataset(folder, True, 32)
    cut_short = dataset.files[0]
    cut_short.write_bytes(cut_short.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"cannot read the image .*{cut_short.name}.*mend or remove it"):
        dataset[0]


def test_augmentation_keeps_shape_and_range_and_differs_from_image_to_image(emoji):
    images = emoji[0].images[:1].float().repeat(8, 1, 1, 1) / 255
    augmented = make_augmentation()(images)
    assert augmented.shape == images.shape
    assert 0 <= augmented.min() <= augmented.max() <= 1
    assert (augmented[0] - augmented[1]).abs().max() > 0.1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_a_step_with_and_without_s2sd(objective, emoji):
    images, labels = emoji[0].images[:28].float() / 255, emoji[0].labels[:28]
    own = ["--trunk", "scratch", "--objective", objective, "--aux-sizes", "16", "24", "--embedding-size", "8"]
    settings = parse_arguments(own)
    trunks = []
    for variant in ("baseline", "msdfa"):
        model, loss_func, miner = build(settings, variant, classes=len(emoji[0].names))
        trunks.append(model[0].state_dict())
        embeddings = model(images)
        loss = loss_func(embeddings, labels, miner(embeddings, labels) if miner else None)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(
        torch.equal(trunks[0][name], trunks[1][name])
        for name in trunks[0]
        if "running" not in name and "num_" not in name
    )


def test_accuracies_equal_a_plain_computation(emoji):
    model = torch.nn.Sequential(SmallResNet(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    trunk = torch.nn.Sequential(*model)
    test_set = emoji[1]
    found = evaluate(torch.nn.Sequential(trunk, torch.nn.Identity()), test_set, torch.device("cpu"))
    with torch.no_grad():
        x = torch.nn.functional.normalize(trunk(test_set.images.float() / 255)).double()
    D = torch.cdist(x, x).fill_diagonal_(torch.inf)
    order = D.argsort(dim=1)[:, :6]
    right = (test_set.labels[order] == test_set.labels[:, None]).double()
    R = torch.bincount(test_set.labels)[test_set.labels] - 1
    within = torch.arange(6) < R[:, None]
    precision = right.cumsum(1) / torch.arange(1, 7)
    expected = {
        "precision_at_1": right[:, 0].mean(),
        "r_precision": ((right * within).sum(1) / R).mean(),
        "mean_average_precision_at_r": ((precision * right * within).sum(1) / R).mean(),
    }
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric].item(), abs=2e-3)  # ties and faiss's float32


def run_script(script, *arguments, **options):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_train_and_seeds_on_a_folder_of_images(folder, tmp_path):
    options = ["--images", folder, "--runs", tmp_path, "--epochs", 2, "--batch-size", 8, "--aux-sizes", 16, 24]
    options += ["--threads", 1, "--variants", "baseline", "msdf", "--feature-delay", 0, "--device", "cpu"]
    options += ["--trunk", "scratch", "--no-consolidate"]
    done = run_script("seeds.py", "--name", "small", "--seeds", 0, 1, *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "small-seed1" / "metrics.json").read_text())
    assert results["settings"]["seed"] == 1
    assert results["versions"]["torch"] == torch.__version__
    for variant in ("baseline", "msdf"):
        record = results["models"][variant]
        assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
        for metric in METRICS:
            assert record[metric] == pytest.approx(record["epochs"][-1][metric], abs=1e-12)
        assert record["precision_at_1"] <= record["recall_at_2"] <= record["recall_at_4"] <= record["recall_at_8"] <= 1
        assert len(record["singular_values"]) == min(results["data"]["test_images"], 32)
        assert record["train_seconds"] > 0
        assert record["latency_ms_per_image"] > 0
        program = load_exported_model(tmp_path / "small-seed0" / f"{variant}.pt2")
        assert program.size == (32, 32)
        assert program.embed(torch.rand(3, 3, 32, 32)).shape == (3, 32)
    baseline, msdf = (results["models"][variant] for variant in ("baseline", "msdf"))
    assert baseline["deployed_parameters"] == msdf["deployed_parameters"]
    assert all(epoch["distill"] > 0 and epoch["feature"] > 0 for epoch in msdf["epochs"])
    for picture in ("curves.png", "retrieval.png", "baseline.map.png", "msdf.map.png"):
        with Image.open(tmp_path / "small-seed0" / picture) as image:
            assert np.array(image.convert("L")).std() > 5
    assert not list(tmp_path.rglob("*.tmp"))

    again = run_script("seeds.py", "--name", "small", "--seeds", 0, 1, *options)
    assert "baseline: " not in again.stderr  # no progress bar: nothing was trained again
    assert again.stdout == done.stdout
    assert (tmp_path / "small-seeds.md").read_text().strip() in done.stdout

    assert again.stdout.splitlines()[-1].endswith(str(tmp_path / "small-seeds.html"))
    page = (tmp_path / "small-seeds.html").read_text()
    assert all(f'data-value="{record["precision_at_1"]}"' in page for record in results["models"].values())

    alone = run_script("train.py", "--name", "alone", "--seed", 1, *options, "--variants", "msdf")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.splitlines()[-1].endswith(str(tmp_path / "alone" / "report.html"))
    assert (tmp_path / "alone" / "report.html").read_text().count("data:image/png") == 2  # the grid and a map
    repeated = json.loads((tmp_path / "alone" / "metrics.json").read_text())["models"]["msdf"]
    for epoch, expected in zip(repeated["epochs"], msdf["epochs"], strict=True):
        assert {**epoch, "train_seconds": 0} == {**expected, "train_seconds": 0}


def recall_at_1(z, labels):
    z = torch.nn.functional.normalize(z)
    nearest = (z @ z.T).fill_diagonal_(-2).argmax(1)
    return (labels[nearest] == labels).double().mean().item()


@pytest.mark.slow
def test_what_is_deployed_and_measured_is_consolidated(folder, tmp_path):
    options = ["--images", folder, "--runs", tmp_path, "--epochs", 2, "--batch-size", 8, "--trunk", "scratch"]
    done = run_script("train.py", "--name", "a", *options, "--threads", 1, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    models = json.loads((tmp_path / "a" / "metrics.json").read_text())["models"]
    assert models.keys() == {"baseline", "s2sd"}
    assert "consolidation_seconds" not in models["baseline"]
    assert models["s2sd"]["consolidation_seconds"] > 0
    before = models["s2sd"]["precision_at_1_before_consolidation"]
    assert before == models["s2sd"]["epochs"][-1]["precision_at_1"]
    trained = torch.load(tmp_path / "a" / "s2sd.checkpoint", weights_only=True)["model"]
    deployed = torch.load(tmp_path / "a" / "s2sd.pt", weights_only=True)
    assert all(torch.equal(trained[name], x) for name, x in deployed.items() if name.startswith("0."))
    assert not torch.equal(trained["1.head.weight"], deployed["1.head.weight"])
    test_set = ImageFolderDataset(folder, False, 32)
    images = torch.stack([image for image, _ in test_set])
    for variant, record in models.items():
        program = load_exported_model(tmp_path / "a" / f"{variant}.pt2")
        assert record["precision_at_1"] == pytest.approx(recall_at_1(program.embed(images), test_set.labels), abs=1e-9)


@pytest.mark.slow
def test_the_pretrained_trunk_is_run_on_the_images_once(folder, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="make test installs it")
    options = ["--images", folder, "--runs", tmp_path, "--epochs", 1, "--batch-size", 8, "--image-size", 64]
    options += ["--views", 2, "--threads", 1, "--device", "cpu"]
    done = run_script("train.py", "--name", "a", *options)
    assert done.returncode == 0, done.stderr
    assert "activations" in done.stderr
    models = json.loads((tmp_path / "a" / "metrics.json").read_text())["models"]
    assert models["baseline"]["deployed_parameters"] == models["s2sd"]["deployed_parameters"]
    test_set = ImageFolderDataset(folder, False, 64)
    images = torch.stack([image for image, _ in test_set])
    for variant, record in models.items():  # of the whole model on images, where training had activations in float16
        z = load_exported_model(tmp_path / "a" / f"{variant}.pt2").embed(images)
        assert record["precision_at_1"] == pytest.approx(recall_at_1(z, test_set.labels), abs=1.5 / len(images))
    again = run_script("train.py", "--name", "b", *options, "--seed", 1, "--variants", "baseline")
    assert again.returncode == 0, again.stderr
    assert "activations" not in again.stderr


def test_train_says_what_is_wrong_with_its_arguments(folder, tmp_path):
    done = run_script("train.py", "--images", tmp_path / "nowhere", "--runs", tmp_path)
    assert done.returncode == 1
    assert "expected images laid out as" in done.stderr.splitlines()[-1]
    done = run_script("train.py", "--images", folder, "--runs", tmp_path)
    assert done.returncode == 1
    assert re.search(r"--batch-size must be .* at most 12, for \d+ training images of 6 classes; got 112", done.stderr)
    assert run_script("train.py", "--epochs", 0).returncode == 2
    with pytest.raises(
        SystemExit, match=r"129 is more than the trunk's 128 features.*at most 128, or --no-consolidate"
    ):
        build(parse_arguments(["--trunk", "scratch", "--embedding-size", "129"]), "s2sd", classes=4)


def test_a_kill_while_writing_leaves_the_last_whole_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"epoch": 1})
    with pytest.raises(TypeError):
        write_json(path, {"epoch": object()})
    assert json.loads(path.read_text()) == {"epoch": 1}


MODELS = {
    name: {"precision_at_1": p, "r_precision": 0.3, "mean_average_precision_at_r": 0.2, "train_seconds": 61.2}
    | {"deployed_parameters": 12345, "latency_ms_per_image": 0.25}
    for name, p in (("baseline", 0.4), ("msd", 0.43))
}


def test_tables(capsys):
    print_table(MODELS)
    assert (
        "| msd      | 43.0     | 30.0        | 20.0  | 12,345     | 0.250    | 61         |" in capsys.readouterr().out
    )
    print_table({**MODELS, "s2sd": {**MODELS["msd"], "consolidation_seconds": 41.6}})
    printed = capsys.readouterr().out
    assert "| ms/image | training s | consolidation s |" in printed
    assert (
        "| baseline | 40.0     | 30.0        | 20.0  | 12,345     | 0.250    | 61         | 0               |"
        in printed
    )
    assert (
        "| s2sd     | 43.0     | 30.0        | 20.0  | 12,345     | 0.250    | 61         | 42              |"
        in printed
    )
    further = dict.fromkeys([*PERCENTAGES, *PROPERTIES], 0.25)
    print_further_metrics({"msd": {**further, "recall_at_2": 0.5, "effective_rank": 17.5}})
    header, _, row = capsys.readouterr().out.strip().splitlines()
    shown = dict(zip(header.strip("| ").split("|"), row.strip("| ").split("|"), strict=True))
    shown = {title.strip(): value.strip() for title, value in shown.items()}
    expected = {"model": "msd", **{PERCENTAGES[m]: "25.0" for m in PERCENTAGES if m not in METRICS}, "Recall@2": "50.0"}
    assert shown == {**expected, "spectral decay": "0.250", "density": "0.250", "effective rank": "17.500"}
    second = {name: {**record, "precision_at_1": record["precision_at_1"] + 0.02} for name, record in MODELS.items()}
    second["msd"]["precision_at_1"] += 0.02
    table = summarize({0: {"models": MODELS}, 1: {"models": second}}, ["baseline", "msd"])
    assert "| 1              | 42.0     | 47.0 |" in table
    assert "| Recall@1                | 41.0 ± 1.4 | 45.0 ± 2.8 | 4.0 ± 1.4   |" in table
    assert mean_and_deviation([2.0]) == "2.0 ± 0.0"


def test_a_run_of_other_settings_is_not_taken_for_an_earlier_one(tmp_path):
    own = ["--trunk", "scratch", "--runs", str(tmp_path), "--name", "a", "--variants", "baseline", "msd"]
    settings = parse_arguments(own)
    assert earlier_run(settings) is None
    (tmp_path / "a").mkdir()
    other = parse_arguments([*own, "--lr", "0.5"])
    write_json(tmp_path / "a" / "metrics.json", {**describe(other), "models": MODELS})
    assert earlier_run(settings) is None
    write_json(tmp_path / "a" / "metrics.json", {**describe(settings), "models": MODELS})
    assert earlier_run(settings)["models"] == MODELS
    assert results_of(settings)["models"] == MODELS  # whole: not run again
    (tmp_path / "a" / "metrics.json").write_text('{"settings": {"lr": 0.0')  # cut short
    assert earlier_run(settings) is None
