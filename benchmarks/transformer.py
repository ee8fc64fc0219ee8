"""MiniLM in integers: cosine with the float model, bytes and latency, beside ONNX Runtime's own quantizers.

    python -m benchmarks.transformer

The encoder's linear layers are quantized, the embeddings stay in float. ONNX Runtime's tools get the file
that plain ``torch.onnx.export`` writes; both sides calibrate on the same 128 sentences. Alpha of the
smoothing is chosen by the cosine on 128 validation sentences, in ONNX Runtime; 256 test sentences give the
cosines of the rows. Latencies are taken in turns, on one thread, by the processor time of the process;
their ratios are to plain float32 and to this project's, whose graph ONNX Runtime runs faster
(:mod:`tersor.export.fusions`). Rows with "Sum" are the other files with that same change, so that what is
left is the quantizer's doing. Blocks of four bits run in two ways: as the file says, and with what they
multiply rounded to 8 bits.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

import tersor
from benchmarks.minilm import MiniLM, minilm
from benchmarks.results import RESULTS, write_results
from tersor.export.fusions import keep_apart_
from tersor.export.runtimes import Precision, open_session
from tersor.measure.latency import compare_latency

LAYERS = ("encoder.*",)
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
CALIBRATION_BATCHES = 8  # of 16 sentences
SHAPES = ((1, 32), (1, 128), (8, 128))
FEW_TOKENS = (1, 2, 4, 8, 16)
PLAIN, OURS = "plain float32", "tersor float32"
SUM = ", Sum"
BLOCK = 32
TARGET = {"cosine": 0.995, "latency_ratio": 0.45}

Files = dict[str, Path]


def recipe(quantize: tersor.Quantize | None, alpha: float | None = None) -> tersor.Recipe:
    """Smoothing where alpha is given, then the quantize step."""
    smooth = () if alpha is None else (tersor.Smooth(alpha=alpha, batches=4, targets=LAYERS),)
    return tersor.Recipe(steps=(*smooth, *([quantize] if quantize else []), tersor.Code(speed="fast")))


DYNAMIC = tersor.Quantize(activations="dynamic", targets=LAYERS)
STATIC = tersor.Quantize(batches=CALIBRATION_BATCHES, targets=LAYERS)
INT4 = tersor.Quantize(bits=4, granularity="block", block_size=BLOCK, activations="none", targets=LAYERS)


def export(task: tersor.Task, steps: tersor.Recipe, path: Path) -> Path:
    """The recipe's file as ONNX, checked in ONNX Runtime by :func:`tersor.export_model`."""
    if not path.exists():
        few = replace(task, test=list(islice(iter(task.test), 2)))  # what compress measures is not used here
        with TemporaryDirectory() as folder:
            tersor.compress(few, steps, out=folder)
            tersor.export_model(few, Path(folder) / "model.tersor", path)
    return path


def export_plain(task: tersor.Task, path: Path) -> Path:
    """What ``torch.onnx.export`` gives a user, with both axes of the input free."""
    if path.exists():
        return path
    model = MiniLM().eval()
    model.load_state_dict(dict(task.weights))  # type: ignore[arg-type]
    ids, mask, _ = next(iter(task.test))
    free = {0: torch.export.Dim("n", min=1), 1: torch.export.Dim("tokens", min=2, max=512)}
    with _quiet():
        program = torch.onnx.export(
            model, (ids, mask), dynamo=True, dynamic_shapes=(free, free), verbose=False
        )
    assert program is not None
    program.save(path, external_data=False)
    return path


def apart(source: Path, path: Path) -> Path:
    """A file with ``Sum`` for the ``Add`` before each norm, as this project writes it."""
    model = ir.load(source)
    keep_apart_(model.graph)
    ir.save(model, path)
    return path


def quantize_dynamic(prepared: Path, path: Path, batches: Sequence[Any]) -> None:
    from onnxruntime import quantization

    quantization.quantize_dynamic(
        prepared, path, op_types_to_quantize=["MatMul"], per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


def quantize_static(prepared: Path, path: Path, batches: Sequence[Any], only: list[str] | None) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            names = [one.name for one in open_session(prepared).inputs]
            self.batches = (
                dict(zip(names, (ids.numpy(), mask.numpy()), strict=True)) for ids, mask, _ in batches
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    quantization.quantize_static(
        prepared, path, Reader(), op_types_to_quantize=only, per_channel=True,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )  # fmt: skip


def quantize_blocks(prepared: Path, path: Path, batches: Sequence[Any], level: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(prepared), bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=level
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), False)


PEERS: Mapping[str, Callable[[Path, Path, Sequence[Any]], None]] = {
    "onnxruntime dynamic": quantize_dynamic,
    "onnxruntime static, MatMul": lambda *where: quantize_static(*where, ["MatMul"]),
    "onnxruntime static, all": lambda *where: quantize_static(*where, None),
    "onnxruntime int4 blocks, float32": lambda *where: quantize_blocks(*where, 1),
    "onnxruntime int4 blocks, int8": lambda *where: quantize_blocks(*where, 4),
}


def peers(task: tersor.Task, plain: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """ONNX Runtime's files, each also with this project's change to the graph."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    batches = list(islice(iter(task.train or ()), CALIBRATION_BATCHES))
    for name, quantize in PEERS.items():
        path = folder / f"{name}.onnx"
        if not path.exists():
            with _quiet():
                if not prepared.exists():
                    quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # it fails on this graph
                quantize(prepared, path, batches)
        yield name, path
        yield name + SUM, apart(path, folder / f"{name}-sum.onnx")


def kernels(path: Path, precision: Precision = "f32") -> dict[str, int]:
    """The nodes that ONNX Runtime makes of a file's products, and the slow fusion with the norm."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if precision == "f32":
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    found = Counter(one.op_type for one in nodes)
    return {
        name: n for name, n in sorted(found.items()) if "MatMul" in name or "Gemm" in name or "Skip" in name
    }


def score(task: tersor.Task, path: Path, precision: Precision = "f32", loader: Any = None) -> tersor.Score:
    """The mean cosine with the float model's embeddings, in ONNX Runtime."""
    return tersor.evaluate_onnx(task, path, precision=precision, loader=loader)


def opened(name: str) -> Precision:
    """Blocks of four bits run in two ways: as the file says, and as ONNX Runtime does by itself."""
    return "default" if "int8" in name else "f32"


def latencies(files: Files, shape: tuple[int, int], first: str, rounds: int) -> list[dict[str, Any]]:
    """All files in turns on sentences of random words, with the ratio to the one called ``first``."""
    draw = np.random.default_rng(0)
    arrays = [draw.integers(1000, 20_000, shape), np.ones(shape, np.int64)]
    sessions = {name: open_session(files[name], precision=opened(name)) for name in (first, *files)}
    calls = {name: (lambda one=one: one.run(arrays)) for name, one in sessions.items()}
    found = compare_latency(calls, rounds=rounds, clock=time.process_time)
    return [{"sentences": shape[0], "tokens": shape[1], "of": first, **asdict(one)} for one in found]


def choose_alpha(task: tersor.Task, folder: Path) -> tuple[float, list[dict[str, float]]]:
    """The alpha with the greatest cosine on the validation sentences, and all of them."""
    rows = []
    for alpha in ALPHAS:
        path = export(task, recipe(DYNAMIC, alpha), folder / f"alpha-{alpha}.onnx")
        rows.append({"alpha": alpha, "validation_cosine": score(task, path, loader=task.validation).value})
        print(rows[-1], flush=True)
    return max(rows, key=lambda one: one["validation_cosine"])["alpha"], rows


def build(task: tersor.Task, folder: Path, alpha: float) -> Files:
    """Every file that is compared; those that are there already are taken as they are."""
    mse = replace(INT4, scale="mse", symmetric=False, narrow=False)
    plain = export_plain(task, folder / "plain.onnx")
    int4 = export(task, recipe(INT4), folder / "int4.onnx")
    return {
        PLAIN: plain,
        PLAIN + SUM: apart(plain, folder / "plain-sum.onnx"),
        OURS: export(task, recipe(None), folder / "float.onnx"),
        "tersor smooth, dynamic": export(task, recipe(DYNAMIC, alpha), folder / f"alpha-{alpha}.onnx"),
        "tersor smooth, static": export(task, recipe(STATIC, alpha), folder / f"static-{alpha}.onnx"),
        "tersor dynamic": export(task, recipe(DYNAMIC), folder / "dynamic.onnx"),
        "tersor int4 blocks, float32": int4,
        "tersor int4 blocks, int8": int4,
        "tersor int4 blocks, mse, asymmetric, float32": export(task, recipe(mse), folder / "int4-mse.onnx"),
        **dict(peers(task, plain, folder)),
    }


def measured(task: tersor.Task, files: Files) -> Iterator[dict[str, Any]]:
    """One row a file, without its latency."""
    for name, path in files.items():
        found = score(task, path, opened(name))
        row = {
            "file": name,
            "cosine": found.value, "cosine_low": found.low, "cosine_high": found.high,
            "size_bytes": path.stat().st_size,
            "kernels": kernels(path, opened(name)),
        }  # fmt: skip
        print(f"{name:40} {row['cosine']:.5f} {row['size_bytes']:>11,} {row['kernels']}", flush=True)
        yield row


def _is_alike(name: str) -> bool:
    """Whether a file's graph has this project's change: only those are held against its float32."""
    return name.startswith("tersor") or name.endswith(SUM)


def run(folder: Path, rounds: int, out: Path) -> None:
    """Everything, in one run."""
    task = minilm()
    alpha, alphas = choose_alpha(task, folder)
    files = build(task, folder, alpha)
    rows = list(measured(task, files))
    times = []
    for first in (PLAIN, OURS):
        alike = {name: path for name, path in files.items() if first == PLAIN or _is_alike(name)}
        for shape in SHAPES:
            times += latencies(alike, shape, first, rounds)
            for one in times[-len(alike) :]:
                print(f"{shape} of {first}: {one['name']:40} {one['ratio']:.3f}", flush=True)
    few = {name: path for name, path in files.items() if "float32" in name or "int4" in name}
    few |= {"tersor smooth, dynamic": files["tersor smooth, dynamic"]}
    for tokens in FEW_TOKENS:
        times += latencies(few, (1, tokens), OURS, rounds)
    write_results(
        "transformer", "python -m benchmarks.transformer", rows, folder=out,
        alpha=alpha, alphas=alphas, latencies=times, target=TARGET, samples=256,
        runtime=open_session(files[PLAIN]).description, clock="process_time",
    )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of exporters and quantizers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=16, help="of the latencies")
    parser.add_argument("--work", type=Path, help="keep the ONNX files here, and take those that are there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        run(folder, options.rounds, options.out)


if __name__ == "__main__":
    main()
