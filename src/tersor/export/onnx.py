"""A traced model with its codes and points as one ONNX file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from tersor.errors import ExportError, VerificationError
from tersor.export.annotate import annotated_onnx
from tersor.export.fusions import keep_apart_
from tersor.export.qdq import write_points_
from tersor.model.trace import Traced
from tersor.points import Operation, Placement, QuantPoint, place, spell
from tersor.tensor.codebook import int8_levels
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor

MAX_BYTES = 2**31 - 1  # of a protobuf message


@dataclass(frozen=True)
class Drawn:
    """An ONNX file, and the same with the values at its points as further outputs.

    probed -- the names of these values in the traced graph, in order; empty without points.
    """

    content: bytes
    probe: bytes
    probed: tuple[str, ...]


def draw_onnx(traced: Traced, tensors: Mapping[str, CompressedTensor], points: Iterable[QuantPoint]) -> Drawn:
    """An ONNX file of the model that ``traced`` was made of: opset 21, names as in its ``state_dict``.

    tensors -- what the ``.tersor`` file holds: those with codes keep them, 4 bits where they fit.
    points -- where activations are quantized; layers between them are written for integer kernels.

    The same arguments give the same bytes. Raises :class:`ExportError` for an operator that ONNX does not
    have and for codes that runtimes do not take, :class:`VerificationError` for points that are not the
    model's.
    """
    stored = {point.key: point for point in points}
    coded = _coded(traced, tensors)
    placement = stored_placement(traced, coded, stored.values())
    values = {value: stored[key] for value, key in placement.points.items()}
    values |= {value: values[root] for value, root in placement.follows.items()}
    integer = {
        name for one in placement.decisions if one.action == "integer" for name in one.operation.weights
    }
    annotated = annotated_onnx(traced, values, coded)
    probed = tuple(placement.points)

    def written(model: ir.Model, exposed: tuple[str, ...]) -> bytes:
        write_points_(model, values, coded, integer, exposed)
        keep_apart_(model.graph)
        model.producer_name, model.producer_version = "tersor", ""
        return _serialized(model)

    probe = written(annotated.clone(), probed) if probed else b""
    return Drawn(written(annotated, ()), probe, probed)


def stored_placement(traced: Traced, coded: Iterable[str], points: Iterable[QuantPoint]) -> Placement:
    """Where the points of a file are in a model: those layers are integer whose inputs all have one.

    Raises :class:`VerificationError` for a point too many or too few.
    """
    keys = {point.key: point for point in points}
    dynamic = any(point.dynamic for point in keys.values())
    names = {("", "input", at): name for at, name in enumerate(traced.inputs)}
    full = place(traced.operations, traced.inputs, coded, dynamic=dynamic)
    readers = [one.operation for one in full.decisions if one.action == "integer" and one.operation.weights]
    kept = [name for one in readers if _fed(one, full, traced, set(keys), dynamic) for name in one.weights]
    placed = place(traced.operations, traced.inputs, kept, dynamic=dynamic)
    differing = set(placed.points.values()) ^ set(keys)
    if differing:
        key = min(differing)
        kind = "has" if key in keys else "lacks"
        raise VerificationError(f"the file {kind} a point {spell(key)}, which does not fit this model "
                                f"({len(names)} inputs): was it made of another one?")  # fmt: skip
    return placed


def _fed(
    operation: Operation, full: Placement, traced: Traced, keys: set[tuple[str, str, int]], dynamic: bool
) -> bool:
    """Whether all that a layer reads has a point."""
    for value in operation.inputs:
        root = value if dynamic else full.follows.get(value, value)
        if full.points.get(root) not in keys:
            return False
    return True


def _coded(traced: Traced, tensors: Mapping[str, CompressedTensor]) -> dict[str, CompressedTensor]:
    """The tensors of the graph that runtimes can take as integers."""
    read = set(traced.tensors.values())
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in read
        and (
            isinstance(tensor.form, Affine)
            or (isinstance(tensor.form, Codebook) and int8_levels(tensor.form.codebook) is not None)
        )
    }


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
