"""Layers with weights, and additions, as LiteRT's operators: integer between points, else float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from tersor.errors import ExportError
from tersor.export.tflite import Coded, Drawing, Scales, Value, attributes, channels_last
from tersor.export.tflite_endings import NONE, Ending, ending, finish, readers_of
from tersor.export.tflite_windows import padded, window_of

_INT32 = 2**31 - 1


def draw_conv(drawing: Drawing, node: NodeProto) -> None:
    """CONV_2D, or DEPTHWISE_CONV_2D where each channel is by itself."""
    height, width, fields = window_of(drawing, node)
    channels, weight = drawing.shape(node.input[0])[1], drawing.shape(node.input[1])
    x = drawing.turned(drawing.value(node.input[0]), nhwc=True)
    depthwise = weight[1] == 1 and fields.get("group", 1) == channels > 1
    x, padding = padded(drawing, node, x, (height, width), None)
    strides, dilations = fields.get("strides", [1, 1]), fields.get("dilations", [1, 1])
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
    }
    if depthwise:
        options["depthMultiplier"] = weight[0] // channels
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    bias = node.input[2] if len(node.input) > 2 else ""
    kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    end = ending(drawing, node.output[0])
    layer = _Layer(kind, x, node.input[1], order, bias, channels_last(drawing.shape(node.output[0])), options)
    made = _draw_layer(drawing, layer, end)
    finish(drawing, end, Value(made, nhwc=True))


def draw_gemm(drawing: Drawing, node: NodeProto) -> None:
    """FULLY_CONNECTED, for what is x @ w.T + b or x @ w + b."""
    fields = attributes(node)
    if fields.get("alpha", 1.0) != 1 or fields.get("beta", 1.0) != 1 or fields.get("transA", 0):
        raise ExportError(f"{node.name or node.output[0]}: Gemm with factors or a transposed input")
    order = (0, 1) if fields.get("transB", 0) else (1, 0)
    bias = node.input[2] if len(node.input) > 2 else ""
    _fully_connected(drawing, node, order, bias, ending(drawing, node.output[0]))


def draw_matmul(drawing: Drawing, node: NodeProto) -> None:
    """FULLY_CONNECTED with the addition of a bias after it; BATCH_MATMUL of two activations."""
    left, right = node.input
    if right not in drawing.reading.constants or len(drawing.shape(right)) != 2:
        operands = [drawing.turned(drawing.floating(drawing.value(one)), nhwc=False) for one in (left, right)]
        made = drawing.emit(
            "BATCH_MATMUL", [one.tensor for one in operands], node.output[0], drawing.shape(node.output[0])
        )
        drawing.values[node.output[0]] = Value(made)
        return
    readers, bias, last = readers_of(drawing, node.output[0]), "", node.output[0]
    if len(readers) == 1 and readers[0].op_type in ("Add", "Sum") and len(readers[0].input) == 2:
        other = next((one for one in readers[0].input if one != last), last)
        if other in drawing.reading.constants and drawing.shape(other) == drawing.shape(right)[1:]:
            bias, last = other, readers[0].output[0]
            drawing.absorbed.add(last)
    _fully_connected(drawing, node, (1, 0), bias, ending(drawing, last))


def draw_batch_norm(drawing: Drawing, node: NodeProto) -> None:
    """MUL and ADD of floats, for a batch norm that is not folded."""
    gain, shift, mean, variance = (drawing.array(one).astype(np.float64) for one in node.input[1:5])
    factor = gain / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    x = drawing.turned(drawing.floating(drawing.value(node.input[0])), nhwc=True)
    held, name = drawing.tensor(x), node.output[0]
    if len(held.shape) not in (2, 4):
        raise ExportError(f"{node.name or name}: BatchNormalization of {len(held.shape)} axes")
    for kind, numbers in (("MUL", factor), ("ADD", shift - mean * factor)):
        other = drawing.constant(numbers.astype(np.float32), f"{name}_{kind.lower()}_numbers")
        made = drawing.emit(
            kind, [x.tensor, other], f"{name}_{kind.lower()}", held.shape, fusedActivationFunction=NONE
        )
        x = Value(made, x.nhwc)
    drawing.values[name] = x


def draw_add(drawing: Drawing, node: NodeProto) -> None:
    """ADD, SUB, MUL or DIV; the first and third on codes too."""
    kind = {"Sum": "ADD"}.get(node.op_type, node.op_type.upper())
    if len(node.input) != 2:
        if len(node.input) == 1:
            drawing.values[node.output[0]] = drawing.value(node.input[0])
            return
        raise ExportError(f"{node.name or node.output[0]}: a sum of {len(node.input)} values")
    end = ending(drawing, node.output[0])
    shape = drawing.shape(node.output[0])
    operands = _alike(drawing, [_operand(drawing, name, len(shape)) for name in node.input])
    whole = all(drawing.tensor(one).scales is not None for one in operands) and kind in ("ADD", "MUL")
    scales = end.scales if whole else None
    if scales is None:
        operands = [drawing.floating(one) for one in operands]
    nhwc = any(one.nhwc for one in operands)
    made = drawing.emit(
        kind, [one.tensor for one in operands], end.last, channels_last(shape) if nhwc else shape, scales,
        fusedActivationFunction=end.activation,
    )  # fmt: skip
    finish(drawing, end, Value(made, nhwc))


def draw_concat(drawing: Drawing, node: NodeProto) -> None:
    """CONCATENATION; of codes, after all have the scales of the result."""
    end, shape = ending(drawing, node.output[0], activations=False), drawing.shape(node.output[0])
    operands = _alike(drawing, [drawing.value(one) for one in node.input])
    nhwc = any(one.nhwc for one in operands)
    whole = all(drawing.tensor(one).scales is not None for one in operands)
    scales = end.scales if whole else None
    operands = [
        drawing.floating(one) if scales is None else drawing.quantized(one, scales) for one in operands
    ]
    axis = attributes(node)["axis"] % len(shape)
    made = drawing.emit(
        "CONCATENATION", [one.tensor for one in operands], end.last,
        channels_last(shape) if nhwc else shape, scales,
        axis=(0, 3, 1, 2)[axis] if nhwc else axis, fusedActivationFunction=NONE,
    )  # fmt: skip
    finish(drawing, end, Value(made, nhwc))


@dataclass(frozen=True)
class _Layer:
    kind: str
    x: Value
    weight: str
    order: tuple[int, ...]
    bias: str
    shape: tuple[int, ...]
    options: dict[str, Any]


def _fully_connected(
    drawing: Drawing, node: NodeProto, order: tuple[int, int], bias: str, end: Ending
) -> None:
    x = drawing.turned(drawing.value(node.input[0]), nhwc=False)
    shape = drawing.shape(node.output[0])
    layer = _Layer("FULLY_CONNECTED", x, node.input[1], order, bias, shape, {"keepNumDims": len(shape) != 2})
    finish(drawing, end, Value(_draw_layer(drawing, layer, end)))


def _draw_layer(drawing: Drawing, layer: _Layer, end: Ending) -> int:
    """The operator with its weight and its bias; the number of the tensor that it makes."""
    coded = drawing.coded(layer.weight)
    coded = None if coded is None else coded.arranged(layer.order)
    own = drawing.tensor(layer.x).scales
    options = {**layer.options, "fusedActivationFunction": end.activation}
    if own is not None and coded is not None and end.scales is not None:
        outputs = coded.codes.shape[coded.axis] if len(coded.scale) > 1 else layer.shape[-1]
        step = np.broadcast_to(own.scale * coded.scale, (outputs,)).astype(np.float32)
        codes = _bias_codes(drawing, layer.bias, step)
        by_output = len(coded.scale) == 1 or coded.axis == layer.order.index(_outputs_of(layer))
        if codes is not None and by_output:
            weight = drawing.constant(
                coded.codes,
                drawing.origin(layer.weight),
                Scales(coded.scale, axis=coded.axis if len(coded.scale) > 1 else 0),
            )
            bias = drawing.constant(
                codes, drawing.origin(layer.bias) or f"{end.last}_bias", Scales(step[: len(coded.scale)])
            )
            inputs = [layer.x.tensor, weight, bias]
            return drawing.emit(layer.kind, inputs, end.last, layer.shape, end.scales, **options)
    inputs = [drawing.floating(layer.x).tensor, _float_weight(drawing, layer, coded)]
    added = drawing.array(layer.bias) if layer.bias else np.zeros(layer.shape[-1], np.float32)
    inputs.append(drawing.constant(added, drawing.origin(layer.bias) or f"{end.last}_bias"))
    return drawing.emit(layer.kind, inputs, end.last, layer.shape, **options)


def _outputs_of(layer: _Layer) -> int:
    """The axis of the outputs in the weight as the ONNX graph has it."""
    return 1 if layer.order == (1, 0) else 0


def _float_weight(drawing: Drawing, layer: _Layer, coded: Coded | None) -> int:
    """A weight as floats: made of its codes when the file is loaded, if it has such."""
    if coded is None:
        _note_floats(drawing, layer.weight)
        return drawing.constant(
            drawing.array(layer.weight).transpose(layer.order), drawing.origin(layer.weight)
        )
    scales = Scales(coded.scale, axis=coded.axis if len(coded.scale) > 1 else 0)
    return drawing.floating(Value(drawing.constant(coded.codes, drawing.origin(layer.weight), scales))).tensor


def _note_floats(drawing: Drawing, weight: str) -> None:
    """Say which stored codes became floats."""
    name = drawing.origin(weight)
    if drawing.array(name).dtype != np.float32:
        drawing.floats[name] = (
            "LiteRT's kernels take codes from -127 to 127 around 0, with one scale for each output"
        )


def _bias_codes(drawing: Drawing, bias: str, step: NDArray[np.float32]) -> NDArray[np.int32] | None:
    """A bias at these steps, the file's own codes if it has such; None for one that does not fit."""
    if not bias:
        return np.zeros(step.shape, np.int32)
    maker = drawing.reading.made_by.get(bias)
    if maker is not None and maker.op_type == "DequantizeLinear":
        codes = drawing.array(maker.input[0])
        if codes.dtype == np.int32:
            return np.asarray(codes, np.int32)
    floats = drawing.array(bias).astype(np.float64).reshape(-1)
    wanted = np.rint(floats / step.astype(np.float64))
    return wanted.astype(np.int32) if (np.abs(wanted) <= _INT32).all() else None


def _operand(drawing: Drawing, name: str, rank: int) -> Value:
    """A value, of a constant with as many axes as the result: it may have to be turned."""
    if name in drawing.reading.constants and rank == 4:
        array = drawing.array(name)
        if array.size > 1:
            wide = array.reshape((1,) * (rank - array.ndim) + array.shape)
            return Value(drawing.constant(wide, name))
    return drawing.value(name)


def _alike(drawing: Drawing, values: Sequence[Value]) -> list[Value]:
    """All with their channels at the same place."""
    shapes = [drawing.tensor(one).shape for one in values]
    images = all(len(one) == 4 or prod(one) == 1 for one in shapes)
    nhwc = images and any(one.nhwc for one in values)
    return [drawing.turned(one, nhwc) for one in values]
