"""Inner results of a student that are to be like those of its teacher: paired, and compared term by term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import TargetError, in_context
from tersor.spec import Match
from tersor.train.watching import Watched, matched_paths


@dataclass(frozen=True)
class Pair:
    """A module of the student, one of the teacher, and what is asked of their results."""

    student: str
    teacher: str
    match: Match


@dataclass(frozen=True)
class Sides:
    """What a match matches in either model, in its order."""

    match: Match
    student: tuple[str, ...]
    teacher: tuple[str, ...]


def sides_of(match: Match, student: nn.Module, teacher: nn.Module) -> Sides:
    """The modules that both patterns match; :class:`TargetError` for one that matches none."""
    return Sides(
        match,
        matched_paths(student, match.student, "student"),
        matched_paths(teacher, match.teacher, "teacher"),
    )


def pairs_of(sides: Sides, student: Watched, teacher: Watched) -> list[Pair]:
    """One module beside the other; :class:`TargetError`, with the shapes of both sides, where one is left."""
    if len(sides.student) != len(sides.teacher):
        ours, theirs = (
            ", ".join(f"{path} {_shape(watched, path)}" for path in paths)
            for watched, paths in ((student, sides.student), (teacher, sides.teacher))
        )
        raise TargetError(
            f"{sides.match.student!r} matches {len(sides.student)} modules of the student ({ours}), "
            f"{sides.match.teacher!r} {len(sides.teacher)} of the teacher ({theirs}): they are paired in "
            "order, so both have to match as many"
        )
    return [Pair(*both, sides.match) for both in zip(sides.student, sides.teacher, strict=True)]


class LayerTerms(nn.Module):
    """The terms of all pairs, with the adapters that learn beside the student."""

    def __init__(self, pairs: Sequence[Pair], student: Watched, teacher: Watched) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self._student, self._teacher = student, teacher
        self.adapters = nn.ModuleList()
        for one in self.pairs:
            with in_context(f"{one.student} ~ {one.teacher}"):
                self.adapters.append(
                    adapter_for(one.match.term, student.result(one.student), teacher.result(one.teacher))
                )

    def forward(self) -> Tensor:
        """The weighted sum of the terms of the batch that both have seen last."""
        terms = [
            one.match.weight
            * _TERMS[one.match.term](
                adapter(self._student.result(one.student).float()),
                self._teacher.result(one.teacher).float(),
            )
            for one, adapter in zip(self.pairs, self.adapters, strict=True)
        ]
        return torch.stack(terms).sum()

    def described(self) -> list[tuple[str, str]]:
        """(module of the student, its shape with the module and shape of the teacher, the term)."""
        rows = []
        for one, adapter in zip(self.pairs, self.adapters, strict=True):
            words = [f"{one.match.term}, weight {one.match.weight:g}"]
            words += ["through a learned adapter"] * any(True for _ in adapter.parameters())
            rows.append((
                one.student,
                f"{_shape(self._student, one.student)} ~ {one.teacher} {_shape(self._teacher, one.teacher)}: "
                + ", ".join(words),
            ))  # fmt: skip
        return rows


def mse_term(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference (Romero et al. 2015, FitNets, equation 3).

    >>> float(mse_term(torch.zeros(2, 3), torch.full((2, 3), 2.0)))
    4.0
    """
    return F.mse_loss(*same_extent(student, teacher))


def cosine_term(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of 1 - cosine over the channels (Sanh et al. 2019, DistilBERT, section 3).

    >>> float(cosine_term(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])))
    1.0
    """
    own, target = same_extent(student, teacher)
    return (1 - F.cosine_similarity(own, target, channel_axis(own))).mean()


def attention_term(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance of the attention maps, the mean over samples.

    Zagoruyko & Komodakis 2017 (Paying more attention to attention), section 3.1, equation 2, with maps of
    p = 2; its norm is squared here, and its factor of beta / 2 is left to the weight of the term.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> float(attention_term(x, 5 * x)) < 1e-12
    True
    """
    own, target = same_extent(student.square().sum(channel_axis(student)).unsqueeze(1),
                              teacher.square().sum(channel_axis(teacher)).unsqueeze(1))  # fmt: skip
    maps = [F.normalize(one.flatten(1)) for one in (own, target)]
    return (maps[0] - maps[1]).square().sum(1).mean()


_TERMS = {"mse": mse_term, "cosine": cosine_term, "attention": attention_term}


def channel_axis(features: Tensor) -> int:
    """1 for images and volumes, the last for anything with fewer axes."""
    return 1 if features.ndim >= 4 else features.ndim - 1


def same_extent(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the smaller height and width (and depth) of the two, by adaptive average pooling.

    >>> [tuple(one.shape) for one in same_extent(torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 4))]
    [(2, 3, 4, 4), (2, 5, 4, 4)]
    """
    own, target = student.shape[2:], teacher.shape[2:]
    if student.ndim < 4 or own == target:
        return student, teacher
    extent = [min(pair) for pair in zip(own, target, strict=True)]
    return _pooled(student, extent), _pooled(teacher, extent)


def _pooled(features: Tensor, extent: list[int]) -> Tensor:
    if list(features.shape[2:]) == extent:
        return features
    if features.ndim == 4:
        return F.adaptive_avg_pool2d(features, (extent[0], extent[1]))
    return F.adaptive_avg_pool3d(features, (extent[0], extent[1], extent[2]))


def adapter_for(term: str, student: Tensor, teacher: Tensor) -> nn.Module:
    """What makes the student's channels as many as the teacher's; :class:`TargetError` where nothing can."""
    own, target = tuple(student.shape), tuple(teacher.shape)
    axis = channel_axis(student)
    images = student.ndim in (4, 5)
    if len(own) != len(target) or len(own) < 2 or own[0] != target[0]:
        raise TargetError(f"{own} and {target} cannot be compared: they have to have the same samples and as "
                          "many axes")  # fmt: skip
    if term == "attention" and len(own) < 3:
        raise TargetError(
            f"{own} has no positions beside its channels: attention needs some; take mse or cosine"
        )
    if not images and own[1:-1] != target[1:-1]:
        raise TargetError(f"{own} and {target} differ in more than channels (the last axis): match modules "
                          "that give as many positions")  # fmt: skip
    if term == "attention" or own[axis] == target[axis]:
        return nn.Identity()
    sizes = own[axis], target[axis]
    kinds: Mapping[int, type[nn.Conv2d | nn.Conv3d]] = {4: nn.Conv2d, 5: nn.Conv3d}
    made = kinds[student.ndim](*sizes, 1) if images else nn.Linear(*sizes)
    return made.to(student.device)


def _shape(watched: Watched, path: str) -> tuple[int, ...]:
    return tuple(watched.result(path).shape)
