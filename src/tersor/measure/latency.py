"""How long one call takes beside another: measured in turns, so that a busy machine slows both."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, comb

import numpy as np

from tersor.errors import SpecError
from tersor.progress import Progress, silent

Call = Callable[[], object]
Clock = Callable[[], float]

FEWEST_ROUNDS = 6  # with fewer, no two order statistics hold the median with 95 %
_MOST_CALLS = 1 << 20


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call, and how many times those of the first that is.

    low_ms, high_ms -- the quartiles over the rounds.
    ratio -- the median over the rounds of this one's time by the first's in the same round, with its 95 %
        interval.
    calls -- how many calls one round times together.
    """

    name: str
    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    calls: int


def compare_latency(
    callables: Mapping[str, Call],
    *,
    rounds: int = 30,
    min_seconds: float = 0.01,
    warmup: int = 3,
    clock: Clock = time.perf_counter,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Latency, ...]:
    """The latency of each of ``callables``, and its ratio to the first of them.

    rounds -- each times every callable once, in an order of its own.
    min_seconds -- the shortest time worth reading off the clock: quicker calls are repeated until it is
        full, and their mean counts.
    warmup -- calls of each before anything is timed.
    clock -- ``time.process_time`` counts instead what all threads of this process used of the processor:
        steadier on a busy machine, and with one thread the same as wall time on an idle one.

    The interval of the ratio is that of the sign test: two order statistics of the paired ratios, whatever
    their distribution. Garbage is not collected meanwhile. Raises :class:`SpecError` for numbers that cannot
    be, and for a clock that does not move.
    """
    _check(callables, rounds, min_seconds, warmup)
    names = list(callables)
    turns = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        calls = {name: _calls(name, callables[name], min_seconds, warmup, clock) for name in names}
        for done in range(rounds):
            for name in turns.sample(names, len(names)):
                seconds[name].append(_timed(callables[name], calls[name], clock) / calls[name])
            progress("latency", done + 1.0, float(rounds))
    first = _positive(names[0], seconds[names[0]])
    return tuple(_latency(name, seconds[name], first, calls[name]) for name in names)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a median by the sign test: no narrower pair of order statistics has 95 %.

    >>> median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    (1.0, 6.0)
    """
    ordered, n = sorted(values), len(values)
    tail, rank = 1, 0  # of 2**n: the chance that at most `rank` values lie below the median
    while (tail + comb(n, rank + 1)) * 40 <= 2**n:
        rank += 1
        tail += comb(n, rank)
    return ordered[rank], ordered[n - 1 - rank]


def _calls(name: str, call: Call, min_seconds: float, warmup: int, clock: Clock) -> int:
    """How many calls fill ``min_seconds``; the trials go on with the warming up."""
    for _ in range(warmup):
        call()
    calls = 1
    while (spent := _timed(call, calls, clock)) < min_seconds:
        if calls >= _MOST_CALLS:
            raise SpecError(f"{calls:,} calls of {name} took {spent:g} s: give the clock more to measure")
        # What is still missing, but at most eight times as much: the first trials are off.
        wanted = ceil(1.1 * calls * min_seconds / spent) if spent > 0 else 8 * calls
        calls = min(max(wanted, calls + 1), 8 * calls, _MOST_CALLS)
    return calls


def _timed(call: Call, calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        call()
    return clock() - start


def _latency(name: str, seconds: list[float], first: list[float], calls: int) -> Latency:
    ratios = [own / other for own, other in zip(_positive(name, seconds), first, strict=True)]
    low, middle, high = (1000 * float(one) for one in np.quantile(seconds, (0.25, 0.5, 0.75)))
    ratio_low, ratio_high = median_interval(ratios)
    ratio = float(np.median(ratios))
    return Latency(name, middle, low, high, ratio, ratio_low, ratio_high, len(seconds), calls)


def _positive(name: str, seconds: list[float]) -> list[float]:
    if min(seconds) <= 0:
        raise SpecError(f"the clock did not move while {name} ran: raise min_seconds")
    return seconds


def _check(callables: Mapping[str, Call], rounds: int, min_seconds: float, warmup: int) -> None:
    if not callables:
        raise SpecError("nothing to measure")
    if rounds < FEWEST_ROUNDS:
        raise SpecError(f"rounds is {rounds}: a 95 % interval takes {FEWEST_ROUNDS} or more")
    if not 0 < min_seconds < float("inf"):
        raise SpecError(f"min_seconds is {min_seconds}: it has to be above 0")
    if warmup < 0:
        raise SpecError(f"warmup is {warmup}: it has to be 0 or more")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
