"""Re-evaluate every committed artifact from its file and hold it against the figures.

    python -m benchmarks.verify

Each row of ``benchmarks/results/*.json`` that names an ``artifact`` is checked: its ``size_bytes`` is that of
the file, its ``error_percent`` that of a fresh model which holds the file's tensors and nothing else, on
the 10,000 test images of MNIST or CIFAR-10. A file in ``benchmarks/artifacts`` that no row names is a
difference too. The MNIST baselines' weights are not needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import tersor
from benchmarks.nets import NETS
from benchmarks.results import RESULTS, ROOT, read_results
from benchmarks.tasks import net_task

ARTIFACTS = ROOT / "artifacts"
FIELDS = ("net", "size_bytes", "error_percent")

Row = Mapping[str, Any]


def error_percent(net: str, path: Path) -> float:
    """The test error of a file, as the benchmarks write it."""
    score = tersor.evaluate(net_task(net), path)
    return round(100 * (1 - score.value), 6)


def differences(
    row: Row, artifacts: Path = ARTIFACTS, measure: Callable[[str, Path], float] = error_percent
) -> list[str]:
    """What a row says and its file does not; empty where they agree."""
    missing = [name for name in FIELDS if name not in row]
    if missing:
        return [f"the row lacks {', '.join(missing)}"]
    if row["net"] not in NETS:
        return [f"net {row['net']!r} is not in benchmarks.nets ({', '.join(NETS)})"]
    path = artifact_path(row, artifacts)
    if not path.is_file():
        return ["there is no such file"]
    found = []
    size = path.stat().st_size
    if size != row["size_bytes"]:
        found.append(f"the file has {size:,} bytes, the row says {row['size_bytes']:,}")
    try:
        measured = measure(row["net"], path)
    except tersor.TersorError as error:
        return [*found, f"{type(error).__name__}: {error}"]
    if measured != row["error_percent"]:
        found.append(f"the error is {measured:g} %, the row says {row['error_percent']:g} %")
    return found


def artifact_path(row: Row, artifacts: Path = ARTIFACTS) -> Path:
    """The file of a row, by its name alone: nothing outside ``artifacts`` is ever opened."""
    return artifacts / Path(row["artifact"]).name


def claims(results: Path = RESULTS) -> Iterator[tuple[str, Row]]:
    """(results file, row) of each row that names an artifact."""
    for path in sorted(results.glob("*.json")):
        for row in read_results(path)["rows"]:
            if row.get("artifact"):
                yield path.name, row


def main(results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> int:
    """Check everything, say what differs, return the exit code: 0, or 5 as for any failed verification."""
    started = perf_counter()
    claimed, wrong = set(), 0
    for source, row in claims(results):
        path = artifact_path(row, artifacts)
        claimed.add(path.name)
        found = differences(row, artifacts)
        wrong += bool(found)
        print(f"{path.name} ({source}): {'; '.join(found) or 'as claimed'}", flush=True)
    unclaimed = sorted(path.name for path in artifacts.glob("*.tersor") if path.name not in claimed)
    for name in unclaimed:
        print(f"{name}: no row of {results.name}/*.json names it")
    print(f"{len(claimed)} artifacts, {wrong + len(unclaimed)} differ, {perf_counter() - started:.0f} s")
    if not claimed:
        print("there is nothing to verify: no row names an artifact")
    return tersor.VerificationError.exit_code if wrong or unclaimed or not claimed else 0


if __name__ == "__main__":
    sys.exit(main())
