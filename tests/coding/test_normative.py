"""Method 4 decoded by what CODING.md says and by nothing else: plain integers, with the names used there."""

# ruff: noqa: N803, N806, E741

from __future__ import annotations

import numpy as np
import pytest

from tersor.coding.adaptive import encode_once


def clip(x, a, b):
    return max(a, min(b, x))


def sgn(*levels):
    return tuple((x > 0) - (x < 0) for x in levels)


def log(x):
    return x.bit_length() - 1


def at_most(y, *levels):
    return tuple(min(abs(x), y) for x in levels)


def logistic():
    e = total = 1 << 64
    i = 1
    while e:
        e //= 256 * i
        total += e
        i += 1
    table, power = {-3072: 1}, 1 << 64
    for x in range(3072):
        table[x] = min(65535, (power << 16) // (power + (1 << 64)))
        table[-x] = 65536 - table[x]
        power = power * total >> 64
    return table


S = logistic()
T = []
for j in range(4096):
    T.append(next(x for x in range(T[-1] if T else -3071, 3072) if S[x] >= 16 * j + 8))


def step(n):
    return 131072 // (2 * n + 3)


class Decisions:
    def __init__(self, stream, rate):
        self.stream, self.shifted = stream, 4
        self.low, self.high = 0, 2**32 - 1
        self.value = int.from_bytes(stream[:4].ljust(4, b"\0"), "big")
        self.rate = (5, 14)[rate]
        self.slots = {}
        self.sets = [[[12000] * 10, 0] for _ in range(64)]
        self.rows = [[S[min(192 * i - 3072, 3071)] for i in range(33)] for _ in range(64)]

    def bit(self, first, second, row, decision, names):
        slots = [
            self.slots.setdefault((decision, place, name), [1 << 21, 0]) for place, name in enumerate(names)
        ]
        xs = [T[p // 1024] for p, _ in slots]
        sets = [self.sets[first], self.sets[second]]
        ds = [
            clip(sum(w * x for w, x in zip(weights, xs, strict=False)) >> 16, -3071, 3071)
            for weights, _ in sets
        ]
        m = (sum(ds) >> 1) + 3072
        i, f = divmod(m, 192)
        points = self.rows[row]
        q = points[i] + (points[i + 1] - points[i]) * f // 192
        bit = self.narrow(clip(3 * S[m - 3072] + q >> 2, 1, 65535))
        i += f >= 96
        points[i] += 65535 * bit - points[i] >> 6
        for one, d in zip(sets, ds, strict=True):
            e = (65536 * bit - S[d]) * (self.rate + 960 // (one[1] + 16))
            for place, x in enumerate(xs):
                one[0][place] += x * e + 2**17 >> 18
            one[1] = min(one[1] + 1, 255)
        for slot in slots:
            slot[0] += (4194303 * bit - slot[0]) * step(slot[1]) >> 16
            slot[1] = min(slot[1] + 1, 1000)
        return bit

    def narrow(self, chance):
        size = self.high - self.low
        middle = self.low + (size >> 16) * chance + (size % 2**16 * chance >> 16)
        bit = int(self.value <= middle)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while self.low >> 24 == self.high >> 24:
            coming = self.stream[self.shifted] if self.shifted < len(self.stream) else 0
            self.shifted += 1
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = self.high << 8 & 0xFFFFFFFF | 255
            self.value = self.value << 8 & 0xFFFFFFFF | coming
        return bit

    def ended_right(self):
        for count in range(5):
            unit = 1 << 32 - 8 * count
            least = -(-self.low // unit) * unit
            if least <= self.high:
                whole = self.stream[: self.shifted - 4].ljust(self.shifted - 4, b"\0")
                return (whole + least.to_bytes(5, "big")[1 : count + 1]).rstrip(b"\0") == self.stream
        return False


class Line:
    """What is known of a row or of a column."""

    def __init__(self, density, mean):
        self.density, self.mean, self.n = density, mean, 3
        self.balance = self.last = 0

    def guess(self):
        return clip(self.balance + 4, 0, 7)


def decode(payload, rows, columns, levels, center):
    transposed, rate, near, far = payload[0] & 1, payload[0] >> 1, payload[1], payload[2]
    if transposed:
        rows, columns = columns, rows
    matrix, ask = {}, Decisions(payload[3:], rate)
    overall, mean, mean_n = 32768, 0, 0
    lines = []
    for r in range(rows):
        row = Line(overall, mean)
        for c in range(columns):
            if r == 0:
                lines.append(Line(overall, mean))
            column = lines[c]
            places = ((r, c - 1), (r - 1, c), (r, c - near), (r, c - far), (r - 1, c - 1),
                      (r - 1, c + 1), (r, c - 2), (r - 2, c))  # fmt: skip
            around = [matrix.get(place, 0) for place in places]
            beside = [(c - 1, True), (c + 1, r > 0), (c - near, True), (c + near, r > 0)]
            nearby = sum(
                (lines[one] if known and 0 <= one < columns else column).density for one, known in beside
            )
            logits = [T[one.density // 16] for one in (column, row)]
            quantized = (
                quantize(logits[0], 14), quantize(logits[1], 12), quantize(T[nearby // 64], 14),
                quantize(sum(logits) - T[overall // 16], 48),
            )  # fmt: skip
            bit = not_zero(ask, r, c, around, *quantized)
            overall = moved(overall, bit, min(r * columns + c, 1000))
            column.density = moved(column.density, bit, min(r, 60) + 1)
            row.density = moved(row.density, bit, min(c, 119) + 7)
            matrix[r, c] = 0
            if bit:
                negative = sign(ask, r, c, around, row, column, levels, center)
                for line in (row, column):
                    line.balance += 1 - 2 * negative
                largest = center if negative else levels - 1 - center
                guess = clip(h(column.mean) + h(row.mean) - h(mean), 0, 63)
                m = size(ask, around, row, column, negative, largest, guess, quantized[0])
                for line in (row, column):
                    line.mean += (256 * m - line.mean) * step(line.n) >> 16
                    line.n = min(line.n + 1, 60)
                    line.last = m if m < 4 else min(7, 2 * log(m) + (m >> log(m) - 1 & 1))
                mean += (256 * m - mean) * step(mean_n) >> 16
                mean_n = min(mean_n + 1, 1000)
                matrix[r, c] = -m if negative else m
    assert ask.ended_right()
    found = np.array([matrix[r, c] + center for r in range(rows) for c in range(columns)]).reshape(
        rows, columns
    )
    return found.T if transposed else found


def quantize(x, n):
    return clip((x + 2048) * n >> 12, 0, n - 1)


def moved(d, bit, n):
    return clip(d + ((65535 * bit - d) * step(n) >> 16), 32, 65503)


def h(x):
    o = 8 if x < 512 else log(x)
    return 4 * (o - 8) + (x >> o - 2) % 4


def not_zero(ask, r, c, around, C, D, B, E):
    left, up, near, far, upleft, upright, left2, up2 = around
    sizes = [abs(one) for one in around]
    t = sum(sizes) + sum(sizes[:3])
    A = t if t < 6 else min(15, 2 * log(t) + 1 + (t >> log(t) - 1 & 1))
    names = (E, c, r, at_most(2, left, up, near, far), (C, D), (C, B), (B, at_most(1, left, near, up, far)),
             (A, D), at_most(2, upleft, upright, left2, up2), (A, B))  # fmt: skip
    return ask.bit(0, 48 + B, A, "not 0", names)


def sign(ask, r, c, around, row, column, levels, center):
    if center in (0, levels - 1):
        return int(center != 0)
    left, up, near, far, upleft, upright, left2, up2 = around
    mean = clip(2 * (left + up + near) + far + upleft + upright + left2 + 4, 0, 7)
    names = (None, c, r, sgn(left, up, near), sgn(left2, far, upleft), (column.guess(), row.guess()),
             sgn(upright, up2, column.balance), (mean, column.guess()))  # fmt: skip
    return ask.bit(1, 2, 20, "sign", names)


def size(ask, around, row, column, negative, largest, F, C):
    O = min(7, sum(abs(one) for one in around[:6]).bit_length())
    contexts = (F, (column.last, row.last), O, at_most(3, *around[:3]), C)
    k = 0
    while largest >= 2 ** (k + 1):
        names = (k, *((k, negative, one) for one in contexts))
        if not ask.bit(3 + k, 40 + O, 24 + k, "more", names):
            break
        k += 1
    m = 1
    for below in range(k - 1, -1, -1):
        v = m if m < 16 else 16 + below
        names = ((k, v), *((k, v, negative, one) for one in contexts))
        m = 2 * m + ask.bit(19 + k, 40 + O, 40 + k, "bit", names)
    return m


@pytest.mark.parametrize("transposed, rate, lags", [(False, 0, None), (True, 1, None), (False, 1, (1, 255))])
@pytest.mark.parametrize(
    "shape, levels, center, spread",
    [
        ((1, 500), 16, 7, 1.0), ((300, 1), 16, 0, 1.0), ((40, 30), 33, 16, 0.7), ((30, 40), 200, 199, 9.0),
        ((25, 40), 65536, 30000, 4000.0), ((60, 70), 2, 0, 0.4), ((70, 60), 9, 5, 0.2),
    ],
)  # fmt: skip
def test_a_stranger_decodes_what_is_written(shape, levels, center, spread, transposed, rate, lags):
    draw = np.random.default_rng(levels)
    rows = draw.gamma(1.0, 1.0, (shape[0], 1)) * draw.gamma(2.0, 0.5, (1, shape[1]))
    level = np.rint(draw.laplace(0, spread, shape) * rows) + (draw.random(shape) < 0.05)
    codes = np.clip(center + level, 0, levels - 1).astype(np.uint16)
    payload = encode_once(codes, levels, center, 1 << 20, transposed=transposed, rate=rate, lags=lags)
    assert np.array_equal(decode(payload, *shape, levels, center), codes)
