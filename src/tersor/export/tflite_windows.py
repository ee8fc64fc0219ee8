"""Poolings and padding as LiteRT's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from tersor.errors import ExportError
from tersor.export.tflite import FREE, Drawing, Scales, Value, attributes, channels_last
from tersor.export.tflite_endings import NONE, ending, finish

SAME, VALID = 0, 1  # of the schema's Padding


def draw_max_pool(drawing: Drawing, node: NodeProto) -> None:
    """MAX_POOL_2D, on codes where its input is such."""
    height, width, fields = window_of(drawing, node)
    x = drawing.turned(drawing.value(node.input[0]), nhwc=True)
    scales = drawing.tensor(x).scales
    least = np.array(-128, np.int8) if scales else np.array(np.finfo(np.float32).min, np.float32)
    x, padding = padded(drawing, node, x, (height, width), least)
    made = _pool(drawing, "MAX_POOL_2D", node, x, padding, fields, scales)
    drawing.values[node.output[0]] = Value(made, nhwc=True)


def draw_average_pool(drawing: Drawing, node: NodeProto) -> None:
    """AVERAGE_POOL_2D of floats; of codes a depthwise convolution, which may have other scales behind it."""
    height, width, fields = window_of(drawing, node)
    x, end = (
        drawing.turned(drawing.value(node.input[0]), nhwc=True),
        ending(drawing, node.output[0], activations=False),
    )
    own = drawing.tensor(x).scales
    if any(fields.get("pads", [0])) and not fields.get("count_include_pad", 0):
        raise ExportError(f"{node.name or node.output[0]}: an average that leaves its padding out")
    if own is None or end.scales is None:
        x, padding = padded(drawing, node, drawing.floating(x), (height, width), None)
        made = _pool(drawing, "AVERAGE_POOL_2D", node, x, padding, fields, None)
        drawing.values[node.output[0]] = Value(made, nhwc=True)
        return
    x, padding = padded(drawing, node, x, (height, width), None)
    if padding == SAME:
        raise ExportError(f"{node.name or node.output[0]}: an average over padding")
    shape, kernel = channels_last(drawing.shape(node.output[0])), fields["kernel_shape"]
    part = Scales(np.full(shape[3], 1 / (kernel[0] * kernel[1]), np.float32), axis=3)
    ones = drawing.constant(np.ones((1, *kernel, shape[3]), np.int8), f"{end.last}_ones", part)
    steps = Scales(own.scale * part.scale)
    zeros = drawing.constant(np.zeros(shape[3], np.int32), f"{end.last}_zeros", steps)
    strides = fields.get("strides", [1, 1])
    made = drawing.emit(
        "DEPTHWISE_CONV_2D", [x.tensor, ones, zeros], end.last, shape, end.scales,
        padding=padding, strideH=strides[0], strideW=strides[1], depthMultiplier=1,
    )  # fmt: skip
    finish(drawing, end, Value(made, nhwc=True))


def draw_mean(drawing: Drawing, node: NodeProto) -> None:
    """MEAN over given axes, or over the image."""
    shape, fields = drawing.shape(node.input[0]), attributes(node)
    axes = list(range(2, len(shape)))
    if node.op_type == "ReduceMean":
        axes = fields.get("axes") or [int(one) for one in drawing.array(node.input[1])]
    axes, keep = [axis % len(shape) for axis in axes], bool(fields.get("keepdims", 1))
    x, end = drawing.value(node.input[0]), ending(drawing, node.output[0], activations=False)
    if x.nhwc and not (keep or set(axes) == {2, 3}):
        x = drawing.turned(x, nhwc=False)
    scales = end.scales if drawing.tensor(x).scales is not None else None
    x = drawing.floating(x) if scales is None else x
    over = sorted((0, 3, 1, 2)[axis] if x.nhwc else axis for axis in axes)
    places = drawing.constant(np.array(over, np.int32), f"{node.output[0]}_axes")
    made_shape = drawing.shape(node.output[0])
    nhwc = x.nhwc and keep
    made = drawing.emit(
        "MEAN", [x.tensor, places], end.last, channels_last(made_shape) if nhwc else made_shape, scales,
        keepDims=keep,
    )  # fmt: skip
    finish(drawing, end, Value(made, nhwc))


def window_of(drawing: Drawing, node: NodeProto) -> tuple[int, int, dict[str, Any]]:
    """What a window reaches over, high and wide; and the attributes.

    Raises :class:`ExportError` for windows that LiteRT does not have.
    """
    shape, fields, name = drawing.shape(node.input[0]), attributes(node), node.name or node.output[0]
    if len(shape) != 4 or FREE in shape[1:]:
        raise ExportError(f"{name}: {node.op_type} of {len(shape)} axes or of images of no fixed size")
    if fields.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ExportError(f"{name}: {node.op_type} with auto_pad {fields['auto_pad']}")
    dilations = fields.get("dilations", [1, 1])
    if node.op_type != "Conv" and (any(one != 1 for one in dilations) or fields.get("ceil_mode", 0)):
        raise ExportError(f"{name}: {node.op_type} with dilations or ceil_mode")
    kernel = fields.get("kernel_shape") or drawing.shape(node.input[1])[2:]
    height, width = (1 + (size - 1) * far for size, far in zip(kernel, dilations, strict=True))
    return height, width, fields


def padded(
    drawing: Drawing, node: NodeProto, x: Value, window: tuple[int, int], filler: NDArray[Any] | None
) -> tuple[Value, int]:
    """The input and the kind of padding: LiteRT's own where it is the same, else a PAD in front.

    filler -- what is padded with, for PADV2; None for zero.
    """
    fields = attributes(node)
    top, left, bottom, right = fields.get("pads", [0, 0, 0, 0])
    if not any((top, left, bottom, right)):
        return x, VALID
    sizes, strides = drawing.shape(node.input[0])[2:], fields.get("strides", [1, 1])
    ends = []
    for size, reach, stride in zip(sizes, window, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        ends.append((total // 2, total - total // 2))
    if ends == [(top, bottom), (left, right)] and node.op_type != "AveragePool":
        return x, SAME
    amounts = ((0, 0), (top, bottom), (left, right), (0, 0))
    return pad(drawing, x, amounts, f"{node.output[0]}_padded", filler), VALID


def pad(
    drawing: Drawing, x: Value, amounts: Sequence[tuple[int, int]], name: str, filler: NDArray[Any] | None
) -> Value:
    """PAD, or PADV2 with a filler (of the dtype of ``x``); codes keep their scales."""
    held = drawing.tensor(x)
    shape = [
        size if size == FREE else size + sum(more) for size, more in zip(held.shape, amounts, strict=True)
    ]
    inputs = [x.tensor, drawing.constant(np.array(amounts, np.int32), f"{name}_amounts")]
    if filler is not None:
        inputs.append(drawing.constant(filler, f"{name}_filler", held.scales))
    made = drawing.emit("PAD" if filler is None else "PADV2", inputs, name, shape, held.scales)
    return Value(made, x.nhwc)


def _pool(
    drawing: Drawing, kind: str, node: NodeProto, x: Value, padding: int, fields: dict[str, Any],
    scales: Scales | None,
) -> int:  # fmt: skip
    strides, kernel = fields.get("strides", [1, 1]), fields["kernel_shape"]
    shape = channels_last(drawing.shape(node.output[0]))
    return drawing.emit(
        kind, [x.tensor], node.output[0], shape, scales, padding=padding, filterHeight=kernel[0],
        filterWidth=kernel[1], strideH=strides[0], strideW=strides[1], fusedActivationFunction=NONE,
    )  # fmt: skip
