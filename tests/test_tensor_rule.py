"""On which spaces every method of torch.Tensor, and torch's functions, act, given S2SDEmbeddings."""

import copy
import inspect

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from pml_s2sd import S2SDEmbeddings

B = 12
ROWS = torch.tensor([4, 0, 7])
COUNTS = torch.arange(B) % 3


def make_batch(size=B, dtype=torch.float32):
    widths = (4, 6, 10, 16)
    z, *aux, features = (torch.randn(size, width).to(dtype) for width in widths)
    return S2SDEmbeddings(z, tuple(aux), features)


def tensors_of(batch):
    return [batch.embeddings, *batch.aux, batch.features]


# The rule as a table. What acts on every space, name: ways to call it, each on whole samples.
EVERY_SPACE = {
    "to": [lambda x: x.to(torch.float64), lambda x: x.to("cpu"), lambda x: x.to(device="cpu", dtype=torch.half)],
    "type": [lambda x: x.type(torch.float64)],
    "type_as": [lambda x: x.type_as(torch.ones((), dtype=torch.half)), lambda x: x.type_as(x)],
    "cpu": [lambda x: x.cpu()],
    "float": [lambda x: x.float()],
    "double": [lambda x: x.double()],
    "half": [lambda x: x.half()],
    "bfloat16": [lambda x: x.bfloat16()],
    "int": [lambda x: x.int()],
    "long": [lambda x: x.long()],
    "short": [lambda x: x.short()],
    "char": [lambda x: x.char()],
    "byte": [lambda x: x.abs().byte() if isinstance(x, torch.Tensor) else S2SDEmbeddings(
        *pytree.tree_map(torch.abs, (x.embeddings, x.aux, x.features))).byte()],
    "bool": [lambda x: x.bool()],
    "cfloat": [lambda x: x.cfloat()],
    "cdouble": [lambda x: x.cdouble()],
    "chalf": [lambda x: x.chalf().to(torch.cfloat)],
    "clone": [lambda x: x.clone(), torch.clone, lambda x: torch.clone(input=x)],
    "detach": [lambda x: x.detach(), torch.detach],
    "detach_copy": [torch.detach_copy],
    "contiguous": [lambda x: x.contiguous()],
    "data": [lambda x: x.data],
    "split": [
        lambda x: x.split(5), lambda x: x.split([5, 7]), lambda x: x.split(5, dim=0), lambda x: x.split(5, -2),
        lambda x: torch.split(x, 5), lambda x: torch.split(x, [5, 7], dim=0), lambda x: torch.split(x, 5, -2),
    ],
    "split_with_sizes": [lambda x: x.split_with_sizes([5, 7]), lambda x: torch.split_with_sizes(x, (5, 7), dim=-2)],
    "split_copy": [lambda x: torch.split_copy(x, 5)],
    "split_with_sizes_copy": [lambda x: torch.split_with_sizes_copy(x, [5, 7])],
    "unsafe_split": [lambda x: x.unsafe_split(5), lambda x: torch.unsafe_split(x, 5, 0)],
    "unsafe_split_with_sizes": [lambda x: x.unsafe_split_with_sizes([5, 7])],
    "chunk": [
        lambda x: x.chunk(2), lambda x: x.chunk(5, dim=-2), lambda x: torch.chunk(x, 2),
        lambda x: torch.chunk(input=x, chunks=3, dim=0), lambda x: torch.chunk(x, 2, -2),
    ],
    "unsafe_chunk": [lambda x: x.unsafe_chunk(2), lambda x: torch.unsafe_chunk(x, 2)],
    "tensor_split": [
        lambda x: x.tensor_split(5), lambda x: x.tensor_split((2, 9), dim=0), lambda x: torch.tensor_split(x, 5),
        lambda x: torch.tensor_split(x, torch.tensor([2, 9]), dim=-2), lambda x: torch.tensor_split(x, sections=2),
    ],
    "vsplit": [lambda x: x.vsplit(2), lambda x: torch.vsplit(x, [5, 8])],
    "unbind": [lambda x: x.unbind(), lambda x: x.unbind(-2), torch.unbind, lambda x: torch.unbind(x, dim=0), tuple],
    "unbind_copy": [lambda x: torch.unbind_copy(x)],
    "index_select": [
        lambda x: x.index_select(0, ROWS), lambda x: x.index_select(dim=-2, index=ROWS),
        lambda x: torch.index_select(x, 0, ROWS), lambda x: torch.index_select(input=x, dim=0, index=ROWS),
    ],
    "select": [lambda x: x.select(0, 3), lambda x: torch.select(x, dim=-2, index=3)],
    "select_copy": [lambda x: torch.select_copy(x, 0, 3)],
    "narrow": [lambda x: x.narrow(0, 2, 5), lambda x: torch.narrow(x, -2, start=2, length=5)],
    "narrow_copy": [lambda x: x.narrow_copy(0, 2, 5), lambda x: torch.narrow_copy(x, 0, 2, 5)],
    "flip": [
        lambda x: x.flip(0), lambda x: x.flip((0,)), lambda x: x.flip(dims=[-2]), lambda x: torch.flip(x, (0,)),
        lambda x: torch.flip(x, dims=[-2]),
    ],
    "flipud": [lambda x: x.flipud(), torch.flipud],
    "roll": [lambda x: x.roll(5, 0), lambda x: x.roll(shifts=(5,), dims=(-2,)), lambda x: torch.roll(x, 5, dims=0)],
    "repeat_interleave": [
        lambda x: x.repeat_interleave(2, 0), lambda x: torch.repeat_interleave(x, COUNTS, dim=0),
        lambda x: torch.repeat_interleave(x, 2, dim=-2),
    ],
    "repeat": [lambda x: x.repeat(2, 1), lambda x: x.repeat((3, 1)), lambda x: x.repeat(repeats=[2, 1])],
    "tile": [lambda x: x.tile(2, 1), lambda x: torch.tile(x, (2, 1)), lambda x: torch.tile(x, dims=(2, 1))],
    "unsqueeze": [lambda x: x.unsqueeze(0), lambda x: torch.unsqueeze(x, -3)],
    "unsqueeze_copy": [lambda x: torch.unsqueeze_copy(x, 0)],
    "squeeze": [lambda x: x.squeeze(0), lambda x: torch.squeeze(x, dim=-2), lambda x: x[:1].squeeze(0)],
    "unflatten": [lambda x: x.unflatten(0, (2, 6)), lambda x: torch.unflatten(x, dim=-2, sizes=(3, -1))],
    "squeeze_copy": [lambda x: torch.squeeze_copy(x, 0)],
    "cat": [
        lambda x: torch.cat([x, x]), lambda x: torch.cat((x, x), 0), lambda x: torch.cat(tensors=[x, x], dim=-2),
        lambda x: torch.cat([x, x], axis=0), lambda x: torch.cat(x.split(5)),
    ],
    "concat": [lambda x: torch.concat([x, x])],
    "concatenate": [lambda x: torch.concatenate((x, x), axis=-2)],
    "stack": [
        lambda x: torch.stack([x, x]), lambda x: torch.stack(tensors=(x, x), dim=-3), lambda x: torch.stack(list(x)),
        lambda x: torch.stack([x[i] for i in (4, 0, 7)], dim=0), lambda x: torch.stack(x.unbind(), -2),
    ],
    "vstack": [lambda x: torch.vstack([x, x]), lambda x: torch.vstack(list(x))],
    "row_stack": [lambda x: torch.vstack(tensors=(x, x))],
    "[]": [
        lambda x: x[2:9], lambda x: x[::3], lambda x: x[:], lambda x: x[...], lambda x: x[ROWS], lambda x: x[[4, 0]],
        lambda x: x[COUNTS == 1], lambda x: x[np.array([4, 0])], lambda x: x[(COUNTS == 1).numpy()],
        lambda x: x[range(3)], lambda x: x[5], lambda x: x[-1], lambda x: x[np.int64(5)], lambda x: x[ROWS[0]],
        lambda x: x[2:9, :], lambda x: x[ROWS, ...], lambda x: x[..., :], lambda x: x[ROWS.view(3, 1)],
    ],
}  # fmt: skip

# Told to every space, in place.
MARKS = {"requires_grad_", "retain_grad", "detach_", "share_memory_", "record_stream", "grad", "requires_grad"}
NEED_A_GPU = {"cuda", "xpu", "ipu", "mtia", "pin_memory", "record_stream"}
# What changes a tensor, although no underscore says so.
CHANGES = {"register_hook", "register_post_accumulate_grad_hook", "module_load", "backward"}

# The same names along another dimension, and what computes: z alone.
BASE_ALONE = [
    lambda x: x.split(2, dim=1), lambda x: torch.chunk(x, 2, -1), lambda x: torch.tensor_split(x, 2, dim=1),
    lambda x: x.unbind(1), lambda x: x.index_select(1, ROWS[1:2]), lambda x: torch.narrow(x, 1, 0, 2),
    lambda x: x.select(-1, 2), lambda x: x.flip(1), lambda x: x.flip(0, 1), lambda x: torch.flip(x, (0, 1)),
    lambda x: x.roll(2, 1), lambda x: x.roll(2), lambda x: x.repeat_interleave(2), lambda x: x.repeat(1, 2),
    lambda x: x.repeat(1, 2, 1), lambda x: torch.tile(x, (2,)), lambda x: x.unsqueeze(1), lambda x: x.unsqueeze(-1),
    lambda x: x.squeeze(1), lambda x: torch.cat([x, x], dim=1), lambda x: torch.cat((x, x), axis=-1),
    lambda x: torch.stack([x, x], dim=1), lambda x: torch.stack((x, x), -1), lambda x: torch.hstack([x, x]),
    lambda x: torch.cat([x, torch.ones(1, 4)]), lambda x: torch.vstack([torch.ones(4), x]),
    lambda x: x[:, 1], lambda x: x[..., 0], lambda x: x[3, 1], lambda x: x[None], lambda x: x[:, None],
    lambda x: x[x > 0], lambda x: x[2:5, 1:3], lambda x: x[True], lambda x: x[0][2], lambda x: x[0].split(2),
    lambda x: torch.gather(x, 0, torch.zeros(2, 4, dtype=torch.int64)), lambda x: x.masked_select(x > 0),
    lambda x: torch.take_along_dim(x, torch.zeros(1, 4, dtype=torch.int64), 0), lambda x: x.sum(0), lambda x: x.t(),
    lambda x: x.view(2, 6, 4), lambda x: x.unflatten(1, (2, 2)),
    lambda x: torch.zeros_like(x), lambda x: x.numpy(), lambda x: x.tolist(),
    lambda x: x.type(), lambda x: np.float32(2) * x, lambda x: 2 * x, lambda x: x @ x.t(), lambda x: x.sort(dim=0),
    lambda x: torch.from_dlpack(x), lambda x: torch.nn.functional.relu(x, inplace=False), lambda x: x.is_leaf,
    lambda x: torch.split(x, 5)[0] + 1, lambda x: torch.cat([x, x], out=torch.empty(0)),
    lambda x: torch.nn.init.calculate_gain("relu") * x, lambda x: torch.ones(B, 4).add_(x),
    lambda x: torch.ones(B, 4).copy_(x), lambda x: torch.ones(B, 4).to(x), lambda x: x.size(0),
]  # fmt: skip

WAYS = [pytest.param(way, id=f"{name}-{i}") for name, ways in EVERY_SPACE.items() for i, way in enumerate(ways)]


def equal(found, expected):
    if isinstance(expected, torch.Tensor):
        return type(found) is torch.Tensor and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, np.ndarray):
        return np.array_equal(found, expected)
    if isinstance(expected, tuple | list) and not isinstance(expected, str):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return found == expected


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("way", WAYS)
def test_whole_samples_keep_every_space(way):
    batch = make_batch()
    found = way(batch)
    parts = list(found) if isinstance(found, tuple | list) else [found]
    assert parts
    for part in parts:
        assert type(part) is S2SDEmbeddings
        assert isinstance(part.aux, tuple)
    for space, tensor in enumerate(tensors_of(batch)):
        expected = way(tensor)
        expected = list(expected) if isinstance(expected, tuple | list) else [expected]
        assert equal([tensors_of(part)[space] for part in parts], expected)


@pytest.mark.parametrize("way", BASE_ALONE, ids=range(len(BASE_ALONE)))
def test_what_computes_acts_on_the_base_embeddings_alone(way):
    batch = make_batch()
    before = copy.deepcopy(batch)
    assert equal(way(batch), way(batch.embeddings))
    assert all(map(torch.equal, tensors_of(batch), tensors_of(before)))


def writes(name):
    """Whether PyTorch's own schemas say that an operation of this name changes its first argument."""
    schemas = [schema for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}") if schema.arguments]
    return any(s.arguments[0].alias_info is not None and s.arguments[0].alias_info.is_write for s in schemas)


# Methods and attributes without a schema, read one by one: they ask, and change nothing.
QUESTIONS = """H T mT as_subclass const_data_ptr data_ptr dim_order dtype eig grad_dtype grad_fn is_cpu is_cuda
    is_ipu is_maia is_meta is_mkldnn is_mps is_mtia is_nested is_quantized is_shared is_sparse is_sparse_csr is_vulkan
    is_xla is_xpu itemsize layout lstsq lu name names nbytes ndim ndimension nelement new new_tensor numpy reinforce
    shape solve storage storage_type symeig to_sparse_coo tolist unique untyped_storage volatile"""


def test_no_method_of_tensors_falls_outside_the_rule():
    """What a new torch adds has to be put under the rule: a method that is in no table fails here."""
    batch = make_batch()
    before = copy.deepcopy(batch)
    for name in dir(torch.Tensor):
        if name.startswith("_"):
            continue
        if name in EVERY_SPACE.keys() | MARKS | NEED_A_GPU:
            assert name in vars(S2SDEmbeddings)
            continue
        # The schema of torch.sort that writes is that of its overload with `out`
        if name.endswith("_") or name in CHANGES or (writes(name) and name != "sort"):
            with pytest.raises(TypeError, match=r"name.*batch\.embeddings"):
                getattr(batch, name)()
        else:
            known = torch._C._jit_get_schemas_for_operator(f"aten::{name}") or name in QUESTIONS.split()
            assert known, f"is torch.Tensor.{name} for all spaces, for the base space, or refused?"
        with pytest.raises(TypeError, match=r"name.*batch\.embeddings"):
            setattr(batch, name, None)
    assert all(map(torch.equal, tensors_of(batch), tensors_of(before)))


def test_functions_that_change_their_tensor_are_refused():
    batch = make_batch()
    before = copy.deepcopy(batch)
    for namespace in (torch, torch.nn.functional, torch.nn.init):
        for name, function in vars(namespace).items():
            if name.endswith("_") and not name.endswith("__") and callable(function) and name not in MARKS:
                for first in (batch, [torch.ones(2), batch]):
                    with pytest.raises(TypeError, match=r"name.*batch\.embeddings"):
                        S2SDEmbeddings.__torch_function__(function, (S2SDEmbeddings,), (first, 1.0))
    assert all(map(torch.equal, tensors_of(batch), tensors_of(before)))


def test_functions_that_are_told_to_change_their_tensor_are_refused():
    batch = make_batch()
    before = copy.deepcopy(batch)
    for name, function in vars(torch.nn.functional).items():
        if inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters and name[0] != "_":
            arguments = {"threshold": 0.5, "value": 1.0} if name == "threshold" else {}
            with pytest.raises(TypeError, match=r"name.*batch\.embeddings"):
                function(batch, inplace=True, **arguments)
    assert all(map(torch.equal, tensors_of(batch), tensors_of(before)))


def assigned(batch, name):
    setattr(batch, name, torch.ones(B, 4))


CHANGES_OF_EVERY_KIND = {
    "method": lambda b: b.mul_(2.0),
    "function": torch.relu_,
    "by keyword": lambda b: torch.relu_(input=b),
    "module": torch.nn.ReLU(inplace=True),
    "init": torch.nn.init.zeros_,
    "init, by torch function": lambda b: torch.nn.init.uniform_(tensor=b),
    "several": lambda b: torch._foreach_add_([b], 1.0),
    "out": lambda b: torch.add(torch.ones(B, 4), 1, out=b),
    "out of several": lambda b: torch.sort(torch.ones(B, 4), out=(b, torch.empty(0))),
    "operator": lambda b: b.__imul__(2),
    "aten": lambda b: torch.ops.aten.add_(b, 1),
    "aten, an overload": lambda b: torch.ops.aten.add_.Scalar(b, 1),
    "item": lambda b: b.__setitem__(0, 1.0),
    "del": lambda b: b.__delitem__(0),
    "hook": lambda b: b.register_hook(print),
    "data": lambda b: assigned(b, "data"),
    "hooks": lambda b: assigned(b, "_backward_hooks"),
}


@pytest.mark.parametrize("change", CHANGES_OF_EVERY_KIND.values(), ids=CHANGES_OF_EVERY_KIND)
def test_changes_are_refused_before_anything_changes(change):
    batch = make_batch()
    before = copy.deepcopy(batch)
    with pytest.raises(TypeError, match=r"name.*batch\.embeddings"):
        change(batch)
    assert all(map(torch.equal, tensors_of(batch), tensors_of(before)))
    assert list(vars(batch)) == ["embeddings", "aux", "features"]


def test_augmented_assignment_is_refused():
    batch = make_batch()
    for operator in ("+", "-", "*", "/", "//", "%", "**", "&", "|", "^", "<<", ">>"):
        with pytest.raises(TypeError, match=r"name.*batch\.embeddings"):
            exec(f"batch {operator}= 2", {}, {"batch": batch})


def test_marks_reach_every_space():
    batch = make_batch()
    assert batch.requires_grad_() is batch
    assert all(tensor.requires_grad for tensor in tensors_of(batch))
    assert batch.requires_grad_(False) is batch
    assert not any(tensor.requires_grad for tensor in tensors_of(batch))
    batch.requires_grad = True
    assert all(tensor.requires_grad for tensor in tensors_of(batch))
    doubled = S2SDEmbeddings(
        *(pytree.tree_map(lambda t: 2 * t, part) for part in (batch.embeddings, batch.aux, batch.features))
    )
    doubled.retain_grad()
    assert all(tensor.retains_grad for tensor in tensors_of(doubled))
    sum(tensor.sum() for tensor in tensors_of(doubled)).backward()
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in tensors_of(doubled.grad))
    assert all(torch.equal(tensor, torch.full_like(tensor, 2)) for tensor in tensors_of(batch.grad))
    assert torch.detach_(doubled) is doubled
    assert not any(tensor.requires_grad for tensor in tensors_of(doubled))
    assert batch.share_memory_() is batch
    assert all(tensor.is_shared() for tensor in tensors_of(batch))


def test_batches_of_different_models_are_not_joined():
    batch = make_batch()
    other = S2SDEmbeddings(batch.embeddings, batch.aux[:1], batch.features)
    with pytest.raises(ValueError, match=r"got batches of \[2, 1\] auxiliary spaces"):
        torch.cat([batch, other])


def test_one_gradient_for_every_space():
    batch = make_batch()
    batch.requires_grad_()
    assert batch.grad is None
    (2 * batch.embeddings).sum().backward()
    (3 * batch.aux[1]).sum().backward()
    gradients = batch.grad
    assert isinstance(gradients, S2SDEmbeddings)
    assert torch.equal(gradients.embeddings, torch.full((B, 4), 2.0))
    assert torch.equal(gradients.aux[1], torch.full((B, 10), 3.0))
    assert gradients.aux[0] is None
    assert gradients.features is None
    for part in gradients.split(5)[2], gradients[10:], torch.chunk(gradients.half(), 6)[-1]:
        assert torch.equal(part.aux[1], torch.full((2, 10), 3.0, dtype=part.aux[1].dtype))
        assert part.aux[0] is None
    batch.grad = gradients.double().float()
    assert torch.equal(batch.aux[1].grad, gradients.aux[1])
    batch.grad = None
    assert all(tensor.grad is None for tensor in tensors_of(batch))
    batch.backward(gradients)
    assert torch.equal(batch.aux[1].grad, gradients.aux[1])
    assert batch.aux[0].grad is None


TAKES_THE_BASE_ALONE = {
    "surrogate": lambda b, g: torch.dot(b.flatten(), g.flatten()),
    "product": lambda b, g: b * g,
    "product, the other way": lambda b, g: g * b,
    "function": lambda b, g: torch.mul(b, g),
    "method": lambda b, g: b.mul(g),
    "norm": lambda b, g: g.norm(),
    "columns": lambda b, g: g[:, 0],
    "split of columns": lambda b, g: g.split(2, dim=1),
    "a plain tensor": lambda b, g: b.backward(g.embeddings),
    "no gradient": lambda b, g: b.backward(),
    "assigned": lambda b, g: setattr(b, "grad", torch.ones(B, 4)),
    "backward": lambda b, g: torch.autograd.backward([b], [g]),
    "grad": lambda b, g: torch.autograd.grad((2 * b).sum(), b),
    "inputs": lambda b, g: (2 * b).sum().backward(inputs=[b]),
}


@pytest.mark.parametrize("use", TAKES_THE_BASE_ALONE.values(), ids=TAKES_THE_BASE_ALONE)
def test_no_gradient_goes_on_for_the_base_space_alone(use):
    """A step that replays cached gradients must not drop the auxiliary heads'."""
    batch = make_batch()
    batch.requires_grad_()
    gradients = batch.detach()
    batch.grad = gradients
    with pytest.raises(TypeError, match=r"embeddings"):
        use(batch, batch.grad)
    assert all(map(torch.equal, tensors_of(batch.grad), tensors_of(gradients)))


def test_questions_to_gradients_are_answered():
    batch = make_batch()
    batch.grad = make_batch()
    assert batch.grad.shape == (B, 4)
    assert batch.grad.size(0) == len(batch.grad) == B
    assert batch.grad.dtype == torch.float32
    assert torch.equal(batch.grad, batch.embeddings.grad)


def test_a_gradient_that_no_space_takes_is_an_error():
    with pytest.raises(RuntimeError, match="no space of the batch both requires a gradient and is given one"):
        make_batch().backward(make_batch())


COMPILED = {
    "functions": lambda b: (torch.cat(list(torch.split(b, 5))), torch.chunk(b, 2)[1], torch.nn.functional.normalize(b)),
    "methods": lambda b: (b.split(5)[1], b.index_select(0, ROWS), b.detach().double(), b.sum(0)),
    "rows": lambda b: (b[ROWS], b[2], b[3:], torch.stack(list(b))),
}


@pytest.mark.parametrize("use", COMPILED.values(), ids=COMPILED)
def test_the_same_under_torch_compile(use):
    torch._dynamo.reset()

    def compute(z, a, features):
        return use(S2SDEmbeddings(z, (a,), features))

    tensors = [torch.randn(B, width) for width in (4, 6, 16)]
    found = torch.compile(compute, fullgraph=True, backend="eager")(*tensors)
    for part, expected in zip(found, compute(*tensors), strict=True):
        assert type(part) is type(expected)
        torch.testing.assert_close(pytree.tree_leaves(part), pytree.tree_leaves(expected), rtol=0, atol=0)
