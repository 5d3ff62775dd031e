"""examples/train_distributed.py, started with torchrun, against examples/train.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from images import EmojiDataset
from measures import evaluate
from models import build
from network import SmallResNet
from options import parse_arguments

from pml_s2sd.embedder import Embedder

EXAMPLES = Path(__file__).parent.parent / "examples"
OPTIONS = ["--epochs", "2", "--threads", "1", "--device", "cpu", "--embedding-size", "8", "--aux-sizes", "16", "24"]
OPTIONS += ["--trunk", "scratch", "--variants", "baseline", "msdfa", "--views", "1", "--no-turned"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment)


def models(folder):
    return json.loads((folder / "metrics.json").read_text())["models"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    runs = tmp_path_factory.mktemp("one")
    done = run(EXAMPLES / "train.py", "--runs", runs, "--no-consolidate", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return models(runs / "demo")


@pytest.mark.slow
def test_with_one_process_it_is_train_py(tmp_path, one_process):
    done = run(*TORCHRUN, 1, EXAMPLES / "train_distributed.py", "--runs", tmp_path, "--no-consolidate", *OPTIONS)
    assert done.returncode == 0, done.stderr
    for variant, record in models(tmp_path / "demo").items():
        for found, expected in zip(record["epochs"], one_process[variant]["epochs"], strict=True):
            assert {**found, "train_seconds": 0} == {**expected, "train_seconds": 0}


@pytest.mark.slow
def test_two_processes_train_as_one_up_to_batchnorm_and_augmentation(tmp_path, one_process):
    done = run(*TORCHRUN, 2, EXAMPLES / "train_distributed.py", "--runs", tmp_path, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Recall@1") == 2  # rank 0's alone
    records = models(tmp_path / "demo")
    assert list(records) == ["baseline", "msdfa"]
    for found, expected in zip(records["msdfa"]["epochs"], one_process["msdfa"]["epochs"], strict=True):
        for name in ("loss", "base", "aux"):
            assert found[name] == pytest.approx(expected[name], rel=0.05), name
    assert records["msdfa"]["epochs"][1]["loss"] < records["msdfa"]["epochs"][0]["loss"]
    trunk = SmallResNet()
    model = torch.nn.Sequential(trunk, Embedder(trunk.out_channels, 8))
    model.load_state_dict(torch.load(tmp_path / "demo" / "msdfa.pt", weights_only=True))
    accuracy = evaluate(model, EmojiDataset(train=False), torch.device("cpu"))["precision_at_1"]
    assert accuracy == pytest.approx(records["msdfa"]["precision_at_1"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 4])  # 3,390 images: with 4, parts of different sizes
def test_evaluation_in_parts_gives_the_figures_of_one_process(world_size, tmp_path):
    worker = Path(__file__).parent / "evaluation_worker.py"
    arguments = [str(world_size), str(tmp_path / "store"), str(tmp_path / "figures.json")]
    processes = [subprocess.Popen([sys.executable, worker, str(rank), *arguments]) for rank in range(world_size)]
    assert [process.wait(timeout=300) for process in processes] == [0] * world_size
    model, *_ = build(parse_arguments(["--trunk", "scratch"]), "msdfa", classes=2)
    expected = evaluate(model, EmojiDataset(train=False), torch.device("cpu"))
    assert json.loads((tmp_path / "figures.json").read_text()) == pytest.approx(expected, abs=1e-12)


def test_what_it_does_not_do_is_refused():
    done = run(EXAMPLES / "train_distributed.py", "--resume")
    assert done.returncode == 1
    assert "--resume is train.py's alone" in done.stderr
