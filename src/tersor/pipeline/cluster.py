"""The step that shares values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tersor.calibrate.curvature import damped, output_curvature
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
from tersor.tensor.prices import price_factors
from tersor.train.control import Reassignment


def cluster(work: Work, step: Cluster, context: Context) -> list[Touched]:
    """Give weights codebooks as the step says, and train the values if it trains."""
    model = work.model
    selected = select(model, step)
    chosen = [one for one in selected if one.step is not None]
    specs = {one.storage.name: cast(Cluster, one.step) for one in chosen}
    importance: dict[str, NDArray[np.float32]] = {}
    for kind, (weigh, even) in _IMPORTANCE.items():
        weighed = [one.storage for one in chosen if specs[one.storage.name].importance == kind]
        if weighed:
            with seeded(context):
                found = weigh(
                    model, context.task, {one.name for one in weighed}, batches=step.fisher_batches,
                    device=context.device,
                )  # fmt: skip
            importance |= {name: even(one) for name, one in found.items()}
            specs |= _one_price(weighed, specs, importance)
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


_IMPORTANCE = {"fisher": (diagonal_fisher, floored), "output": (output_curvature, damped)}


def _one_price(
    storages: Sequence[Storage], specs: Mapping[str, Cluster], importance: Mapping[str, NDArray[np.float32]]
) -> dict[str, Cluster]:
    """The specs with rates that make a bit cost the same expected loss in every tensor."""
    weights = {one.name: one.dense().detach().cpu().float().numpy() for one in storages}
    factors = price_factors(weights, importance, {one.name: one.mask() for one in storages})
    return {name: replace(specs[name], rate=specs[name].rate * factors[name]) for name in factors}
