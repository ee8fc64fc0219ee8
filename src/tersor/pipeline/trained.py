"""The part of a search that trains: prune more and more, choose again, tune what was chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

from tersor.errors import BudgetError
from tersor.pipeline.search import Effort, Search
from tersor.pipeline.untrained import fill, folded
from tersor.spec import Prune, Step, Train

KEPT = (0.2, 0.08, 0.04, 0.025, 0.016, 0.011, 0.008, 0.006, 0.004)  # of the weights, round by round
NEAR = 1.25  # the factor between a share inside and one outside at which halving ends
HOPELESS = 2.5  # of the drop that is allowed: more is not trained away
EASY = 0.5  # of the drop that is allowed: so far below it more is pruned before anything is tuned
PATIENCE = 2  # rounds without a smaller file
MOST_TUNED = 4  # trainings of one round
ROUGHER, CLOSE = 2.5, 1.4  # the factor between their losses, and the one at which halving ends
LONGER = 2.0  # the most by which rounds are stretched at a time


@dataclass(frozen=True)
class Pruned:
    """How far pruning has come.

    steps, kept -- what kept the budget, and the share of the weights that it keeps; outside -- the greatest
    share that did not; rounds -- how many there were; tuned -- whether choices were made for these steps.
    """

    steps: tuple[Step, ...] = ()
    kept: float = 1.0
    outside: float = 0.0
    rounds: int = 0
    tuned: bool = True


def with_training(search: Search, loss: float) -> None:
    """Prune, train, choose, tune in rounds, until files get no smaller; with time left, on with longer ones.

    loss -- of the outputs, that choices begin with.
    """
    effort, pruned, without_gain = search.effort, Pruned(), 0
    while not search.out_of_time():
        best, kept, easy = search.best, _next_share(pruned), False
        if kept is not None and without_gain < PATIENCE:
            pruned, easy = _prune(search, pruned, kept, effort)
        elif pruned.tuned:
            again = replace(pruned, outside=0.0)
            stretched = _stretched(search, effort, pruned.rounds) if _next_share(again) else None
            if stretched is None:
                return
            effort, without_gain, pruned = stretched, 0, again
        if pruned.tuned or easy or search.out_of_time():
            continue
        loss = _tune(search, pruned.steps, effort, loss)
        pruned = replace(pruned, tuned=True)
        without_gain = 0 if search.best is not best else without_gain + 1


def _next_share(pruned: Pruned) -> float | None:
    """The share of the weights that is tried next; None where those inside and outside are near together."""
    if pruned.outside:
        return sqrt(pruned.kept * pruned.outside) if pruned.kept / pruned.outside > NEAR else None
    return next((one for one in KEPT if one * NEAR < pruned.kept), None)


def _stretched(search: Search, effort: Effort, rounds: int) -> Effort | None:
    """Longer rounds, as far as one of them fits into the time that is left; None where none does.

    It is noted, so that a search that was killed takes the same way again.
    """
    left, pace = search.seconds_left, search.pace
    if left is None or pace is None:
        return None
    usual = (effort.epochs + 2 * effort.tuning) * pace
    key = f"stretched after round {rounds}, limit {search.budget.time_limit:g} s"
    share: float = search.trials.notes.once(key, lambda: left / usual)
    if share < 1:
        return None
    factor = min(share, LONGER)
    return replace(effort, epochs=round(effort.epochs * factor, 3), tuning=round(effort.tuning * factor, 3))


def _prune(search: Search, pruned: Pruned, kept: float, effort: Effort) -> tuple[Pruned, bool]:
    """One more round, if need be with more training; and whether much more can go before anything is tuned.

    So it is where the drop is far below what is allowed, early in the time that there is.
    """
    number = pruned.rounds + 1
    train = Train(epochs=effort.epochs, lr=effort.lr, warmup=0.05)
    step = Prune(name=f"prune-{number}", fraction=1 - kept, scope="global", schedule="gradual", train=train)
    steps = (*pruned.steps, step)
    trial = search.try_out(steps)
    limited, allowed = search.budget.limits_drop, search.verdicts.allowed
    near = limited and allowed < search.lost(trial) < HOPELESS * allowed
    if near and not search.out_of_time():
        steps = (*steps, replace(train, name=f"recover-{number}"))
        trial = search.try_out(steps)
    if limited and not search.holds(trial):
        return replace(pruned, outside=kept, rounds=number), False
    left, limit = search.seconds_left, search.budget.time_limit
    easy = limited and search.lost(trial) < EASY * allowed
    if easy and left is not None and limit is not None:
        key = f"early after round {number}, limit {limit:g} s"
        easy = search.trials.notes.once(key, lambda: left > limit / 2)
    return Pruned(steps, kept, pruned.outside, number, tuned=False), easy


def _tune(search: Search, before: tuple[Step, ...], effort: Effort, loss: float) -> float:
    """Choose for what was pruned, rougher than the budget allows, and let training make up for it.

    Returns the roughest that was inside.
    """
    before = folded(search, before)
    allocation = search.trials.allocation(before, effort.batches)
    tune = Train(name="tune", epochs=effort.tuning, lr=effort.tuning_lr, warmup=0.05)
    if not search.budget.limits_drop:
        fill(search, before, allocation, tune)
        return loss
    inside = outside = None
    for _ in range(MOST_TUNED):
        if search.out_of_time():
            break
        try:
            trial = search.try_out((*before, *allocation.steps(allocation.within_loss(loss)), tune))
        except BudgetError:
            break
        if search.holds(trial):
            inside = loss
        else:
            outside = loss
        if inside and outside:
            if outside / inside < CLOSE:
                break
            loss = sqrt(inside * outside)
        else:
            loss = inside * ROUGHER if inside else loss / ROUGHER
    return inside or loss
