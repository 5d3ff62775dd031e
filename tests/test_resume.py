"""Runs of examples/train.py that are killed, cut short or stopped, and go on as if nothing had happened."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import (
    BrokenCheckpointError,
    load_checkpoint,
    previous_of,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from images import EmojiDataset
from network import SmallResNet
from PIL import Image

from pml_s2sd.embedder import Embedder

TRAIN = Path(__file__).parent.parent / "examples" / "train.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Some of the emoji as a folder of images."""
    root = tmp_path_factory.mktemp("images")
    dataset = EmojiDataset(train=False)
    for index in torch.where(dataset.labels < 16)[0].tolist():
        image, label = dataset[index]
        target = root / dataset.names[label] / f"{dataset.styles[index]}.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy()).save(target)
    return root


def command(images, runs, *more):
    options = ["--images", images, "--runs", runs, "--name", "a", "--epochs", 3, "--batch-size", 8, "--threads", 1]
    options += ["--trunk", "scratch", "--variants", "baseline", "msdfa"]
    sizes = ["--embedding-size", 8, "--aux-sizes", 16, "--feature-delay", 5, "--objective", "proxyanchor"]
    return [sys.executable, str(TRAIN), *map(str, [*options, *sizes, *more])]


def run(arguments):
    return subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def epochs(runs):
    """Every epoch's figures but its seconds, and the accuracies of the end."""
    models = json.loads((runs / "a" / "metrics.json").read_text())["models"]
    timeless = {
        name: [{k: v for k, v in e.items() if k != "train_seconds"} for e in m["epochs"]] for name, m in models.items()
    }
    return timeless, {name: m["precision_at_1"] for name, m in models.items()}


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    runs = tmp_path_factory.mktemp("uninterrupted")
    done = run(command(images, runs))
    assert done.returncode == 0, done.stderr
    return runs


def interrupt(arguments, when, how):
    """Start, wait until `when()`, send the signal; returns the exit code and what was printed."""
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # where the tests run in the background of a shell, SIGINT is ignored, also by what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not when():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        process.send_signal(how)
        return process.communicate(timeout=60)[0], process.returncode
    finally:
        process.kill()


MOMENTS = {
    "before the first checkpoint": lambda folder: (folder / "metrics.json").exists(),
    "while a checkpoint is written": lambda folder: (folder / "baseline.checkpoint.tmp").exists(),
    "after the second epoch": lambda folder: (folder / "baseline.checkpoint.previous").exists(),
    "in the second model": lambda folder: (folder / "msdfa.checkpoint").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_losses(moment, images, tmp_path, uninterrupted):
    _, code = interrupt(command(images, tmp_path), lambda: MOMENTS[moment](tmp_path / "a"), signal.SIGKILL)
    assert code == -signal.SIGKILL
    done = run(command(images, tmp_path, "--resume"))
    assert done.returncode == 0, done.stderr
    assert epochs(tmp_path) == epochs(uninterrupted)
    for variant in ("baseline", "msdfa"):
        ours, theirs = (
            torch.load(runs / "a" / f"{variant}.pt", weights_only=True) for runs in (tmp_path, uninterrupted)
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
def test_ctrl_c_leaves_a_usable_run(images, tmp_path, uninterrupted):
    output, code = interrupt(
        command(images, tmp_path), lambda: MOMENTS["after the second epoch"](tmp_path / "a"), signal.SIGINT
    )
    assert code == 130
    assert "Stopped; the same command with --resume goes on with" in output
    assert "Traceback" not in output
    assert (
        len(epochs_so_far := json.loads((tmp_path / "a" / "metrics.json").read_text())["models"]["baseline"]["epochs"])
        >= 2
    )
    assert epochs_so_far[0]["loss"] == epochs(uninterrupted)[0]["baseline"][0]["loss"]
    assert run(command(images, tmp_path, "--resume")).returncode == 0
    assert epochs(tmp_path) == epochs(uninterrupted)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named_and_the_one_before_goes_on(images, tmp_path, uninterrupted):
    interrupt(command(images, tmp_path), lambda: MOMENTS["after the second epoch"](tmp_path / "a"), signal.SIGKILL)
    newest = tmp_path / "a" / "baseline.checkpoint"
    whole = newest if newest.exists() else previous_of(newest)  # killed between two renames, there is but that one
    newest.write_bytes(whole.read_bytes()[:1000])
    done = run(command(images, tmp_path, "--resume"))
    assert done.returncode == 1
    move = re.search(
        r"cannot be read, it may have been cut short .*; the one before is kept; to go on from it: (mv .*)", done.stderr
    )
    assert "Traceback" not in done.stderr
    subprocess.run(move[1].split(), check=True)
    assert run(command(images, tmp_path, "--resume")).returncode == 0
    assert epochs(tmp_path) == epochs(uninterrupted)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_and_other_settings_are_refused(images, tmp_path, uninterrupted):
    before = (uninterrupted / "a" / "msdfa.checkpoint").stat().st_mtime_ns
    assert run(command(images, uninterrupted, "--resume")).returncode == 0
    assert (uninterrupted / "a" / "msdfa.checkpoint").stat().st_mtime_ns == before
    done = run(command(images, uninterrupted, "--resume", "--lr", 0.5))
    assert done.returncode == 1
    assert re.search(r"baseline.checkpoint was made with lr = 0.003, this run has 0.5; give the same", done.stderr)


@pytest.mark.slow
def test_the_deployed_weights_load_strictly(uninterrupted):
    trunk = SmallResNet()
    model = torch.nn.Sequential(trunk, Embedder(trunk.out_channels, 8))
    model.load_state_dict(torch.load(uninterrupted / "a" / "msdfa.pt", weights_only=True))
    z = model.eval()(torch.zeros(2, 3, 32, 32))
    assert z.shape == (2, 8)
    assert z.abs().max() > 0


def test_checkpoints_are_read_back_and_the_previous_is_kept(tmp_path):
    path = tmp_path / "a.checkpoint"
    assert load_checkpoint(path) is None
    for epoch in range(3):
        save_checkpoint(path, {"epoch": epoch})
    assert load_checkpoint(path) == {"epoch": 2}
    assert torch.load(previous_of(path), weights_only=True) == {"epoch": 1}
    path.rename(tmp_path / "elsewhere")  # killed between the two renames
    assert load_checkpoint(path) == {"epoch": 1}
    previous_of(path).write_bytes(b"PK\x03\x04")
    with pytest.raises(
        BrokenCheckpointError, match=r"4 bytes\) cannot be read.*remove it, and its run starts from the beg"
    ):
        load_checkpoint(path)


def test_every_generator_is_restored_from_a_file(tmp_path):
    np.random.standard_normal()  # leaves a half-used pair behind
    save_checkpoint(tmp_path / "a", random_states())
    draw = lambda: (torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.random())  # noqa: E731
    drawn = draw()
    assert draw() != drawn
    restore_random_states(load_checkpoint(tmp_path / "a"))
    assert draw() == drawn
