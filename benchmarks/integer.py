"""Integer inference: error, file and latency of exported files, beside ONNX Runtime's quantizer and NNCF's.

    python -m benchmarks.integer [--net resnet20 ...] [--no-latency]

For each net, from one set of weights (seed 0) and one set of calibration images (4,096 of the training data,
as augmented): the float ONNX file, our files, and the peers' files made from that float file. Every file is
scored on the 10,000 test images in ONNX Runtime and in OpenVINO. Latencies are those of one thread, taken in
turns; a ratio is the median over rounds of two times in the same round, with the interval of the sign test.

Rows that are there already (``runs/integer``) are not measured again unless what they depend on has changed:
weights, recipe, the files that were timed. Remove that folder after a change of code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tersor
from benchmarks.baselines import trained
from benchmarks.peers import Images, file_bytes, nncf_missing, quantize_static, run_nncf
from benchmarks.results import write_results
from benchmarks.tasks import mnist_task, resnet20
from tersor.calibrate.activations import calibration_batches
from tersor.export.doctor import diagnose
from tersor.export.runtimes import Session, open_session
from tersor.export.served import ServedModel
from tersor.measure.latency import Latency, compare_latency
from tersor.measure.quality import compare, evaluate_model
from tersor.model.restore import trained_model
from tersor.result import Score
from tersor.spec import Cluster, Code, Fold, Quantize, Recipe, Train
from tersor.task import Task
from tersor.train.randomness import Randomness

RUNS = Path(__file__).resolve().parent.parent / "runs" / "integer"
COMMAND = "python -m benchmarks.integer"
RUNTIMES = ("onnxruntime", "openvino")
BATCHES = 32  # of 128 training images, for every method
BATCH_SIZES = (1, 32)
ROUNDS = 40
SEED = 0

# What ``qat`` rows train, weights, scales and biases: rates and epochs as in :mod:`benchmarks.qat`, or fewer.
TRAINING = {
    "lenet5_caffe": Train(epochs=2, lr=5e-4, warmup=0.05, teacher="none"),
    "keras_net": Train(epochs=3, lr=5e-4, warmup=0.05, teacher="none"),
    "resnet20": Train(epochs=3, lr=5e-4, warmup=0.05, teacher="none"),
}
OURS = ("int8", "int8 openvino", "int4", "int4 qat", "codebook", "codebook qat")
PEERS = ("quantize_static", "nncf onnx", "nncf openvino")

Row = dict[str, Any]


def recipe_of(method: str, net: str) -> Recipe | None:
    """The recipe of one of our methods for a net; None for the others."""
    if method not in OURS:
        return None
    kind, *words = method.split()
    train = TRAINING[net] if "qat" in words else None
    quantize = Quantize(bits=4 if kind == "int4" else 8, batches=BATCHES, train=train)
    middle = (Cluster(bits=4), quantize) if kind == "codebook" else (quantize,)
    return Recipe(name=method.replace(" ", "-"), steps=(Fold(), *middle, Code(speed="fast")))


def format_of(method: str) -> str:
    """Of the file of a method."""
    return "openvino" if method.endswith(" openvino") else "onnx"


def lenet5_caffe() -> Task:
    return mnist_task("lenet5_caffe", trained("lenet5_caffe", SEED, shifts=True))


def keras_net() -> Task:
    return mnist_task("keras_net", trained("keras_net", SEED, shifts=False), shifts=False)


TASKS: Mapping[str, Callable[[], Task]] = {
    "lenet5_caffe": lenet5_caffe,
    "keras_net": keras_net,
    "resnet20": resnet20,
}


@dataclass(frozen=True)
class Net:
    """A net with what all its files are made from; made once a run."""

    name: str
    task: Task
    baseline: Score
    folder: Path
    images: Images

    def path(self, method: str) -> Path:
        """The file of a method."""
        ending = ".xml" if format_of(method) == "openvino" else ".onnx"
        return self.folder / f"{method.replace(' ', '-')}{ending}"


def open_net(name: str, runs: Path = RUNS) -> Net:
    """The net's task, the score of its weights, its float ONNX file and the images to calibrate on."""
    task = TASKS[name]()
    model = trained_model(task)
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    images = calibration_images(task)
    net = Net(name, task, evaluate_model(model, task, task.test), folder, images)
    tersor.save(model, folder / "float.tersor")
    tersor.export_model(task, folder / "float.tersor", net.path("float"))
    return net


def calibration_images(task: Task) -> Images:
    """The images that a quantize step calibrates on."""
    assert task.train is not None
    with Randomness(task.train).seeded(SEED):
        return np.concatenate([batch[0].numpy() for batch in calibration_batches(task, BATCHES)])


def kept(path: Path, identity: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """What ``measure`` gives, from ``path`` if it is there and was measured under the same ``identity``."""
    wanted = json.loads(json.dumps(identity))
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["identity"] == wanted:
            return stored["value"]
    value = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"identity": wanted, "value": value}), encoding="utf-8")
    partial.replace(path)
    return value


def digest(*paths: Path) -> str:
    """Of what the files hold."""
    whole = hashlib.sha256()
    for path in paths:
        for one in (path, path.with_suffix(".bin")):
            if one.is_file():
                whole.update(one.read_bytes())
    return whole.hexdigest()[:16]


def accuracy(net: Net, methods: tuple[str, ...]) -> list[Row]:
    """A row for each method: its file is made, opened in both runtimes and scored there."""
    rows = []
    for method in methods:
        recipe = recipe_of(method, net.name)
        identity = {"float": digest(net.path("float")), "recipe": repr(recipe), "images": len(net.images)}
        stored = net.path(method).with_suffix(".json")
        if not net.path(method).is_file():
            stored.unlink(missing_ok=True)
        row = kept(stored, identity, lambda method=method: _measured(net, method))
        rows.append(row)
        _say(row)
    return rows


def _measured(net: Net, method: str) -> Row:
    started = time.perf_counter()
    path = net.path(method)
    made = _make(net, method)
    row: Row = {
        "figure": "accuracy",
        "net": net.name,
        "method": method,
        **made,
        "size_bytes": file_bytes(path),
        "size_ratio": file_bytes(path) / file_bytes(net.path("float")),
        "baseline_error_percent": _percent(net.baseline),
        "seconds": round(time.perf_counter() - started, 1),
    }
    for runtime in RUNTIMES if path.suffix == ".onnx" else ("openvino",):
        try:
            session = open_session(path, runtime)
        except tersor.ExportError as error:
            row[f"{runtime}_refuses"] = str(error).partition("does not take it: ")[2]
            continue
        row |= {f"{runtime}_{name}": one for name, one in _scored(net, session).items()}
    if path.suffix == ".onnx" and "onnxruntime_refuses" not in row:
        row["findings"] = [f"{one.kind}: {one.node}: {one.detail}" for one in diagnose(path)]
    return row


def _make(net: Net, method: str) -> Row:
    """Write the file of a method; what there is to say of how."""
    source, out = net.path("float"), net.path(method)
    if method == "float":
        return {"by": "torch.onnx through tersor"}
    if method == "quantize_static":
        import onnxruntime

        quantize_static(source, out, net.images)
        return {"by": f"onnxruntime {onnxruntime.__version__}"}
    if method in PEERS:
        return {"by": f"nncf {run_nncf(source, out, net.images)}"}
    recipe = recipe_of(method, net.name)
    assert recipe is not None
    result = tersor.compress(net.task, recipe, out=net.folder / "compressed" / method, seed=SEED)
    done = tersor.export_model(net.task, result.path, out, format=format_of(method))
    return {
        "by": "tersor",
        "agreement_steps": done.agreement.largest,
        "agreement_steps_mean": done.agreement.mean,
        "agreement_steps_local": done.agreement.local,
        "agreement_samples": done.agreement.samples,
    }


def _scored(net: Net, session: Session) -> Row:
    """The error on the test data in the runtime, and the paired interval of the drop."""
    score = evaluate_model(ServedModel(session), net.task, net.task.test)
    drop = compare(net.baseline, score, higher_is_better=True)
    assert drop.low is not None and drop.high is not None
    return {
        "error_percent": _percent(score),
        "drop_points": 100 * drop.drop,
        "drop_low": 100 * drop.low,
        "drop_high": 100 * drop.high,
    }


@dataclass(frozen=True)
class Timed:
    """One file in one runtime."""

    method: str
    runtime: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.method}, {self.precision}"


def latency(net: Net, methods: tuple[str, ...], batch_size: int, runtime: str) -> list[Row]:
    """A row for each file: milliseconds, and the ratio to each reference, both in turns in this process."""
    paths = {method: net.path(method) for method in methods}
    identity = {"files": {method: digest(path) for method, path in paths.items()}, "rounds": ROUNDS}
    stored = net.folder / f"latency-{runtime}-{batch_size}.json"
    rows: list[Row] = kept(stored, identity, lambda: _timed(net, paths, batch_size, runtime))
    for row in rows:
        _say(row)
    return rows


def _timed(net: Net, paths: Mapping[str, Path], batch_size: int, runtime: str) -> list[Row]:
    precisions = ("f32", "default") if runtime == "openvino" else ("f32",)
    timed = [Timed(method, runtime, precision) for precision in precisions for method in paths]
    images = next(iter(net.task.test))[0].numpy()
    given = [np.resize(images, (batch_size, *images.shape[1:]))]
    sessions = {one: open_session(paths[one.method], runtime, precision=one.precision) for one in timed}
    calls = {one.name: _call(session, given) for one, session in sessions.items()}
    references = [Timed("float", runtime, precision) for precision in precisions]
    references += [Timed(method, runtime, "f32") for method in ("quantize_static", "int8", *PEERS[1:])]
    found: dict[str, dict[str, Latency]] = {}
    for reference in references:
        if reference in sessions:
            first = {reference.name: calls[reference.name]} | calls
            done = compare_latency(first, rounds=ROUNDS, clock=time.process_time)
            found[reference.name] = {one.name: one for one in done}
    by_float = found[references[0].name]
    return [
        {
            "figure": "latency",
            "net": net.name,
            "batch_size": batch_size,
            "runtime": runtime,
            "version": session.version,
            "hint": one.precision,
            "floats": session.precision,
            "method": one.method,
            "threads": session.threads,
            "clock": "time of the process on the processor",
            **{key: value for key, value in asdict(by_float[one.name]).items() if "ratio" not in key},
            "ratios": {
                reference: [part[one.name].ratio, part[one.name].ratio_low, part[one.name].ratio_high]
                for reference, part in found.items()
            },
        }
        for one, session in sessions.items()
    ]


def _call(session: Session, given: list[Any]) -> Callable[[], object]:
    session.run(given)  # what does not fit is told before anything is timed
    return lambda: session.call(given)


def _percent(score: Score) -> float:
    return round(100 * (1 - score.value), 6)


def _say(row: Row) -> None:
    flat = {name: one for name, one in row.items() if not isinstance(one, list) and name != "figure"}
    print({name: round(one, 4) if isinstance(one, float) else one for name, one in flat.items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--no-latency", action="store_true", help="errors and sizes only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    missing = nncf_missing()
    methods = ("float", *OURS, *(one for one in PEERS if not (missing and one.startswith("nncf"))))
    rows: list[Row] = []
    for name in arguments.net:
        net = open_net(name)
        made = accuracy(net, methods)
        rows += made
        for runtime in () if arguments.no_latency else RUNTIMES:
            opened = tuple(row["method"] for row in made if f"{runtime}_error_percent" in row)
            for batch_size in BATCH_SIZES:
                rows += latency(net, opened, batch_size, runtime)
    if set(arguments.net) == set(TASKS) and not arguments.no_latency:
        write_results("integer", COMMAND, rows, left_out=[missing] if missing else [])


if __name__ == "__main__":
    main()
