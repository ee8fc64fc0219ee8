"""How activations' ranges are chosen, where it matters: heavy tails, and few bits.

    python -m benchmarks.calibrators [--net resnet20 ...]

Two nets, each quantized to 8-bit weights and to 8- and 4-bit activations by every calibrator. ``as it is``:
the nets' own data. ``hot pixels``: a sensor with a defect, in all three parts of the data: one image in 256
has one pixel of 20 times the largest value. A grid that covers such a pixel has few codes left for the
others. Calibrators are compared by the validation error, in ONNX Runtime; the test error is what is reported.
Rows that are there already (``runs/calibrators``) are not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tersor
from benchmarks.integer import TASKS, Row, digest, kept
from benchmarks.results import write_results
from tersor.measure.quality import evaluate_model
from tersor.model.restore import trained_model
from tersor.spec import Code, Fold, Quantize, Recipe
from tersor.task import Batch, Task

RUNS = Path(__file__).resolve().parent.parent / "runs" / "calibrators"
NETS = ("lenet5_caffe", "resnet20")
CALIBRATORS = ("max", "moving-average", "percentile", "entropy", "mse", "auto")
BITS = (8, 4)
BATCHES = 32
SEED = 0
SHARE, FACTOR = 256, 20.0


class HotPixels:
    """A loader with one pixel of one image in :data:`SHARE` at ``FACTOR`` times the batch's largest value.

    Which pixels is drawn from ``seed`` when a pass begins, so every pass is the same as long as the
    loader's are.
    """

    def __init__(self, loader: Iterable[Batch], seed: int) -> None:
        self.loader = loader
        self.seed = seed
        self.generator = getattr(loader, "generator", None)  # for what seeds loaders

    def __iter__(self) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(self.seed)
        for images, labels in self.loader:
            yield _with_hot_pixels(images, draw), labels


def _with_hot_pixels(images: Tensor, draw: torch.Generator) -> Tensor:
    images = images.clone()
    hit = torch.rand(len(images), generator=draw) < 1 / SHARE
    places = torch.randint(0, images[0, 0].numel(), (len(images),), generator=draw)
    flat = images.flatten(2)
    flat[hit, :, places[hit]] = FACTOR * float(images.max())
    return flat.view_as(images)


def hot(task: Task) -> Task:
    """The task with hot pixels in all its data."""
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    found = {name: HotPixels(part, at) for at, (name, part) in enumerate(parts.items()) if part is not None}
    return replace(task, **found)


CASES: Mapping[str, Callable[[Task], Task]] = {"as it is": lambda task: task, "hot pixels": hot}


def recipe(calibrator: str, bits: int) -> Recipe:
    step = Quantize(calibrator=calibrator, activation_bits=bits, batches=BATCHES)  # type: ignore[arg-type]
    return Recipe(name=f"{calibrator}-{bits}", steps=(Fold(), step, Code(speed="fast")))


def measured(net: str, case: str, task: Task, calibrator: str, bits: int) -> Row:
    """One row: the net quantized, exported, and scored in ONNX Runtime on both parts of the data."""
    assert task.validation is not None
    few = replace(task, test=task.validation)  # nothing here looks at the test data but the last score
    out = RUNS / net / case.replace(" ", "-") / f"{calibrator}-{bits}"
    result = tersor.compress(few, recipe(calibrator, bits), out=out, seed=SEED)
    path = out / "model.onnx"
    tersor.export_model(few, result.path, path, batches=1)
    parts = {"validation": task.validation, "test": task.test}
    scores = {name: tersor.evaluate_onnx(few, path, loader=loader).value for name, loader in parts.items()}
    return {
        "net": net,
        "case": case,
        "activation_bits": bits,
        "calibrator": calibrator,
        "validation_error_percent": _percent(scores["validation"]),
        "error_percent": _percent(scores["test"]),
    }


def rows_of(net: str, case: str) -> list[Row]:
    """The float model's row, and one a calibrator and width; the best by validation is marked."""
    task = CASES[case](TASKS[net]())
    folder = RUNS / net / case.replace(" ", "-")
    tersor.save(trained_model(task), _made(folder) / "float.tersor")
    weights = {"weights": digest(folder / "float.tersor"), "share": SHARE, "factor": FACTOR}
    rows = [kept(folder / "float.json", weights, lambda: _float_row(net, case, task))]
    for bits in BITS:
        found = []
        for calibrator in CALIBRATORS:
            identity = weights | {"recipe": repr(recipe(calibrator, bits))}
            row = kept(
                folder / f"{calibrator}-{bits}.json",
                identity,
                lambda calibrator=calibrator, bits=bits: measured(net, case, task, calibrator, bits),
            )
            print(row, flush=True)
            found.append(row)
        best = min(row["validation_error_percent"] for row in found)
        rows += [row | {"best_on_validation": row["validation_error_percent"] == best} for row in found]
    return rows


def _float_row(net: str, case: str, task: Task) -> Row:
    model = trained_model(task)
    assert task.validation is not None
    errors: dict[str, Any] = {
        name: _percent(evaluate_model(model, task, loader).value)
        for name, loader in (("validation_error_percent", task.validation), ("error_percent", task.test))
    }
    return {"net": net, "case": case, "activation_bits": 32, "calibrator": "none: floats", **errors,
            "best_on_validation": False}  # fmt: skip


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _percent(accuracy: float) -> float:
    return round(100 * (1 - accuracy), 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for net in arguments.net for case in arguments.case for row in rows_of(net, case)]
    left = [f"{net}, {case}" for net in NETS for case in CASES
            if net not in arguments.net or case not in arguments.case]  # fmt: skip
    write_results("integer-calibrators", "python -m benchmarks.calibrators", rows, unfinished=left)


if __name__ == "__main__":
    main()
