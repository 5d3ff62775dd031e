"""Small ONNX models, made by hand."""

import onnx
from onnx import TensorProto, helper


def mean_colour(path, shape=("batch", 3, 4, 4), dtype=TensorProto.FLOAT, outputs=1, keep=0):
    """Images to their mean colours, less 0.4; several outputs are the same one."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=keep),
        *(helper.make_node("Sub", ["means", "shift"], [f"embeddings{i}"]) for i in range(outputs)),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info(f"embeddings{i}", dtype, None) for i in range(outputs)],
        [helper.make_tensor("shift", dtype, [], [0.4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
