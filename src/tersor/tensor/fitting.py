"""The scale of least squared error, group by group.

For given codes c the best scale is sum(x c) / sum(c^2), and what it gains is known from the same pass. So for
few weights or codes all cases are tried, otherwise candidates from coarse to fine are enough.

All arrays are flat in group order; ``weight`` is empty where all weigh the same; ``ends`` are the first and
last code. Scales are float64.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_TINY = float(np.finfo(np.float32).tiny)
_CHUNK = 1024  # weights summed in float32 before float64 takes over
_EXACT = 1 << 10  # codes times weights up to which all codes that a scale can give are tried
_EXACT_TERNARY = 1 << 20
_SMALL = 512  # groups up to this size have a jagged error: more candidates
_VECTOR = {"reassoc", "contract", "nsz"}  # sums in any order, so that they use vector instructions


@njit(cache=True, nogil=True)
def fit_symmetric(values, offsets, weight, extremes, ends):  # type: ignore[no-untyped-def]
    """Scales of grids around 0; ``extremes`` (groups, 2) are the least and largest weight, and 0."""
    low, high = ends
    found = np.empty(offsets.size - 1)
    for group in range(offsets.size - 1):
        members = values[offsets[group] : offsets[group + 1]]
        shares = weight[offsets[group] : offsets[group + 1]] if weight.size else weight
        scale = _widest(extremes[group, 0], extremes[group, 1], ends)
        if scale <= _TINY:
            found[group] = _TINY
            continue
        turns = np.count_nonzero(members) * max(high, -low)
        if turns <= (_EXACT if max(high, -low) > 1 else _EXACT_TERNARY):
            found[group] = max(_exact(members, shares, turns, ends), _TINY)
        else:
            found[group] = _scanned(members, shares, scale, ends)
    return found


@njit(cache=True, nogil=True)
def _widest(below, above, ends):  # type: ignore[no-untyped-def]
    """The least scale that clips nothing."""
    return max(above / ends[1], below / ends[0]) if ends[0] < 0 else above / ends[1]


@njit(cache=True, nogil=True)
def _exact(values, weight, turns, ends):  # type: ignore[no-untyped-def]
    """The best of all scales: codes change at |x| / (k - 1/2) only, one at a time, from 0 upward."""
    low, high = ends
    places, steps = np.empty(turns), np.empty(turns)
    members = np.empty(turns, np.int64)
    count = 0
    for i in range(values.size):
        size = abs(np.float64(values[i]))
        for k in range(1, (high if values[i] > 0 else -low) + 1 if size > 0 else 0):
            places[count], steps[count], members[count] = -size / (k - 0.5), 2 * k - 1, i
            count += 1
    mixed = codes = best = scale = 0.0
    for turn in np.argsort(places[:count]):
        share = np.float64(weight[members[turn]]) if weight.size else 1.0
        mixed += share * abs(np.float64(values[members[turn]]))
        codes += share * steps[turn]
        # Of equals (a group of one weight) the finest: there is more to it if the weights go on to train.
        if mixed / codes * mixed >= best * (1 - 1e-12):
            best = mixed / codes * mixed
            scale = mixed / codes
    return scale


@njit(cache=True, nogil=True)
def _scanned(values, weight, scale, ends):  # type: ignore[no-untyped-def]
    low, high = ends
    # A threshold below the mean clips more than finer codes can save.
    above, below = _means(values, weight)
    least = max(0.7 * (above + below) / max(high, -low), _TINY)
    ratio = 0.94 if values.size > _SMALL else 0.985
    error, best = _fitted(values, weight, scale, low, high)
    at = scale * ratio
    while at > least:
        other, fitted = _fitted(values, weight, at, low, high)
        if other < error:
            error, best = other, fitted
        at *= ratio
    # The largest codes change with steps of 1 / (2 high) in the scale: below that the error is smooth.
    around = best
    fine = min(1 - ratio, 0.25 / max(high, -low))
    span = int((1 - ratio) / fine) * (1 if values.size > _SMALL else 2)
    for step in range(-span, span + 1):
        other, fitted = _fitted(values, weight, around * (1 + step * fine), low, high)
        if other < error:
            error, best = other, fitted
    return _polished(values, weight, best, low, high)[1]


@njit(cache=True, nogil=True)
def fit_powers_of_two(values, offsets, weight, extremes, ends):  # type: ignore[no-untyped-def]
    """Like :func:`fit_symmetric`: the best of all powers of two, from the first that clips nothing down."""
    low, high = ends
    found = np.ones(offsets.size - 1)
    for group in range(offsets.size - 1):
        members = values[offsets[group] : offsets[group + 1]]
        shares = weight[offsets[group] : offsets[group + 1]] if weight.size else weight
        widest = _widest(extremes[group, 0], extremes[group, 1], ends)
        if widest <= _TINY:
            continue
        above, below = _means(members, shares)
        last = np.floor(np.log2(max((above + below) / 4 / max(high, -low), _TINY)))
        least = np.inf
        for exponent in range(min(np.ceil(np.log2(widest)), 127), max(last, -126) - 1, -1):
            error = _error(members, shares, 2.0**exponent, low, high)
            if error < least:
                least, found[group] = error, 2.0**exponent
    return found


@njit(cache=True, nogil=True)
def fit_asymmetric(values, offsets, weight, extremes, ends, power_of_two):  # type: ignore[no-untyped-def]
    """(scales, zero points)."""
    scales = np.empty(offsets.size - 1)
    zeros = np.empty(offsets.size - 1, np.int64)
    for group in range(offsets.size - 1):
        members = values[offsets[group] : offsets[group + 1]]
        shares = weight[offsets[group] : offsets[group + 1]] if weight.size else weight
        below, above = extremes[group]
        scale, zero = _grid(below, above, ends)
        if scale > _TINY:
            scale, zero = _two_ended(members, shares, below, above, ends)
            if power_of_two:
                scale, zero = _two_ended_power(members, shares, scale, zero, ends)
        scales[group], zeros[group] = scale, zero
    return scales, zeros


@njit(cache=True, nogil=True)
def _two_ended(values, weight, below, above, ends):  # type: ignore[no-untyped-def]
    """All pairs of a coarse mesh of thresholds, finer around the best, then neighbouring zero points."""
    steps = 12
    mean_above, mean_below = _means(values, weight)
    ratio_below = max(0.7 * mean_below / -below, 1e-3) ** (1 / steps) if below < 0 else 1.0
    ratio_above = max(0.7 * mean_above / above, 1e-3) ** (1 / steps) if above > 0 else 1.0
    error, low, high = np.inf, below, above
    scale, zero = 0.0, 0
    for i in range(steps + 2 if below < 0 else 1):
        for j in range(steps + 2 if above > 0 else 1):
            # The last one drops a side altogether.
            first = below * ratio_below**i if i <= steps else 0.0
            last = above * ratio_above**j if j <= steps else 0.0
            if first == last:
                continue
            other, fitted, at = _tried(values, weight, first, last, ends)
            if other < error:
                error, scale, zero, low, high = other, fitted, at, first, last
    while min(ratio_below, ratio_above) < 0.985:
        ratio_below, ratio_above = ratio_below**0.5, ratio_above**0.5
        near_low, near_high = low, high
        for i in range(-1, 2):
            for j in range(-1, 2):
                first, last = near_low * ratio_below**i, near_high * ratio_above**j
                other, fitted, at = _tried(values, weight, first, last, ends)
                if other < error:
                    error, scale, zero, low, high = other, fitted, at, first, last
    near_scale, near_zero = scale, zero
    for shift in range(-1, 2):
        at = min(max(near_zero + shift, ends[0]), ends[1])
        for step in range(-2, 3):
            start = near_scale * (1 + 0.004 * step)
            other, fitted = _polished(values, weight, start, ends[0] - at, ends[1] - at)
            if other < error:
                error, scale, zero = other, fitted, at
    return scale, zero


@njit(cache=True, nogil=True)
def _two_ended_power(values, weight, best_scale, best_zero, ends):  # type: ignore[no-untyped-def]
    """The powers of two near a scale, each with the zero points that keep either end, or one between."""
    least = np.inf
    scale, zero = best_scale, best_zero
    for power in _powers_near(best_scale):
        one = ends[0] + (best_zero - ends[0]) * best_scale / power
        other = ends[1] - (ends[1] - best_zero) * best_scale / power
        begin = max(np.int64(np.floor(min(one, other))), ends[0])
        end = min(np.int64(np.ceil(max(one, other))), ends[1])
        stride = max((end - begin) // 8, 1)
        near, least_here = begin, np.inf
        while stride:
            for at in range(begin, end + 1, stride):
                error = _error(values, weight, power, ends[0] - at, ends[1] - at)
                if error < least_here:
                    near, least_here = at, error
            begin, end = max(near - stride, ends[0]), min(near + stride, ends[1])
            stride //= 2
        if least_here < least:
            least, scale, zero = least_here, power, near
    return scale, zero


@njit(cache=True, nogil=True)
def _tried(values, weight, below, above, ends):  # type: ignore[no-untyped-def]
    scale, zero = _grid(below, above, ends)
    error, fitted = _fitted(values, weight, scale, ends[0] - zero, ends[1] - zero)
    return error, fitted, zero


@njit(cache=True, nogil=True)
def _grid(below, above, ends):  # type: ignore[no-untyped-def]
    scale = max((above - below) / (ends[1] - ends[0]), _TINY)
    zero = np.int64(np.rint(ends[0] - below / scale))
    return scale, min(max(zero, ends[0]), ends[1])


@njit(cache=True, nogil=True)
def _powers_near(scale):  # type: ignore[no-untyped-def]
    middle = np.floor(np.log2(max(scale, _TINY)))
    return 2.0 ** np.arange(max(middle - 1, -126), min(middle + 2, 127) + 1)


@njit(cache=True, nogil=True)
def _means(values, weight):  # type: ignore[no-untyped-def]
    """(of what is above 0, of what is below), over all."""
    above = below = mass = 0.0
    for i in range(values.size):
        share = np.float64(weight[i]) if weight.size else 1.0
        if values[i] > 0:
            above += share * values[i]
        else:
            below -= share * values[i]
        mass += share
    return above / mass, below / mass


@njit(cache=True, nogil=True)
def _polished(values, weight, scale, low, high):  # type: ignore[no-untyped-def]
    """(error, scale) after codes and scale were fitted in turn until nothing is gained."""
    error, scale = _fitted(values, weight, scale, low, high)
    for _ in range(8):
        other, fitted = _fitted(values, weight, scale, low, high)
        if not other < error * (1 - 1e-5):
            break
        error, scale = other, fitted
    return error, scale


@njit(cache=True, nogil=True)
def _fitted(values, weight, scale, low, high):  # type: ignore[no-untyped-def]
    """(error, scale) with the codes of ``scale`` and the scale that suits these best."""
    squares, mixed, codes = _moments(values, weight, 1 / scale, low, high)
    # A scale may come out that float32 holds no more, from codes that do not fit at all.
    better = scale * (1 + mixed / codes) if codes > 0 else scale
    if not better > _TINY:
        return squares * scale * scale, scale
    return max(squares - mixed * mixed / max(codes, 1.0), 0.0) * scale * scale, better


@njit(cache=True, nogil=True)
def _error(values, weight, scale, low, high):  # type: ignore[no-untyped-def]
    return _moments(values, weight, 1 / scale, low, high)[0] * scale * scale


@njit(cache=True, nogil=True, fastmath=_VECTOR)
def _moments(values, weight, per_scale, low, high):  # type: ignore[no-untyped-def]
    """Sums of d^2, d c and c^2, with the codes c and d = value / scale - c."""
    squares = mixed = codes = 0.0
    factor, low, high = np.float32(per_scale), np.float32(low), np.float32(high)
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        dd = dc = cc = np.float32(0)
        if weight.size:
            shares = weight[start : start + _CHUNK]
            for i in range(part.size):
                u = part[i] * factor
                c = min(max(np.rint(u), low), high)
                d = u - c
                dd += shares[i] * d * d
                dc += shares[i] * d * c
                cc += shares[i] * c * c
        else:
            for i in range(part.size):
                u = part[i] * factor
                c = min(max(np.rint(u), low), high)
                d = u - c
                dd += d * d
                dc += d * c
                cc += c * c
        squares += np.float64(dd)
        mixed += np.float64(dc)
        codes += np.float64(cc)
    return squares, mixed, codes
