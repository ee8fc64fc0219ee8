"""The step that shares values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tersor.calibrate.fisher import diagonal_fisher, floored
from tersor.errors import in_context
from tersor.model.attach import attach_codebook
from tersor.model.select import Storage, select
from tersor.pipeline.context import Context, inside_step, seeded, train_
from tersor.pipeline.describe import report_storages
from tersor.pipeline.work import Work
from tersor.result import Touched
from tersor.spec import Cluster
from tersor.tensor.cluster import cluster_tensor
from tersor.train.control import Reassignment


def cluster(work: Work, step: Cluster, context: Context) -> list[Touched]:
    """Give weights codebooks as the step says, and train the values if it trains."""
    model = work.model
    selected = select(model, step)
    chosen = [one for one in selected if one.step is not None]
    specs = {one.storage.name: cast(Cluster, one.step) for one in chosen}
    weighed = {name for name, spec in specs.items() if spec.importance == "fisher"}
    importance: dict[str, NDArray[np.float32]] = {}
    if weighed:
        with seeded(context):
            found = diagonal_fisher(
                model, context.task, weighed, batches=step.fisher_batches, device=context.device
            )
        importance = {name: floored(one) for name, one in found.items()}
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
    rows: list[Touched] = []
    if step.train is not None:
        controls = [Reassignment(model, chosen, step.reassign)] if step.reassign else []
        rows = train_(work, step.train, inside_step(step, context), controls)
    return [*report_storages(model, selected), *rows]


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
