"""What is deployed: the base head alone, in PyTorch's and ONNX's formats."""

import io

import onnxruntime
import pytest
import torch
from network import SmallResNet
from pytorch_metric_learning import losses

from pml_s2sd import S2SDEmbedder, s2sd
from pml_s2sd.embedder import Embedder

BATCH = torch.export.Dim("batch")


def trained(in_features=16, d=4):
    """An embedder after a step of training."""
    torch.manual_seed(0)
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), in_features, d, "MSDF", aux_sizes=(6, 10))
    optimizer = torch.optim.SGD(embedder.parameters(), lr=0.1)
    loss_func(embedder(torch.randn(8, in_features)), torch.arange(8) // 2).backward()
    optimizer.step()
    return embedder


def whole_model():
    trunk = SmallResNet()
    return torch.nn.Sequential(trunk, trained(trunk.out_channels).deploy()).eval()


CASES = {
    "features": (lambda: trained().deploy(), (16,)),
    "feature maps": (lambda: trained().deploy(), (16, 2, 3)),
    "trunk and embedder": (whole_model, (3, 32, 32)),
}


def inputs(shape, rows):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("case", CASES)
def test_torch_export_for_any_batch_size(case):
    make, shape = CASES[case]
    model = make()
    exported = torch.export.export(model, (inputs(shape, 2),), dynamic_shapes=({0: BATCH},))
    assert len(exported.state_dict) == len(model.state_dict())
    torch.testing.assert_close(exported.module()(inputs(shape, 5)), model(inputs(shape, 5)))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_gives_the_same_embeddings(case):
    make, shape = CASES[case]
    model = make()
    file = io.BytesIO()
    torch.onnx.export(model, (inputs(shape, 2),), dynamo=True, dynamic_shapes=({0: BATCH},), verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs(shape, 5).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(inputs(shape, 5)).detach(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("case", CASES)
def test_tracing(case):
    make, shape = CASES[case]
    model = make()
    traced = torch.jit.trace(model, inputs(shape, 2))
    torch.testing.assert_close(traced(inputs(shape, 5)), model(inputs(shape, 5)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_does_not_work_as_the_documentation_says():
    with pytest.raises(RuntimeError, match="failed to convert Python type"):
        torch.jit.script(trained().deploy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_quantisation_of_the_head():
    deployed = trained().deploy()
    quantised = torch.ao.quantization.quantize_dynamic(deployed, {torch.nn.Linear}, dtype=torch.qint8)
    x = inputs((16,), 64)
    assert "Quantized" in type(quantised.head).__name__ or "quantized" in type(quantised.head).__module__
    cosine = torch.nn.functional.cosine_similarity(quantised(x), deployed(x))
    assert cosine.min() > 0.99


def operations(model, x):
    return [node.target for node in torch.export.export(model, (x,)).graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("shape", [(16,), (16, 2, 3)])
def test_the_deployed_program_is_that_of_a_model_trained_without_s2sd(shape):
    embedder = trained()
    without = Embedder(16, 4).eval()
    without.load_state_dict(embedder.deploy().state_dict())
    x = inputs(shape, 5)
    assert operations(embedder.deploy(), x) == operations(without, x)
    assert torch.equal(embedder.deploy()(x), without(x))
    assert torch.equal(embedder.deploy()(x), embedder.eval()(x))
    assert sum(p.numel() for p in embedder.deploy().parameters()) == 16 * 4 + 4


def test_a_checkpoint_loads_strictly_into_the_deployed_module_and_a_linear_layer(tmp_path):
    embedder = trained()
    torch.save(embedder.state_dict(), tmp_path / "embedder.pt")
    state = torch.load(tmp_path / "embedder.pt", weights_only=True)
    base = {name: tensor for name, tensor in state.items() if not name.startswith("aux_heads.")}
    deployed, linear = Embedder(16, 4).eval(), torch.nn.Linear(16, 4)
    deployed.load_state_dict(base)
    linear.load_state_dict({name.removeprefix("head."): tensor for name, tensor in base.items()})
    x = inputs((16,), 5)
    assert torch.equal(deployed(x), embedder.eval()(x))
    assert torch.equal(linear(x), embedder(x))
    whole = S2SDEmbedder(16, 4, (6, 10))
    whole.load_state_dict(state)
    assert torch.equal(whole.eval()(x), linear(x))
