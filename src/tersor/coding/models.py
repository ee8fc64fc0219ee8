"""Adaptive probabilities in integers: the tables, the mixed binary model, and the range coder under it.

A decision is predicted by several *slots* (22 bits of probability, 10 bits of count, adapting at
1/(count + 1.5)), their logits are mixed by two sets of integer weights chosen by context, averaged,
and refined by one table of adaptive points (Mahoney 2005, *Adaptive weighing of context models for
lossless data compression*, sections 3 to 5). The coder is the carry-less 32-bit one of the same
source, with 16-bit probabilities. Everything is an integer, so that bytes decode alike everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

LOGIT_ONE = 256  # a logit of 1.0
LOGIT_END = 3072  # logits lie inside (-12, 12)
INPUTS = 10
WEIGHT_SETS = 64
APM_ROWS = 64
APM_STEPS = 32
COUNT_LIMIT = 1000  # the least adaptation rate of a slot is 1 / 1001.5
FIRST_WEIGHT = 12000  # of 65536: ten agreeing inputs sum to a little under 2
LOW, HIGH, VALUE, POSITION, DECODING = range(5)


class Model(NamedTuple):
    """Everything a decision reads and changes; one of these is one coded stream.

    coder -- int64 (5,): low, high, value, position in ``stream``, 1 while decoding.
    rates -- int64 (3,): rate of the weights, its share that fades, and unused room.
    """

    coder: NDArray[np.int64]
    stream: NDArray[np.uint8]
    slots: NDArray[np.uint32]
    chosen: NDArray[np.int64]
    logits: NDArray[np.int64]
    weights: NDArray[np.int64]
    seen: NDArray[np.int64]
    apm: NDArray[np.int64]
    stretch: NDArray[np.int64]
    squash: NDArray[np.int64]
    step: NDArray[np.int64]
    rates: NDArray[np.int64]


def _logistic_tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    one = 1 << 64
    growth, term, order = one, one, 1
    while term:  # e^(1/256), by its series
        term //= LOGIT_ONE * order
        growth += term
        order += 1
    squash = np.empty(2 * LOGIT_END, np.int64)
    power = one
    for logit in range(LOGIT_END):
        chance = min(65535, power * 65536 // (power + one))
        squash[LOGIT_END + logit] = chance
        squash[LOGIT_END - logit] = 65536 - chance
        power = power * growth >> 64
    squash[0] = 1
    stretch = np.searchsorted(squash, np.arange(4096) * 16 + 8) - LOGIT_END
    return np.clip(stretch, 1 - LOGIT_END, LOGIT_END - 1), squash


STRETCH, SQUASH = _logistic_tables()
STEP = (2 << 16) // (2 * np.arange(COUNT_LIMIT + 1, dtype=np.int64) + 3)  # 65536 / (count + 1.5)


def new_model(slots: int, stream: NDArray[np.uint8], decoding: bool, rate: int) -> Model:
    """A model that knows nothing yet, at the start of ``stream``."""
    points = np.minimum(np.arange(APM_STEPS + 1) * (2 * LOGIT_END // APM_STEPS), 2 * LOGIT_END - 1)
    value = int.from_bytes(bytes(stream[:4]).ljust(4, b"\0"), "big") if decoding else 0
    return Model(
        coder=np.array([0, 0xFFFFFFFF, value, 4 if decoding else 0, int(decoding)], np.int64),
        stream=stream,
        slots=np.full(slots, 1 << 31, np.uint32),
        chosen=np.zeros(INPUTS, np.int64),
        logits=np.zeros(INPUTS, np.int64),
        weights=np.full((WEIGHT_SETS, INPUTS), FIRST_WEIGHT, np.int64),
        seen=np.zeros(WEIGHT_SETS, np.int64),
        apm=np.tile(SQUASH[points], (APM_ROWS, 1)),
        stretch=STRETCH,
        squash=SQUASH,
        step=STEP,
        rates=np.array([rate], np.int64),
    )


@njit(cache=True, nogil=True)
def code_bit(model: Model, bit: int, inputs: int, set0: int, set1: int, row: int) -> int:
    """Code one decision from the slots ``model.chosen[:inputs]``; returns the bit, learned from.

    ``bit`` is ignored while decoding. ``set0`` and ``set1`` choose the weights, ``row`` the refinement.
    """
    dot0 = 0
    dot1 = 0
    for i in range(inputs):
        logit = model.stretch[model.slots[model.chosen[i]] >> 20]
        model.logits[i] = logit
        dot0 += model.weights[set0, i] * logit
        dot1 += model.weights[set1, i] * logit
    dot0 = max(1 - LOGIT_END, min(LOGIT_END - 1, dot0 >> 16))
    dot1 = max(1 - LOGIT_END, min(LOGIT_END - 1, dot1 >> 16))
    mixed = (dot0 + dot1) >> 1
    place = (mixed + LOGIT_END) // (2 * LOGIT_END // APM_STEPS)
    part = (mixed + LOGIT_END) % (2 * LOGIT_END // APM_STEPS)
    left = model.apm[row, place]
    right = model.apm[row, place + 1]
    refined = left + (right - left) * part // (2 * LOGIT_END // APM_STEPS)
    chance = max(1, min(65535, (3 * model.squash[mixed + LOGIT_END] + refined) >> 2))
    bit = _narrow(model, bit, chance)
    target = 65535 * bit
    if 2 * part < 2 * LOGIT_END // APM_STEPS:
        model.apm[row, place] += (target - left) >> 6
    else:
        model.apm[row, place + 1] += (target - right) >> 6
    _learn(model, bit, inputs, set0, (bit << 16) - model.squash[dot0 + LOGIT_END])
    _learn(model, bit, inputs, set1, (bit << 16) - model.squash[dot1 + LOGIT_END])
    for i in range(inputs):
        slot = np.int64(model.slots[model.chosen[i]])
        count = slot & 1023
        odds = slot >> 10
        odds += ((4194303 * bit - odds) * model.step[count]) >> 16
        model.slots[model.chosen[i]] = (odds << 10) | min(count + 1, COUNT_LIMIT)
    return bit


@njit(cache=True, nogil=True)
def _learn(model: Model, bit: int, inputs: int, chosen_set: int, error: int) -> None:
    seen = model.seen[chosen_set]
    model.seen[chosen_set] = min(seen + 1, 255)
    error *= model.rates[0] + 960 // (seen + 16)
    for i in range(inputs):
        model.weights[chosen_set, i] += (model.logits[i] * error + (1 << 17)) >> 18


@njit(cache=True, nogil=True)
def _narrow(model: Model, bit: int, chance: int) -> int:
    coder = model.coder
    low = coder[LOW]
    high = coder[HIGH]
    span = high - low
    middle = low + (span >> 16) * chance + (((span & 0xFFFF) * chance) >> 16)
    if coder[DECODING]:
        bit = 1 if coder[VALUE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) & 0xFF000000 == 0:
        at = coder[POSITION]
        coder[POSITION] = at + 1
        if coder[DECODING]:
            coming = np.int64(model.stream[at]) if at < len(model.stream) else np.int64(0)
            coder[VALUE] = ((coder[VALUE] << 8) & 0xFFFFFFFF) | coming
        elif at < len(model.stream):
            model.stream[at] = high >> 24
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    coder[LOW] = low
    coder[HIGH] = high
    return bit


def stream_end(model: Model) -> bytes:
    """The fewest bytes that finish the stream, given that a reader takes zeros beyond its end."""
    low, high = int(model.coder[LOW]), int(model.coder[HIGH])
    for count in range(5):
        unit = 1 << (32 - 8 * count)
        value = -(-low // unit) * unit
        if value <= high:
            return value.to_bytes(4, "big")[:count]
    raise AssertionError("four bytes always fit")
