"""What a student learns from a teacher's outputs: soft targets, and how their divergence comes apart."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tersor.errors import TaskError
from tersor.measure.outputs import labels_of
from tersor.spec import Distill
from tersor.task import Batch

_IMPOSSIBLE = -1e30  # stands in for a logarithm of 0, whose differences are NaN


def soft_loss(student: Tensor, teacher: Tensor, *, temperature: float, class_axis: int = 1) -> Tensor:
    """T^2 x KL(teacher || student) of softened logits, summed over classes, the mean over all else.

    Hinton et al. 2015 (Distilling the knowledge in a neural network), section 2: T^2 keeps the gradients as
    long whatever the temperature is.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 4.0]])
    >>> abs(float(soft_loss(logits + 5, logits, temperature=3.0))) < 1e-5
    True
    """
    own, target = _softened(student, teacher, temperature, class_axis)
    divergence = F.kl_div(own, target, reduction="none", log_target=True).sum(class_axis)
    return divergence.mean() * temperature**2


def decoupled_terms(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, class_axis: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """(target class against the rest, among the other classes, the teacher's probability of the rest).

    Each has one value a label. KL is the first + the second x the third: Zhao et al. 2022 (Decoupled
    Knowledge Distillation), section 3.1, equation 5. Labels are classes. A class whose logit
    is -inf by the teacher has no part.

    >>> import torch
    >>> one, other = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[2.0, 0.0, 3.0]])
    >>> target, among, rest = decoupled_terms(one, other, torch.tensor([0]), temperature=1.0)
    >>> torch.allclose(target + among * rest, soft_loss(one, other, temperature=1.0))
    True
    """
    own, target = _softened(student, teacher, temperature, class_axis)
    at = labels.unsqueeze(class_axis)
    minus_infinity = float("-inf")

    def parts(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of: the target's probability, that of the rest, each other class's among the rest."""
        others = log_p.scatter(class_axis, at, minus_infinity)
        rest = others.logsumexp(class_axis, keepdim=True)
        return log_p.gather(class_axis, at), rest, (others - rest).scatter(class_axis, at, 0.0)

    (own_hit, own_rest, own_others), (hit, rest, others) = parts(own), parts(target)
    first = hit.exp() * (hit - own_hit) + rest.exp() * (rest - own_rest)
    weights = others.exp().masked_fill(target <= _IMPOSSIBLE, 0.0).scatter(class_axis, at, 0.0)
    second = (weights * (others - own_others)).sum(class_axis)
    return first.squeeze(class_axis), second, rest.exp().squeeze(class_axis)


def output_loss(spec: Distill, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """The loss of soft targets without its weight: T^2 x KL, or in its place what ``decoupled`` says.

    Raises :class:`TaskError` where that needs labels and the batch has none that fit.
    """
    if spec.decoupled is None:
        return soft_loss(student, teacher, temperature=spec.temperature, class_axis=spec.class_axis)
    labels = labels_of(batch, student, spec)
    if isinstance(labels, str):
        raise TaskError(f"distill.decoupled needs the class of each sample, and {labels}")
    counted = (labels >= 0) & (labels < student.shape[spec.class_axis])
    target, among, _ = decoupled_terms(
        student, teacher, labels.where(counted, 0), temperature=spec.temperature, class_axis=spec.class_axis
    )
    alpha, beta = spec.decoupled
    each = (alpha * target + beta * among) * counted
    return each.sum() / counted.sum().clamp(min=1) * spec.temperature**2


def _softened(student: Tensor, teacher: Tensor, temperature: float, class_axis: int) -> tuple[Tensor, Tensor]:
    """Logarithms of probabilities; where the teacher's is -inf, numbers whose terms are 0, and not NaN."""
    own = (student.float() / temperature).log_softmax(class_axis)
    target = (teacher.float() / temperature).log_softmax(class_axis)
    never = target.isneginf()
    return own.masked_fill(never & own.isneginf(), _IMPOSSIBLE), target.masked_fill(never, _IMPOSSIBLE)
