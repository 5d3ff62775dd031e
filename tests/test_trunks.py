"""What --trunk takes: a module of the user's, libraries that are imported when named, errors that say what to do."""

import subprocess
import sys

import pytest
import torch
from options import parse_arguments
from trunks import FineTuned, Kind, kind_of, make_front, make_trunk

OF_A_USER = """
import torch

def maps():
    return torch.nn.Conv2d(3, 7, 3, stride=2)

def tokens():
    return torch.nn.Unflatten(1, (3, 1))

def vectors():
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module where the user is, which is no package of anybody's."""
    (tmp_path / "networks_of_mine.py").write_text(OF_A_USER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "networks_of_mine", raising=False)
    return "networks_of_mine"


def test_a_module_of_the_users_sees_images_of_the_size_and_its_features_are_counted(module):
    trunk, features = make_trunk(f"{module}:maps", 20)
    assert features == 7
    assert trunk(torch.rand(2, 3, 32, 32)).shape == (2, 7, 9, 9)  # of 20 × 20
    trunk, features = make_trunk(f"{module}:vectors", 8)
    images = torch.rand(2, 3, 8, 8)
    assert features == 12
    torch.testing.assert_close(trunk(images), images.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).flatten(1))
    assert make_front(f"{module}:maps", 20) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "networks_of_mine:nothing",
            r"the module networks_of_mine has no nothing; expected efficientnet-lite0, scratch",
        ),
        (
            "nowhere.at_all:maps",
            r"cannot import nowhere.at_all \(ModuleNotFoundError.*; expected .*package.module:func",
        ),
        (
            "networks_of_mine:tokens",
            r"expected features \(B, F\) or .* of images \(B, 3, 8, 8\), got \(2, 3, 1, 8, 8\)",
        ),
    ],
)
def test_a_module_that_does_not_do_is_told(module, name, told):
    with pytest.raises(SystemExit, match=told):
        make_trunk(name, 8)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_there_is_named(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SystemExit, match=rf"cannot import {library}.*pip install {library}"):
        make_trunk(f"{library}:resnet50", 224)


@pytest.mark.slow
def test_no_library_is_imported_unless_it_is_named():
    script = "import sys, train; print({'timm', 'torchvision', 'efficientnet_lite_pytorch'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == "set()", done.stderr


class OfTimm:
    """What is used of timm."""

    @staticmethod
    def create_model(name, pretrained, num_classes):
        if name != "tiny" or not pretrained or num_classes != 0:
            raise RuntimeError(f"Unknown model ({name})")
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.BatchNorm2d(5))
        network.default_cfg = {"mean": (0.5, 0.25, 0.0), "std": (0.5, 1.0, 2.0)}
        return network


def test_networks_of_timm_see_normalised_images_and_keep_their_statistics(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", OfTimm)
    trunk, features = make_trunk("timm:tiny", 4)
    assert features == 5
    images = torch.rand(2, 3, 4, 4)
    network = trunk[1].network
    normalised = torch.stack([(images[:, 0] - 0.5) / 0.5, images[:, 1] - 0.25, images[:, 2] / 2], dim=1)
    before = {name: x.clone() for name, x in network[1].state_dict().items()}
    found = trunk.train()(images)
    torch.testing.assert_close(found, network(normalised))
    torch.testing.assert_close(dict(network[1].state_dict()), before, rtol=0, atol=0)
    with pytest.raises(SystemExit, match=r"--trunk timm:other: Unknown model \(other\)"):
        make_trunk("timm:other", 4)


class OfTorchvision:
    """What is used of torchvision.models."""

    @staticmethod
    def get_model(name, weights):
        assert weights == "DEFAULT"
        network = torch.nn.Sequential()
        network.add_module("body", torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()))
        network.add_module(name, torch.nn.Linear(3, 1000))
        return network


@pytest.mark.parametrize("classifier", ["fc", "classifier", "heads", "head"])
def test_networks_of_torchvision_lose_their_classifier(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", OfTorchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", OfTorchvision)
    trunk, features = make_trunk(f"torchvision:{classifier}", 4)
    assert features == 3
    assert isinstance(trunk[1], FineTuned)


def test_the_defaults_are_the_trunks_and_options_go_before():
    def chosen(*own):
        settings = parse_arguments(list(own))
        return settings.epochs, settings.lr, settings.trunk_lr, settings.image_size

    assert chosen() == (5, 1e-3, 1e-4, 96)
    assert chosen("--trunk", "scratch") == (20, 3e-3, 3e-3, 32)
    assert chosen("--trunk", "timm:resnet50") == (5, 1e-3, 1e-4, 224)
    assert chosen("--trunk", "scratch", "--epochs", "7", "--lr", "0.1", "--image-size", "48") == (7, 0.1, 3e-3, 48)
    assert isinstance(kind_of("package.module:function"), Kind)
    turned = [
        parse_arguments(own).turned for own in ([], ["--images", "a"], ["--no-turned"], ["--images", "a", "--turned"])
    ]
    assert turned == [True, False, False, True]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (["--trunk", "resnet"], "expected efficientnet-lite0, scratch, timm:NAME"),
        (["--trunk", "timm:"], "got 'timm:'"),
        (["--image-size", "100"], "--image-size must be a multiple of 32 for efficientnet-lite0, got 100"),
        (["--views", "0"], "--views must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_told(own, told, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(own)
    assert told in capsys.readouterr().err
