"""Post-training compression of an ONNX model: no task and no training, only samples of its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import torch

from tersor.artifact.writer import disk_errors, replacing
from tersor.calibrate.activations import Calibrated, calibrate
from tersor.errors import (
    ExportError,
    SpecError,
    TargetError,
    did_you_mean,
    in_context,
)
from tersor.export.compare import OutputAgreement, compare_sessions
from tersor.export.graph import Graph, array_of, read_operations
from tersor.export.prepare import prepared, quantized, with_outputs
from tersor.export.runtimes import Port, open_session, read_content
from tersor.export.weights import Integers, integers
from tersor.patterns import matches
from tersor.pipeline.samples import Array, Samples, batches_of
from tersor.points import RECURRENT, WEIGHTED, Operation, Placement, QuantPoint, place, spell
from tersor.progress import Progress, silent
from tersor.result import Touched
from tersor.spec import Cluster, Code, Fold, Quantize, Recipe, replace_fields
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.codebook import snap_to_int8
from tersor.tensor.compressed import Codebook
from tersor.tensor.ranges import RangeHistogram
from tersor.tensor.scales import grid_for, quantize_tensor

INT8 = Recipe(name="int8", steps=(Quantize(),))
Step = Cluster | Quantize
StepT = TypeVar("StepT", Cluster, Quantize)
_NO_TARGET = "no target matches"
CHECKED = 4  # batches
_HOLDERS = (*WEIGHTED, *RECURRENT, "conv_transpose", "embedding")


@dataclass(frozen=True)
class OnnxResult:
    """The file that was written, what was done to its weights and operations, and how near it stays.

    held_out -- whether no scale was calibrated on the samples that were compared.
    """

    path: Path
    size_bytes: int
    source_bytes: int
    runtime: str
    touched: tuple[Touched, ...]
    agreement: OutputAgreement
    held_out: bool


@dataclass(frozen=True, eq=False)
class _Plan:
    """What will be quantized: weights as runtimes take them, and the reasons for those that stay floats.

    notes -- of the recipe's other steps; words -- of each weight that is quantized, what was done.
    """

    model: ir.Model
    step: Quantize
    notes: Sequence[Touched]
    weights: Mapping[str, Integers]
    words: Mapping[str, str]
    floats: Mapping[str, str]
    placement: Placement


def compress_onnx(
    source: str | Path,
    data: Samples,
    recipe: Recipe = INT8,
    *,
    out: str | Path,
    progress: Progress = silent,
) -> OnnxResult:
    """Quantize an ONNX model after training and write it to ``out``; int8 throughout by default.

    recipe -- one quantize step, and cluster steps before it, without training; the patterns of their targets
        are held against names of weights and of the nodes that read them.
    data -- an ``.npz`` file or a mapping with one array for each input, by its name, the first axis the
        samples; or an iterable of batches, such mappings. ``Quantize.batches`` of them calibrate.

    Calibration and the comparison with the float model run in ONNX Runtime. Raises :class:`SpecError` for a
    recipe that takes training, :class:`TaskError` for data that are not the model's, :class:`TargetError` if
    nothing would be quantized, :class:`ExportError` for a model that cannot be read or run.
    """
    source, target = Path(source), Path(out)
    if source.resolve() == target.resolve():
        raise SpecError(f"{target} is what is read: it would be lost; name another file to write")
    _check_writable(target)
    with in_context(str(source)):
        _, step, _ = _steps(recipe)
        content = read_content(source)
        before = open_session(content)
    batches = batches_of(data, before.inputs, most=step.batches + CHECKED)
    with in_context(str(source)):
        plan = _planned(content, recipe, progress)
    calibrating, held = _split(batches, step)
    points = _points(plan, before.inputs, calibrating, progress)
    made, dropped = _written(plan, {value: one.point for value, one in points.items()})
    after = open_session(made)
    agreement = compare_sessions(before, after, held or batches[:CHECKED], progress)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial, disk_errors(target):
        partial.write_bytes(made)
    return OnnxResult(target, len(made), len(content), after.description,
                      tuple(_report(plan, points, dropped)), agreement, bool(held))  # fmt: skip


def plan_onnx(
    source: str | Path, recipe: Recipe = INT8, *, progress: Progress = silent
) -> tuple[Touched, ...]:
    """What :func:`compress_onnx` would do to each weight and operation, and why not; needs no data."""
    with in_context(str(source)):
        return tuple(_report(_planned(read_content(source), recipe, progress), {}, {}))


def _check_writable(target: Path) -> None:
    """Raise :class:`TersorError`, before any work, where the file could not be written; leaves no folder."""
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with disk_errors(target), TemporaryFile(dir=folder):
        pass


def _split(batches: list[list[Array]], step: Quantize) -> tuple[Sequence[list[Array]], Sequence[list[Array]]]:
    """The batches to calibrate on, and those that are held out: none of few."""
    if step.activations != "static":
        return batches, batches[:CHECKED]
    calibrating = min(step.batches, len(batches) if len(batches) < 2 * CHECKED else len(batches) - CHECKED)
    return batches[:calibrating], batches[calibrating:][:CHECKED]


def _planned(content: bytes, recipe: Recipe, progress: Progress) -> _Plan:
    clusters, step, notes = _steps(recipe)
    model = prepared(content)
    graph = read_operations(model)
    readers = _readers(graph)
    steps: list[Step] = [*clusters, step]
    for each in steps:
        _check_patterns(each, readers)
    weights: dict[str, Integers] = {}
    words: dict[str, str] = {}
    floats: dict[str, str] = {}
    for done, (name, operations) in enumerate(readers.items()):
        progress("weights", done, len(readers), name)
        names = (name, *(one.path for one in operations))
        kinds = {one.kind for one in operations}
        array = array_of(model.graph.initializers[name])
        with in_context(name):
            found = _integers(array, _resolved(step, names), _clusters(clusters, names), kinds)
        if isinstance(found, str):
            floats[name] = found
        else:
            weights[name], words[name] = found
    progress("weights", len(readers), len(readers))
    if not weights:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(floats.items())[:3])
        raise TargetError(f"no weight is left to quantize: {reasons or 'no layer has one that is stored'}")
    integer = [name for name, one in weights.items() if not one.block and step.activations != "none"]
    left_out = {
        one.path: why
        for one in graph.operations
        if isinstance(why := _resolved(step, (one.path,)), str) and why != _NO_TARGET
    }
    placement = place(
        graph.operations, graph.inputs, integer, left_out, dynamic=step.activations == "dynamic"
    )
    return _Plan(model, step, notes, weights, words, floats, placement)


def _readers(graph: Graph) -> dict[str, list[Operation]]:
    """The stored tensors of layers, recurrent ones and tables too, and the operations that read each."""
    found: dict[str, list[Operation]] = {}
    for one in graph.operations:
        for name in one.weights if one.kind in _HOLDERS else ():
            found.setdefault(name, []).append(one)
    return found


def _steps(recipe: Recipe) -> tuple[list[Cluster], Quantize, list[Touched]]:
    """The steps that can be done without a model's code, and what there is to say of the others.

    Raises :class:`SpecError` for those that cannot.
    """
    clusters: list[Cluster] = []
    quantize: list[Quantize] = []
    notes: list[Touched] = []
    for step in recipe.steps:
        with in_context(f"step {step.name!r}"):
            if isinstance(step, Code):
                notes.append(
                    Touched(step.name, False, "an ONNX file is not entropy-coded: tersor pack does that")
                )
                continue
            if isinstance(step, Fold):
                _refuse(step, equalize=False, reestimate=0)
                notes.append(Touched(step.name, True, "ONNX Runtime folds batch norms and constants"))
                continue
            if not isinstance(step, Cluster | Quantize):
                raise SpecError(f"an ONNX model takes cluster and quantize steps, not {step.kind}: compress "
                                "the model that it was exported from")  # fmt: skip
            if step.train is not None:
                raise SpecError("it trains, and an ONNX model cannot be trained: leave train out, or "
                                "compress the model that it was exported from")  # fmt: skip
            if isinstance(step, Cluster):
                _refuse(step, importance="none", granularity="tensor")
                if quantize:
                    raise SpecError("it comes after a quantize step: put it before that")
                clusters.append(step)
            else:
                _refuse(step, rounding="nearest", correct_bias=False)
                if step.bits > 8:
                    raise SpecError(f"bits is {step.bits}: for an ONNX model from 1 to 8")
                quantize.append(step)
    if len(quantize) != 1:
        raise SpecError(
            f"the recipe {recipe.name!r} has {len(quantize)} quantize steps: an ONNX model takes one"
        )
    return clusters, quantize[0], notes


def _refuse(step: Step | Fold, **only: object) -> None:
    for name, value in only.items():
        if getattr(step, name) != value:
            raise SpecError(f"{name} is {getattr(step, name)!r}: for an ONNX model it has to be {value!r}")


def _check_patterns(step: Step, readers: Mapping[str, Sequence[Operation]]) -> None:
    known = [one for name, operations in readers.items() for one in (name, *(one.path for one in operations))]
    for pattern in (*step.targets, *(rule.match for rule in step.rules)):
        if known and not any(matches(pattern, one) for one in known):
            raise TargetError(f"pattern {pattern!r} matches no weight and no node that reads one."
                              f"{did_you_mean(pattern, dict.fromkeys(known))}")  # fmt: skip


def _resolved(step: StepT, names: Sequence[str]) -> StepT | str:
    """The step as its rules have it for a weight and the nodes that read it, or why it leaves that out."""
    if not any(matches(pattern, one) for pattern in step.targets for one in names):
        return _NO_TARGET
    rules = [rule for rule in step.rules if any(matches(rule.match, one) for one in names)]
    if not rules:
        return step
    if rules[-1].skip:
        return f"rule {rules[-1].match!r} skips it"
    with in_context(f"rule {rules[-1].match!r}"):
        return replace_fields(step, rules[-1].override)


def _clusters(clusters: Iterable[Cluster], names: Sequence[str]) -> Cluster | None:
    """The last of the cluster steps that takes a weight."""
    found = None
    for step in clusters:
        resolved = _resolved(step, names)
        found = found if isinstance(resolved, str) else resolved
    return found


def _integers(
    array: Array, step: Quantize | str, cluster: Cluster | None, kinds: Collection[str]
) -> tuple[Integers, str] | str:
    """A weight as runtimes take it and what was done, or why it stays as it is."""
    if isinstance(step, str):
        return step
    if array.ndim < 2:
        return "one dimension: bias or norm"
    if array.dtype != np.float32:
        return f"it is {array.dtype}, and integers stand for float32"
    tensor = torch.from_numpy(np.array(array))
    if cluster is None:
        grid = grid_for(step, tensor.ndim)
        coded = quantize_tensor(tensor, grid, method=step.scale, percentile=step.percentile)
        words = f"{step.bits} bits, a scale per {step.granularity}"
    else:
        coded = cluster_tensor(tensor, cluster)
        assert isinstance(coded.form, Codebook)
        book = snap_to_int8(coded.form.codebook.astype(np.float32))
        coded = replace(coded, form=replace(coded.form, codebook=book))
        words = f"{book.shape[1]} values on an int8 grid"
    found = integers(coded, kinds)
    return found if isinstance(found, str) else (found, words)


def _points(
    plan: _Plan, inputs: Sequence[Port], batches: Sequence[list[Array]], progress: Progress
) -> dict[str, Calibrated]:
    """The points by value: from each batch, or calibrated in ONNX Runtime."""
    step, keys = plan.step, plan.placement.points
    if step.activations == "dynamic":
        return {
            value: Calibrated(QuantPoint(*key, bits=step.activation_bits), "max", "from each batch")
            for value, key in keys.items()
        }
    if not keys:
        return {}
    seen = {value: RangeHistogram() for value in keys}
    fed = {port.name: at for at, port in enumerate(inputs)}
    made = [value for value in keys if value not in fed]
    session = open_session(with_outputs(plan.model, made))
    used = batches[: step.batches]
    for done, batch in enumerate(used):
        progress("calibrate", done, len(used))
        outputs = session.run(batch)
        given = dict(zip(made, outputs[len(outputs) - len(made) :], strict=True))
        for value, histogram in seen.items():
            array = batch[fed[value]] if value in fed else given[value]
            if array.dtype != np.float32:
                raise ExportError(f"{spell(keys[value])} is {array.dtype}: only float32 is quantized; "
                                  "convert the model first")  # fmt: skip
            histogram.update(array)
    progress("calibrate", len(used), len(used))
    bits = dict.fromkeys(keys, step.activation_bits)
    return calibrate(seen, keys, bits=bits, method=step.calibrator, percentile=step.percentile)


def _written(plan: _Plan, points: Mapping[str, QuantPoint]) -> tuple[bytes, Mapping[str, str]]:
    placed = plan.placement
    values = dict(points) | {value: points[root] for value, root in placed.follows.items()}
    integer = {
        one.operation.weights[0]
        for one in placed.decisions
        if one.action == "integer" and one.operation.weights and one.operation.weights[0] in plan.weights
    }
    return quantized(plan.model, values, plan.weights, integer, bare=set(placed.follows))


def _report(plan: _Plan, points: Mapping[str, Calibrated], dropped: Mapping[str, str]) -> Iterator[Touched]:
    yield from plan.notes
    for name, made in plan.words.items():
        yield Touched(name, True, "; ".join(filter(None, (made, dropped.get(name)))))
    yield from (Touched(name, False, reason) for name, reason in plan.floats.items())
    keyed = {one.point.key: one for one in points.values()}
    for decision in plan.placement.decisions:
        words: list[str] = [decision.action, decision.reason]
        if decision.action == "float" and not plan.words.keys().isdisjoint(decision.operation.weights):
            words = ["weights only", "what it reads stays float"]
        found = keyed.get(decision.operation.key)
        if found is not None and not found.point.dynamic:
            point = found.point
            words.append(f"scale {point.scale:.4g}, zero point {point.zero_point} ({found.method})")
        said = "; ".join(filter(None, words))
        yield Touched(spell(decision.operation.key), decision.action == "integer", said)
