"""Specs' results onto a model and off it again: one parametrization a storage, replaced and never chained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tersor.errors import TargetError, TensorError, in_context
from tersor.model.grid import GridWeight, grid_of, kept_codes
from tersor.model.parametrization import MaskedWeight, SharedWeight
from tersor.model.restore import restore_
from tersor.model.storage import Attached, Storage, keep_order, state, storages
from tersor.points import QuantPoint
from tersor.structure import Change
from tersor.tensor.affine import Grid
from tersor.tensor.codebook import int8_levels, tidy_codebook
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, Raw, raw
from tersor.tensor.groups import expand_groups
from tersor.tensor.masks import Mask


@dataclass(frozen=True)
class Collected:
    """A model as named tensors: what is stored, and alias -> name of tied ones.

    points -- where its activations are quantized; changes -- how it differs from what ``build()`` gives.
    The model itself knows neither: who makes them hands them on.
    """

    tensors: Mapping[str, CompressedTensor]
    aliases: Mapping[str, str]
    points: tuple[QuantPoint, ...] = ()
    changes: tuple[Change, ...] = ()


def attach_mask(model: nn.Module, storage: Storage, mask: Mask) -> None:
    """Hold the weights at zero where ``mask`` is False, on top of those that were pruned before.

    The dense weight stays the parameter and only what is kept has a gradient. Shared values stay shared:
    the pruned ones take an exact zero, which is one more value if the codebook has none.
    """
    _check(model, storage)
    if tuple(mask.shape) != storage.shape:
        raise TensorError(f"{storage.name} has shape {storage.shape}, its mask {tuple(mask.shape)}")
    before = storage.mask()
    kept = mask.copy() if before is None else mask & before
    held = storage.parametrization
    if held is not None and isinstance(held[0], SharedWeight):
        shared = held[0]
        compressed = _with_zeros(collect_one(storage), kept)
        latent = storage.originals()[-1].detach() if shared.latent else storage.dense()
        _attach_shared(storage, compressed, shared.update, latent if shared.latent else None, kept)
        return
    if held is not None and isinstance(held[0], GridWeight):
        grid = held[0]
        pruned = torch.from_numpy(kept).to(grid.zero_point.device)
        originals = storage.originals()
        learn = originals[1].requires_grad
        copies = [one.detach().clone() for one in originals]
        _bind(storage, GridWeight(grid.shape, grid.grid, grid.start, grid.zero_point, pruned), copies)
        storage.originals()[1].requires_grad_(learn)
        return
    latent = storage.dense() if held is None else storage.originals()[0].detach()
    _bind(storage, MaskedWeight(torch.from_numpy(kept).to(latent.device)), [latent.clone()])


def attach_codebook(
    model: nn.Module,
    storage: Storage,
    compressed: CompressedTensor,
    *,
    update: Literal["gradient", "mean"] = "gradient",
    latent: bool = False,
) -> None:
    """Share the weights as ``compressed`` has it; from here on the few values are what trains.

    ``latent`` keeps the dense weight too, as a parameter from which codes can be assigned anew
    (``mean`` has one in any case). Weights pruned before have to have a code that is exactly 0.0;
    :class:`TensorError` otherwise.
    """
    _check(model, storage)
    with in_context(storage.name):
        kept = storage.mask()
        if not isinstance(compressed.form, Codebook):
            raise TensorError(f"a codebook is asked for, not {type(compressed.form).__name__}")
        if compressed.shape != storage.shape or compressed.dtype != storage.dtype:
            raise TensorError(f"the codebook is for {compressed.shape} {compressed.dtype}, "
                              f"the weight is {storage.shape} {storage.dtype}")  # fmt: skip
        if kept is not None:
            _check_zeros(compressed, kept)
    dense = storage.dense().clone() if latent or update == "mean" else None
    if update == "mean" and not latent:
        dense = compressed.decode().to(storage.dense().device)
    _attach_shared(storage, compressed, update, dense, kept)


def attach_grid(
    model: nn.Module,
    storage: Storage,
    compressed: CompressedTensor,
    grid: Grid,
    *,
    latent: bool = False,
    learn: bool = False,
) -> None:
    """Round the weight to the codes of ``grid`` as ``compressed`` has it, in every forward pass from here on.

    What trains is a dense weight behind it: the one that ``compressed`` was made of with ``latent``, else
    what it decodes to. With ``learn`` the scales train too. What was pruned before stays zero.
    """
    _check(model, storage)
    with in_context(storage.name):
        form = compressed.form
        if not isinstance(form, Affine):
            raise TensorError(f"a grid is asked for, not {type(form).__name__}")
        if compressed.shape != storage.shape or compressed.dtype != storage.dtype:
            raise TensorError(f"the grid is for {compressed.shape} {compressed.dtype}, "
                              f"the weight is {storage.shape} {storage.dtype}")  # fmt: skip
    _bind_grid(storage, compressed, grid, storage.mask(), storage.dense() if latent else None, learn)


def plain_copy(model: nn.Module, device: str = "cpu") -> nn.Module:
    """A copy in eval mode on ``device``, without what is attached to the model."""
    plain = deepcopy(model).to(device)
    bake_(plain)
    return plain.eval()


def bake_(model: nn.Module) -> None:
    """Turn every attachment back into a plain parameter with the value that its file would have."""
    for storage in storages(model):
        if storage.parametrization is not None:
            device = storage.dense().device
            _release(storage, collect_one(storage).decode().to(device))


def collect(model: nn.Module) -> Collected:
    """What the model holds now, by the names of its bare ``state_dict``.

    Shared weights come as a codebook, pruned ones as raw values with a mask, the rest of the parameters and
    the persistent buffers as they are. Copies: the model can go on training.
    """
    found = state(model)
    tensors = {storage.name: collect_one(storage) for storage in found}
    return Collected(tensors, {alias: storage.name for storage in found for alias in storage.aliases})


def attach_collected_(
    model: nn.Module, collected: Collected, *, update: Literal["gradient", "mean"] = "gradient"
) -> None:
    """The inverse of :func:`collect`, on a bare model: fill it, then hold masks and shared values as before.

    The model is as ``build()`` gives it; ``collected.changes`` are made first. The exact zeros of a codebook
    or a grid count as pruned.
    """
    restore_(model, collected.tensors, collected.aliases, collected.changes)
    for storage in storages(model):
        compressed = collected.tensors[storage.name]
        form = compressed.form
        if isinstance(form, Codebook):
            kept = _kept(form)
            latent = compressed.decode() if update == "mean" else None
            _attach_shared(storage, compressed, update, latent, None if kept.all() else kept)
        elif isinstance(form, Affine):
            _bind_grid(storage, compressed, grid_of(compressed), kept_codes(compressed), None, False)
        elif isinstance(form, Raw) and form.mask is not None:
            attach_mask(model, storage, form.mask)


def collect_one(storage: Storage) -> CompressedTensor:
    """:func:`collect` for one storage."""
    held = storage.parametrization
    if held is not None and isinstance(held[0], SharedWeight | GridWeight):
        with in_context(storage.name), torch.no_grad():
            return held[0].compressed(*storage.originals())
    values = storage.dense()
    return raw(values.clone() if held is None else values + 0.0, storage.mask())


def _attach_shared(
    storage: Storage,
    compressed: CompressedTensor,
    update: Literal["gradient", "mean"],
    latent: Tensor | None,
    kept: Mask | None,
) -> None:
    device = storage.dense().device
    pruned = None if kept is None else torch.from_numpy(kept)
    grid = int8_levels(cast(Codebook, compressed.form).codebook) is not None
    shared = SharedWeight(compressed, update=update, latent=latent is not None, grid=grid, kept=pruned).to(
        device
    )
    originals = [] if latent is None else [latent.to(device)]
    if update == "gradient":
        book = torch.from_numpy(cast(Codebook, compressed.form).codebook)
        originals.insert(0, book.to(device=device, dtype=storage.dtype))
    _bind(storage, shared, originals)


def _bind_grid(
    storage: Storage,
    compressed: CompressedTensor,
    grid: Grid,
    kept: Mask | None,
    latent: Tensor | None,
    learn: bool,
) -> None:
    device = storage.dense().device
    form = cast(Affine, compressed.form)
    zero_point, scale = (torch.from_numpy(one).to(device) for one in (form.zero_point, form.scale))
    pruned = None if kept is None or kept.all() else torch.from_numpy(kept).to(device)
    dense = compressed.decode().to(device) if latent is None else latent.clone()
    shift = torch.zeros_like(scale)
    _bind(storage, GridWeight(storage.shape, grid, scale, zero_point, pruned), [dense, shift])
    storage.originals()[1].requires_grad_(learn)


def _bind(storage: Storage, parametrization: Attached, originals: Sequence[Tensor]) -> None:
    """Make ``parametrization`` of ``originals`` the only thing behind all sites of the storage."""
    weight = storage.dense()
    if storage.parametrization is not None:
        _release(storage, weight)
    shared: Any = None
    for site in storage.sites:
        module, attribute = site.module, site.attribute
        keep_order(module)
        _own_class(module)
        requires_grad = cast(Tensor, module._parameters[attribute]).requires_grad
        # A new Parameter: registering changes the one it finds in place, and an alias may hold that too.
        module._parameters[attribute] = nn.Parameter(weight.clone(), requires_grad)
        parametrize.register_parametrization(module, attribute, parametrization, unsafe=True)
        held = cast(nn.ModuleDict, module.parametrizations)
        shared = held[attribute] if shared is None else shared
        held[attribute] = shared
        if isinstance(module, nn.RNNBase):
            _serve_flat_weights(module)
    with torch.no_grad():
        for target, value in zip(storage.originals(), originals, strict=True):
            target.data = value.contiguous().clone()


def _release(storage: Storage, weight: Tensor) -> None:
    """Put one plain parameter of value ``weight`` back to all sites of the storage."""
    held = cast(parametrize.ParametrizationList, storage.parametrization)
    parameter = nn.Parameter(weight, next(held.parameters()).requires_grad)
    for site in storage.sites:
        _own_class(site.module)
        parametrize.remove_parametrizations(
            site.module, site.attribute, leave_parametrized=not held.is_tensor
        )
        site.module._parameters[site.attribute] = parameter
        if isinstance(site.module, nn.RNNBase):
            site.module._init_flat_weights()


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own again.

    torch makes one class a module and hangs a property a parameter on it, but a deepcopy shares it: what is
    attached to or taken off one copy would be so on the other, which breaks it.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        own = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, own)


def _serve_flat_weights(module: nn.RNNBase) -> None:
    """Let an RNN's list of weights be computed when it is read.

    The list that torch keeps would hold stale parameters, then tensors of the last graph, which no
    deepcopy accepts.
    """
    cls = type(module)
    cls._flat_weights = property(_flat_weights, lambda self, value: None)  # type: ignore[assignment]
    cls._update_flat_weights = lambda self: None  # type: ignore[method-assign]
    module.__dict__.pop("_flat_weights", None)


def _flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _with_zeros(compressed: CompressedTensor, kept: Mask) -> CompressedTensor:
    form = cast(Codebook, compressed.form)
    groups, k = form.codebook.shape
    codes = np.where(kept, form.codes.astype(np.int64), k)
    padded = np.concatenate((form.codebook, np.zeros((groups, 1), form.codebook.dtype)), axis=1)
    return CompressedTensor(
        compressed.shape, compressed.dtype, tidy_codebook(codes, padded, form.granularity)
    )


def _kept(form: Codebook) -> Mask:
    rows = expand_groups(np.arange(len(form.codebook)), form.codes.shape, form.granularity)
    kept: Mask = form.codebook[rows, form.codes] != 0
    return kept


def _check_zeros(compressed: CompressedTensor, kept: Mask) -> None:
    wrong = int(np.count_nonzero(_kept(cast(Codebook, compressed.form)) & ~kept))
    if wrong:
        raise TensorError(
            f"{wrong} pruned weights would get a value: cluster with the mask, so that they keep a zero"
        )


def _check(model: nn.Module, storage: Storage) -> None:
    for site in storage.sites:
        try:
            mine = model.get_submodule(site.path) is site.module
        except AttributeError:
            mine = False
        if not mine:
            raise TargetError(
                f"{site.name} belongs to another model (a copy?): select from the one to attach to"
            )
    if not storage.dtype.is_floating_point:
        raise TargetError(f"{storage.name} is {storage.dtype}: only floating weights can be compressed")
