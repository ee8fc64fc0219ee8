"""Rows of weights set to zero in a model that has no graph: nothing gets smaller, and it says so."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tersor.errors import TargetError
from tersor.model.attach import attach_mask
from tersor.model.select import Selected
from tersor.model.storage import Storage
from tersor.pipeline.work import Work
from tersor.result import Touched
from tersor.spec import Shrink
from tersor.tensor.masks import Mask, magnitude_mask


def mask_rows(work: Work, step: Shrink, selected: list[Selected], seed: int) -> list[Touched]:
    """Hold the least important rows of each weight, and their biases, at zero, layer by layer.

    Without a graph nobody knows which layer makes the output: the last one stays.
    """
    if step.importance not in ("l1", "l2", "random"):
        raise TargetError(f"importance is {step.importance!r}: without a graph rows have l1, l2 or random")
    layers = [one for one in selected if _is_rows(one.storage)]
    biases = {one.storage.name: one.storage for one in selected}
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for one in selected:
        name = one.storage.name
        if one.storage.kind != "weight":
            continue
        reason = one.reason
        if not reason and one not in layers:
            reason = "no convolution and no linear layer"
        if not reason and one is layers[-1]:
            reason = "the last layer, which may make the output: without a graph nobody knows"
        if reason or not isinstance(one.step, Shrink):
            rows.append(Touched(name, False, reason))
            continue
        kept = _kept(one.storage, one.step, draw)
        wide = np.broadcast_to(kept.reshape(-1, *(1 for _ in one.storage.shape[1:])), one.storage.shape)
        attach_mask(work.model, one.storage, wide.copy())
        bias = biases.get(name.removesuffix("weight") + "bias")
        if bias is not None:
            attach_mask(work.model, bias, kept)
        gone = int((~kept).sum())
        rows.append(Touched(name, True, f"{gone} of {len(kept)} rows zero, not removed: there is no graph"))
    return rows


def _is_rows(storage: Storage) -> bool:
    layer = isinstance(storage.module, nn.Linear | _ConvNd) and not isinstance(
        storage.module, _ConvTransposeNd
    )
    return layer and storage.attribute == "weight" and not storage.aliases


def _kept(storage: Storage, step: Shrink, draw: torch.Generator) -> Mask:
    rows = storage.dense().detach().cpu().double().flatten(1)
    if step.importance == "random":
        scores = torch.rand(len(rows), dtype=torch.float64, generator=draw)
    else:
        scores = rows.norm(1 if step.importance == "l1" else 2, dim=1)
    amount = {step.amount: getattr(step, step.amount)}
    kept = magnitude_mask(scores, **amount)
    if not kept.any():
        raise TargetError(f"{storage.name}: {amount} would leave none of its {len(kept)} rows")
    return kept
