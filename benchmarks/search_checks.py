"""Whether searches keep what they promise: drops on untouched data, and the same file after any kill.

    python -m benchmarks.search_checks [--part drops kills] [--jobs 2]

A small net on made-up data, trained anew for each seed, with 2,000 samples for validation and 20,000 to test.
``drops``: 20 searches for at most 2 points, as measured and with a confidence of 95 %; a budget is kept where
the drop on the test samples is within it. ``kills``: a search is killed (SIGKILL) at 20 random moments, each
time in a folder of its own, and asked for again; its file has to be that of a search that nobody killed. One
that had ended before the moment came does not count. A part that is not run stays as it was recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tersor
from benchmarks.results import RESULTS, read_results, write_results
from tersor.task import Task

COMMAND = "python -m benchmarks.search_checks"
SEARCHES, KILLS = 20, 20
ALLOWED = 0.02
SAMPLES = {"train": 2000, "validation": 2000, "test": 20000}
BATCH = 200
NOISE = 0.05  # of the labels


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))


def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(output, batch[1])


def right(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (output.argmax(1) == batch[1]).float()


def small_task(seed: int = 0) -> Task:
    """Two classes that a product of two inputs tells apart; the net is trained here, on data of its own."""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    parts = {}
    for name, count in SAMPLES.items():
        x = torch.randn(count, 8, generator=draw)
        y = ((x[:, 0] * x[:, 1] + x[:, 2]) > 0) ^ (torch.rand(count, generator=draw) < NOISE)
        parts[name] = (x, y.long())
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model(parts["train"][0]), parts["train"]).backward()
        optimizer.step()
    batches = {name: list(zip(x.split(BATCH), y.split(BATCH), strict=True)) for name, (x, y) in parts.items()}
    return tersor.Task(
        name="product", build=build, weights=model.state_dict(), loss=loss, score=right,
        validation=batches["validation"], test=batches["test"],
    )  # fmt: skip


def search_drop(seed: int, confidence: float | None) -> dict[str, Any]:
    """One search, and what its file loses on the test samples."""
    torch.set_num_threads(1)
    result = tersor.search(
        small_task(seed), tersor.Budget(max_drop=ALLOWED, confidence=confidence), seed=seed
    )
    assert result.search is not None
    return {
        "part": "drops", "seed": seed, "confidence": confidence, "size_bytes": result.size_bytes,
        "drop": round(result.comparison.drop, 6), "kept": result.comparison.drop <= ALLOWED,
        "met": result.search.met,
    }  # fmt: skip


def drops(jobs: int) -> list[dict[str, Any]]:
    """Searches as measured, and with a confidence."""
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        for confidence in (None, 95.0):
            for row in pool.map(partial(search_drop, confidence=confidence), range(SEARCHES)):
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def killed(moment: float, whole: bytes) -> dict[str, Any]:
    """A search that is killed after a share of the time that one takes, and goes on: is the file the same?"""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.search_checks", "--one", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        was_running = process.wait() == -signal.SIGKILL
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        same = (Path(folder) / "model.tersor").read_bytes() == whole
    return {"part": "kills", "seconds": round(moment, 3), "was_running": was_running, "same_file": same}


def kills() -> list[dict[str, Any]]:
    """Kills at random moments of the time that a whole search takes."""
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "benchmarks.search_checks", "--one", folder], check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        whole = (Path(folder) / "model.tersor").read_bytes()
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    while len(rows) < KILLS:
        row = killed(float(draw.uniform(0.1, 1.0)) * seconds, whole)
        print(row, flush=True)
        if row["was_running"]:
            rows.append(row)
        else:
            seconds = min(seconds, row["seconds"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--part", nargs="+", choices=("drops", "kills"), default=("drops", "kills"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        tersor.search(small_task(), tersor.Budget(max_drop=ALLOWED), out=arguments.one)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    stored = RESULTS / "search_checks.json"
    known = read_results(stored)["rows"] if stored.exists() else []
    rows = [row for row in known if row["part"] not in arguments.part]
    rows += drops(arguments.jobs) if "drops" in arguments.part else []
    rows += kills() if "kills" in arguments.part else []
    write_results("search_checks", COMMAND, rows, allowed=ALLOWED)


if __name__ == "__main__":
    main()
