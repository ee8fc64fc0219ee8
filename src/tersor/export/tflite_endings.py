"""What follows an operation in an ONNX graph and is part of it in LiteRT: activation function and codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from tersor.errors import ExportError
from tersor.export.tflite import Drawing, Scales, Value

NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3  # of the schema's ActivationFunctionType
_CLIPS = {(0.0, 6.0): RELU6, (-1.0, 1.0): RELU_N1_TO_1, (0.0, np.inf): RELU}


@dataclass(frozen=True)
class Ending:
    """What follows an operation and becomes part of it: an activation function, then QuantizeLinear nodes.

    last -- the value that leaves the activation function; scales -- those of the codes; None for floats.
    """

    activation: int
    last: str
    scales: Scales | None
    nodes: tuple[NodeProto, ...]
    quantizes: tuple[NodeProto, ...]


def scales_of(drawing: Drawing, node: NodeProto) -> Scales:
    """Those of a QuantizeLinear or DequantizeLinear of activations, with codes as int8."""
    scale = drawing.array(node.input[1])
    zero = drawing.array(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
    if scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
        raise ExportError(f"{node.name}: activations have one scale and 8 bits in LiteRT's files")
    shift = 128 if zero.dtype == np.uint8 else 0
    return Scales(scale.astype(np.float32).reshape(1), int(zero.reshape(())) - shift)


def ending(drawing: Drawing, name: str, *, activations: bool = True) -> Ending:
    """What may become part of the operation that makes ``name``; not all take ``activations``."""
    activation, absorbed = NONE, []
    readers = readers_of(drawing, name)
    if activations and len(readers) == 1 and (found := _activation(drawing, readers[0])) != NONE:
        activation, name = found, readers[0].output[0]
        absorbed.append(readers[0])
        readers = readers_of(drawing, name)
    scales = None
    if readers and all(one.op_type == "QuantizeLinear" for one in readers):
        first, *others = (scales_of(drawing, one) for one in readers)
        scales = first if all(first.same(one) for one in others) else None
    quantizes = readers if scales is not None else ()
    return Ending(activation, name, scales, tuple(absorbed), tuple(quantizes))


def finish(drawing: Drawing, end: Ending, made: Value) -> None:
    """Note that ``made`` stands for an operation with its ending."""
    drawing.absorbed.update(one.output[0] for one in end.nodes)
    if drawing.tensor(made).scales is None:
        drawing.values[end.last] = made
        return
    for one in end.quantizes:
        drawing.absorbed.add(one.output[0])
        drawing.values[one.output[0]] = made


def bounds(drawing: Drawing, node: NodeProto) -> tuple[float, float]:
    """What a Clip of floats clips at."""
    given = [*node.input[1:], "", ""][:2]
    low, high = (float(drawing.array(one)) if one else None for one in given)
    return -np.inf if low is None else low, np.inf if high is None or high > 1e38 else high


def _activation(drawing: Drawing, node: NodeProto) -> int:
    if node.op_type == "Relu":
        return RELU
    if node.op_type == "Clip" and set(node.input[1:]) <= drawing.reading.constants | {""}:
        return _CLIPS.get(bounds(drawing, node), NONE)
    return NONE


def readers_of(drawing: Drawing, name: str) -> tuple[NodeProto, ...]:
    """Who reads a value; nobody may make more of an output than it is."""
    return () if name in drawing.outputs else tuple(drawing.reading.read_by.get(name, ()))
