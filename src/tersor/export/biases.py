"""Biases in an ONNX graph with points: int32 in integer layers, and out of the way where a layer stays float.

ONNX Runtime takes a layer between two points for an integer one, and quantizes its float weights and biases
itself. So what is to stay float adds its bias behind the layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tersor.export.annotate import point_name
from tersor.export.rewrite import constant, dequantizer, like, plain_gemm, replace_value_
from tersor.export.weights import Integers

_INT32 = np.iinfo(np.int32).max
FINE = 0.25  # of a code of the result: a bias on int32 is rounded to this, or stays float
_LAYERS = ("Conv", "ConvTranspose", "Gemm")


def too_coarse(graph: ir.Graph, weights: Mapping[str, Integers], integer: Collection[str]) -> dict[str, str]:
    """The weights, of those in ``integer``, whose layers an int32 bias does not suit: name and reason.

    It would be too large, or too coarse, at the product of the scales. Points on values are in place, those
    on weights are not.
    """
    found = {}
    for node in graph:
        if node.op_type == "ConvTranspose" or not _has_bias(node):  # that one is never integer
            continue
        kind, _, name = point_name(node.inputs[1]).partition(":")
        scale = _grid_behind(node.inputs[0])
        if kind != "weight" or name not in integer or not weights[name].fuses or scale is None:
            continue
        step = scale * weights[name].scale
        if not (np.abs(_codes(node, step)) <= _INT32).all():
            found[name] = "its bias would not fit into int32: the layer is computed in floats"
        elif float(step.max()) > FINE * _code(node):
            found[name] = "its bias would be too coarse in int32: the layer is computed in floats"
    return found


def quantize_biases_(graph: ir.Graph) -> None:
    """Biases between integers as int32 at the product of the scales (Jacob et al. 2018, section 2.4)."""
    for node in list(graph):
        if not _has_bias(node):
            continue
        scales = _grid_behind(node.inputs[0]), _scale_behind(node.inputs[1])
        if scales[0] is None or scales[1] is None:
            continue
        bias, step = node.inputs[2], scales[0] * scales[1]
        assert bias is not None
        name = str(bias.name)
        if len(list(bias.consumers())) > 1:
            name = f"{name}_{node.name}"
        else:
            graph.initializers.pop(name, None)  # a Constant node may make it
        inputs = [
            constant(graph, name, _codes(node, step).astype(np.int32)),
            constant(graph, f"{name}_scale", step),
            constant(graph, f"{name}_zero_point", np.zeros(step.shape, np.int32)),
        ]
        attributes = {"axis": 0} if step.ndim else {}
        back = ir.node("DequantizeLinear", inputs, attributes=attributes, name=f"{name}_DequantizeLinear")
        like(back.outputs[0], bias, f"{name}_dequantized")
        graph.insert_before(node, back)
        node.replace_input_with(2, back.outputs[0])


def stay_float_(graph: ir.Graph) -> None:
    """Layers with float weights between points: a Sum behind them, which nothing fuses, adds the bias."""
    for node in list(graph):
        if node.op_type not in _LAYERS or _grid_behind(node.inputs[0]) is None or not _quantized_after(node):
            continue
        if _scale_behind(node.inputs[1]) is not None:
            continue
        output, terms = node.outputs[0], [node.outputs[0]]
        if _has_bias(node):
            terms.append(_broadcast(graph, node))
            node.resize_inputs(2)
        total = ir.node("Sum", terms, name=f"{node.name}_apart")
        replace_value_(graph, output, like(total.outputs[0], output, f"{output.name}_apart"))
        total.replace_input_with(0, output)
        graph.insert_after(node, total)


def _has_bias(node: ir.Node) -> bool:
    """Whether a layer adds a stored bias as it is."""
    if not (node.op_type in ("Conv", "ConvTranspose") or plain_gemm(node)) or len(node.inputs) < 3:
        return False
    return node.inputs[2] is not None and node.inputs[2].const_value is not None


def _values(node: ir.Node) -> NDArray[np.float32]:
    bias = node.inputs[2]
    assert bias is not None and bias.const_value is not None
    return bias.const_value.numpy()


def _codes(node: ir.Node, step: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.rint(_values(node).astype(np.float64) / step.astype(np.float64))


def _code(node: ir.Node) -> float:
    """What a code of a layer's result stands for; of a float result, 0 if few bits go in, else no limit."""
    for reader in _quantized_after(node):
        if reader.inputs[1] is not None and reader.inputs[1].const_value is not None:
            return float(reader.inputs[1].const_value.numpy())
    back = dequantizer(node.inputs[0])
    codes = None if back is None or back.inputs[0] is None else back.inputs[0].producer()
    return 0.0 if codes is not None and codes.op_type == "Clip" else np.inf


def _quantized_after(node: ir.Node) -> list[ir.Node]:
    """What quantizes the result of a layer, or of the activation function that belongs to it."""
    readers = list(node.outputs[0].consumers())
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = list(readers[0].outputs[0].consumers())
    return [one for one in readers if one.op_type == "QuantizeLinear"]


def _grid_behind(value: ir.Value | None) -> NDArray[np.float32] | None:
    """The one scale of the codes that an activation is made of; None if it is made of floats."""
    producer = dequantizer(value)
    scale = None if producer is None else producer.inputs[1]
    if scale is None or scale.const_value is None or len(scale.const_value.shape):
        return None
    found: NDArray[np.float32] = scale.const_value.numpy()
    return found


def _scale_behind(value: ir.Value | None) -> NDArray[np.float32] | None:
    """The scale of the DequantizeLinear that makes a weight: one for all, or one for each first index."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or "block_size" in producer.attributes:
        return None
    scale = producer.inputs[1]
    if scale is None or scale.const_value is None:
        return None
    found: NDArray[np.float32] = scale.const_value.numpy()
    return found if not found.ndim or producer.attributes["axis"].as_int() == 0 else None


def _broadcast(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """The bias in the shape in which it is added to the result of its layer."""
    bias, kernel = node.inputs[2], node.inputs[1]
    assert bias is not None and kernel is not None and kernel.shape is not None
    shape = (1, -1, *[1] * (len(kernel.shape) - 2)) if node.op_type != "Gemm" else (-1,)
    return constant(graph, f"{bias.name}_apart", _values(node).reshape(shape))
