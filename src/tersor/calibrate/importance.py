"""How much weights matter, by what training batches say: the scores that pruning ranks by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tersor.calibrate.fisher import batch_gradients, diagonal_fisher
from tersor.model.attach import plain_copy
from tersor.progress import Progress, silent
from tersor.spec import Prune
from tersor.task import Task
from tersor.tensor.pruning import gradient_score, summed


def gradient_scores(
    model: nn.Module,
    task: Task,
    steps: Mapping[str, Prune],
    *,
    batches: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """The score of each weight, slice or block, whatever its step prunes as a whole; float32, on the CPU.

    steps -- what prunes each parameter of the bare model: its ``importance`` is ``taylor``, ``movement``
        (means over ``batches`` training batches, see :func:`tersor.tensor.pruning.gradient_score`) or
        ``fisher``: w^2 times the diagonal of the Fisher information (Theis et al. 2018, equation 5).

    The model runs in eval mode and is left as it was. A weight that no loss depends on scores 0. Raises
    :class:`TaskError` without training data or a loss.
    """
    plain = plain_copy(model, device)
    weights = {name: one.detach() for name, one in plain.named_parameters() if name in steps}
    scores: dict[str, Tensor] = {}
    squared = [name for name, step in steps.items() if step.importance == "fisher"]
    if squared:
        fisher = diagonal_fisher(model, task, squared, batches=batches, device=device, progress=progress)
        for name, diagonal in fisher.items():
            weight = weights[name].cpu().float()
            scores[name] = summed(torch.from_numpy(diagonal).mul_(weight).mul_(weight), steps[name])
    rest = {name: step for name, step in steps.items() if name not in squared}
    if rest:
        sums = {
            name: summed(torch.zeros_like(weights[name], dtype=torch.float32), rest[name]) for name in rest
        }
        seen = 0
        for gradients in batch_gradients(
            plain, task, rest, batches=batches, device=device, progress=progress
        ):
            for name, (weight, gradient) in gradients.items():
                sums[name] += gradient_score(weight, gradient, rest[name])
            seen += 1
        scores |= {name: (total / seen).cpu() for name, total in sums.items()}
    return scores
