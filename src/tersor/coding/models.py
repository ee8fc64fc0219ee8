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

# Places in a model's memory. One array of integers and not a record of arrays, because Numba counts
# references to each array it takes out of a record, which doubles the time of a decision.
LOW, HIGH, VALUE, POSITION, DECODING, RATE = range(6)
CHOSEN = 6  # the slots that predict the next decision
LOGITS = CHOSEN + INPUTS
SEEN = LOGITS + INPUTS
WEIGHTS = SEEN + WEIGHT_SETS
APM = WEIGHTS + WEIGHT_SETS * INPUTS
SCRATCH = APM + APM_ROWS * (APM_STEPS + 1)  # for whoever chooses the slots
SCRATCH_ROOM = 32
APM_STEP = 2 * LOGIT_END // APM_STEPS

Memory = NDArray[np.int64]
Slots = NDArray[np.uint32]
Stream = NDArray[np.uint8]


class Model(NamedTuple):
    """Everything that decisions read and change: one coded stream."""

    memory: Memory
    slots: Slots
    stream: Stream


def _logistic_tables() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    one = 1 << 64
    growth, term, order = one, one, 1
    while term:  # e^(1/256), by its series
        term //= LOGIT_ONE * order
        growth += term
        order += 1
    squash = np.empty(2 * LOGIT_END, np.int32)
    power = one
    for logit in range(LOGIT_END):
        chance = min(65535, power * 65536 // (power + one))
        squash[LOGIT_END + logit] = chance
        squash[LOGIT_END - logit] = 65536 - chance
        power = power * growth >> 64
    squash[0] = 1
    stretch = np.searchsorted(squash, np.arange(4096) * 16 + 8) - LOGIT_END
    return np.clip(stretch, 1 - LOGIT_END, LOGIT_END - 1).astype(np.int32), squash


STRETCH, SQUASH = _logistic_tables()
STEP = (2 << 16) // (2 * np.arange(COUNT_LIMIT + 1, dtype=np.int64) + 3)  # 65536 / (count + 1.5)


def new_model(slots: int, stream: Stream, *, decoding: bool, rate: int) -> Model:
    """A model that knows nothing yet, at the start of ``stream``."""
    memory = np.zeros(SCRATCH + SCRATCH_ROOM, np.int64)
    memory[HIGH] = 0xFFFFFFFF
    memory[DECODING] = decoding
    memory[RATE] = rate
    if decoding:
        memory[VALUE] = int.from_bytes(bytes(stream[:4]).ljust(4, b"\0"), "big")
        memory[POSITION] = 4
    memory[WEIGHTS:APM] = FIRST_WEIGHT
    points = np.minimum(np.arange(APM_STEPS + 1) * APM_STEP, 2 * LOGIT_END - 1)
    memory[APM:SCRATCH] = np.tile(SQUASH[points], APM_ROWS)
    return Model(memory, np.full(slots, 1 << 31, np.uint32), stream)


@njit(cache=True, nogil=True)
def code_bit(
    memory: Memory, slots: Slots, stream: Stream, bit: int, inputs: int, set0: int, set1: int, row: int
) -> int:
    """Code one decision from the slots at ``memory[CHOSEN:]``; returns the bit, and has learned it.

    ``bit`` is ignored while decoding. ``set0`` and ``set1`` choose the weights, ``row`` the refinement.
    """
    first0 = WEIGHTS + set0 * INPUTS
    first1 = WEIGHTS + set1 * INPUTS
    dot0 = 0
    dot1 = 0
    for i in range(inputs):
        logit = np.int64(STRETCH[slots[memory[CHOSEN + i]] >> 20])
        memory[LOGITS + i] = logit
        dot0 += memory[first0 + i] * logit
        dot1 += memory[first1 + i] * logit
    dot0 = max(1 - LOGIT_END, min(LOGIT_END - 1, dot0 >> 16)) + LOGIT_END
    dot1 = max(1 - LOGIT_END, min(LOGIT_END - 1, dot1 >> 16)) + LOGIT_END
    mixed = (dot0 + dot1) >> 1
    point = APM + row * (APM_STEPS + 1) + mixed // APM_STEP
    part = mixed % APM_STEP
    refined = memory[point] + (memory[point + 1] - memory[point]) * part // APM_STEP
    chance = max(1, min(65535, (3 * SQUASH[mixed] + refined) >> 2))
    bit = _narrow(memory, stream, bit, chance)
    point += 1 if 2 * part >= APM_STEP else 0
    memory[point] += (65535 * bit - memory[point]) >> 6
    error0 = ((bit << 16) - SQUASH[dot0]) * _learning_rate(memory, set0)
    error1 = ((bit << 16) - SQUASH[dot1]) * _learning_rate(memory, set1)
    for i in range(inputs):
        logit = memory[LOGITS + i]
        memory[first0 + i] += (logit * error0 + (1 << 17)) >> 18
        memory[first1 + i] += (logit * error1 + (1 << 17)) >> 18
        slot = np.int64(slots[memory[CHOSEN + i]])
        count = slot & 1023
        odds = slot >> 10
        odds += ((4194303 * bit - odds) * STEP[count]) >> 16
        slots[memory[CHOSEN + i]] = (odds << 10) | min(count + 1, COUNT_LIMIT)
    return bit


@njit(cache=True, nogil=True)
def _learning_rate(memory: Memory, chosen_set: int) -> int:
    seen = memory[SEEN + chosen_set]
    memory[SEEN + chosen_set] = min(seen + 1, 255)
    rate: int = memory[RATE] + 960 // (seen + 16)
    return rate


@njit(cache=True, nogil=True)
def _narrow(memory: Memory, stream: Stream, bit: int, chance: int) -> int:
    low = memory[LOW]
    high = memory[HIGH]
    span = high - low
    middle = low + (span >> 16) * chance + (((span & 0xFFFF) * chance) >> 16)
    if memory[DECODING]:
        bit = 1 if memory[VALUE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) & 0xFF000000 == 0:
        at = memory[POSITION]
        memory[POSITION] = at + 1
        if memory[DECODING]:
            coming = np.int64(stream[at]) if at < len(stream) else np.int64(0)
            memory[VALUE] = ((memory[VALUE] << 8) & 0xFFFFFFFF) | coming
        elif at < len(stream):
            stream[at] = high >> 24
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    memory[LOW] = low
    memory[HIGH] = high
    return bit


def stream_end(model: Model) -> bytes:
    """The fewest bytes that finish the stream, given that a reader takes zeros beyond its end."""
    low, high = int(model.memory[LOW]), int(model.memory[HIGH])
    for count in range(5):
        unit = 1 << (32 - 8 * count)
        value = -(-low // unit) * unit
        if value <= high:
            return value.to_bytes(4, "big")[:count]
    raise AssertionError("four bytes always fit")
