"""Quantization-aware training: what runs, what freezes on schedule, and what is folded away at its end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tersor.calibrate.activations import calibration_loader
from tersor.calibrate.norms import channel_moments
from tersor.errors import TargetError
from tersor.model.channels import Layer, Layers
from tersor.model.inputs import model_inputs
from tersor.model.output_norm import OutputNorm, fold_output_norm_, folded_into, normalizable
from tersor.model.program import GraphModel
from tersor.model.simulate import FollowingPoint, simulated
from tersor.model.trace import module_path
from tersor.pipeline.quantize import Planned
from tersor.pipeline.work import Work
from tersor.progress import Progress, silent
from tersor.result import Touched
from tersor.spec import Quantize
from tersor.task import Task
from tersor.train.control import Control, Freezing
from tersor.train.randomness import Randomness


@dataclass(frozen=True)
class Normalized:
    """A layer whose results a norm normalizes; ``path`` is that of the norm that was folded into it."""

    path: str
    layer: Layer
    norm: OutputNorm


@dataclass(frozen=True)
class Aware:
    """A quantized model that is about to train.

    run -- what runs it, None for the model itself. skipped -- (path of a norm that was folded, why it does
        not come back). idle -- biases that do not train meanwhile.
    """

    run: GraphModel | None
    controls: tuple[Control, ...] = ()
    norms: tuple[Normalized, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    idle: tuple[Tensor, ...] = ()


def quantization_aware(
    work: Work,
    planned: Planned,
    step: Quantize,
    task: Task,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> Aware:
    """The model of ``work`` with its points as they train, and norms on the results of layers if asked for.

    Raises :class:`TargetError` where norms are asked for and none can be.
    """
    if not work.points and not step.freeze_norms:
        return Aware(None)
    follow = step.freeze_observers > 0
    run = simulated(work.model, planned.traced, work.points, learn=step.learn_scales, follow=follow)
    following = [one for one in run.taps if isinstance(one, FollowingPoint)]
    controls = [Freezing(following, step.freeze_observers)] if following else []
    if not step.freeze_norms:
        return Aware(run, tuple(controls))
    layers, skipped = _layers_of_norms(work, planned, task)
    if not layers:
        reason = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else "no batch norm was folded"
        raise TargetError(f"freeze_norms is {step.freeze_norms}, and no layer can have a norm: {reason}")
    values = {layer.node.name: layer for layer in layers.values()}
    with Randomness(calibration_loader(task)).seeded(seed):
        moments = channel_moments(run, values, task, step.batches, device=device, progress=progress)
    norms = {value: OutputNorm(*found).to(device) for value, found in moments.items()}
    biases = [
        one for layer in layers.values() if (one := layer.module.bias) is not None and one.requires_grad
    ]
    for bias in biases:
        bias.requires_grad_(False)  # a norm takes it out of the result: its gradient would be noise
    return Aware(
        run.with_taps_before(norms),
        (*controls, Freezing(norms.values(), step.freeze_norms)),
        tuple(Normalized(path, layer, norms[layer.node.name]) for path, layer in layers.items()),
        tuple(skipped),
        tuple(biases),
    )


def fold_norms_(work: Work, aware: Aware) -> list[Touched]:
    """Fold the norms of a training into their layers; returns what became of each."""
    rows = []
    for one in aware.norms:
        least, greatest = fold_output_norm_(work.model, one.layer, one.norm)
        rows.append(Touched(
            one.path, True,
            f"normalized {one.layer.path} in training; folded, factors from {least:.3g} to {greatest:.3g}",
        ))  # fmt: skip
    for bias in aware.idle:
        bias.requires_grad_(True)
    return rows + [Touched(path, False, reason) for path, reason in aware.skipped]


def _layers_of_norms(
    work: Work, planned: Planned, task: Task
) -> tuple[dict[str, Layer], list[tuple[str, str]]]:
    """The layer of each norm that was folded, and why some have none."""
    norms = [change.path for change in work.changes if change.attribute == "identity"]
    before = folded_into(work.model, norms, model_inputs(task, work.model))
    layers = Layers(work.model, planned.traced)
    nodes = {module_path(node): node for node in filter(layers.is_layer, planned.traced.graph.nodes)}
    chosen = {one.storage.name for one in planned.weights if one.step is not None}
    found: dict[str, Layer] = {}
    skipped = []
    for path in norms:
        node = nodes.get(before.get(path, ""))
        layer = "no layer was found to make what it passes on" if node is None else normalizable(layers, node)
        if not isinstance(layer, str) and layer.weight.name not in chosen:
            layer = f"this step does not quantize {layer.weight.name}"
        if isinstance(layer, str):
            skipped.append((path, layer))
        else:
            found[path] = layer
    return found, skipped
