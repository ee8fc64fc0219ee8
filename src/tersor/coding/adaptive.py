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

from tersor.coding.models import DECODING, INPUTS, LOW, POSITION, Model, code_bit, new_model, stream_end
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
    codes: Codes, levels: int, center: int, limit: int, *, transposed: bool = False, rate: int = 0
) -> bytes | None:
    """One try of :func:`encode_adaptive`; stops as soon as it cannot be shorter than ``limit``."""
    if codes.size == 0:
        return b"" if limit > 0 else None
    matrix = np.require(codes.T if transposed else codes, np.uint16, ("C", "W"))
    near, far = _lags(matrix, center)
    room = np.zeros(max(limit - 3, 0), np.uint8)
    model = _run(matrix, levels, center, (near, far), room, False, RATES[rate])
    written = int(model.coder[POSITION])
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
    if model.coder[LOW] < 0:
        raise FormatError(f"a code passes the {levels} levels")
    taken = payload[3:][: int(model.coder[POSITION]) - 4]
    padded = taken.ljust(int(model.coder[POSITION]) - 4, b"\0") + stream_end(model)
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
    codes: Codes,
    levels: int,
    center: int,
    lags: tuple[int, int],
    stream: NDArray[np.uint8],
    decoding: bool,
    rate: int,
) -> Model:
    columns = codes.shape[1]
    above, below = levels - 1 - center, center
    widest = max(above, below).bit_length()
    nodes = 2 * (16 + 32 * widest)
    zero = INPUTS * ZERO_ROOM + columns + 1
    sign = SIGN_INPUTS * SIGN_ROOM + columns + 1
    model = new_model(zero + sign + SIZE_INPUTS * nodes * SIZE_ROOM, stream, decoding, rate)
    plan = np.array([above, below, center, lags[0], lags[1], zero, zero + sign, nodes], np.int64)
    _code_matrix(codes, model, plan, np.zeros((5, columns), np.int64))
    return model


ABOVE, BELOW, CENTER, NEAR, FAR, SIGNS, SIZES, NODES = range(8)
DENSITY, BALANCE, LAST_SIZE = range(3)  # what is known of each column


@njit(cache=True, nogil=True)
def _code_matrix(codes: Codes, model: Model, plan: NDArray[np.int64], known: NDArray[np.int64]) -> None:
    """Code row by row; while decoding ``codes`` fills up, else it is only read."""
    rows, columns = codes.shape
    around = np.zeros(8, np.int64)
    dense = np.zeros(3, np.int64)  # quantized density of column, row, columns near by
    last = np.zeros(2, np.int64)  # the row's balance of signs, and its last size
    overall = 32768
    seen = 0
    for r in range(rows):
        in_row = overall
        last[:] = 0
        model.slots[plan[SIGNS] - 1] = 1 << 31
        model.slots[plan[SIZES] - 1] = 1 << 31
        for c in range(columns):
            if r == 0:
                known[DENSITY, c] = overall
            _look_around(codes, r, c, plan, around)
            _quantize_density(model, known, r, c, plan, in_row, dense)
            level = np.int64(codes[r, c]) - plan[CENTER]
            filled = _code_zero(model, plan, c, around, dense, level)
            overall = _moved(overall, filled, model.step[seen])
            known[DENSITY, c] = _moved(known[DENSITY, c], filled, model.step[min(r, 60) + 1])
            in_row = _moved(in_row, filled, model.step[min(c, 119) + 7])
            seen = min(seen + 1, 1000)
            level = _code_level(model, plan, c, around, dense, known, last, level) if filled else 0
            if model.coder[DECODING]:
                if level > plan[ABOVE] or -level > plan[BELOW]:
                    model.coder[LOW] = -1
                    return
                codes[r, c] = level + plan[CENTER]


@njit(cache=True, nogil=True)
def _moved(density: int, filled: int, step: int) -> int:
    moved = density + (((65535 * filled - density) * step) >> 16)
    return max(DENSITY_LOW, min(DENSITY_HIGH, moved))


@njit(cache=True, nogil=True)
def _look_around(codes: Codes, r: int, c: int, plan: NDArray[np.int64], around: NDArray[np.int64]) -> None:
    """Levels to the left, above, at the two lags, above left and right, two left, two above."""
    center = plan[CENTER]
    columns = codes.shape[1]
    near = plan[NEAR]
    far = plan[FAR]
    around[0] = np.int64(codes[r, c - 1]) - center if c > 0 else 0
    around[1] = np.int64(codes[r - 1, c]) - center if r > 0 else 0
    around[2] = np.int64(codes[r, c - near]) - center if c >= near else 0
    around[3] = np.int64(codes[r, c - far]) - center if c >= far else 0
    around[4] = np.int64(codes[r - 1, c - 1]) - center if r > 0 and c > 0 else 0
    around[5] = np.int64(codes[r - 1, c + 1]) - center if r > 0 and c + 1 < columns else 0
    around[6] = np.int64(codes[r, c - 2]) - center if c > 1 else 0
    around[7] = np.int64(codes[r - 2, c]) - center if r > 1 else 0


@njit(cache=True, nogil=True)
def _quantize_density(
    model: Model,
    known: NDArray[np.int64],
    r: int,
    c: int,
    plan: NDArray[np.int64],
    in_row: int,
    dense: NDArray[np.int64],
) -> None:
    columns = known.shape[1]
    lag = plan[NEAR]
    own = known[DENSITY, c]
    nearby = known[DENSITY, c - 1] if c > 0 else own
    nearby += known[DENSITY, c + 1] if c + 1 < columns and r > 0 else own
    nearby += known[DENSITY, c - lag] if c >= lag else own
    nearby += known[DENSITY, c + lag] if c + lag < columns and r > 0 else own
    dense[0] = _step_of(model.stretch[own >> 4], 14)
    dense[1] = _step_of(model.stretch[in_row >> 4], 12)
    dense[2] = _step_of(model.stretch[nearby >> 6], 14)


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
def _code_zero(
    model: Model,
    plan: NDArray[np.int64],
    c: int,
    around: NDArray[np.int64],
    dense: NDArray[np.int64],
    level: int,
) -> int:
    chosen = model.chosen
    left, up, near, far = abs(around[0]), abs(around[1]), abs(around[2]), abs(around[3])
    up_left, up_right, left2, up2 = abs(around[4]), abs(around[5]), abs(around[6]), abs(around[7])
    sizes = _log_step(2 * (left + up + near) + far + up_left + up_right + left2 + up2)
    column, row, nearby = dense[0], dense[1], dense[2]
    touching = 8 * (left > 0) + 4 * (near > 0) + 2 * (up > 0) + (far > 0)
    chosen[0] = 0
    chosen[1] = INPUTS * ZERO_ROOM + c
    chosen[2] = plan[SIGNS] - 1
    chosen[3] = 3 * ZERO_ROOM + min(left, 2) * 27 + min(up, 2) * 9 + min(near, 2) * 3 + min(far, 2)
    chosen[4] = 4 * ZERO_ROOM + column * 14 + row
    chosen[5] = 5 * ZERO_ROOM + column * 14 + nearby
    chosen[6] = 6 * ZERO_ROOM + nearby * 16 + touching
    chosen[7] = 7 * ZERO_ROOM + sizes * 16 + row
    corners = min(up_left, 2) * 27 + min(up_right, 2) * 9 + min(left2, 2) * 3 + min(up2, 2)
    chosen[8] = 8 * ZERO_ROOM + corners
    chosen[9] = 9 * ZERO_ROOM + sizes * 16 + nearby
    return code_bit(model, 1 if level != 0 else 0, INPUTS, 0, 48 + nearby, sizes)


@njit(cache=True, nogil=True)
def _code_level(
    model: Model,
    plan: NDArray[np.int64],
    c: int,
    around: NDArray[np.int64],
    dense: NDArray[np.int64],
    known: NDArray[np.int64],
    last: NDArray[np.int64],
    level: int,
) -> int:
    """Sign and size of a level that is not zero."""
    negative = 1 if level < 0 else 0
    if plan[ABOVE] == 0:
        negative = 1
    elif plan[BELOW] > 0:
        negative = _code_sign(model, plan, c, around, known[BALANCE, c], last[0], negative)
    known[BALANCE, c] += 1 - 2 * negative
    last[0] += 1 - 2 * negative
    beside = abs(around[0]) + abs(around[1]) + abs(around[2]) + abs(around[3])
    beside += abs(around[4]) + abs(around[5])
    octave = 0
    while (1 << octave) <= beside and octave < 7:
        octave += 1
    contexts = (
        0,
        known[LAST_SIZE, c] * 8 + last[1],
        octave,
        min(abs(around[0]), 3) * 16 + min(abs(around[1]), 3) * 4 + min(abs(around[2]), 3),
        dense[0],
    )
    size = _code_size(model, plan, contexts, negative, abs(level))
    remembered = _size_class(size)
    known[LAST_SIZE, c] = remembered
    last[1] = remembered
    return -size if negative else size


@njit(cache=True, nogil=True)
def _size_class(size: int) -> int:
    if size < 4:
        return size
    octave = 0
    while (2 << octave) <= size:
        octave += 1
    return min(7, 2 * octave + ((size >> (octave - 1)) & 1))


@njit(cache=True, nogil=True)
def _code_sign(
    model: Model,
    plan: NDArray[np.int64],
    c: int,
    around: NDArray[np.int64],
    of_column: int,
    of_row: int,
    negative: int,
) -> int:
    chosen = model.chosen
    first = plan[SIGNS]
    sign = np.sign(around)
    column = max(0, min(7, of_column + 4))
    row = max(0, min(7, of_row + 4))
    mean = 2 * (around[0] + around[1] + around[2]) + around[3] + around[4] + around[5] + around[6]
    chosen[0] = first
    chosen[1] = first + SIGN_INPUTS * SIGN_ROOM + c
    chosen[2] = plan[SIZES] - 1
    chosen[3] = first + 3 * SIGN_ROOM + (sign[0] + 1) * 9 + (sign[1] + 1) * 3 + sign[2] + 1
    chosen[4] = first + 4 * SIGN_ROOM + (sign[6] + 1) * 9 + (sign[3] + 1) * 3 + sign[4] + 1
    chosen[5] = first + 5 * SIGN_ROOM + column * 8 + row
    chosen[6] = first + 6 * SIGN_ROOM + (sign[5] + 1) * 9 + (sign[7] + 1) * 3 + np.sign(of_column) + 1
    chosen[7] = first + 7 * SIGN_ROOM + max(0, min(7, mean + 4)) * 8 + column
    return code_bit(model, negative, SIGN_INPUTS, 1, 2, 20)


@njit(cache=True, nogil=True)
def _code_size(
    model: Model, plan: NDArray[np.int64], contexts: tuple[int, int, int, int, int], negative: int, size: int
) -> int:
    """The bits of floor(log2 size) in unary, then those of size below its leading one."""
    largest = plan[BELOW] if negative else plan[ABOVE]
    octave = 0
    while (2 << octave) <= largest:
        _choose_size(model, plan, contexts, octave * 2 + negative)
        more = 1 if size >= (2 << octave) else 0
        if not code_bit(model, more, SIZE_INPUTS, 3 + octave, 40 + contexts[2], 24 + octave):
            break
        octave += 1
    value = 1
    for bit in range(octave - 1, -1, -1):
        node = value if value < 16 else 16 + bit
        _choose_size(model, plan, contexts, (16 + octave * 32 + node) * 2 + negative)
        one = code_bit(
            model, (size >> bit) & 1, SIZE_INPUTS, 19 + octave, 40 + contexts[2], 40 + min(octave, 15)
        )
        value = 2 * value + one
    return value


@njit(cache=True, nogil=True)
def _choose_size(
    model: Model, plan: NDArray[np.int64], contexts: tuple[int, int, int, int, int], node: int
) -> None:
    first = plan[SIZES]
    input_room = plan[NODES] * SIZE_ROOM
    model.chosen[0] = first + (node & ~1) * SIZE_ROOM
    for i in range(5):
        model.chosen[i + 1] = first + (i + 1) * input_room + node * SIZE_ROOM + contexts[i]
