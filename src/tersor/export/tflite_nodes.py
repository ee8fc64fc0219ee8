"""An ONNX graph as the graph of a ``.tflite`` file: a function for each operator, and the table of them.

What stands between QuantizeLinear and DequantizeLinear becomes one integer operator of LiteRT, with the same
codes and scales. What only moves or picks numbers runs on codes where its input is such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import NodeProto

from tersor.errors import ExportError
from tersor.export.runtimes import parse_onnx
from tersor.export.tflite import FREE, NHWC, Drawing, LiteGraph, LiteTensor, Value, attributes, channels_last
from tersor.export.tflite_endings import bounds, ending, finish, scales_of
from tersor.export.tflite_layers import (
    draw_add,
    draw_batch_norm,
    draw_concat,
    draw_conv,
    draw_gemm,
    draw_matmul,
)
from tersor.export.tflite_windows import draw_average_pool, draw_max_pool, draw_mean, pad

_UNARY = {
    "Sigmoid": "LOGISTIC", "Tanh": "TANH", "HardSwish": "HARD_SWISH", "Exp": "EXP", "Sqrt": "SQRT",
    "Abs": "ABS", "Neg": "NEG", "Log": "LOG",
}  # fmt: skip

_ADVICE = {"DynamicQuantizeLinear": "quantize with activations: static, whose scales the file holds"}


def lite_graph(content: bytes) -> LiteGraph:
    """The ONNX model in ``content`` as LiteRT's operators, inputs and outputs as the model has them.

    Raises :class:`ExportError` for an operator that is not in the table, or not with such attributes, and
    for shapes that are free in more than the batch.
    """
    drawing = Drawing(parse_onnx(content))
    graph = drawing.model.graph
    inputs = []
    for one in graph.input:
        if one.name not in drawing.stored:
            inputs.append(drawing.add(_input(drawing, one)))
            drawing.values[one.name] = Value(inputs[-1])
    for node in _needed(drawing):
        if node.output[0] in drawing.absorbed:
            continue
        if node.op_type not in _DRAWN or node.domain not in ("", "ai.onnx"):
            advice = _ADVICE.get(node.op_type, f"these are: {', '.join(sorted(_DRAWN))}")
            place = node.name or node.output[0]
            raise ExportError(f"{node.op_type} ({place}) is not written to LiteRT's files; {advice}")
        _DRAWN[node.op_type](drawing, node)
    outputs: list[int] = []
    for one in graph.output:
        value = drawing.turned(drawing.floating(drawing.value(one.name)), nhwc=False)
        held = drawing.tensor(value)
        if value.tensor in (*inputs, *outputs) or held.data is not None:
            value = Value(drawing.reshape(value.tensor, one.name, held.shape))
        drawing.rename(value.tensor, one.name)
        outputs.append(value.tensor)
    tensors, operators = tuple(drawing.tensors), tuple(drawing.operators)
    return LiteGraph(tensors, operators, tuple(inputs), tuple(outputs), drawing.floats)


def _input(drawing: Drawing, port: Any) -> LiteTensor:
    from onnx.helper import tensor_dtype_to_np_dtype

    dtype = np.dtype(tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type))
    return LiteTensor(port.name, dtype, drawing.shape(port.name))


def _needed(drawing: Drawing) -> list[NodeProto]:
    """The nodes that outputs are made of; what only tells shapes is none of them."""
    wanted, found = set(drawing.outputs), []
    for node in reversed(drawing.reading.nodes):
        made = set(node.output)
        if wanted.isdisjoint(made) or made <= drawing.reading.constants:
            continue
        found.append(node)
        told = node.input[:1] if node.op_type in ("Reshape", "Expand", "Unsqueeze", "Squeeze") else node.input
        wanted.update(one for one in told if one)
    return found[::-1]


def _quantize(drawing: Drawing, node: NodeProto) -> None:
    value = drawing.quantized(drawing.value(node.input[0]), scales_of(drawing, node))
    drawing.values[node.output[0]] = value


def _dequantize(drawing: Drawing, node: NodeProto) -> None:
    """The codes stand for their floats; who needs floats makes them."""
    if node.input[0] not in drawing.values:
        raise ExportError(f"{node.name}: codes that are no constant and that no QuantizeLinear makes")
    drawing.values[node.output[0]] = drawing.values[node.input[0]]


def _clip(drawing: Drawing, node: NodeProto) -> None:
    """Of codes or floats: MINIMUM after MAXIMUM, and neither where it changes nothing."""
    low, high = bounds(drawing, node)
    x = drawing.value(node.input[0])
    scales = drawing.tensor(x).scales
    maker = drawing.reading.made_by.get(node.input[0])
    if maker is not None and maker.op_type == "QuantizeLinear":
        shift = 128 if drawing.array(maker.input[2]).dtype == np.uint8 else 0
        low, high, ends = low - shift, high - shift, (-128.0, 127.0)
    else:
        x, scales, ends = drawing.floating(x), None, (-np.inf, np.inf)
    dtype = np.float32 if scales is None else np.int8
    for kind, bound, end in (("MAXIMUM", low, ends[0]), ("MINIMUM", high, ends[1])):
        if bound != end:
            limit = drawing.constant(np.array([bound], dtype), f"{node.output[0]}_{kind.lower()}", scales)
            shape = drawing.tensor(x).shape
            made = drawing.emit(kind, [x.tensor, limit], f"{node.output[0]}_{kind.lower()}d", shape, scales)
            x = Value(made, x.nhwc)
    drawing.values[node.output[0]] = x


def _relu(drawing: Drawing, node: NodeProto) -> None:
    """RELU; of codes to codes where a QuantizeLinear follows."""
    x, end = drawing.value(node.input[0]), ending(drawing, node.output[0], activations=False)
    scales = end.scales if drawing.tensor(x).scales is not None else None
    x = drawing.floating(x) if scales is None else x
    made = drawing.emit("RELU", [x.tensor], end.last, drawing.tensor(x).shape, scales)
    finish(drawing, end, Value(made, x.nhwc))


def _unary(drawing: Drawing, node: NodeProto, kind: str, **options: Any) -> None:
    x = drawing.floating(drawing.value(node.input[0]))
    made = drawing.emit(kind, [x.tensor], node.output[0], drawing.tensor(x).shape, **options)
    drawing.values[node.output[0]] = Value(made, x.nhwc)


def _plain_unary(drawing: Drawing, node: NodeProto) -> None:
    _unary(drawing, node, _UNARY[node.op_type])


def _leaky_relu(drawing: Drawing, node: NodeProto) -> None:
    _unary(drawing, node, "LEAKY_RELU", alpha=float(attributes(node).get("alpha", 0.01)))


def _softmax(drawing: Drawing, node: NodeProto) -> None:
    """SOFTMAX or LOG_SOFTMAX over the last axis."""
    rank = len(drawing.shape(node.input[0]))
    x = drawing.turned(drawing.floating(drawing.value(node.input[0])), nhwc=False)
    if attributes(node).get("axis", -1) % rank != rank - 1:
        raise ExportError(f"{node.name or node.output[0]}: {node.op_type} over another axis than the last")
    options: dict[str, Any] = {"beta": 1.0} if node.op_type == "Softmax" else {}
    kind = "SOFTMAX" if node.op_type == "Softmax" else "LOG_SOFTMAX"
    made = drawing.emit(kind, [x.tensor], node.output[0], drawing.shape(node.output[0]), **options)
    drawing.values[node.output[0]] = Value(made)


def _same(drawing: Drawing, node: NodeProto) -> None:
    drawing.values[node.output[0]] = drawing.value(node.input[0])


def _reshape(drawing: Drawing, node: NodeProto) -> None:
    x = drawing.turned(drawing.value(node.input[0]), nhwc=False)
    shape = drawing.shape(node.output[0])
    if shape != drawing.tensor(x).shape:
        x = Value(drawing.reshape(x.tensor, node.output[0], shape))
    drawing.values[node.output[0]] = x


def _transpose(drawing: Drawing, node: NodeProto) -> None:
    x = drawing.turned(drawing.value(node.input[0]), nhwc=False)
    shape = drawing.shape(node.output[0])
    order = attributes(node).get("perm") or range(len(shape))[::-1]
    turn = drawing.constant(np.array(list(order), np.int32), f"{node.output[0]}_order")
    made = drawing.emit("TRANSPOSE", [x.tensor, turn], node.output[0], shape, drawing.tensor(x).scales)
    drawing.values[node.output[0]] = Value(made)


def _expand(drawing: Drawing, node: NodeProto) -> None:
    """TILE, as often as a size of 1 became another."""
    x = drawing.turned(drawing.value(node.input[0]), nhwc=False)
    held, shape = drawing.tensor(x), drawing.shape(node.output[0])
    if len(held.shape) != len(shape):
        wide = (1,) * (len(shape) - len(held.shape)) + held.shape
        x = Value(drawing.reshape(x.tensor, f"{node.output[0]}_wide", wide))
        held = drawing.tensor(x)
    times = [1 if now == after else after for now, after in zip(held.shape, shape, strict=True)]
    if FREE in times:
        raise ExportError(f"{node.name or node.output[0]}: Expand to the size of the batch")
    amounts = drawing.constant(np.array(times, np.int32), f"{node.output[0]}_times")
    made = drawing.emit("TILE", [x.tensor, amounts], node.output[0], shape, held.scales)
    drawing.values[node.output[0]] = Value(made)


def _slice(drawing: Drawing, node: NodeProto) -> None:
    """STRIDED_SLICE; of an axis that is taken whole it says no numbers."""
    shape, x = drawing.shape(node.input[0]), drawing.value(node.input[0])
    starts, ends, *rest = ([int(n) for n in drawing.array(one)] for one in node.input[1:])
    axes, steps = (
        rest[0] if rest else list(range(len(starts))),
        rest[1] if len(rest) > 1 else [1] * len(starts),
    )
    begin, stop, stride = [0] * len(shape), [0] * len(shape), [1] * len(shape)
    whole = set(range(len(shape)))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        if step < 1 or (size == FREE and (start, step) != (0, 1)):
            raise ExportError(f"{node.name or node.output[0]}: Slice backwards, or of the batch")
        if size == FREE or ((start, step) == (0, 1) and end >= size):
            continue
        at = axis % len(shape)
        begin[at], stop[at], _ = slice(start, end).indices(size)
        stride[at] = step
        whole.discard(at)
    made_shape = drawing.shape(node.output[0])
    if x.nhwc:
        begin, stop, stride = ([one[axis] for axis in NHWC] for one in (begin, stop, stride))
        made_shape = channels_last(made_shape)
        whole = {NHWC.index(axis) for axis in whole}
    mask = sum(1 << axis for axis in whole)
    places = [drawing.constant(np.array(one, np.int32), f"{node.output[0]}_{word}")
              for one, word in ((begin, "begin"), (stop, "end"), (stride, "strides"))]  # fmt: skip
    made = drawing.emit(
        "STRIDED_SLICE", [x.tensor, *places], node.output[0], made_shape, drawing.tensor(x).scales,
        beginMask=mask, endMask=mask,
    )  # fmt: skip
    drawing.values[node.output[0]] = Value(made, x.nhwc)


def _pad(drawing: Drawing, node: NodeProto) -> None:
    """PAD or PADV2 by constants; zeros on codes."""
    if attributes(node).get("mode", "constant") != "constant":
        raise ExportError(f"{node.name or node.output[0]}: Pad in mode {attributes(node)['mode']}")
    rank, x = len(drawing.shape(node.input[0])), drawing.value(node.input[0])
    given = [int(one) for one in drawing.array(node.input[1])]
    axes = [int(one) % rank for one in drawing.array(node.input[3])] if len(node.input) > 3 else range(rank)
    filler = float(drawing.array(node.input[2])) if len(node.input) > 2 and node.input[2] else 0.0
    if min(given, default=0) < 0:
        raise ExportError(f"{node.name or node.output[0]}: Pad by less than nothing")
    amounts = [(0, 0)] * rank
    for axis, before, after in zip(axes, given[: len(given) // 2], given[len(given) // 2 :], strict=True):
        amounts[axis] = (before, after)
    amounts = [amounts[axis] for axis in NHWC] if x.nhwc else amounts
    if filler:
        x = drawing.floating(x)
    made = pad(drawing, x, amounts, node.output[0], np.array(filler, np.float32) if filler else None)
    drawing.values[node.output[0]] = made


_DRAWN: Mapping[str, Callable[[Drawing, NodeProto], None]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": draw_conv,
    "Gemm": draw_gemm,
    "MatMul": draw_matmul,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), draw_add),
    "BatchNormalization": draw_batch_norm,
    "Concat": draw_concat,
    "MaxPool": draw_max_pool,
    "AveragePool": draw_average_pool,
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), draw_mean),
    "Relu": _relu,
    "Clip": _clip,
    **dict.fromkeys(_UNARY, _plain_unary),
    "LeakyRelu": _leaky_relu,
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Expand": _expand,
    "Slice": _slice,
    "Pad": _pad,
}
