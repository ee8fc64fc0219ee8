"""One way to give a model its bits, with all that was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tersor.measure.footprint import Footprint
from tersor.measure.latency import Latency
from tersor.result import Comparison, Score


@dataclass(frozen=True)
class Strategy:
    """A model in FP32, all in 8 or in 4 bits, or mixed: its own file, and what was measured on it.

    path -- the ``.tersor`` file, where it was kept; ``exported``: the ONNX file.
    score -- of the file, read back; ``comparison`` with the trained model, on the same samples.
    footprint -- weights and activations in memory: an estimate, in the file's own precision.
    latency -- of the ONNX file in ONNX Runtime, timed in turns with the others; its ratio is to the first.
    missing -- what could not be had, by the name of the field, and why.
    """

    name: str
    path: Path | None = None
    size_bytes: int | None = None
    score: Score | None = None
    comparison: Comparison | None = None
    footprint: Footprint | None = None
    exported: Path | None = None
    exported_bytes: int | None = None
    latency: Latency | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
