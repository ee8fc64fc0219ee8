"""The end of a recipe in which tensors only lose: where each can be put back to what it was before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

from tersor.artifact.writer import disk_errors, replacing
from tersor.pipeline.stages import KEPT, Stage, stage_path
from tersor.spec import Cluster, Fold, Prune, Quantize, Shrink, Smooth, Step, Train


def trains(step: Step) -> bool:
    """Whether a training belongs to a step."""
    return isinstance(step, Train) or getattr(step, "train", None) is not None


def tail_start(steps: Sequence[Step]) -> int | None:
    """The index of the first step of a recipe's tail; None where it has none.

    The tail begins after the last step that changes what layers there are or moves their ranges (fold,
    smooth, shrink) or trains dense weights, and with a step that prunes, shares or rounds. A training of
    shared or rounded weights does not end it.

    >>> from tersor.spec import Code
    >>> tail_start((Fold(), Quantize(), Code())), tail_start((Prune(fraction=0.5, train=Train()), Code()))
    (1, None)
    >>> tail_start((Prune(fraction=0.5), Train(name="tune"), Cluster(bits=4, train=Train())))
    2
    """
    start: int | None = None
    coded = False
    for at, step in enumerate(steps):
        codes = isinstance(step, Cluster | Quantize)
        if isinstance(step, Fold | Smooth | Shrink) or (trains(step) and not (coded or codes)):
            start, coded = None, False
        elif codes or isinstance(step, Prune):
            start = at if start is None else start
            coded = coded or codes
    return start


def keep_stage(steps: Sequence[Step], stages: Sequence[Stage], folder: Path) -> None:
    """Leave in ``folder/stages`` the one file that tensors can be put back from, where a training made it.

    Those of an earlier run go. What no training made can be made again.
    """
    kept = folder / KEPT
    start = tail_start(steps)
    with disk_errors(kept):
        for stale in kept.glob("[0-9]*-*.tersor"):
            stale.unlink()
        if not start or not any(trains(step) for step in steps[:start]):
            return
        kept.mkdir(exist_ok=True)
    target = stage_path(kept, start - 1, steps[start - 1])
    with replacing(target) as partial, disk_errors(target):
        copyfile(stages[start - 1].path, partial)
