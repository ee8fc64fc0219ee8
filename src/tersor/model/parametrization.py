"""What a storage holds while its model trains: a dense latent under a mask, or shared values.

Each is the one parametrization of its storage (:mod:`torch.nn.utils.parametrize`): its originals are
the parameters, its buffers say where they go. Buffers are state, so a checkpoint of the
``state_dict`` brings everything back.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tersor.errors import TensorError
from tersor.tensor.assign import assign, code_dtype, code_length
from tersor.tensor.codebook import tidy_codebook
from tersor.tensor.compressed import Codebook, CompressedTensor, codebook_dtype
from tersor.tensor.groups import expand_groups, join_groups, split_groups
from tersor.tensor.masks import Mask


class MaskedWeight(nn.Module):
    """weight = latent where kept, else zero; the gradient stops there too."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.shape = tuple(kept.shape)
        self.register_buffer("kept", kept)

    def forward(self, latent: Tensor) -> Tensor:
        """The weight of a dense ``latent``."""
        return latent * _as_factor(self.kept, latent)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The latent that gives ``weight`` back, where it is kept."""
        return weight


class SharedWeight(nn.Module):
    """weight = one of few values, by code; an exact 0.0 in the codebook is no parameter and stays.

    Originals, by ``update`` and ``latent``: ``gradient`` -- the codebook (groups, k), whose gradient is
    the sum over the members (Han et al. 2016, section 3); with ``latent`` also a dense latent (the second
    original) that follows the weight's own gradient straight through, to assign codes from;
    ``mean`` -- a dense latent alone: each weight moves by itself and shows the mean of its code's members.
    Moving all and then setting members to their mean gives the same means, since a step of an optimizer
    does not depend on where in its cluster a weight is.

    index -- int32, flat position in the codebook of each weight that is not zero.
    where -- int64, flat positions of these weights; None if that is all of them.
    zero -- bool (groups, k), the entries that are exactly zero.
    grid -- whether the one codebook lies on the int8 grid whose 127 is its largest value; it stays on one.
    kept -- bool, False where a weight was pruned before; None if none was.
    """

    index: Tensor
    where: Tensor | None
    zero: Tensor
    kept: Tensor | None

    def __init__(
        self,
        compressed: CompressedTensor,
        *,
        update: Literal["gradient", "mean"] = "gradient",
        latent: bool = False,
        grid: bool = False,
        kept: Tensor | None = None,
    ) -> None:
        super().__init__()
        form = cast(Codebook, compressed.form)
        self.grid = grid
        self.shape = compressed.shape
        self.granularity = form.granularity
        self.update = update
        self.latent = latent or update == "mean"
        self.register_buffer("zero", torch.from_numpy(form.codebook == 0))
        self.register_buffer("kept", kept)
        self.register_buffer("index", None)
        self.register_buffer("where", None)
        self._set_codes(form.codes.astype(np.int64))

    def forward(self, *originals: Tensor) -> Tensor:
        """The weight of a codebook, of a codebook and a latent, or of a latent (see the class)."""
        if self.update == "mean":
            (latent,) = originals
            means = self._snapped(self._means(latent.detach()))
            values = spread(means, self.index, self.where, self.shape)
        else:
            codebook, *latents = originals
            values = _members(self._snapped(codebook), self.index, self.where, self.shape)
            if not latents:
                return values
            (latent,) = latents
        return _straight_through(latent, values, self.kept)

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The originals that come nearest to ``weight`` with the codes as they are."""
        if self.update == "mean":
            return weight
        means = self._means(weight)
        return (means, weight) if self.latent else means

    def codebook(self, *originals: Tensor) -> Tensor:
        """The values as they are now, (groups, k); an entry without members may be anything."""
        return self._snapped(self._means(originals[0]) if self.update == "mean" else originals[0])

    def _snapped(self, codebook: Tensor) -> Tensor:
        """The codebook on its int8 grid, if it has one; the gradient goes straight through."""
        if not self.grid:
            return codebook
        used = codebook.detach().float()
        step = used.abs().max().clamp(min=torch.finfo(torch.float32).tiny) / 127
        snapped = ((used / step).round() * step).to(codebook.dtype)
        return snapped + (codebook - codebook.detach())

    def compressed(self, *originals: Tensor) -> CompressedTensor:
        """What the weight is now, as codes and an ascending codebook without unused values."""
        dtype = originals[0].dtype
        book = self.codebook(*originals).detach().cpu().to(codebook_dtype(dtype)).numpy()
        bad = book.size - int(np.isfinite(book).sum())
        if bad:
            raise TensorError(f"{bad} of {book.size} shared values are NaN or Inf: training diverged")
        groups, k = book.shape
        codes = self._codes(groups, k)
        padded = np.concatenate((book, np.zeros((groups, 1), book.dtype)), axis=1)
        return CompressedTensor(self.shape, dtype, tidy_codebook(codes, padded, self.granularity))

    def assign_(self, *originals: Tensor, rate: float = 0.0) -> None:
        """Give each latent the code of the nearest value in use, in float32; pruned weights stay zero.

        With ``rate``, of the least squared error + rate x (mean square of the kept weights) x code length,
        where the lengths are those of the codes as they are now.
        """
        latent = originals[-1].detach().cpu().to(torch.float32).numpy()
        book = self.codebook(*originals).detach().cpu().to(torch.float32).numpy()
        penalty = rate * self._mean_square(latent) if rate else 0.0
        groups, k = book.shape
        codes = split_groups(self._codes(groups, k), self.granularity)
        values = split_groups(latent, self.granularity)
        kept: list[Mask | None] = [None] * groups
        if self.kept is not None:
            kept = list(split_groups(self.kept.cpu().numpy(), self.granularity))
        has_zero = self.zero.any(dim=1).tolist()
        assigned = [
            _nearest(*group, penalty) for group in zip(values, book, codes, kept, has_zero, strict=True)
        ]
        self._set_codes(join_groups(assigned, self.shape, self.granularity))

    def _mean_square(self, latent: NDArray[np.float32]) -> float:
        """Over the weights that are kept."""
        free = latent if self.kept is None else latent[self.kept.cpu().numpy()]
        return float(np.square(free, dtype=np.float64).mean()) if free.size else 0.0

    def _set_codes(self, codes: NDArray[np.int64]) -> None:
        """Codes from 0 to k in the tensor's shape; k, or the code of an exact zero, is the zero."""
        groups, k = self.zero.shape
        offsets = expand_groups(np.arange(groups, dtype=np.int64) * k, self.shape, self.granularity)
        entry = np.where(codes < k, codes + offsets, 0).reshape(-1)
        live = (codes.reshape(-1) < k) & ~self.zero.cpu().numpy().reshape(-1)[entry]
        device = self.zero.device
        where = None if live.all() else torch.from_numpy(np.flatnonzero(live)).to(device)
        self.register_buffer("where", where)
        self.register_buffer("index", torch.from_numpy(entry[live].astype(np.int32)).to(device))

    def _codes(self, groups: int, k: int) -> NDArray[np.int64]:
        """The inverse of :meth:`_set_codes`; the zero is code k."""
        flat = np.full(prod(self.shape), k, np.int64)
        flat[slice(None) if self.where is None else self.where.cpu().numpy()] = self.index.cpu().numpy() % k
        return flat.reshape(self.shape)

    def _means(self, weight: Tensor) -> Tensor:
        members = weight.reshape(-1)
        if self.where is not None:
            members = members.index_select(0, self.where)
        sums = _member_sums(members, self.index, self.zero.numel())
        counts = _member_sums(torch.ones_like(members), self.index, self.zero.numel())
        means = sums / counts.clamp(min=1)
        if weight.dtype == torch.float64:  # whose sums round: the mean of equal members has to be that member
            means = means.clamp(*_member_range(members, self.index, self.zero.numel()))
        return means.to(weight.dtype).reshape(self.zero.shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Assigning codes anew changes how many weights are zero, hence the shapes of these two.
        for name in ("index", "where"):
            saved = state_dict.get(prefix + name)
            self.register_buffer(
                name, None if saved is None else torch.empty_like(saved, device=self.zero.device)
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Members(torch.autograd.Function):
    """codebook[codes], whose gradient is the sum over each value's members.

    The gradient that indexing itself has is several times slower, and so is one that counts the zeros in.
    """

    @staticmethod
    def forward(
        ctx: Any, codebook: Tensor, index: Tensor, where: Tensor | None, shape: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(index, where)
        ctx.shape = codebook.shape
        return spread(codebook, index, where, shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, where = ctx.saved_tensors
        grad = grads[0].reshape(-1)
        if where is not None:
            grad = grad.index_select(0, where)
        sums = _member_sums(grad, index, prod(ctx.shape))
        return sums.to(grad.dtype).reshape(ctx.shape), None, None, None


class _StraightThrough(torch.autograd.Function):
    """``values``, whose gradient also reaches ``latent`` where it is kept (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, values: Tensor, kept: Tensor | None) -> Tensor:
        ctx.save_for_backward(kept)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        grad = grads[0]
        return grad if kept is None else grad * _as_factor(kept, grad), grad, None


def spread(codebook: Tensor, index: Tensor, where: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The dense tensor: value ``index[i]`` of the flat ``codebook`` at place ``where[i]``, zero elsewhere."""
    values = codebook.reshape(-1).index_select(0, index)
    if where is None:
        return values.reshape(shape)
    return values.new_zeros(prod(shape)).index_copy_(0, where, values).reshape(shape)


_members = cast(Callable[[Tensor, Tensor, Tensor | None, tuple[int, ...]], Tensor], _Members.apply)
_straight_through = cast(Callable[[Tensor, Tensor, Tensor | None], Tensor], _StraightThrough.apply)


def _member_sums(members: Tensor, index: Tensor, entries: int) -> Tensor:
    sums = torch.zeros(entries, dtype=torch.float64, device=members.device)
    return sums.index_add_(0, index, members.to(torch.float64))


def _member_range(members: Tensor, index: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    empty, long = members.new_zeros(entries), index.long()
    return (
        empty.scatter_reduce(0, long, members, "amin", include_self=False),
        empty.scatter_reduce(0, long, members, "amax", include_self=False),
    )


def _nearest(
    values: NDArray[np.float32],
    row: NDArray[np.float32],
    codes: NDArray[np.int64],
    kept: Mask | None,
    has_zero: bool,
    penalty: float,
) -> NDArray[np.int64]:
    k = len(row)
    names = np.unique(codes)
    if has_zero or names[-1:] == k:
        names = np.union1d(names, [k])
    if not names.size:
        return codes
    levels = np.append(row, np.float32(0.0))[names]
    order = np.argsort(levels, kind="stable")
    levels, names = levels[order], names[order]
    mask = None if kept is None or kept.all() else np.ascontiguousarray(kept)
    bits = None
    if penalty:
        position: NDArray[Any] = np.zeros(k + 1, code_dtype(len(names)))
        position[names] = np.arange(len(names))
        bits = code_length(position[codes], len(levels))
    picked = assign(values, levels, mask=mask, code_length=bits, penalty=penalty)
    anew: NDArray[np.int64] = names[picked]
    if mask is not None:
        anew[~mask] = k
    return anew


def _as_factor(kept: Tensor, like: Tensor) -> Tensor:
    # Seven times faster than multiplying by a bool, or than torch.where.
    return kept.view(torch.uint8).to(like.dtype)
