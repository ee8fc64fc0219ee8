"""A model as a graph: what :mod:`torch.export` sees, and the neutral operations that points are placed on."""

from __future__ import annotations

import copy
import logging
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tersor.errors import TaskError
from tersor.model.attach import bake_
from tersor.model.inputs import Inputs
from tersor.model.modes import device_of
from tersor.model.storage import state
from tersor.points import WEIGHTED, Operation

_ATEN = torch.ops.aten

KINDS: Mapping[Any, str] = {
    **dict.fromkeys((_ATEN.conv1d, _ATEN.conv2d, _ATEN.conv3d, _ATEN.convolution), "conv"),
    **dict.fromkeys((_ATEN.conv_transpose1d, _ATEN.conv_transpose2d, _ATEN.conv_transpose3d),
                    "conv_transpose"),
    _ATEN.linear: "linear",
    **dict.fromkeys((_ATEN.relu, _ATEN.relu_), "relu"),
    **dict.fromkeys((_ATEN.hardtanh, _ATEN.hardtanh_, _ATEN.relu6, _ATEN.clamp, _ATEN.clamp_), "clip"),
    **dict.fromkeys((_ATEN.add, _ATEN.add_), "add"),
    **dict.fromkeys((_ATEN.mul, _ATEN.mul_), "mul"),
    _ATEN.cat: "cat",
    **dict.fromkeys((_ATEN.avg_pool1d, _ATEN.avg_pool2d, _ATEN.adaptive_avg_pool2d), "avg_pool"),
    **dict.fromkeys((_ATEN.max_pool1d, _ATEN.max_pool2d, _ATEN.max_pool3d, _ATEN.adaptive_max_pool2d),
                    "max_pool"),
    **dict.fromkeys(
        (_ATEN.flatten, _ATEN.view, _ATEN.reshape, _ATEN.permute, _ATEN.transpose, _ATEN.t, _ATEN.unsqueeze,
         _ATEN.squeeze, _ATEN.slice, _ATEN.select, _ATEN.contiguous, _ATEN.dropout, _ATEN.dropout_,
         _ATEN.clone, _ATEN.detach, _ATEN.alias, _ATEN.unflatten, _ATEN.split, _ATEN.split_with_sizes,
         _ATEN.chunk, _ATEN.expand, _ATEN.feature_dropout, _ATEN.pixel_shuffle, _ATEN.index_select,
         _ATEN.unbind, _ATEN.narrow, _ATEN.movedim, _ATEN.swapaxes, _ATEN.flip, _ATEN.roll, _ATEN.repeat),
        "move",
    ),
    _ATEN.lstm: "lstm",
    _ATEN.gru: "gru",
    **dict.fromkeys((_ATEN.rnn_tanh, _ATEN.rnn_relu), "rnn"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Traced:
    """A model's graph with its operations; names are those of the bare model's ``state_dict``.

    tensors -- placeholder of the graph -> name of the parameter, buffer or constant that it stands for; of a
        tied weight, the first one.
    inputs -- the floating placeholders that the user feeds, in order.
    fixed -- which sizes that differ from batch to batch the graph has fixed, in words; "" if none.
    """

    program: ExportedProgram
    tensors: Mapping[str, str]
    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    fixed: str = ""

    @property
    def graph(self) -> fx.Graph:
        """The graph itself; not to be changed."""
        graph: fx.Graph = self.program.graph
        return graph


def trace(model: nn.Module, inputs: Inputs) -> Traced:
    """The graph of ``model`` in evaluation mode; what is attached to it counts as baked.

    Raises :class:`TaskError` where :func:`torch.export.export` cannot follow the model, with its reason.
    The graph is for the device of the model.
    """
    bare = copy.deepcopy(model)
    bake_(bare)
    program = exported(bare.eval(), inputs.on(device_of(bare)))
    first = {site.name: storage.name for storage in state(bare) for site in storage.sites}
    tensors = {
        spec.arg.name: first.get(str(spec.target), str(spec.target))
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    }
    parameters = {name for name, _ in bare.named_parameters(remove_duplicate=False)}
    fed = tuple(
        node.name
        for node in program.graph.find_nodes(op="placeholder")
        if node.name not in tensors and _floating(node)
    )
    operations = tuple(_operations(program.graph, tensors, parameters))
    return Traced(program, tensors, fed, operations, _fixed(program, tensors, inputs))


def check_general(traced: Traced) -> None:
    """Raise :class:`TaskError` for a graph that does not take all batches of its task."""
    if traced.fixed:
        raise TaskError(f"torch.export fixes {traced.fixed} in the graph of this model (as recurrent layers "
                        "make it do, and sizes in the code): give batches of one size there")  # fmt: skip


def exported(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """:func:`torch.export.export`, quiet, its error in one line."""
    logger = logging.getLogger("torch")
    level = logger.level
    printed = StringIO()  # torch prints the half-made graph there when it fails
    half = ""
    try:
        with warnings.catch_warnings(), redirect_stderr(printed), torch.no_grad():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            return torch.export.export(
                model, inputs.args, inputs.kwargs or None, dynamic_shapes=inputs.dynamic_shapes(model)
            )
    except Exception as error:  # torch.export has no root of errors; all mean that the model is not traceable
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(" .") if lines else type(error).__name__
        half = f"{getattr(error, 'partial_fx_graph', '')}\n"
        raise TaskError(
            f"the model cannot be traced by torch.export{_place(error)}: {reason}. Fold, smooth, quantize "
            "and exports need a graph: remove what depends on the data there, or take a recipe that needs "
            "none (cluster, cluster-tune, deep-compression)"
        ) from error
    finally:
        logger.setLevel(level)
        text = printed.getvalue()
        sys.stderr.write(text.replace(half, "") if half.strip() else text)


def _place(error: BaseException) -> str:
    """Where in the user's code: the innermost frame that is neither torch's nor ours."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [one for one in frames if not one.filename.startswith(ours)]
    if not theirs:
        return ""
    return f" at {theirs[-1].filename}, line {theirs[-1].lineno} ({theirs[-1].line})"


def _operations(graph: fx.Graph, tensors: Mapping[str, str], parameters: set[str]) -> list[Operation]:
    calls: Counter[tuple[str, str]] = Counter()
    found = []
    for node in graph.nodes:
        if node.op != "call_function" or not _floating(node) or not node.users:
            continue
        kind, path = _kind(node), module_path(node)
        read = [one for one in node.all_input_nodes if _floating(one)]
        if not read:
            continue
        weights = tuple(name for one in read if (name := tensors.get(one.name)) in parameters)
        if kind in WEIGHTED and tensors.get(_name(node.args[1])) not in parameters:
            weights = ()
        activations = tuple(one.name for one in read if one.name not in tensors)
        index = calls[path, kind]
        calls[path, kind] += 1
        found.append(Operation(kind, path, index, activations, node.name, weights))
    return found


def _name(argument: object) -> str:
    return argument.name if isinstance(argument, fx.Node) else ""


def _kind(node: fx.Node) -> str:
    if getattr(node.target, "__name__", "") == "getitem":
        source = node.args[0]
        assert isinstance(source, fx.Node)
        kind = _kind(source)
        return "move" if kind == "move" else f"output of {kind}"
    packet = getattr(node.target, "overloadpacket", None)
    name = getattr(packet, "__name__", str(node.target))
    return KINDS.get(packet, name)


def _fixed(program: ExportedProgram, tensors: Mapping[str, str], inputs: Inputs) -> str:
    fed = [node for node in program.graph.find_nodes(op="placeholder") if node.name not in tensors]
    return ", ".join(
        f"dimension {dim} of {node.name} to {size}"
        for node, dims in zip(fed, inputs.differed, strict=False)
        for dim in dims
        if (size := _known(node.meta["val"].shape[dim])) is not None
    )


def _known(size: Any) -> int | None:
    """A size that is a number, or a symbol that came to stand for one; None if it is free."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def module_path(node: fx.Node) -> str:
    """The path of the module in whose ``forward`` a node was made; "" is the model."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty")]
    return paths[-1] if paths else ""


def _floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        return any(isinstance(one, Tensor) and one.is_floating_point() for one in value)
    return isinstance(value, Tensor) and value.is_floating_point()
