"""What a model needs in memory for a batch: estimated for each precision, measured beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.artifact.io import Reader
from tersor.checks import whole_number
from tersor.errors import in_context
from tersor.measure.allocations import measured_peak, run_in_order
from tersor.measure.footprint import (
    UNIFORM,
    Footprint,
    MeasuredMemory,
    ModelMemory,
    footprint,
    pytorch_flow,
    uniform_flow,
    uniform_weights,
)
from tersor.measure.memory import lay_out
from tersor.measure.mixed import mixed_flow, precisions_of
from tersor.measure.order import plan_memory
from tersor.measure.size import packed_bytes
from tersor.model.dataflow import Dataflow, draw_dataflow
from tersor.model.inputs import Inputs, model_inputs
from tersor.model.program import GraphModel
from tersor.model.restore import fresh_model, trained_model
from tersor.model.trace import trace
from tersor.pipeline.load import load
from tersor.points import QuantPoint, placement_of
from tersor.task import Task, check_is_task
from tersor.tensor.codebook import int8_levels
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor

FILE = "file"  # the precision of a file, in the place of a word for one that is the same everywhere


def memory(task: Task, path: str | Path | None = None, *, batch_size: int = 1) -> ModelMemory:
    """What the task's trained model, or a ``.tersor`` file of it, needs in memory for ``batch_size`` samples.

    Weights and the buffers between operations, for each operation and in all, with FP32, FP16, INT8 and INT4
    for everything, and for a file as it is: codes where it has codes, each activation in the bits of its
    point (``"file"``). The order of execution is the one with the lowest peak that is found; every buffer has
    its place in an arena. Those are estimates (:mod:`tersor.measure.footprint`); the same for PyTorch, which
    runs the model once, is measured beside them. Inputs are those of the first test batch.

    Raises :class:`TaskError` for a model that :func:`torch.export.export` cannot follow, :class:`SpecError`
    for a batch size below 1, and what :func:`load` raises for a file.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> task = Task(name="tiny", build=lambda: model, weights=model.state_dict(), test=[(torch.zeros(3, 4),)],
    ...             score=lambda output, batch: output[:, 0])
    >>> found = memory(task)
    >>> found["FP32"].weights_bytes, found["FP32"].arena.peak_bytes, found.macs
    (232, 48, 48.0)
    """
    check_is_task(task)
    whole_number("batch_size", batch_size, least=1)
    tensors: dict[str, CompressedTensor] = {}
    points: tuple[QuantPoint, ...] = ()
    if path is None:
        model = trained_model(task)
    else:
        model = load(path, fresh_model(task)).eval()
        with in_context(str(path)), Reader(path) as reader:
            tensors = {name: reader.read(name) for name in reader.names}
            tensors |= {alias: tensors[name] for alias, name in reader.aliases.items()}
            points = reader.points
    inputs = model_inputs(task, model).of_size(batch_size)
    run = GraphModel(model, trace(model, inputs)).eval()
    dataflow = draw_dataflow(run, inputs.args, inputs.kwargs)
    dense = {name: run.tensor(name) for one in dataflow.kernels for name in one.tensors}
    found = [
        footprint(word, dataflow, uniform_flow(dataflow, bits), uniform_weights(dense, bits), batch_size)
        for word, bits in UNIFORM.items()
    ]
    if path is not None:
        found.append(_as_filed(run, dataflow, dense, tensors, points, batch_size))
    return ModelMemory(
        task=task.name,
        file=None if path is None else str(path),
        file_bytes=None if path is None else Path(path).stat().st_size,
        batch_size=batch_size,
        macs=sum(one.macs for one in dataflow.kernels) / batch_size,
        footprints=tuple(found),
        measured=_measured(run, dataflow, dense, inputs),
    )


def _as_filed(
    run: GraphModel, dataflow: Dataflow, dense: Mapping[str, Tensor],
    tensors: Mapping[str, CompressedTensor], points: tuple[QuantPoint, ...], samples: int,
) -> Footprint:  # fmt: skip
    """The footprint of a file: its codes and its points."""
    traced = run.traced
    coded = [name for name, one in tensors.items() if _has_codes(one)]
    placement = placement_of(traced.operations, traced.inputs, coded, points)
    weights = {
        name: packed_bytes(tensors[name]) if name in tensors else one.numel() * one.element_size()
        for name, one in dense.items()
    }
    flow = mixed_flow(dataflow, precisions_of(traced.operations, placement, points))
    return footprint(FILE, dataflow, flow, weights, samples)


def _has_codes(tensor: CompressedTensor) -> bool:
    """Whether integer kernels could take it."""
    form = tensor.form
    return isinstance(form, Affine) or (isinstance(form, Codebook) and int8_levels(form.codebook) is not None)


def _measured(
    run: GraphModel, dataflow: Dataflow, dense: Mapping[str, Tensor], inputs: Inputs
) -> MeasuredMemory:
    flow = pytorch_flow(dataflow)
    planned = plan_memory(flow, alignment=1)
    values = {one.name: one.value for one in dataflow.kernels}
    weights = [*dense.values(), *_state(run.model)]
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (inputs.args, inputs.kwargs))
    given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]

    def ordered(names: tuple[str, ...]) -> int:
        order = [values[name] for name in names]
        return measured_peak(lambda: run_in_order(run, order, args, kwargs), given=given, weights=weights)

    with torch.random.fork_rng():
        eager = measured_peak(lambda: run.model(*args, **kwargs), given=given, weights=weights)
    return MeasuredMemory(
        eager_bytes=eager,
        given_bytes=ordered(tuple(one.name for one in flow.nodes)),
        estimated_bytes=lay_out(flow, alignment=1).peak_bytes,
        planned_bytes=ordered(planned.order),
        planned_estimated_bytes=planned.peak_bytes,
    )


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
