"""Graphs that a runtime would fuse into something slower."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tersor.export.fusions import keep_apart_


def residual():
    """y = LayerNormalization(x + z)."""
    ones = numpy_helper.from_array(np.ones(64, np.float32), "scale")
    nodes = [
        helper.make_node("Add", ["x", "z"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale"], ["y"]),
    ]
    shape = ["n", "tokens", 64]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xzy"]
    graph = helper.make_graph(nodes, "g", ports[:2], ports[2:], [ones])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    x, z = np.random.default_rng(0).normal(size=(2, 2, 5, 64)).astype(np.float32)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    return session.run(None, {"x": x, "z": z})[0], kinds


def test_an_addition_before_a_norm_is_not_fused_into_it(tmp_path):
    before, fused = run(residual(), tmp_path)
    model = ir.from_proto(residual())
    keep_apart_(model.graph)
    after, kinds = run(ir.to_proto(model), tmp_path)
    assert fused == ["SkipLayerNormalization"]
    assert kinds == ["Sum", "LayerNormalization"]
    np.testing.assert_allclose(after, before, atol=1e-5)
