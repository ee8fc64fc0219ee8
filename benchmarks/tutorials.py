"""The tutorials' small nets without any training: 16 shared values, and entropy-constrained codebooks.

    python -m benchmarks.tutorials

Peer, in the same run on the same weights: scikit-learn's k-means with 16 values a layer, codes packed in
4 bits by hand, everything gzipped at level 9 (what the tutorials measure). The entropy rows weigh errors by
the diagonal Fisher information of 200 training batches. No rate is chosen: every rung of a ladder is a row,
so that the page shows the whole curve of size against error.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans

import tersor
from benchmarks.baselines import trained
from benchmarks.results import write_results
from benchmarks.tasks import mnist_task
from tersor.measure.quality import evaluate_model
from tersor.model.restore import fresh_model

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
CLUSTERS = 16
RATES = (6e-4, 9e-4, 1.3e-3, 2e-3)


def shared_16(net: str, seed: int, task: tersor.Task) -> list[dict[str, Any]]:
    return [_measured(net, seed, task, tersor.load_recipe("cluster"))]


def entropy(net: str, seed: int, task: tersor.Task) -> list[dict[str, Any]]:
    preset = tersor.load_recipe("entropy").with_fields("cluster", importance="fisher", fisher_batches=200)
    return [
        _measured(net, seed, task, preset.with_fields("cluster", rate=rate), f"-{rate:g}") | {"rate": rate}
        for rate in RATES
    ]


def _measured(
    net: str, seed: int, task: tersor.Task, recipe: tersor.Recipe, suffix: str = ""
) -> dict[str, Any]:
    result = tersor.compress(task, recipe, seed=seed)
    artifact = HERE / "artifacts" / f"{net}-{recipe.name}{suffix}-{seed}.tersor"
    shutil.copyfile(result.path, artifact)
    return _row(net, recipe.name, seed, result.size_bytes, result.dense_bytes) | {
        "error_percent": _percent(result.artifact.value),
        "baseline_error_percent": _percent(result.baseline.value),
        "drop_points": 100 * result.comparison.drop,
        "artifact": artifact.relative_to(HERE.parent).as_posix(),
    }


def hand_packed(net: str, seed: int, task: tersor.Task) -> list[dict[str, Any]]:
    """scikit-learn's 16 means a layer, two codes a byte, biases as they are, gzip -9."""
    state = dict(task.weights) if isinstance(task.weights, Mapping) else torch.load(task.weights)
    stored = bytearray()
    for name, weight in state.items():
        values = weight.numpy()
        if values.ndim < 2:
            stored += values.tobytes()
            continue
        means = KMeans(CLUSTERS, n_init=1, random_state=seed).fit(values.reshape(-1, 1))
        codes = means.labels_.astype(np.uint8)
        codes = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
        stored += means.cluster_centers_.astype(np.float32).tobytes()
        stored += (codes[::2] | codes[1::2] << 4).tobytes()
        shared = means.cluster_centers_.astype(np.float32)[means.labels_].reshape(values.shape)
        state[name] = torch.from_numpy(shared)
    model = fresh_model(task)
    model.load_state_dict(state)
    dense = sum(one.numel() * one.element_size() for one in state.values())
    error = _percent(evaluate_model(model, task, task.test).value)
    row = _row(net, "hand-packed-gzip", seed, len(gzip.compress(bytes(stored), 9)), dense)
    return [row | {"error_percent": error}]


def _row(net: str, recipe: str, seed: int, size: int, dense: int) -> dict[str, Any]:
    return {"net": net, "recipe": recipe, "seed": seed, "size_bytes": size, "dense_bytes": dense,
            "ratio": dense / size}  # fmt: skip


def _percent(accuracy: float) -> float:
    return round(100 * (1 - accuracy), 6)


METHODS = {"keras_net": (hand_packed, shared_16, entropy), "convnet_87k": (hand_packed, shared_16)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = []
    for net in METHODS:
        for seed in SEEDS:
            task = mnist_task(net, trained(net, seed, shifts=False), seed=seed, shifts=False)
            for method in METHODS[net]:
                for row in method(net, seed, task):
                    rows.append(row)
                    print({key: value for key, value in row.items() if key != "artifact"}, flush=True)
    write_results("tutorials", "python -m benchmarks.tutorials", rows)


if __name__ == "__main__":
    main()
