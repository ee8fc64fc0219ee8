"""How far a quantized graph's outputs are from those of the float one, in the same runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.errors import VerificationError
from tersor.export.runtimes import Array, Session
from tersor.progress import Progress

STEPS = 255  # of an 8-bit output over the range that it takes


@dataclass(frozen=True)
class OutputAgreement:
    """The integer model's outputs against those of the float one, on the same samples in ONNX Runtime.

    largest, mean -- of the differences, in steps: the range of the float outputs over 255.
    cosine -- between all outputs of the one and of the other.
    """

    samples: int
    step: float
    largest: float
    mean: float
    cosine: float


def compare_sessions(
    before: Session, after: Session, batches: Sequence[list[Array]], progress: Progress
) -> OutputAgreement:
    """Run both on the batches, arrays in the order of their inputs.

    Raises :class:`VerificationError` where ``before`` gives NaN, and where one gives Inf and the other does
    not; what is the same Inf in both is left out.
    """
    low, high, samples, count = math.inf, -math.inf, 0, 0
    largest = total = 0.0
    products = np.zeros(3)
    for done, batch in enumerate(batches):
        progress("check", done, len(batches))
        for first, second in zip(before.run(batch), after.run(batch), strict=True):
            if first.dtype.kind != "f" or not first.size:
                continue
            one, other = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
            if np.isnan(one).any():
                raise VerificationError("the float model gives NaN: there is nothing to compare with")
            plain = np.isfinite(one) & np.isfinite(other)
            if not np.array_equal(one[~plain], other[~plain]):
                raise VerificationError("the quantized model gives NaN or Inf where the float one does not, "
                                        "or the other way round")  # fmt: skip
            one, other = one[plain], other[plain]
            if not one.size:
                continue
            off = np.abs(one - other)
            largest, total, count = max(largest, float(off.max())), total + float(off.sum()), count + off.size
            low, high = min(low, float(one.min())), max(high, float(one.max()))
            products += one @ other, one @ one, other @ other
        samples += len(batch[0]) if batch and batch[0].ndim else 1
    progress("check", len(batches), len(batches))
    if not count:
        raise VerificationError("the model gives no floating output to compare")
    step = max((high - low) / STEPS, 1e-12)
    length = math.sqrt(products[1] * products[2])
    cosine = float(products[0] / length) if length else 1.0
    return OutputAgreement(samples, step, largest / step, total / count / step, cosine)
