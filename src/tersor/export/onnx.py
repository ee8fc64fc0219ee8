"""A traced model with its codes and points as one ONNX file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import torch

from tersor.errors import ExportError
from tersor.export.annotate import annotated_onnx
from tersor.export.fusions import keep_apart_
from tersor.export.qdq import write_points_
from tersor.export.weights import Integers, integers
from tersor.model.trace import Traced, check_general
from tersor.points import QuantPoint, placement_of, spell
from tersor.tensor.compressed import CompressedTensor, Raw

MAX_BYTES = 2**31 - 1  # of a protobuf message


@dataclass(frozen=True)
class Drawn:
    """An ONNX file, and the same with the values at its points as further outputs.

    probed -- the names of these values in the traced graph, in order; empty without points.
    floats -- the tensors whose codes runtimes cannot compute with: name and reason. They are stored as the
        floats that they stand for, or as codes of which the runtime makes these.
    """

    content: bytes
    probe: bytes
    probed: tuple[str, ...]
    floats: Mapping[str, str]


def draw_onnx(
    traced: Traced,
    tensors: Mapping[str, CompressedTensor],
    points: Iterable[QuantPoint],
    *,
    every_grid: bool = False,
) -> Drawn:
    """An ONNX file of the model that ``traced`` was made of: opset 21, names as in its ``state_dict``.

    tensors -- what the ``.tersor`` file holds: those with codes keep them, 4 bits where they fit.
    points -- where activations are quantized; layers between them are written for integer kernels.
    every_grid -- a pair behind what only moves elements too, for a format where each value has its grid.

    The same arguments give the same bytes. Raises :class:`ExportError` for an operator that ONNX does not
    have, :class:`TaskError` for a graph that does not take all batches, :class:`VerificationError` for
    points that are not the model's.
    """
    check_general(traced)
    stored = {point.key: point for point in points}
    coded, floats = _coded(traced, tensors)
    placement = placement_of(traced.operations, traced.inputs, coded, stored.values())
    _check_float32(traced, placement.points)
    values = {value: stored[key] for value, key in placement.points.items()}
    values |= {value: values[root] for value, root in placement.follows.items()}
    bare = () if every_grid else set(placement.follows)
    layers = [one.operation for one in placement.decisions if one.action == "integer"]
    integer = {name for one in layers for name in one.weights[:1]}
    annotated = annotated_onnx(traced, values, _matrices(traced))
    probed = tuple(placement.points)

    def written(model: ir.Model, exposed: tuple[str, ...]) -> bytes:
        floats.update(write_points_(model, values, coded, integer, bare=bare, probed=exposed))
        keep_apart_(model.graph)
        model.producer_name, model.producer_version = "tersor", ""
        return _serialized(model)

    probe = written(annotated.clone(), probed) if probed else b""
    content = written(annotated, ())
    return Drawn(content, probe, probed, floats)


def _coded(
    traced: Traced, tensors: Mapping[str, CompressedTensor]
) -> tuple[dict[str, Integers], dict[str, str]]:
    """The tensors of the graph that runtimes take as integers; of others with codes, why they do not."""
    read = set(traced.tensors.values())
    readers: dict[str, set[str]] = {}
    for one in traced.operations:
        for name in one.weights:
            readers.setdefault(name, set()).add(one.kind)
    coded: dict[str, Integers] = {}
    floats: dict[str, str] = {}
    for name, tensor in tensors.items():
        if name not in read or isinstance(tensor.form, Raw):
            continue
        found = integers(tensor, readers.get(name, ()))
        if isinstance(found, str):
            floats[name] = found
        else:
            coded[name] = found
    return coded, floats


def _matrices(traced: Traced) -> set[str]:
    """What gets a point of its own, and so its name, whatever the exporter makes of it."""
    nodes = traced.graph.find_nodes(op="placeholder")
    read = {traced.tensors[node.name]: node for node in nodes if node.name in traced.tensors}
    return {
        name
        for name, node in read.items()
        if node.meta["val"].ndim > 1 and node.meta["val"].is_floating_point()
    }


def _check_float32(traced: Traced, points: Mapping[str, tuple[str, str, int]]) -> None:
    for node in traced.graph.nodes:
        if node.name in points and node.meta["val"].dtype != torch.float32:
            dtype = str(node.meta["val"].dtype).removeprefix("torch.")
            raise ExportError(f"{spell(points[node.name])} is {dtype}: points are exported on float32 alone; "
                              "convert the model before it is quantized")  # fmt: skip


def _serialized(model: ir.Model) -> bytes:
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")  # runtimes infer the shapes; 12 KB of a ResNet-20 in four bits
    try:
        content: bytes = proto.SerializeToString(deterministic=True)
    except ValueError as error:
        raise ExportError(f"the graph does not fit into one ONNX file of 2 GiB: {error}") from error
    if len(content) > MAX_BYTES:
        raise ExportError(f"the graph takes {len(content):,} bytes; one ONNX file holds 2 GiB")
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph that was written is not valid ONNX: {error}") from error
    return content
