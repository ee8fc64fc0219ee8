"""Write points and integer weights into an ONNX graph, in the forms that runtimes fold and fuse.

Activations: QuantizeLinear, DequantizeLinear. Weights of integer layers: DequantizeLinear on int8, behind a
Cast where four bits are stored, behind a Gather where they are a codebook on an int8 grid. Weights of float
layers: Cast and Mul, which runtimes compute once when they load (a DequantizeLinear they would compute at
every inference). Biases: int32 at the product of the two scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tersor.errors import ExportError
from tersor.export.annotate import DOMAIN, POINT, points
from tersor.points import QuantPoint
from tersor.tensor.codebook import int8_levels
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor
from tersor.tensor.groups import group_shape

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False)
class Integers:
    """A weight as runtimes take it: value = (codes - zero_point) * scale, channels along ``axis``.

    codes -- int8 or uint8, or int4 or uint4 where all fit; or indices into ``codebook`` (int8).
    scale -- a scalar, a vector along ``axis``, or with ``block`` one for each block along ``axis``.
    """

    codes: NDArray[Any]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int = 0
    block: int = 0
    codebook: NDArray[np.int8] | None = None

    def transposed(self) -> Integers:
        """The same of the transposed matrix."""
        scale = self.scale.T if self.block else self.scale
        zero_point = self.zero_point.T if self.block else self.zero_point
        return Integers(self.codes.T, scale, zero_point, 1 - self.axis, self.block, self.codebook)


def write_points_(
    model: ir.Model,
    activations: Mapping[str, QuantPoint],
    weights: Mapping[str, CompressedTensor],
    integer: Iterable[str],
    probed: Iterable[str] = (),
) -> None:
    """Replace the points of an annotated model, in place.

    activations -- by the name of the value; weights -- by name, as codes; integer -- the weights that integer
        layers read. ``probed`` -- values whose points become further outputs, in this order: what they are
        once quantized, or before that where the runtime takes the scale from each batch.
    """
    graph, integer = model.graph, set(integer)
    _split_gemms(graph, {name for name, point in activations.items() if point.dynamic})
    made: dict[tuple[ir.Value, QuantPoint], ir.Value] = {}
    values: dict[str, ir.Value] = {}
    for node, kind, name in points(model):
        if kind == "value":
            source, target = _only(node.inputs), node.outputs[0]
            values[name] = source if activations[name].dynamic else target
            placed = _quantize_value(graph, node, activations[name], made)
            values = {one: placed if value is target else value for one, value in values.items()}
        else:
            _quantize_weight(graph, node, name, integers(weights[name], name), name in integer)
    _quantize_biases(graph)
    _multiply_integers(graph)
    model.opset_imports.pop(DOMAIN, None)
    for at, name in enumerate(probed):
        probe = ir.node("Identity", [values[name]], name=f"probe_{at}")
        _like(probe.outputs[0], values[name], f"probe_{at}")
        graph.append(probe)
        graph.outputs.append(probe.outputs[0])
    _drop_unread(graph)


def integers(tensor: CompressedTensor, name: str) -> Integers:
    """The codes of a weight; a codebook has to lie on an int8 grid.

    Raises :class:`ExportError` for one that does not.
    """
    form = tensor.form
    if isinstance(form, Codebook):
        found = int8_levels(form.codebook)
        if found is None:
            raise ExportError(
                f"the {len(form.codebook)} codebooks of {name} are not one on an int8 grid: cluster it per "
                "tensor, and put a quantize step after that"
            )
        scale, levels = found
        codes = form.codes.astype(ml_dtypes.uint4) if len(levels) <= 16 else form.codes
        zero = np.zeros((), np.int32)
        return Integers(codes, np.full((), scale, np.float32), zero, codebook=levels)
    if not isinstance(form, Affine):
        raise ExportError(f"{name} has no codes: a quantize or a cluster step has to come before the export")
    return _affine(tensor, form, name)


def _affine(tensor: CompressedTensor, form: Affine, name: str) -> Integers:
    codes, zero_point = form.codes, form.zero_point
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    dtype: Any
    if low >= -8 and high <= 7:
        dtype = ml_dtypes.int4
    elif low >= 0 and high <= 15:
        dtype = ml_dtypes.uint4
    elif low >= -128 and high <= 127:
        dtype = np.int8
    elif low >= 0 and high <= 255:
        dtype = np.uint8
    else:
        raise ExportError(f"{name} has codes from {low} to {high}: runtimes take 8 bits at most")
    kind, axis = form.granularity.kind, form.granularity.axis % max(len(tensor.shape), 1)
    scale = _even_scales(codes, form)
    packed = codes.astype(dtype)
    if kind == "tensor":
        return Integers(packed, scale.reshape(()), zero_point.reshape(()))
    if kind == "channel":
        return Integers(packed, scale, zero_point, axis)
    if len(tensor.shape) != 2 or axis != 0:
        raise ExportError(
            f"{name} of shape {tensor.shape} has blocks along axis {axis}: runtimes take blocks of matrices, "
            "along their rows"
        )
    shape = group_shape(tensor.shape, form.granularity)
    return Integers(packed, scale.reshape(shape), zero_point.reshape(shape), 1, form.granularity.size)


def _even_scales(codes: NDArray[np.int32], form: Affine) -> NDArray[np.float32]:
    """The scales; that of a channel of zeros is free, and set so that its bias fits into an int32."""
    if form.granularity.kind != "channel":
        return form.scale
    rest = tuple(at for at in range(codes.ndim) if at != form.granularity.axis % codes.ndim)
    empty = ~codes.any(axis=rest) & (form.zero_point == 0)
    return np.where(empty, form.scale.max(initial=0), form.scale).astype(np.float32)


def _quantize_value(
    graph: ir.Graph, node: ir.Node, point: QuantPoint, made: dict[tuple[ir.Value, QuantPoint], ir.Value]
) -> ir.Value:
    """Pairs behind a value; where the exporter made one of two equal values, equal points share theirs."""
    source, target = _only(node.inputs), node.outputs[0]
    behind = source.producer()
    if behind is not None and behind.op_type == "DequantizeLinear":  # the exporter dropped a move in between
        _replace(graph, node, [], target, source)
        return source
    alike = source, replace(point, path="", operation="", index=0)
    if alike not in made:
        twins = sum(value is source for value, _ in made)
        name = f"{source.name}_{twins}" if twins else str(source.name)
        write = _pair_each_batch if point.dynamic else _pair
        nodes = write(graph, source, point, name)
        graph.insert_before(node, nodes)
        made[alike] = nodes[-1].outputs[0]
    _replace(graph, node, [], target, made[alike])
    return made[alike]


def _pair(graph: ir.Graph, source: ir.Value, point: QuantPoint, name: str) -> list[ir.Node]:
    scale = _constant(graph, f"{name}_scale", np.float32(point.scale).reshape(()))
    dtype = np.int8 if point.signed else np.uint8
    zero_point = _constant(graph, f"{name}_zero_point", np.array(point.zero_point, dtype))
    nodes = []
    if point.bits < 8:
        ends = [np.float32(point.scale) * (end - point.zero_point) for end in (point.low, point.high)]
        bounds = [
            _constant(graph, f"{name}_{end}", np.float32(value).reshape(()))
            for end, value in zip(("low", "high"), ends, strict=True)
        ]
        clip = ir.node("Clip", [source, *bounds], name=f"{name}_Clip")
        _like(clip.outputs[0], source, f"{name}_clipped")
        nodes.append(clip)
        source = clip.outputs[0]
    quantize = ir.node("QuantizeLinear", [source, scale, zero_point], name=f"{name}_QuantizeLinear")
    _like(quantize.outputs[0], source, f"{name}_quantized", ir.DataType.from_numpy(np.dtype(dtype)))
    back = ir.node(
        "DequantizeLinear", [quantize.outputs[0], scale, zero_point], name=f"{name}_DequantizeLinear"
    )
    _like(back.outputs[0], source, f"{name}_dequantized")
    return [*nodes, quantize, back]


def _pair_each_batch(graph: ir.Graph, source: ir.Value, point: QuantPoint, name: str) -> list[ir.Node]:
    quantize = ir.node("DynamicQuantizeLinear", [source], num_outputs=3, name=f"{name}_DynamicQuantizeLinear")
    for output, word in zip(quantize.outputs, ("quantized", "scale", "zero_point"), strict=True):
        output.name = f"{name}_{word}"
    back = ir.node("DequantizeLinear", quantize.outputs, name=f"{name}_DequantizeLinear")
    _like(back.outputs[0], source, f"{name}_dequantized")
    return [quantize, back]


def _split_gemms(graph: ir.Graph, dynamic: set[str]) -> None:
    """Gemm -> Transpose, MatMul, Add where what it reads is quantized batch by batch: the form that fuses."""
    fed = {f"value:{name}" for name in dynamic}
    for node in list(graph):
        producer = node.inputs[0].producer() if node.op_type == "Gemm" and node.inputs[0] else None
        if producer is None or producer.op_type != POINT:
            continue
        if producer.attributes["name"].as_string() not in fed or "transB" not in node.attributes:
            continue
        output = node.outputs[0]
        turn = ir.node("Transpose", [node.inputs[1]], attributes={"perm": [1, 0]})
        product = ir.node("MatMul", [node.inputs[0], turn.outputs[0]], name=f"{node.name}_MatMul")
        nodes, value = [turn, product], product.outputs[0]
        _like(value, output, f"{output.name}_product")
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            total = ir.node("Add", [value, node.inputs[2]], name=f"{node.name}_Add")
            nodes, value = [*nodes, total], total.outputs[0]
            _like(value, output, f"{output.name}_biased")
        _replace(graph, node, nodes, output, value)


def _multiply_integers(graph: ir.Graph) -> None:
    """MatMul -> MatMulInteger where its left side is quantized batch by batch: that fuses at any rank."""
    for node in list(graph):
        sides = [value.producer() if value is not None else None for value in node.inputs[:2]]
        if node.op_type != "MatMul" or any(one is None or one.op_type != "DequantizeLinear" for one in sides):
            continue
        left, right = (list(one.inputs) for one in sides if one is not None)
        maker = left[0].producer() if left[0] is not None else None
        if maker is None or maker.op_type != "DynamicQuantizeLinear":
            continue
        label, output = str(node.outputs[0].name), node.outputs[0]
        codes = ir.node(
            "MatMulInteger", [left[0], right[0], left[2], right[2]], name=f"{label}_MatMulInteger"
        )
        floats = ir.node(
            "Cast", [codes.outputs[0]], attributes={"to": ir.DataType.FLOAT}, name=f"{label}_Cast"
        )
        scale = ir.node("Mul", [left[1], right[1]], name=f"{label}_Scale")
        product = ir.node("Mul", [floats.outputs[0], scale.outputs[0]], name=f"{label}_Mul")
        for made, word in ((codes, "codes"), (floats, "floats"), (scale, "scale"), (product, "product")):
            made.outputs[0].name = f"{label}_{word}"
        _replace(graph, node, [codes, floats, scale, product], output, product.outputs[0])


def _quantize_weight(graph: ir.Graph, node: ir.Node, name: str, weight: Integers, integer: bool) -> None:
    """One set of nodes for each way in which the weight is read: as it is, or transposed."""
    target = node.outputs[0]
    source = _only(node.inputs)
    graph.initializers.pop(str(source.name), None)
    turned = [user for user in target.consumers() if _swaps(user)]
    straight = len(turned) < len(list(target.consumers()))
    for transposed in (False, True):
        if not (turned if transposed else straight):
            continue
        held = weight.transposed() if transposed else weight
        label = f"{name}_transposed" if transposed and straight else name
        nodes, value = _decoded(graph, label, held, integer)
        graph.insert_before(node, nodes)
        if transposed:
            for user in turned:
                ir.convenience.replace_all_uses_with(user.outputs[0], value)
                graph.remove(user, safe=True)
        else:
            _keep_output(graph, target, value)
            ir.convenience.replace_all_uses_with(target, value)
    graph.remove(node, safe=True)


def _decoded(graph: ir.Graph, name: str, weight: Integers, integer: bool) -> tuple[list[ir.Node], ir.Value]:
    codes = _constant(graph, name, weight.codes)
    scale = _constant(graph, f"{name}_scale", weight.scale)
    nodes: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value], suffix: str, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes, name=f"{name}_{suffix}")
        node.outputs[0].name = f"{name}_{suffix.lower()}"
        nodes.append(node)
        return node.outputs[0]

    value = codes
    container: Any = weight.codes.dtype
    if weight.codebook is not None:
        book = _constant(graph, f"{name}_codebook", weight.codebook)
        index = add("Cast", [codes], "Index", to=ir.DataType.INT32)
        value, container = add("Gather", [book, index], "Level", axis=0), np.dtype(np.int8)
    elif container in (ml_dtypes.int4, ml_dtypes.uint4) and not weight.block:
        container = np.dtype(np.int8 if container == ml_dtypes.int4 else np.uint8)
        value = add("Cast", [codes], "Widened", to=ir.DataType.from_numpy(container))
    if integer or weight.block:
        zero = _constant(graph, f"{name}_zero_point", weight.zero_point.astype(container))
        attributes: dict[str, Any] = {"axis": weight.axis} if weight.scale.ndim else {}
        if weight.block:
            attributes["block_size"] = weight.block
        return nodes, add("DequantizeLinear", [value, scale, zero], "DequantizeLinear", **attributes)
    value = add("Cast", [value], "Float", to=ir.DataType.FLOAT)
    wide = [1] * weight.codes.ndim
    if weight.scale.ndim:
        wide[weight.axis] = -1
    graph.initializers.pop(f"{name}_scale")
    scale = _constant(graph, f"{name}_scale", weight.scale.reshape(wide))
    if weight.zero_point.any():
        offset = weight.zero_point.astype(np.float32).reshape(wide)
        value = add("Sub", [value, _constant(graph, f"{name}_zero_point", offset)], "Centered")
    return nodes, add("Mul", [value, scale], "Scaled")


def _quantize_biases(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        scales = [_scale_behind(value) for value in node.inputs[:2]]
        bias = node.inputs[2]
        if any(one is None for one in scales) or bias.const_value is None:
            continue
        step = np.asarray(scales[0], np.float32) * np.asarray(scales[1], np.float32)
        values = bias.const_value.numpy().astype(np.float64)
        codes = np.clip(np.rint(values / step.astype(np.float64)), _INT32.min, _INT32.max).astype(np.int32)
        name = str(bias.name)
        label = name if len(list(bias.consumers())) == 1 else f"{name}_{node.name}"
        if label == name:
            graph.initializers.pop(name)
        inputs = [
            _constant(graph, label, codes),
            _constant(graph, f"{label}_scale", step),
            _constant(graph, f"{label}_zero_point", np.zeros(step.shape, np.int32)),
        ]
        attributes = {"axis": 0} if step.ndim else {}
        back = ir.node("DequantizeLinear", inputs, attributes=attributes, name=f"{label}_DequantizeLinear")
        _like(back.outputs[0], bias, f"{label}_dequantized")
        graph.insert_before(node, back)
        node.replace_input_with(2, back.outputs[0])


def _scale_behind(value: ir.Value | None) -> NDArray[np.float32] | None:
    """The scale of the DequantizeLinear that makes a value; one for each channel or for all."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or "block_size" in producer.attributes:
        return None
    scale = producer.inputs[1]
    return None if scale is None or scale.const_value is None else scale.const_value.numpy()


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node], old: ir.Value, new: ir.Value) -> None:
    graph.insert_before(node, nodes)
    _keep_output(graph, old, new)
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)


def _keep_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for at, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[at] = new


def _drop_unread(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(list(one.uses()) or one.is_graph_output() for one in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not list(value.uses()) and not any(one is value for one in graph.outputs):
            graph.initializers.pop(name)


def _swaps(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]


def _only(values: Iterable[ir.Value | None]) -> ir.Value:
    (value,) = values
    assert value is not None
    return value


def _like(value: ir.Value, other: ir.Value, name: str, dtype: ir.DataType | None = None) -> None:
    value.name = name
    value.shape = other.shape
    value.type = other.type if dtype is None else ir.TensorType(dtype)


def _constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)  # ascontiguousarray makes a scalar a vector
    shape = ir.Shape(np.shape(array))
    value = ir.Value(name=name, const_value=tensor, shape=shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value
