"""What each kind of step does to a model: one function a kind, joined by a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tersor.calibrate.activations import calibration_loader
from tersor.calibrate.bias import correct_biases_
from tersor.calibrate.fisher import diagonal_fisher
from tersor.calibrate.norms import reestimate_norms_
from tersor.calibrate.rounding import LayerRounding
from tersor.calibrate.smooth import smooth_
from tersor.errors import TargetError, in_context
from tersor.model.attach import attach_codebook, attach_mask, collect_one
from tersor.model.fold import equalize_, fold_batch_norms_
from tersor.model.grid import grid_of
from tersor.model.program import GraphModel
from tersor.model.select import Selected, Storage, select, storages
from tersor.model.simulate import points_of, simulated
from tersor.pipeline.aware import fold_norms_, quantization_aware
from tersor.pipeline.quantize import (
    Planned,
    calibrated_points,
    merged_points,
    plan_quantization,
    quantize_weights_,
    report,
)
from tersor.pipeline.work import Work
from tersor.progress import Progress, inside, silent
from tersor.result import Touched
from tersor.spec import AMOUNTS, Cluster, Code, Fold, Prune, Quantize, Smooth, Step, Train
from tersor.task import Task
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.compressed import Affine, Codebook
from tersor.tensor.masks import magnitude_masks
from tersor.train.control import Control, GradualPruning, Reassignment, ranked_together
from tersor.train.loop import fit
from tersor.train.randomness import Randomness


@dataclass(frozen=True)
class Context:
    """What a step needs beside itself; ``checkpoint`` is where an interrupted training goes on from."""

    task: Task
    seed: int = 0
    device: str = "cpu"
    checkpoint: Path | None = None
    progress: Progress = silent


def apply_step(work: Work, step: Step, context: Context) -> list[Touched]:
    """Run one step on ``work``, in place; returns what it did, tensor by tensor."""
    with in_context(f"step {step.name!r}"):
        return _APPLY[type(step)](work, step, context)


def without_training(step: Step) -> Step:
    """The same step with its training taken out: what a dry run can know."""
    if isinstance(step, Prune):
        return replace(step, train=None, schedule="one-shot")
    if isinstance(step, Cluster):
        rules = tuple(
            replace(rule, override={key: one for key, one in rule.override.items() if key != "importance"})
            for rule in step.rules
        )
        return replace(step, train=None, importance="none", rules=rules)
    if isinstance(step, Quantize):
        return replace(
            step, train=None, rounding="nearest", batches=1, freeze_observers=0.0, freeze_norms=0.0
        )
    return step


def _prune(work: Work, step: Prune, context: Context) -> list[Touched]:
    model = work.model
    selected = select(model, step)
    chosen = [one for one in selected if one.step is not None]
    if step.schedule == "gradual" and step.train is not None:
        _train(work, step.train, _inside(step, context), [GradualPruning(model, chosen, step)])
        return _report(model, selected)
    for ranked in ranked_together(chosen, step):
        amount = {name: getattr(ranked[0].step, name) for name in AMOUNTS}
        names = [one.storage.name for one in ranked]
        with in_context(", ".join(names)):
            masks = magnitude_masks([one.storage.dense() for one in ranked], names=names, **amount)
        for one, mask in zip(ranked, masks, strict=True):
            attach_mask(model, one.storage, mask)
    if step.train is not None:
        _train(work, step.train, _inside(step, context))
    return _report(model, selected)


def _cluster(work: Work, step: Cluster, context: Context) -> list[Touched]:
    model = work.model
    selected = select(model, step)
    chosen = [one for one in selected if one.step is not None]
    specs = {one.storage.name: cast(Cluster, one.step) for one in chosen}
    weighed = {name for name, spec in specs.items() if spec.importance == "fisher"}
    importance: dict[str, NDArray[np.float32]] = {}
    if weighed:
        with _seeded(context):
            importance = diagonal_fisher(
                model, context.task, weighed, batches=step.fisher_batches, device=context.device
            )
        specs |= _one_price([one.storage for one in chosen if one.storage.name in weighed], specs, importance)
    for done, one in enumerate(chosen):
        storage, spec = one.storage, specs[one.storage.name]
        context.progress(step.name, done, len(chosen), storage.name)
        with in_context(storage.name):
            compressed = cluster_tensor(
                storage.dense(),
                spec,
                mask=storage.mask(),
                importance=importance.get(storage.name),
                seed=context.seed,
            )
        attach_codebook(model, storage, compressed, update=spec.update, latent=spec.reassign > 0)
    context.progress(step.name, len(chosen), len(chosen))
    if step.train is not None:
        controls = [Reassignment(model, chosen, step.reassign)] if step.reassign else []
        _train(work, step.train, _inside(step, context), controls)
    return _report(model, selected)


def _one_price(
    storages: Sequence[Storage], specs: Mapping[str, Cluster], importance: Mapping[str, NDArray[np.float32]]
) -> dict[str, Cluster]:
    """The specs with rates that make a bit cost the same expected loss in every tensor.

    Importance is on one scale for all tensors, so a tensor that matters little may lose more. The scale of
    the price is the mean importance times the mean squared weight, over all of them (Choi et al. 2017,
    section 3).
    """
    energies, counts = {}, {}
    for storage in storages:
        mask = storage.mask()
        square = np.square(storage.dense().detach().cpu().float().numpy())
        kept = np.ones(storage.shape, np.bool_) if mask is None else mask & (square != 0)
        count = int(kept.sum())
        weight = importance[storage.name]
        energies[storage.name] = float(weight[kept].mean()) * float(square[kept].mean()) if count else 0.0
        counts[storage.name] = count
    overall = sum(energies[name] * counts[name] for name in energies) / max(sum(counts.values()), 1)
    return {
        name: replace(specs[name], rate=specs[name].rate * overall / energy if energy else specs[name].rate)
        for name, energy in energies.items()
    }


def _fit(work: Work, step: Train, context: Context) -> list[Touched]:
    _train(work, step, context)
    return []


def _code(work: Work, step: Code, context: Context) -> list[Touched]:
    """Nothing happens to the model: the writer reads the step when the file is made."""
    return []


def _inside(step: Prune | Cluster | Quantize, context: Context) -> Context:
    """The context of the step's own training: its progress names the step."""
    return replace(context, progress=inside(context.progress, step.name))


def _fold(work: Work, step: Fold, context: Context) -> list[Touched]:
    """Norms into the layers before them; then, if asked for, the ranges of neighbouring layers evened out."""
    if work.points:
        raise TargetError(
            "activations are quantized already, and folding changes them: fold before you quantize"
        )
    if step.reestimate:
        with _seeded(context):
            reestimate_norms_(work.model, context.task, step.reestimate, context.device)
    folded = fold_batch_norms_(work.model, work.traced(context.task))
    work.changes += folded.changes
    rows = [Touched(one.path, True, "folded") for one in folded.changes if one.attribute == "identity"]
    rows += [Touched(path, False, reason) for path, reason in folded.skipped]
    if step.equalize:
        evened = equalize_(work.model, work.traced(context.task))
        rows += [Touched(path, True, "equalized") for path in evened.layers]
        rows += [Touched(path, False, reason) for path, reason in evened.skipped]
    return rows


def _smooth(work: Work, step: Smooth, context: Context) -> list[Touched]:
    selected = select(work.model, step)
    chosen = {one.storage.name: one.storage for one in selected if one.step is not None}
    alphas = {one.storage.name: cast(Smooth, one.step).alpha for one in selected if one.step is not None}
    with _seeded(context):
        done = smooth_(
            work.model, work.traced(context.task), alphas, chosen, context.task, step.batches,
            device=context.device, progress=inside(context.progress, step.name),
        )  # fmt: skip
    work.changes += done.changes
    reasons = {one.storage.name: one.reason for one in selected if one.step is None} | dict(done.skipped)
    return [
        Touched(one.storage.name, one.storage.name not in reasons,
                reasons.get(one.storage.name, f"alpha {alphas.get(one.storage.name)}"))
        for one in selected
    ]  # fmt: skip


def _quantize(work: Work, step: Quantize, context: Context) -> list[Touched]:
    planned = plan_quantization(work, step, context.task)
    with _seeded(context):
        points = calibrated_points(
            work, planned, step, context.task, device=context.device, progress=context.progress
        )
    reference = deepcopy(work.model).eval()
    learner = LayerRounding(
        reference, planned.traced, context.task, step.batches, context.device, partial(_seeded, context)
    )
    quantize_weights_(work, planned, step, learner, context.progress)
    work.points = merged_points(work, planned, points)
    rows: list[Touched] = []
    if step.correct_bias:
        rows += _correct_biases(work, planned, step, context, reference)
    if step.train is not None:
        inner = _inside(step, context)
        aware = quantization_aware(
            work, planned, step, context.task,
            seed=context.seed, device=context.device, progress=inside(inner.progress, "norms"),
        )  # fmt: skip
        _train(work, step.train, inner, aware.controls, run=aware.run)
        rows += fold_norms_(work, aware)
    now = {storage.name: storage for storage in storages(work.model)}
    final = {
        one.storage.name: _describe(now[one.storage.name]) for one in planned.weights if one.step is not None
    }
    return [*report(planned, points, final), *rows]


def _correct_biases(
    work: Work, planned: Planned, step: Quantize, context: Context, reference: nn.Module
) -> list[Touched]:
    run = simulated(work.model, planned.traced, work.points)
    with _seeded(context):
        done = correct_biases_(
            run, reference, context.task, step.batches, device=context.device,
            progress=inside(context.progress, f"{step.name}: bias"),
        )  # fmt: skip
    moved = [Touched(f"{path} (bias)", True, f"mean error was {error:.3g}") for path, error in done.layers]
    return moved + [Touched(f"{path} (bias)", False, reason) for path, reason in done.skipped]


def _seeded(context: Context) -> AbstractContextManager[None]:
    """What data is drawn in outside of training: with the seed of the run, whatever was drawn before."""
    return Randomness(calibration_loader(context.task)).seeded(context.seed)


def _train(
    work: Work, phase: Train, context: Context, controls: Sequence[Control] = (), *,
    run: nn.Module | None = None,
) -> None:  # fmt: skip
    """Train the model, with its points in force if it has any; ``run`` is what runs it, if there is one."""
    run = work.runnable(context.task) if run is None else run
    fit(run, context.task, phase, seed=context.seed, device=context.device, controls=controls,
        checkpoint=context.checkpoint, progress=context.progress)  # fmt: skip
    if isinstance(run, GraphModel):
        work.points = points_of(run)


def _report(model: nn.Module, selected: list[Selected]) -> list[Touched]:
    """What each tensor has become, read off the model and not off the plan."""
    now = {storage.name: storage for storage in storages(model)}
    return [
        Touched(one.storage.name, True, _describe(now[one.storage.name]))
        if one.step is not None
        else Touched(one.storage.name, False, one.reason)
        for one in selected
    ]


def _describe(storage: Storage) -> str:
    compressed = collect_one(storage)
    dense = compressed.decode()
    zeros = float((dense == 0).float().mean()) if dense.numel() else 0.0
    words = [f"{zeros:.2%} zeros"]
    if isinstance(compressed.form, Codebook):
        groups, levels = compressed.form.codebook.shape
        words.append(f"{levels} values" if groups == 1 else f"{groups} codebooks of {levels} values")
    if isinstance(compressed.form, Affine):
        scales = len(compressed.form.scale)
        bits = grid_of(compressed).bits
        words.append(f"{bits} bits, 1 scale" if scales == 1 else f"{bits} bits, {scales} scales")
    return ", ".join(words)


_APPLY: Mapping[type[Step], Callable[[Work, Any, Context], list[Touched]]] = {
    Prune: _prune,
    Cluster: _cluster,
    Fold: _fold,
    Smooth: _smooth,
    Quantize: _quantize,
    Train: _fit,
    Code: _code,
}
