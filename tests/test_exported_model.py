"""Programs of torch.export: what is read of them, and files that are none."""

import zipfile

import pytest
import torch
from checkpoints import save_exported
from network import SmallResNet

from pml_s2sd import S2SDEmbedder
from pml_s2sd.evaluation._exported_model import image_size, load_exported_model

BATCH = torch.export.Dim("batch")


class Flat(torch.nn.Module):
    """Mean colours, for images of any size."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def export(path, model, *inputs, dynamic=({0: BATCH},)):
    torch.export.save(torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic), path)
    return path


def test_the_examples_program_gives_the_models_embeddings(tmp_path):
    model = torch.nn.Sequential(SmallResNet(), S2SDEmbedder(128, 8).deploy()).eval()
    model.to(memory_format=torch.channels_last)
    save_exported(tmp_path / "msdfa.pt2", model, torch.zeros(2, 3, 32, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["msdfa.pt2"]
    program = load_exported_model(tmp_path / "msdfa.pt2")
    assert (program.size, program.dtype, program.device.type) == ((32, 32), torch.float32, "cpu")
    for rows in (1, 5):
        images = torch.rand(rows, 3, 32, 32)
        torch.testing.assert_close(program.embed(images), model(images))


def test_image_sizes(tmp_path):
    fixed = load_exported_model(export(tmp_path / "fixed.pt2", Flat(), torch.rand(2, 3, 8, 6)))
    assert image_size(fixed, None) == (8, 6)
    with pytest.raises(ValueError, match=r"--image-size is 8, but .*fixed.pt2 takes images of 8 × 6; leave"):
        image_size(fixed, 8)
    sides = {0: BATCH, 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    any_size = load_exported_model(export(tmp_path / "any.pt2", Flat(), torch.rand(2, 3, 8, 6), dynamic=(sides,)))
    assert any_size.size == (None, None)
    assert image_size(any_size, 20) == (20, 20)
    with pytest.raises(ValueError, match=r"any.pt2 takes images of any size; give .*--image-size SIDE"):
        image_size(any_size, None)
    with pytest.raises(ValueError, match="--image-size must be at least 1, got 0"):
        image_size(any_size, 0)


def test_programs_that_do_not_fit(tmp_path):
    one = export(tmp_path / "one.pt2", Flat(), torch.rand(2, 3, 8, 8), dynamic=None)
    with pytest.raises(
        ValueError, match=r"one.pt2 takes batches of exactly 2 images; export it with\s+dynamic_shapes="
    ):
        load_exported_model(one)
    head = export(tmp_path / "head.pt2", torch.nn.Linear(16, 4), torch.rand(2, 16))
    with pytest.raises(ValueError, match=r"head.pt2 takes inputs of shapes .* expected images \(B, 3, H, W\) alone"):
        load_exported_model(head)


def test_files_that_are_no_programs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*missing.pt2; expected a program of torch.export"):
        load_exported_model(tmp_path / "missing.pt2")
    whole = export(
        tmp_path / "whole.pt2", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)), torch.rand(2, 3, 4, 4)
    )
    content = whole.read_bytes()
    for length in (0, 1, *range(500, len(content), 500), len(content) - 30):
        (tmp_path / "cut.pt2").write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"cut.pt2 \({length:,} bytes\): it is cut short"):
            load_exported_model(tmp_path / "cut.pt2")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "msdfa.pt")
    with pytest.raises(ValueError, match=r"msdfa.pt holds weights without the model that they belong to"):
        load_exported_model(tmp_path / "msdfa.pt")


def test_a_program_that_is_broken_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("other/version", "1")
    with pytest.raises(ValueError, match=r"torch.export cannot load .*other.pt2 .*export the model again"):
        load_exported_model(tmp_path / "other.pt2")


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot use the device 'nonsense'"):
        load_exported_model(tmp_path / "missing.pt2", "nonsense")
