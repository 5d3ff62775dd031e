"""Exported models, programs of torch.export and ONNX: what is read of them, and files that are none."""

import builtins
import zipfile

import onnx
import pytest
import torch
from checkpoints import save_exported
from network import SmallResNet
from onnx import TensorProto, helper
from onnx_models import mean_colour

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


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, torch.float32),
        (TensorProto.FLOAT16, torch.float16),
        (TensorProto.DOUBLE, torch.float64),
    ],
)
def test_an_onnx_model_gives_its_embeddings(kind, dtype, tmp_path):
    model = load_exported_model(mean_colour(tmp_path / "colour.ONNX", dtype=kind))
    assert (model.size, model.dtype, model.device.type) == ((4, 4), dtype, "cpu")
    for rows in (1, 5):
        images = torch.rand(rows, 3, 4, 4).to(dtype)
        torch.testing.assert_close(model.embed(images), images.mean(dim=(2, 3)) - 0.4, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_the_examples_model_by_way_of_onnx(tmp_path):
    model = torch.nn.Sequential(SmallResNet(), S2SDEmbedder(128, 8).deploy()).eval()
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 32, 32),),
        tmp_path / "msdfa.onnx",
        dynamo=True,
        dynamic_shapes=({0: BATCH},),
        external_data=False,
        verbose=False,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["msdfa.onnx"]
    exported = load_exported_model(tmp_path / "msdfa.onnx", None)
    assert exported.size == (32, 32)
    for rows in (1, 5):
        images = torch.rand(rows, 3, 32, 32)
        torch.testing.assert_close(exported.embed(images), model(images), atol=1e-5, rtol=1e-4)


def test_onnx_models_of_any_size_and_such_that_do_not_fit(tmp_path):
    any_size = load_exported_model(mean_colour(tmp_path / "any.onnx", ("batch", 3, None, "width")))
    assert any_size.size == (None, None)
    assert any_size.embed(torch.rand(2, 3, 5, 7)).shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"one.onnx takes batches of exactly 2 images; export it with\s+dynamic_shapes="
    ):
        load_exported_model(mean_colour(tmp_path / "one.onnx", (2, 3, 4, 4)))
    with pytest.raises(ValueError, match=r"grey.onnx takes inputs of shapes \[\(None, 1, 4, 4\)\], expected images"):
        load_exported_model(mean_colour(tmp_path / "grey.onnx", ("batch", 1, 4, 4)))
    with pytest.raises(ValueError, match=r"integers.onnx takes images of a dtype other than float16"):
        load_exported_model(integers(tmp_path / "integers.onnx"))
    two = load_exported_model(mean_colour(tmp_path / "two.onnx", outputs=2))
    assert [x.shape for x in two.embed(torch.rand(2, 3, 4, 4))] == [(2, 3), (2, 3)]


def integers(path):
    """A model of images of bytes."""
    nodes = [helper.make_node("Cast", ["images"], ["embeddings"], to=TensorProto.FLOAT)]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ("batch", 3, 4, 4))
    found = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "cast", [images], [found])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_files_that_are_no_onnx_models(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*missing.onnx; .* or an ONNX model, MODEL.onnx"):
        load_exported_model(tmp_path / "missing.onnx")
    whole = mean_colour(tmp_path / "whole.onnx").read_bytes()
    program = export(tmp_path / "program.pt2", Flat(), torch.rand(2, 3, 8, 8)).read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-3], program):
        (tmp_path / "other.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=r"onnxruntime cannot load .*other.onnx .*export the model again"):
            load_exported_model(tmp_path / "other.onnx")
    (tmp_path / "whole.pt2").write_bytes(whole)
    with pytest.raises(ValueError, match=r"no program of torch.export; .* An ONNX model is to be called MODEL.onnx"):
        load_exported_model(tmp_path / "whole.pt2")


def test_an_onnx_file_is_never_given_to_a_loader_that_runs_code(tmp_path, monkeypatch):
    """Whatever is in it."""

    def loads(*arguments, **options):
        raise AssertionError("a .onnx file was unpickled")

    for name in ("torch.load", "torch.export.load", "pickle.load", "pickle.loads"):
        monkeypatch.setattr(name, loads)
    for model in (torch.nn.Linear(2, 2).state_dict(), {}):
        with zipfile.ZipFile(tmp_path / "a.onnx", "w") as archive:
            archive.writestr("archive/data.pkl", repr(model))
        with pytest.raises(ValueError, match="onnxruntime cannot load"):
            load_exported_model(tmp_path / "a.onnx")
    assert load_exported_model(mean_colour(tmp_path / "b.onnx")).size == (4, 4)


def test_without_onnxruntime_the_error_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *arguments, **options)

    path = mean_colour(tmp_path / "a.onnx")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="run by onnxruntime: pip install onnxruntime"):
        load_exported_model(path)


def test_a_device_that_onnxruntime_does_not_have(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot use the device 'meta': this onnxruntime runs on .*leave --device out"
    ):
        load_exported_model(mean_colour(tmp_path / "a.onnx"), "meta")
