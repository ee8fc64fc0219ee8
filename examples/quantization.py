"""Float, calibrated, trained: what 8 to 1 bits do to a small net, with and without zero points.

    python examples/quantization.py [OUT] [--bits 8 4 3 2 1]

The net is that of ``digits.py``. For each width its weights are put on a symmetric grid (zero in the middle)
and on an asymmetric one (a zero point a channel; one bit has no room for it), activations on 8 bits: once
calibrated, without training, and once trained under its integers (quantization-aware training). Every number
is measured on files: the score and the bytes of the ``.tersor`` file, the bytes of the exported ONNX file and
its milliseconds in ONNX Runtime beside the float one's. A net as small as this one gains no time by integers;
``tersor bench`` says why.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np

import tersor
from digits import task
from tersor.export.runtimes import open_session
from tersor.measure.latency import compare_latency
from tersor.report import as_lines
from tersor.report.tables import Table

BITS = (8, 4, 3, 2, 1)
BATCH = 50  # images in a call that is timed
TRAIN = tersor.Train(epochs=20, lr=1e-3, warmup=0.05)


def steps(bits: int, symmetric: bool) -> dict[str, tuple[tersor.Step, ...]]:
    """The recipes of a width and kind of grid: calibrated alone, and trained after it."""
    step = tersor.Quantize(bits=bits, symmetric=symmetric, batches=8, scale="max" if bits == 8 else "mse")
    return {"calibrated": (step,), "trained": (replace(step, train=TRAIN),)}


def make(recipe: tuple[tersor.Step, ...], out: Path) -> tersor.Result:
    """The file of a recipe, and its ONNX form beside it, checked in ONNX Runtime."""
    result = tersor.compress(task(), tersor.Recipe(steps=(*recipe, tersor.Code())), out=out, seed=0)
    tersor.export_model(task(), result.path, out / "model.onnx")
    return result


def call(folder: Path) -> Callable[[], object]:
    """One inference of a folder's ONNX file."""
    session = open_session(folder / "model.onnx")
    return partial(session.run, [np.zeros((BATCH, 1, 8, 8), np.float32)])


def compare(widths: Sequence[int], out: Path) -> Table:
    """A row for the float net, and one for each width, kind of grid, and way to get there."""
    made = {out / "float": make((), out / "float")}
    for bits in widths:
        for symmetric in (True, False)[: 1 if bits == 1 else 2]:
            for way, recipe in steps(bits, symmetric).items():
                folder = out / f"{bits}-bits-{'symmetric' if symmetric else 'asymmetric'}-{way}"
                print(folder.name, flush=True)
                made[folder] = make(recipe, folder)
    times = compare_latency({folder.name: call(folder) for folder in made}, clock=process_time)
    rows = [
        (
            folder.name.replace("-", " "),
            f"{result.artifact.value:.3f}",
            f"{result.size_bytes:,}",
            f"{(folder / 'model.onnx').stat().st_size:,}",
            f"{time.median_ms:.3f}",
            f"{time.ratio:.2f}",
        )
        for (folder, result), time in zip(made.items(), times, strict=True)
    ]
    columns = ("weights", "accuracy", ".tersor bytes", "ONNX bytes", f"ms for {BATCH}", "of float")
    return Table("float, calibrated, trained", columns, tuple(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("out/quantization"))
    parser.add_argument("--bits", nargs="+", type=int, choices=BITS, default=BITS)
    arguments = parser.parse_args()
    print(*as_lines(compare(arguments.bits, arguments.out)), sep="\n")


if __name__ == "__main__":
    main()
