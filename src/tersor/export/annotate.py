"""Carry points and weight names through the ONNX exporter: as an operator of our own that it leaves alone.

The exporter renames values, decomposes operators and folds constants; what stands behind an operator that it
does not know stays where it is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import values as script
from torch import Tensor
from torch.export import ExportedProgram

from tersor.errors import ExportError
from tersor.model.trace import Traced

OPSET = 21
DOMAIN, POINT = "tersor", "Point"
_FLOATS = ("float", "float16", "bfloat16", "double")


@torch.library.custom_op("tersor::point", mutates_args=())
def _point(value: Tensor, name: str) -> Tensor:
    """The identity, under a name."""
    return value.clone()


@_point.register_fake
def _(value: Tensor, name: str) -> Tensor:
    return torch.empty_like(value)


def annotated_onnx(traced: Traced, values: Iterable[str], weights: Iterable[str]) -> ir.Model:
    """The traced model in ONNX, with a ``tersor::Point`` behind each named value and each named weight.

    A point of a weight has ``weight:`` before its name, one of a value ``value:``. Batch is dynamic where the
    trace has it so. Raises :class:`ExportError` for an operator that ONNX does not have.
    """
    with _quiet():  # torch warns of its own classes
        program = deepcopy(traced.program)
    _insert(program, traced, set(values), set(weights))
    model = _export(program)
    _strip(model)
    return model


def _insert(program: ExportedProgram, traced: Traced, values: set[str], weights: set[str]) -> None:
    graph = program.graph
    # A copied graph may name its nodes anew; their order stays.
    nodes = list(zip(traced.graph.nodes, graph.nodes, strict=True))
    first = next(node for _, node in nodes if node.op != "placeholder")
    for original, node in nodes:
        if original.name in values:
            name = f"value:{original.name}"
        elif traced.tensors.get(original.name) in weights and node.op == "placeholder":
            name = f"weight:{traced.tensors[original.name]}"
        else:
            continue
        before = graph.inserting_before(first) if node.op == "placeholder" else graph.inserting_after(node)
        with before:
            point = graph.call_function(torch.ops.tersor.point.default, (node, name))
        point.meta.update({key: one for key, one in node.meta.items() if key in ("val", "nn_module_stack")})
        node.replace_all_uses_with(point, delete_user_cb=lambda user, point=point: user is not point)
    graph.lint()
    program.graph_module.recompile()


def _export(program: ExportedProgram) -> ir.Model:
    schema = onnx.defs.OpSchema
    operator = schema(
        POINT, DOMAIN, 1,
        inputs=[schema.FormalParameter("x", "T")],
        outputs=[schema.FormalParameter("y", "T")],
        type_constraints=[("T", [f"tensor({one})" for one in _FLOATS], "")],
        attributes=[schema.Attribute("name", schema.AttrType.STRING, "")],
    )  # fmt: skip
    emit = script.Op(script.Opset(DOMAIN, 1), POINT, op_schema=operator)

    def translate(value: Any, name: str) -> Any:
        return emit(value, name=name)

    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                custom_translation_table={torch.ops.tersor.point.default: translate},
            )
    except Exception as error:  # the exporter's errors have no root that is public
        raise ExportError(f"the model cannot be written as ONNX: {_reason(error)}") from error
    assert exported is not None
    return exported.model


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Any:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(model: ir.Model) -> None:
    """Take out what tells of this machine: stack traces and paths; keep the names of values."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
        if value.shape is not None:
            _settle(value.shape)


def _settle(shape: ir.Shape) -> None:
    """Sizes that the exporter writes as symbols with a number for a name become that number."""
    for at, size in enumerate(shape):
        if isinstance(size, ir.SymbolicDim) and size.value is not None and str(size.value).isdigit():
            shape[at] = int(str(size.value))


def points(model: ir.Model) -> list[tuple[ir.Node, str, str]]:
    """The points of an annotated model: node, ``value`` or ``weight``, and the name."""
    found = []
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type == POINT:
            kind, _, name = node.attributes["name"].as_string().partition(":")
            found.append((node, kind, name))
    return found


def point_name(value: ir.Value | None) -> str:
    """The whole name of the point that makes a value, or "" if none does."""
    producer = None if value is None else value.producer()
    if producer is None or producer.domain != DOMAIN or producer.op_type != POINT:
        return ""
    return producer.attributes["name"].as_string()
