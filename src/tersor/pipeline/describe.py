"""What tensors have become, read off the model and not off the plan."""

from __future__ import annotations

from torch import nn

from tersor.model.attach import collect_one
from tersor.model.grid import grid_of
from tersor.model.select import Selected, Storage, storages
from tersor.result import Touched
from tersor.tensor.compressed import Affine, Codebook


def report_storages(model: nn.Module, selected: list[Selected]) -> list[Touched]:
    """What each tensor has become, read off the model and not off the plan."""
    now = {storage.name: storage for storage in storages(model)}
    return [
        Touched(one.storage.name, True, describe(now[one.storage.name]))
        if one.step is not None
        else Touched(one.storage.name, False, one.reason)
        for one in selected
    ]


def describe(storage: Storage) -> str:
    """What a storage holds, in a few words: zeros, values, bits."""
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
