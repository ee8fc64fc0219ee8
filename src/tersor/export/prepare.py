"""An ONNX file of any origin made ready for points: folded by ONNX Runtime, matrices as in torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir

from tersor.errors import ExportError
from tersor.export.annotate import DOMAIN, OPSET, POINT
from tersor.export.fusions import keep_apart_
from tersor.export.graph import Layer, array_of, read_operations
from tersor.export.qdq import write_points_
from tersor.export.rewrite import constant
from tersor.export.runtimes import first_line, parse_onnx
from tersor.export.weights import Integers
from tersor.points import QuantPoint

IR_VERSION = 10  # the first with 4-bit integers


def prepared(content: bytes) -> ir.Model:
    """The graph at opset 21 or later: constants and batch norms folded, matrices as (outputs, inputs).

    Names of inputs, outputs and weights stay; a weight that a batch norm was folded into has a new one.
    Raises :class:`ExportError` for what is not ONNX and for what ONNX Runtime does not take.
    """
    proto = parse_onnx(content)
    _fix_initializers_(proto)
    opsets = {one.domain: one.version for one in proto.opset_import}
    if opsets.get("", opsets.get("ai.onnx", OPSET)) < OPSET:
        try:
            proto = onnx.version_converter.convert_version(proto, OPSET)
        except Exception as error:  # a RuntimeError, or what its C++ throws
            raise ExportError(f"opset {opsets.get('')} cannot be converted to {OPSET}: {first_line(error)}; "
                              f"export the model with opset {OPSET} or later") from error  # fmt: skip
    folded = onnx.shape_inference.infer_shapes(_folded(proto))
    model = ir.from_proto(folded)
    used = {node.domain for node in model.graph.all_nodes()}
    for domain in set(model.opset_imports) - used - {""}:
        model.opset_imports.pop(domain)
    _lay_out_(model.graph, read_operations(model).layers.values())
    return model


def with_outputs(model: ir.Model, values: Iterable[str]) -> bytes:
    """The same graph with further values among its outputs, at the end and in this order."""
    copy = model.clone()
    made = {str(output.name): output for node in copy.graph for output in node.outputs}
    copy.graph.outputs.extend(made[name] for name in values)
    return serialized(copy)


def quantized(
    model: ir.Model,
    points: Mapping[str, QuantPoint],
    weights: Mapping[str, Integers],
    integer: Iterable[str],
    *,
    bare: Collection[str] = (),
) -> tuple[bytes, Mapping[str, str]]:
    """The file with activations quantized at ``points``, by value, and with ``weights`` as codes.

    Beside it the weights, of those in ``integer``, whose layers stay float: name and reason.

    integer -- the weights that integer layers read; bare -- as in :func:`tersor.export.qdq.write_points_`.
    Outputs keep their names.
    """
    copy = model.clone()
    graph = copy.graph
    names = [str(one.name) for one in graph.outputs]
    _insert_points_(graph, points, weights)
    copy.opset_imports[DOMAIN] = 1
    dropped = write_points_(copy, points, weights, integer, bare=bare)
    keep_apart_(graph)
    _rename_outputs_(graph, names)
    copy.producer_name, copy.producer_version = "tersor", ""
    return serialized(copy), dropped


def serialized(model: ir.Model) -> bytes:
    """The bytes of the file, the same each time, without inferred shapes."""
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")
    try:
        content: bytes = proto.SerializeToString(deterministic=True)
    except ValueError as error:
        raise ExportError(f"the graph does not fit into one ONNX file of 2 GiB: {error}") from error
    return content


def _fix_initializers_(model: onnx.ModelProto) -> None:
    """Take initializers out of the inputs, where old exporters list them too: they are constants."""
    named = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in named]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, IR_VERSION)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """What ONNX Runtime's basic optimizations make of it: still ONNX, for any runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "folded.onnx"))
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common class of their own
            raise ExportError(f"ONNX Runtime does not take the model: {first_line(error)}") from error
        return onnx.load(options.optimized_model_filepath)


def _lay_out_(graph: ir.Graph, layers: Iterable[Layer]) -> None:
    """Matrices as (outputs, inputs): read by a Gemm as they are, by a MatMul through a Transpose."""
    products = [layer for layer in layers if layer.node.op_type != "Conv"]
    fresh: dict[ir.Value, ir.Value] = {}
    for weight in dict.fromkeys(layer.weight for layer in products if layer.turned):
        readers = [layer.node for layer in products if layer.turned and layer.weight is weight]
        alone = all(use.node in readers and use.idx == 1 for use in weight.uses())
        name = str(weight.name)
        if alone:
            graph.initializers.pop(name, None)
        fresh[weight] = constant(graph, name if alone else f"{name}_turned", array_of(weight).T)
    for layer in products:
        node, weight = layer.node, fresh[layer.weight] if layer.turned else layer.weight
        if node.op_type == "Gemm":
            node.attributes["transB"] = ir.AttrInt64("transB", 1)
            node.replace_input_with(1, weight)
            continue
        name = f"{weight.name}_for_{node.outputs[0].name}"
        turn = ir.node("Transpose", [weight], attributes={"perm": [1, 0]}, name=name)
        turn.outputs[0].name = name
        graph.insert_before(node, turn)
        node.replace_input_with(1, turn.outputs[0])


def _insert_points_(graph: ir.Graph, values: Iterable[str], weights: Iterable[str]) -> None:
    first = graph[0]
    made = {str(one.name): one for node in graph for one in node.outputs}
    fed = {str(one.name): one for one in graph.inputs}
    for name in weights:
        _point_(graph, graph.initializers[name], f"weight:{name}", first)
    for name in values:
        if name in made:
            maker = made[name].producer()
            assert maker is not None
            _point_(graph, made[name], f"value:{name}", maker, after=True)
        else:
            _point_(graph, fed[name], f"value:{name}", first)


def _point_(graph: ir.Graph, value: ir.Value, name: str, beside: ir.Node, *, after: bool = False) -> None:
    uses = [(use.node, use.idx) for use in value.uses()]
    point = ir.node(POINT, [value], attributes={"name": name}, domain=DOMAIN, name=name)
    target = point.outputs[0]
    target.name, target.shape, target.type = f"{name}_point", value.shape, value.type
    (graph.insert_after if after else graph.insert_before)(beside, point)
    for node, index in uses:
        node.replace_input_with(index, target)
    for at, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[at] = target


def _rename_outputs_(graph: ir.Graph, names: list[str]) -> None:
    """Give outputs that stand for others the names of these."""
    made = {str(one.name): one for node in graph for one in node.outputs}
    for output, name in zip(graph.outputs, names, strict=True):
        if output.name != name:
            if name in made:
                made[name].name = f"{name}_float"
            output.name = name
