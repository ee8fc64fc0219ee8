"""An ONNX file as named tensors and the graph without them, and back.

In that graph each tensor that was taken out still stands in its place, with name, dtype and shape but without
data: no valid ONNX, and nothing that could be mistaken for a reference to another file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch

from tersor.artifact.words import bit_view, dtype_name, from_bits
from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import FormatError, VerificationError, in_context
from tersor.export.runtimes import parse_onnx, read_content

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

ATTACHMENT = "graph.onnx"
MAX_BYTES = 2**31 - 1  # of a protobuf message
SMALL = 64  # values that are no floats: shapes, axes and indices stay where they are

# ONNX's names of the dtypes that torch has too; others, of strings and of 4 bits, stay in the graph.
_DTYPES = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "BOOL": "bool",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "COMPLEX64": "complex64", "COMPLEX128": "complex128",
    "FLOAT8E4M3FN": "float8_e4m3fn", "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz", "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_DATA = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True)
class OnnxWeights:
    """The tensors of an ONNX file, and its graph without them as bytes.

    tensors -- initializers by name, and what Constant nodes hold by the name of their output.
    """

    tensors: Mapping[str, TensorProto]
    graph: bytes
    size_bytes: int

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        from onnx.numpy_helper import to_array

        tensor = self.tensors[name]
        try:
            array = to_array(tensor)
        except (ValueError, TypeError) as error:
            raise FormatError(f"its data do not fit its shape {tuple(tensor.dims)}: {error}") from error
        words = array.reshape(-1)
        if words.dtype.kind == "c":
            words = words.view(f"f{words.dtype.itemsize // 2}")
        dtype = _dtype(tensor)
        assert dtype is not None
        return from_bits(words.view(f"u{words.dtype.itemsize}").copy(), dtype, tuple(tensor.dims))


def open_onnx(path: Path) -> OnnxWeights:
    """Take the tensors out of an ONNX file: floats with a dimension, and others of more than 64 values.

    What shares its name with an earlier one, in another branch or function, stays in the graph. Raises
    :class:`ExportError` for what is not ONNX, or keeps tensors in other files.
    """
    with in_context(str(path)):
        content = read_content(path)
        size = len(content)
        model = parse_onnx(content)
        del content
        taken: dict[str, TensorProto] = {}
        for name, tensor in _tensors(model):
            with in_context(name):
                _check(tensor)
            if _to_take(tensor) and name and name not in taken:
                taken[name] = type(tensor)()
                taken[name].CopyFrom(tensor)
                for field in _DATA:
                    tensor.ClearField(field)
        return OnnxWeights(taken, model.SerializeToString(deterministic=True), size)


def write_onnx(
    path: Path,
    graph: bytes,
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    read: Callable[[str], torch.Tensor],
) -> int:
    """The inverse of :func:`open_onnx`: fill the graph and write it; returns the bytes of the file.

    shapes -- shape and dtype of each tensor that ``read`` gives. Raises :class:`FormatError` for a graph that
    they do not fit, before any is read.
    """
    with in_context(ATTACHMENT):
        model = _parsed(graph)
        lacking = [(name, tensor) for name, tensor in _tensors(model) if _lacks_data(tensor)]
        empty = dict(lacking)
        if set(empty) != set(shapes) or len(empty) != len(lacking):
            odd = min(set(empty) ^ set(shapes), default=lacking[0][0] if lacking else "")
            raise FormatError(f"the file and its graph do not agree about the tensor {odd!r}")
        for name, tensor in empty.items():
            _check(tensor, lacking=True)
            shape, dtype = shapes[name]
            if tuple(tensor.dims) != shape or _dtype(tensor) != dtype:
                raise FormatError(f"{name} is {dtype} {shape}, in the graph {_dtype(tensor)} "
                                  f"{tuple(tensor.dims)}")  # fmt: skip
        size = sum(prod(shape) * getattr(torch, dtype).itemsize for shape, dtype in shapes.values())
        if size + len(graph) > MAX_BYTES:
            raise FormatError(f"its tensors take {size:,} bytes; one ONNX file holds 2 GiB")
    for name, tensor in empty.items():
        words = bit_view(read(name))
        tensor.raw_data = words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
    return _write(path, model.SerializeToString(deterministic=True))


def _write(path: Path, content: bytes) -> int:
    target = Path(os.path.realpath(path))
    with replacing(target) as partial, disk_errors(target):
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if crc32(partial.read_bytes()) != crc32(content):
            raise VerificationError(f"{target}: the file does not give back what was written")
    return len(content)


def _parsed(graph: bytes) -> ModelProto:
    from google.protobuf.message import DecodeError
    from onnx import load_model_from_string

    try:
        return load_model_from_string(graph)
    except DecodeError as error:
        raise FormatError("it is not an ONNX graph") from error


def _tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor of the file in one order, subgraphs and functions too; ``""`` for one without a name."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from (("", one) for one in (sparse.values, sparse.indices))
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[tuple[str, TensorProto]]:
    node: NodeProto
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                constant = node.op_type == "Constant" and attribute.name == "value"
                yield node.output[0] if constant else "", attribute.t
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for one in (*sparse, *attribute.sparse_tensors):
                yield from (("", part) for part in (one.values, one.indices))
            yield from (("", one) for one in attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(inner)


def _check(tensor: TensorProto, *, lacking: bool = False) -> None:
    if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
        raise FormatError("it lies in another file: save the model as one file")
    if any(size < 0 for size in tensor.dims):
        raise FormatError(f"its shape is {tuple(tensor.dims)}")
    if not lacking and _lacks_data(tensor):
        raise FormatError("it has no data")


def _lacks_data(tensor: TensorProto) -> bool:
    return prod(tensor.dims) > 0 and not any(getattr(tensor, field) for field in _DATA)


def _to_take(tensor: TensorProto) -> bool:
    dtype, values = _dtype(tensor), prod(tensor.dims)
    if dtype is None or values == 0 or tensor.HasField("segment"):
        return False
    return values > SMALL or (len(tensor.dims) > 0 and getattr(torch, dtype).is_floating_point)


def _dtype(tensor: TensorProto) -> str | None:
    """torch's name of a tensor's dtype; None if torch has none, or this one is too old for it."""
    names = {number: name for name, number in type(tensor).DataType.items()}
    found = _DTYPES.get(names.get(tensor.data_type, ""))
    return dtype_name(getattr(torch, found)) if found and hasattr(torch, found) else None
