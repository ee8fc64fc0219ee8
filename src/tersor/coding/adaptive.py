"""Method 4: an adaptive binary context coder without tables, for matrices of a few million codes.

Layout of a payload: one byte ``transposed + 2 x rate`` (rate: index into RATES), two bytes of lags,
then the stream of the range coder. The stream has no trailing zero bytes and no length: a reader takes
zeros beyond its end, and checks afterwards that the writer would have ended it there. No codes: no bytes.

The level of a code is code - center. Decisions: is it zero; its sign (only where both exist); for
|level| = m the bits of floor(log2 m) in unary, as far as the alphabet leaves them open, then the bits
of m below the leading one, most significant first. What predicts them: neighbours to the left and
above, the codes at two distances chosen for the matrix (the pixel above, the same tap of the channel
before), and the density of the row and of the columns near by, all learned on the way.

The scheme follows context-based coding of network weights (Wiedemann et al. 2020, DeepCABAC, section
III) with the single context replaced by mixing (:mod:`tersor.coding.models`).
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tersor.coding.models import (
    CHOSEN,
    DECODING,
    INPUTS,
    LOW,
    POSITION,
    SCRATCH,
    STEP,
    STRETCH,
    Memory,
    Model,
    Slots,
    Stream,
    code_bit,
    new_model,
    stream_end,
)
from tersor.errors import FormatError

RATES = (5, 14)
MAX_LAG = 128
LAG_SAMPLE = 200_000
TRY_ALL_BELOW = 1 << 19  # four tries take about a second there; above it one has to do
ZERO_ROOM = 256  # contexts of one input, by kind of decision
SIGN_ROOM = 64
SIZE_ROOM = 64
SIZE_INPUTS = 6
SIGN_INPUTS = 8
DENSITY_LOW, DENSITY_HIGH = 32, 65503

# Places in the model's scratch memory.
ABOVE, BELOW, CENTER, NEAR, FAR, SIGNS, SIZES, NODES = range(SCRATCH, SCRATCH + 8)
AROUND = SCRATCH + 8  # 8 levels: left, up, near, far, up left, up right, two left, two up
COLUMN_DENSITY, ROW_DENSITY, NEARBY_DENSITY = range(SCRATCH + 16, SCRATCH + 19)  # quantized
ROW_BALANCE, ROW_SIZE = range(SCRATCH + 19, SCRATCH + 21)  # positive less negative; class of the last size
SIZE_CONTEXTS = SCRATCH + 21  # 5 numbers below SIZE_ROOM
EXPECTED_DENSITY = SCRATCH + 26  # column + row - overall, as logits, quantized
ROW_MEAN, ROW_COUNT, OVERALL_MEAN, OVERALL_COUNT = range(SCRATCH + 27, SCRATCH + 31)  # of sizes, x 256
DENSITY, BALANCE, LAST_SIZE, MEAN_SIZE, SIZE_COUNT = range(5)  # rows of what is known of each column

Known = NDArray[np.int64]

Codes = NDArray[np.uint16]


def encode_adaptive(codes: Codes, levels: int, center: int, limit: int) -> bytes | None:
    """Payload of a matrix (rows, columns), or None where none of the tries is shorter than ``limit``."""
    best: bytes | None = None
    small = codes.size <= TRY_ALL_BELOW
    for transposed, rate in product((False, True) if small else (False,), (0, 1) if small else (0,)):
        payload = encode_once(codes, levels, center, limit, transposed=transposed, rate=rate)
        if payload is not None:
            best, limit = payload, len(payload)
    return best


def encode_once(
    codes: Codes,
    levels: int,
    center: int,
    limit: int,
    *,
    transposed: bool = False,
    rate: int = 0,
    lags: tuple[int, int] | None = None,
) -> bytes | None:
    """One try of :func:`encode_adaptive`; stops as soon as it cannot be shorter than ``limit``.

    lags -- the two distances along a row to look back by; without them, those that correlate most.
    """
    if codes.size == 0:
        return b"" if limit > 0 else None
    matrix = np.require(codes.T if transposed else codes, np.uint16, ("C", "W"))
    near, far = lags or _lags(matrix, center)
    room = np.zeros(max(limit - 3, 0), np.uint8)
    model = _run(matrix, levels, center, (near, far), room, False, RATES[rate])
    written = int(model.memory[POSITION])
    if written > len(room):
        return None
    stream = (room[:written].tobytes() + stream_end(model)).rstrip(b"\0")
    payload = bytes((transposed + 2 * rate, near, far)) + stream
    return payload if len(payload) < limit else None


def decode_adaptive(payload: bytes, shape: tuple[int, int], levels: int, center: int) -> Codes:
    """The matrix of ``shape``; raises FormatError unless the payload is exactly one encoding of it."""
    codes = np.zeros(shape, np.uint16)
    if codes.size == 0:
        if payload:
            raise FormatError(f"{len(payload)} bytes for no codes")
        return codes
    if len(payload) < 3 or payload[0] >= 2 * len(RATES) or 0 in payload[1:3]:
        raise FormatError(f"adaptive codes start with {payload[:3].hex() or 'nothing'}: not a known header")
    transposed, rate = payload[0] & 1, RATES[payload[0] >> 1]
    if transposed:
        codes = np.zeros(shape[::-1], np.uint16)
    stream = np.frombuffer(payload, np.uint8, offset=3).copy()
    model = _run(codes, levels, center, (payload[1], payload[2]), stream, True, rate)
    if model.memory[LOW] < 0:
        raise FormatError(f"a code passes the {levels} levels")
    taken = payload[3:][: int(model.memory[POSITION]) - 4]
    padded = taken.ljust(int(model.memory[POSITION]) - 4, b"\0") + stream_end(model)
    if padded.rstrip(b"\0") != payload[3:]:
        raise FormatError("adaptive codes do not end where their bytes end")
    return np.ascontiguousarray(codes.T) if transposed else codes


def _lags(codes: Codes, center: int) -> tuple[int, int]:
    """The two distances along a row at which magnitudes correlate most."""
    columns = codes.shape[1]
    sample = codes[: max(1, LAG_SAMPLE // columns)].astype(np.float32)
    size = np.minimum(np.abs(sample - center), 3)
    scores = []
    for lag in range(2, min(columns, MAX_LAG + 1)):
        ahead, behind = size[:, lag:], size[:, :-lag]
        spread = float(ahead.std() * behind.std())
        shared = float((ahead * behind).mean() - ahead.mean() * behind.mean())
        scores.append((-shared / spread if spread else 0.0, lag))
    near, far = [lag for _, lag in [*sorted(scores)[:2], (0.0, 2), (0.0, 3)]][:2]
    return near, far


def _run(
    codes: Codes, levels: int, center: int, lags: tuple[int, int], stream: Stream, decoding: bool, rate: int
) -> Model:
    columns = codes.shape[1]
    above, below = levels - 1 - center, center
    nodes = 2 * (16 + 32 * max(above, below).bit_length())
    zero = INPUTS * ZERO_ROOM + columns + 1
    sign = SIGN_INPUTS * SIGN_ROOM + columns + 1
    room = zero + sign + SIZE_INPUTS * nodes * SIZE_ROOM
    model = new_model(room, stream, decoding=decoding, rate=rate)
    model.memory[SCRATCH:AROUND] = above, below, center, *lags, zero, zero + sign, nodes
    _code_matrix(codes, model.memory, model.slots, stream, np.zeros((5, columns), np.int64))
    return model


@njit(cache=True, nogil=True)
def _code_matrix(codes: Codes, memory: Memory, slots: Slots, stream: Stream, known: Known) -> None:
    """Code row by row; while decoding ``codes`` fills up, else it is only read."""
    rows, columns = codes.shape
    overall = 32768
    seen = 0
    for r in range(rows):
        in_row = overall
        memory[ROW_BALANCE] = 0
        memory[ROW_SIZE] = 0
        memory[ROW_MEAN] = memory[OVERALL_MEAN]
        memory[ROW_COUNT] = 3
        slots[memory[SIGNS] - 1] = 1 << 31
        slots[memory[SIZES] - 1] = 1 << 31
        for c in range(columns):
            if r == 0:
                known[DENSITY, c] = overall
            if known[SIZE_COUNT, c] == 0:
                known[MEAN_SIZE, c] = memory[OVERALL_MEAN]
                known[SIZE_COUNT, c] = 3
            _look_around(codes, r, c, memory)
            _quantize_density(memory, known, r, c, in_row, overall)
            level = np.int64(codes[r, c]) - memory[CENTER]
            filled = _code_zero(memory, slots, stream, c, level)
            overall = _moved(overall, filled, STEP[seen])
            known[DENSITY, c] = _moved(known[DENSITY, c], filled, STEP[min(r, 60) + 1])
            in_row = _moved(in_row, filled, STEP[min(c, 119) + 7])
            seen = min(seen + 1, 1000)
            level = _code_level(memory, slots, stream, known, c, level) if filled else 0
            if memory[DECODING]:
                if level > memory[ABOVE] or -level > memory[BELOW]:
                    memory[LOW] = -1
                    return
                codes[r, c] = level + memory[CENTER]


@njit(cache=True, nogil=True)
def _moved(density: int, filled: int, step: int) -> int:
    moved = density + (((65535 * filled - density) * step) >> 16)
    return max(DENSITY_LOW, min(DENSITY_HIGH, moved))


@njit(cache=True, nogil=True)
def _look_around(codes: Codes, r: int, c: int, memory: Memory) -> None:
    center = memory[CENTER]
    columns = codes.shape[1]
    near = memory[NEAR]
    far = memory[FAR]
    memory[AROUND] = np.int64(codes[r, c - 1]) - center if c > 0 else 0
    memory[AROUND + 1] = np.int64(codes[r - 1, c]) - center if r > 0 else 0
    memory[AROUND + 2] = np.int64(codes[r, c - near]) - center if c >= near else 0
    memory[AROUND + 3] = np.int64(codes[r, c - far]) - center if c >= far else 0
    memory[AROUND + 4] = np.int64(codes[r - 1, c - 1]) - center if r > 0 and c > 0 else 0
    memory[AROUND + 5] = np.int64(codes[r - 1, c + 1]) - center if r > 0 and c + 1 < columns else 0
    memory[AROUND + 6] = np.int64(codes[r, c - 2]) - center if c > 1 else 0
    memory[AROUND + 7] = np.int64(codes[r - 2, c]) - center if r > 1 else 0


@njit(cache=True, nogil=True)
def _quantize_density(memory: Memory, known: Known, r: int, c: int, in_row: int, overall: int) -> None:
    columns = known.shape[1]
    lag = memory[NEAR]
    own = known[DENSITY, c]
    nearby = known[DENSITY, c - 1] if c > 0 else own
    nearby += known[DENSITY, c + 1] if c + 1 < columns and r > 0 else own
    nearby += known[DENSITY, c - lag] if c >= lag else own
    nearby += known[DENSITY, c + lag] if c + lag < columns and r > 0 else own
    memory[COLUMN_DENSITY] = _step_of(STRETCH[own >> 4], 14)
    memory[ROW_DENSITY] = _step_of(STRETCH[in_row >> 4], 12)
    logit = STRETCH[own >> 4] + STRETCH[in_row >> 4] - STRETCH[overall >> 4]
    memory[EXPECTED_DENSITY] = _step_of(logit, 48)
    memory[NEARBY_DENSITY] = _step_of(STRETCH[nearby >> 6], 14)


@njit(cache=True, nogil=True)
def _step_of(logit: int, steps: int) -> int:
    return max(0, min(steps - 1, ((logit + 2048) * steps) >> 12))


@njit(cache=True, nogil=True)
def _log_step(total: int) -> int:
    """0 to 5 as they are, then two steps an octave, at most 15."""
    if total < 6:
        return total
    octave = 2
    while (2 << octave) <= total:
        octave += 1
    return min(15, 2 * octave + 1 + ((total >> (octave - 1)) & 1))


@njit(cache=True, nogil=True)
def _code_zero(memory: Memory, slots: Slots, stream: Stream, c: int, level: int) -> int:
    left = abs(memory[AROUND])
    up = abs(memory[AROUND + 1])
    near = abs(memory[AROUND + 2])
    far = abs(memory[AROUND + 3])
    up_left = abs(memory[AROUND + 4])
    up_right = abs(memory[AROUND + 5])
    left2 = abs(memory[AROUND + 6])
    up2 = abs(memory[AROUND + 7])
    sizes = _log_step(2 * (left + up + near) + far + up_left + up_right + left2 + up2)
    column = memory[COLUMN_DENSITY]
    row = memory[ROW_DENSITY]
    nearby = memory[NEARBY_DENSITY]
    touching = 8 * (left > 0) + 4 * (near > 0) + 2 * (up > 0) + (far > 0)
    beside = min(left, 2) * 27 + min(up, 2) * 9 + min(near, 2) * 3 + min(far, 2)
    corners = min(up_left, 2) * 27 + min(up_right, 2) * 9 + min(left2, 2) * 3 + min(up2, 2)
    memory[CHOSEN] = memory[EXPECTED_DENSITY]
    memory[CHOSEN + 1] = INPUTS * ZERO_ROOM + c
    memory[CHOSEN + 2] = memory[SIGNS] - 1
    memory[CHOSEN + 3] = 3 * ZERO_ROOM + beside
    memory[CHOSEN + 4] = 4 * ZERO_ROOM + column * 14 + row
    memory[CHOSEN + 5] = 5 * ZERO_ROOM + column * 14 + nearby
    memory[CHOSEN + 6] = 6 * ZERO_ROOM + nearby * 16 + touching
    memory[CHOSEN + 7] = 7 * ZERO_ROOM + sizes * 16 + row
    memory[CHOSEN + 8] = 8 * ZERO_ROOM + corners
    memory[CHOSEN + 9] = 9 * ZERO_ROOM + sizes * 16 + nearby
    return code_bit(memory, slots, stream, 1 if level != 0 else 0, INPUTS, 0, 48 + nearby, sizes)


@njit(cache=True, nogil=True)
def _code_level(memory: Memory, slots: Slots, stream: Stream, known: Known, c: int, level: int) -> int:
    """Sign and size of a level that is not zero."""
    negative = 1 if level < 0 else 0
    if memory[ABOVE] == 0:
        negative = 1
    elif memory[BELOW] > 0:
        negative = _code_sign(memory, slots, stream, c, known[BALANCE, c], negative)
    known[BALANCE, c] += 1 - 2 * negative
    memory[ROW_BALANCE] += 1 - 2 * negative
    left = abs(memory[AROUND])
    up = abs(memory[AROUND + 1])
    near = abs(memory[AROUND + 2])
    total = left + up + near + abs(memory[AROUND + 3]) + abs(memory[AROUND + 4]) + abs(memory[AROUND + 5])
    octave = 0
    while (1 << octave) <= total and octave < 7:
        octave += 1
    expected = _fine_log(known[MEAN_SIZE, c]) + _fine_log(memory[ROW_MEAN]) - _fine_log(memory[OVERALL_MEAN])
    memory[SIZE_CONTEXTS] = max(0, min(SIZE_ROOM - 1, expected))
    memory[SIZE_CONTEXTS + 1] = known[LAST_SIZE, c] * 8 + memory[ROW_SIZE]
    memory[SIZE_CONTEXTS + 2] = octave
    memory[SIZE_CONTEXTS + 3] = min(left, 3) * 16 + min(up, 3) * 4 + min(near, 3)
    memory[SIZE_CONTEXTS + 4] = memory[COLUMN_DENSITY]
    size = _code_size(memory, slots, stream, negative, abs(level))
    _remember_size(memory, known, c, size)
    return -size if negative else size


@njit(cache=True, nogil=True)
def _remember_size(memory: Memory, known: Known, c: int, size: int) -> None:
    known[LAST_SIZE, c] = _size_class(size)
    known[MEAN_SIZE, c] += ((size * 256 - known[MEAN_SIZE, c]) * STEP[known[SIZE_COUNT, c]]) >> 16
    known[SIZE_COUNT, c] = min(known[SIZE_COUNT, c] + 1, 60)
    memory[ROW_SIZE] = _size_class(size)
    memory[ROW_MEAN] += ((size * 256 - memory[ROW_MEAN]) * STEP[memory[ROW_COUNT]]) >> 16
    memory[ROW_COUNT] = min(memory[ROW_COUNT] + 1, 60)
    memory[OVERALL_MEAN] += ((size * 256 - memory[OVERALL_MEAN]) * STEP[memory[OVERALL_COUNT]]) >> 16
    memory[OVERALL_COUNT] = min(memory[OVERALL_COUNT] + 1, 1000)


@njit(cache=True, nogil=True)
def _fine_log(mean: int) -> int:
    """Quarters of an octave above 1, for a mean of sizes in 1/256."""
    octave = 8
    while (2 << octave) <= mean:
        octave += 1
    return max(0, 4 * (octave - 8) + ((mean >> (octave - 2)) & 3))


@njit(cache=True, nogil=True)
def _size_class(size: int) -> int:
    if size < 4:
        return size
    octave = 2
    while (2 << octave) <= size:
        octave += 1
    return min(7, 2 * octave + ((size >> (octave - 1)) & 1))


@njit(cache=True, nogil=True)
def _code_sign(memory: Memory, slots: Slots, stream: Stream, c: int, balance: int, negative: int) -> int:
    first = memory[SIGNS]
    left = memory[AROUND]
    up = memory[AROUND + 1]
    near = memory[AROUND + 2]
    far = memory[AROUND + 3]
    up_left = memory[AROUND + 4]
    up_right = memory[AROUND + 5]
    left2 = memory[AROUND + 6]
    up2 = memory[AROUND + 7]
    column = max(0, min(7, balance + 4))
    row = max(0, min(7, memory[ROW_BALANCE] + 4))
    mean = max(0, min(7, 2 * (left + up + near) + far + up_left + up_right + left2 + 4))
    memory[CHOSEN] = first
    memory[CHOSEN + 1] = first + SIGN_INPUTS * SIGN_ROOM + c
    memory[CHOSEN + 2] = memory[SIZES] - 1
    memory[CHOSEN + 3] = first + 3 * SIGN_ROOM + _three_signs(left, up, near)
    memory[CHOSEN + 4] = first + 4 * SIGN_ROOM + _three_signs(left2, far, up_left)
    memory[CHOSEN + 5] = first + 5 * SIGN_ROOM + column * 8 + row
    memory[CHOSEN + 6] = first + 6 * SIGN_ROOM + _three_signs(up_right, up2, balance)
    memory[CHOSEN + 7] = first + 7 * SIGN_ROOM + mean * 8 + column
    return code_bit(memory, slots, stream, negative, SIGN_INPUTS, 1, 2, 20)


@njit(cache=True, nogil=True)
def _three_signs(a: int, b: int, c: int) -> int:
    return ((a > 0) - (a < 0) + 1) * 9 + ((b > 0) - (b < 0) + 1) * 3 + (c > 0) - (c < 0) + 1


@njit(cache=True, nogil=True)
def _code_size(memory: Memory, slots: Slots, stream: Stream, negative: int, size: int) -> int:
    """The bits of floor(log2 size) in unary, then those of size below its leading one."""
    largest = memory[BELOW] if negative else memory[ABOVE]
    around = 40 + memory[SIZE_CONTEXTS + 2]
    octave = 0
    while (2 << octave) <= largest:
        _choose_size(memory, octave * 2 + negative)
        more = 1 if size >= (2 << octave) else 0
        if not code_bit(memory, slots, stream, more, SIZE_INPUTS, 3 + octave, around, 24 + octave):
            break
        octave += 1
    value = 1
    for bit in range(octave - 1, -1, -1):
        node = value if value < 16 else 16 + bit
        _choose_size(memory, (16 + octave * 32 + node) * 2 + negative)
        one = (size >> bit) & 1
        one = code_bit(memory, slots, stream, one, SIZE_INPUTS, 19 + octave, around, 40 + octave)
        value = 2 * value + one
    return value


@njit(cache=True, nogil=True)
def _choose_size(memory: Memory, node: int) -> None:
    first = memory[SIZES]
    input_room = memory[NODES] * SIZE_ROOM
    memory[CHOSEN] = first + (node & ~1) * SIZE_ROOM
    for i in range(5):
        memory[CHOSEN + 1 + i] = first + (i + 1) * input_room + node * SIZE_ROOM + memory[SIZE_CONTEXTS + i]
