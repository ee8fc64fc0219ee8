"""Write points into an ONNX graph, in the forms that runtimes fold and fuse.

QuantizeLinear, DequantizeLinear, named after the point. Weights: :mod:`tersor.export.weights`, biases:
:mod:`tersor.export.biases`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from tersor.export.annotate import DOMAIN, point_name, points
from tersor.export.biases import quantize_biases_, stay_float_, too_coarse
from tersor.export.rewrite import (
    TRANSPARENT,
    constant,
    drop_unread_,
    like,
    only,
    plain_gemm,
    replace_node_,
)
from tersor.export.weights import Integers, write_weight_
from tersor.points import QuantPoint, label


def write_points_(
    model: ir.Model,
    activations: Mapping[str, QuantPoint],
    weights: Mapping[str, Integers],
    integer: Iterable[str],
    *,
    bare: Collection[str] = (),
    probed: Iterable[str] = (),
) -> dict[str, str]:
    """Replace the points of an annotated model, in place; returns what of ``integer`` is not, and why.

    activations -- by the name of the value; weights -- by name, as codes; integer -- the weights that integer
        layers read. bare -- values that lie on the grid of what was moved, or picked from, to make them: they
        get no pair of their own where runtimes need none.
    probed -- values whose points become further outputs, in this order: what they are once quantized, or
        before that where the runtime takes the scale from each batch.
    """
    graph, integer = model.graph, set(integer)
    fed = {f"value:{name}" for name, point in activations.items() if point.dynamic}
    fed |= {f"weight:{name}" for name, weight in weights.items() if weight.block}
    _split_gemms(graph, fed)
    made = _Made({}, set())
    values: dict[str, ir.Value] = {}
    placed = points(model)
    for node, kind, name in placed:
        if kind == "value" and activations[name].dynamic:
            _spare(graph, node)
    for node, kind, name in placed:
        if kind == "value":
            source, target = only(node.inputs), node.outputs[0]
            maker = source.producer()
            if name in bare and maker is not None and maker.op_type in TRANSPARENT:
                replace_node_(graph, node, [], target, source)
                continue
            values[name] = source if activations[name].dynamic else target
            made_of = _quantize_value(graph, node, activations[name], made)
            values = {one: made_of if value is target else value for one, value in values.items()}
    dropped = too_coarse(graph, weights, integer & weights.keys())
    integer -= dropped.keys()
    for node, kind, name in placed:
        if kind == "weight":
            write_weight_(graph, node, name, weights.get(name), name in integer)
    quantize_biases_(graph)
    stay_float_(graph)
    _multiply_integers(graph)
    model.opset_imports.pop(DOMAIN, None)
    for at, name in enumerate(probed):
        probe = ir.node("Identity", [values[name]], name=f"probe_{at}")
        like(probe.outputs[0], values[name], f"probe_{at}")
        graph.append(probe)
        graph.outputs.append(probe.outputs[0])
    drop_unread_(graph)
    return dropped


@dataclass(frozen=True)
class _Made:
    """The pairs that are there: what they give, by what they read and how; and their names."""

    pairs: dict[tuple[ir.Value, QuantPoint], ir.Value]
    names: set[str]


def _spare(graph: ir.Graph, node: ir.Node) -> None:
    """Let only products with a stored matrix read a point: what is quantized batch by batch is for these."""
    source, target = only(node.inputs), node.outputs[0]
    for use in list(target.uses()):
        if use.idx or use.node.op_type != "MatMul" or not _stored(use.node.inputs[1]):
            use.node.replace_input_with(use.idx, source)
    for at, output in enumerate(graph.outputs):
        if output is target:
            graph.outputs[at] = source


def _stored(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Transpose":
        value = producer.inputs[0]
    return point_name(value).startswith("weight:")


def _quantize_value(graph: ir.Graph, node: ir.Node, point: QuantPoint, made: _Made) -> ir.Value:
    """Pairs behind a value; where the exporter made one of two equal values, equal points share theirs."""
    source, target = only(node.inputs), node.outputs[0]
    behind = source.producer()
    if behind is not None and behind.op_type == "DequantizeLinear":  # the exporter dropped a move in between
        replace_node_(graph, node, [], target, source)
        return source
    alike = source, replace(point, path="", operation="", index=0)
    if alike not in made.pairs:
        name = label(point.key)
        if name in made.names:  # what only moves or picks elements is on their grid
            name = f"{name}_at_{source.name}"
        made.names.add(name)
        write = _pair_each_batch if point.dynamic else _pair
        nodes = write(graph, source, point, name)
        graph.insert_before(node, nodes)
        made.pairs[alike] = nodes[-1].outputs[0]
    replace_node_(graph, node, [], target, made.pairs[alike])
    return made.pairs[alike]


def _pair(graph: ir.Graph, source: ir.Value, point: QuantPoint, name: str) -> list[ir.Node]:
    scale = constant(graph, f"{name}_scale", np.float32(point.scale).reshape(()))
    dtype = np.int8 if point.signed else np.uint8
    zero_point = constant(graph, f"{name}_zero_point", np.array(point.zero_point, dtype))
    quantize = ir.node("QuantizeLinear", [source, scale, zero_point], name=f"{name}_QuantizeLinear")
    integer = ir.DataType.from_numpy(np.dtype(dtype))
    codes = like(quantize.outputs[0], source, f"{name}_quantized", integer)
    nodes = [quantize]
    if point.bits < 8:  # among the codes: a Clip in front of QuantizeLinear would keep a layer from fusing
        ends = zip(("low", "high"), (point.low, point.high), strict=True)
        bounds = [constant(graph, f"{name}_{end}", np.array(code, dtype)) for end, code in ends]
        nodes.append(ir.node("Clip", [codes, *bounds], name=f"{name}_Clip"))
        codes = like(nodes[-1].outputs[0], source, f"{name}_clipped", integer)
    back = ir.node("DequantizeLinear", [codes, scale, zero_point], name=f"{name}_DequantizeLinear")
    like(back.outputs[0], source, f"{name}_dequantized")
    return [*nodes, back]


def _pair_each_batch(graph: ir.Graph, source: ir.Value, point: QuantPoint, name: str) -> list[ir.Node]:
    quantize = ir.node("DynamicQuantizeLinear", [source], num_outputs=3, name=f"{name}_DynamicQuantizeLinear")
    for output, word in zip(quantize.outputs, ("quantized", "scale", "zero_point"), strict=True):
        output.name = f"{name}_{word}"
    back = ir.node("DequantizeLinear", quantize.outputs, name=f"{name}_DequantizeLinear")
    like(back.outputs[0], source, f"{name}_dequantized")
    return [quantize, back]


def _split_gemms(graph: ir.Graph, fed: Collection[str]) -> None:
    """Gemm -> Transpose, MatMul, Add where it reads one of these points: the form that fuses.

    That is what is quantized batch by batch, and weights in blocks.
    """
    for node in list(graph):
        if not plain_gemm(node) or not any(point_name(value) in fed for value in node.inputs[:2]):
            continue
        output = node.outputs[0]
        turn = ir.node("Transpose", [node.inputs[1]], attributes={"perm": [1, 0]}, name=f"{node.name}_turned")
        turn.outputs[0].name = f"{output.name}_turned"
        product = ir.node("MatMul", [node.inputs[0], turn.outputs[0]], name=f"{node.name}_MatMul")
        nodes, value = [turn, product], like(product.outputs[0], output, f"{output.name}_product")
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            # With an Add, ONNX Runtime takes a MatMul of blocks for a Gemm again, for which it has no kernel.
            blocks = point_name(node.inputs[1]) in fed
            total = ir.node("Sum" if blocks else "Add", [value, node.inputs[2]], name=f"{node.name}_Add")
            nodes, value = [*nodes, total], like(total.outputs[0], output, f"{output.name}_biased")
        replace_node_(graph, node, nodes, output, value)


def _multiply_integers(graph: ir.Graph) -> None:
    """MatMul -> MatMulInteger where its left side is quantized batch by batch: that fuses at any rank."""
    for node in list(graph):
        sides = [value.producer() if value is not None else None for value in node.inputs[:2]]
        if node.op_type != "MatMul" or any(one is None or one.op_type != "DequantizeLinear" for one in sides):
            continue
        left, right = (one for one in sides if one is not None)
        source = left.inputs[0]
        maker = source.producer() if source is not None else None
        if maker is None or maker.op_type != "DynamicQuantizeLinear" or not _by_columns(right):
            continue
        name, output = str(node.outputs[0].name), node.outputs[0]
        factors = [left.inputs[0], right.inputs[0], left.inputs[2], right.inputs[2]]
        codes = ir.node("MatMulInteger", factors, name=f"{name}_MatMulInteger")
        floats = ir.node(
            "Cast", [codes.outputs[0]], attributes={"to": ir.DataType.FLOAT}, name=f"{name}_Cast"
        )
        scale = ir.node("Mul", [left.inputs[1], right.inputs[1]], name=f"{name}_Scale")
        product = ir.node("Mul", [floats.outputs[0], scale.outputs[0]], name=f"{name}_Mul")
        for made, word in ((codes, "codes"), (floats, "floats"), (scale, "scale"), (product, "product")):
            made.outputs[0].name = f"{name}_{word}"
        replace_node_(graph, node, [codes, floats, scale, product], output, product.outputs[0])


def _by_columns(dequantize: ir.Node) -> bool:
    """Whether a matrix has one scale, or one for each column."""
    if "block_size" in dequantize.attributes:
        return False
    scale = dequantize.inputs[1]
    if scale is None or scale.const_value is None:
        return False
    return not len(scale.const_value.shape) or dequantize.attributes["axis"].as_int() == 1
